"""Writes a configuration for a log that it has looked at, with what it guessed as comments."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from cadc_jax import configuration
from cadc_jax.drafting import guess, layout
from cadc_jax.drafting.guess import Guess
from cadc_jax.drafting.heads import ADJACENCY, CRITEO, Head
from cadc_jax.drafting.layout import Layout
from cadc_jax.errors import ConfigError

_FEW_ROWS = 5_000  # of a log that is small enough to keep half of it
_MOST_USERS = 5_000  # ranked among all items
_MOST_VALUES = 200  # of a content column of text that is a category
_TITLES = ("title", "name")


@dataclasses.dataclass(frozen=True)
class Draft:
    """A configuration as text.

    Attributes:
      name: of the run.
      text: of the file.
      why: a line about each guess.
    """

    name: str
    text: str
    why: list[str]


def draft(log: Path, name: str = "") -> Draft:
    """Drafts the configuration of a log; quickly, from the first rows of its files.

    Args:
      log: a file of rows, or a folder of the files of one log.
      name: of the run; '' for the name of the log.

    Raises:
      DataError: if it is no log that can be read, or its users or items cannot be told.
    """
    log = log.resolve()
    found = layout.find(log)
    name = name or re.sub(r"[^\w]+", "_", log.name.split(".")[0]).strip("_") or "mine"
    if found.variant:
        lines, why = _movielens(found)
    elif found.head.format == CRITEO:
        lines, why = _criteo(log)
    else:
        guessed = guess.guess(found.head, own_split="test" in found.files)
        lines, why = _tabular(found, guessed), guessed.why
    text = _file(log, name, lines)
    _check(text)
    return Draft(name, text, why)


def _file(log: Path, name: str, lines: list[str]) -> str:
    body = "\n".join(f"    {line}".rstrip() for line in lines)
    return (
        f'"""{_quoted(log.name)[1:-1]}: drafted by \'cadc init\' from its first rows; look at its '
        'guesses."""\n\n'
        "from cadc_jax.configuration import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.name = {_quoted(name)}\n"
        f"{body}\n"
        "    return config\n"
    )


def _check(text: str) -> None:
    """Raises ConfigError unless a configuration can be used."""
    names: dict = {}
    exec(compile(text, "the draft", "exec"), names)
    configuration.validate(names["get_config"]())


def _quoted(text: str) -> str:
    """A text as Python and JSON write it."""
    return json.dumps(text, ensure_ascii=False)


def _tuple(names: Sequence[str]) -> str:
    quoted = ", ".join(map(_quoted, names))
    return f"({quoted},)" if len(names) == 1 else f"({quoted})"


def _movielens(found: Layout) -> tuple[list[str], list[str]]:
    why = [f"the original files of MovieLens {found.variant}"]
    lines = [
        "",
        "data = config.data",
        'data.source = "movielens"',
        f"data.variant = {_quoted(found.variant)}",
        f"data.path = {_quoted(str(found.folder))}",
        'data.value_scale = "none"  # a film that was rated counts, however it was',
        "# data.min_value = 4.0  # instead: films of 4 stars and more are the positives",
        *_ranking_lines(),
    ]
    return lines, why


def _criteo(log: Path) -> tuple[list[str], list[str]]:
    why = [
        "40 fields between tabs, the first 0 or 1: a log in the format of Criteo",
        "C7 and C11 stand for the user and the item, which the log does not name: "
        "'cadc candidates' compares all columns",
    ]
    lines = [
        'config.models = ("dlrm",)',
        "",
        "data = config.data",
        'data.source = "criteo"',
        f"data.path = {_quoted(str(log))}",
        'data.task = "click"',
        'data.split = "order"  # of the file, which is one of time',
        "data.min_count = 4",
        'data.user_features = ("C7",)  # stands for the user; see cadc candidates',
        'data.item_features = ("C11",)  # and for the item',
        "data.log_dense = True",
        *_click_lines(),
    ]
    return lines, why


def _tabular(found: Layout, guessed: Guess) -> list[str]:
    head = found.head
    lines = [] if guessed.task == "ranking" else ['config.models = ("dlrm",)']
    if head.whole and "test" not in found.files and head.rows < _FEW_ROWS:
        lines.append("config.rate = 0.5  # a log as small as this has no rows to spare")
    lines += ["", "data = config.data", f"data.path = {_quoted(str(found.folder))}"]
    lines += [f"data.{split}_file = {_quoted(name)}" for split, name in found.files.items()]
    if head.format == ADJACENCY:
        lines.append('data.format = "adjacency"  # lines: user item item ...')
    else:
        lines += _column_lines(head, guessed)
    if guessed.task == "click":
        lines.append('data.task = "click"')
    lines.append(f"data.split = {_quoted(guessed.split)}")
    if missing := _missing(head, guessed):
        lines.append(f"data.max_malformed = {missing:.2g}  # rows without an id are left out")
    for kind, described in found.content.items():
        if kind in guessed.roles:
            lines += _content_lines(kind, described, guessed)
    lines += _click_lines() if guessed.task == "click" else _ranking_lines(guessed.num_negatives)
    return lines


def _column_lines(head: Head, guessed: Guess) -> list[str]:
    lines = []
    if head.separator:
        lines.append(f"data.columns.separator = {_quoted(head.separator)}")
    if head.header:
        lines.append(f"data.columns.header = {_tuple(head.header)}  # the file has none")
    defaults = configuration.default_config().data.columns
    for role in ("user", "item", "timestamp", "label", "value"):
        name = guessed.roles.get(role, "")
        if name != defaults[role]:
            lines.append(f"data.columns.{role} = {_quoted(name)}")
    if guessed.dense:
        lines.append(f"data.columns.dense = {_tuple(guessed.dense)}")
    if guessed.categorical:
        lines.append(f"data.columns.categorical = {_tuple(guessed.categorical)}")
    for kind in ("user", "item"):
        if features := getattr(guessed, f"{kind}_features"):
            why = f"stands for the {kind}; see cadc candidates"
            lines.append(f"data.{kind}_features = {_tuple(features)}  # {why}")
    if guessed.min_value:
        lines += [
            f"data.min_value = {guessed.min_value:g}  # lower ratings are no positives; 0: all are",
            'data.value_scale = "none"  # or "linear": the higher the rating, the more it counts',
        ]
    elif "value" in guessed.roles:
        lines.append(f"data.value_scale = {_quoted(guessed.value_scale)}  # linear, log or none")
    return lines


def _missing(head: Head, guessed: Guess) -> float:
    """Share of malformed rows to allow: twice that of rows without an id, or 0."""
    names = [guessed.roles[role] for role in ("user", "item") if role in guessed.roles]
    if head.format == ADJACENCY or not head.rows:
        return 0.0
    rows = zip(*(head.columns[name] for name in names), strict=True)
    return min(0.5, 2 * sum(not all(row) for row in rows) / head.rows)


def _content_lines(kind: str, head: Head, guessed: Guess) -> list[str]:
    """Lines about a file of content, if it is clear what it holds."""
    own = guessed.roles[kind]
    ids = [name for name in head.columns if guess.plain(name) in (guess.plain(own), "id")]
    ids += [name for name in head.columns if guess.plain(name) == f"{kind}id"]
    if not ids or len(set(head.columns[ids[0]])) < head.rows or "" in head.columns[ids[0]]:
        return []
    place = f"data.{kind}_content"
    features: dict[str, list[str]] = {"dense": [], "categorical": [], "bags": []}
    title = ""
    for name in head.columns:
        if name == ids[0]:
            continue
        if guess.plain(name) in _TITLES and not title:
            title = name
        elif (use := _feature_kind(head, name, kind)) is not None:
            features[use].append(name)
    if not title and not any(features.values()):
        return []
    guessed.why.append(f"{head.path.name}: describes the {kind}s, by its name and its ids")
    lines = [f"{place}.file = {_quoted(head.path.name)}", f"{place}.id = {_quoted(ids[0])}"]
    lines += [f"{place}.{use} = {_tuple(names)}" for use, names in features.items() if names]
    if title:
        lines.append(f"{place}.title = {_quoted(title)}")
    if head.separator:
        lines.append(f"{place}.separator = {_quoted(head.separator)}")
    if head.header:
        lines.append(f"{place}.header = {_tuple(head.header)}")
    return lines


def _feature_kind(head: Head, name: str, kind: str) -> str | None:
    """What a column of content is: 'dense', 'categorical', 'bags', or None for no feature."""
    values = head.columns[name]
    distinct = len(set(values))
    if distinct < 2:
        return None
    if head.kind(name) == "number":
        return "dense"
    if kind == "item" and sum("|" in value for value in values) > head.rows / 10:
        return "bags"
    repeated = distinct <= min(_MOST_VALUES, max(2, head.rows // 2))
    return "categorical" if repeated and head.kind(name) != "date" else None


def _ranking_lines(num_negatives: int = 99) -> list[str]:
    few = [f"data.num_negatives = {num_negatives}  # of few items, no more can be drawn for a user"]
    return [
        *(few if num_negatives < 99 else ()),
        "",
        'config.factorization = "als"',
        "config.train.negatives = 4",
        f"config.evaluation.max_users = {_MOST_USERS}",
    ]


def _click_lines() -> list[str]:
    return ["", 'config.factorization = "sgd"', "config.train.negatives = 0  # rows have labels"]


def write(made: Draft, out: Path) -> None:
    """Writes a draft into a new file.

    Raises:
      ConfigError: if the file is there already, or is no name of Python's.
    """
    if out.suffix != ".py":
        raise ConfigError(f"--out={out}: give a file of Python, such as configs/mine.py")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "x") as file:
            file.write(made.text)
    except FileExistsError:
        raise ConfigError(f"--out={out}: is there already; give another file") from None
