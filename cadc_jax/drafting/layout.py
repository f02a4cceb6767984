"""Finds the files of a log: its rows, split or in parts, and what describes users and items."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cadc_jax.data.readers import movielens, registry
from cadc_jax.drafting import guess
from cadc_jax.drafting.heads import Head, read_head
from cadc_jax.errors import DataError

_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
_DESCRIBED = {  # how the name of a file of content begins
    "user": ("user", "customer", "member", "visitor", "reviewer"),
    "item": ("item", "product", "movie", "film", "book", "song", "track", "video", "article"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a log.

    Attributes:
      folder: where they lie.
      head: the first rows of the first file.
      files: 'train', 'validation' or 'test' -> a file, a folder or a pattern in `folder`.
      content: 'user' or 'item' -> the head of the file that may describe it.
      variant: of MovieLens in its original files, or ''.
    """

    folder: Path
    head: Head
    files: Mapping[str, str]
    content: Mapping[str, Head] = dataclasses.field(default_factory=dict)
    variant: str = ""


def find(log: Path) -> Layout:
    """Finds the files of a log.

    Args:
      log: a file, or a folder with the files of one log.

    Raises:
      DataError: if there is none, or several may be it.
    """
    if log.is_file():
        files = {"train": log.name}
        return Layout(log.parent, read_head(log), files, _content(log.parent, [log]))
    if not log.is_dir():
        raise DataError(f"{log}: no such file or folder; name the log, or the folder of its files")
    if variant := _movielens(log):
        return Layout(log, Head(log, {}), {}, variant=variant)
    tables = _tables(log) or _tables(log / "data")  # as in a snapshot of a hub
    by_split = _by_split(tables) or _saved(log)
    if by_split:
        files = {split: _name_of(log, paths) for split, paths in by_split.items()}
        rows = [path for paths in by_split.values() for path in paths]
        return Layout(log, read_head(by_split["train"][0]), files, _content(log, rows))
    rows, head = _log_among(log, tables)
    return Layout(log, head, {"train": _name_of(log, rows)}, _content(log, rows))


def _movielens(folder: Path) -> str:
    """The variant of MovieLens whose original files are in a folder, or ''."""
    for variant in movielens.VARIANTS:
        needed = movielens.content_files(variant).values()
        ratings = movielens.ratings_file(folder, variant)
        if ratings.exists() and all((folder / name).exists() for name in needed):
            return variant
    return ""


def _tables(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.is_file() and registry.is_table(path.name)]
    return registry.in_natural_order(files)


def _by_split(tables: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split by their names, if there are some of training.

    A file without the columns of training is none of rows, but perhaps of negatives.
    """
    found: dict[str, list[Path]] = {}
    for path in tables:
        if split := registry.split_of(path.name):
            found.setdefault(_SPLITS[split], []).append(path)
    if len(found) > 1 and "train" in found:
        wanted = set(guess.guess(read_head(found["train"][0])).roles.values())
        for paths in found.values():
            paths[:] = [path for path in paths if wanted <= read_head(path).columns.keys()]
    return _in_order({split: paths for split, paths in found.items() if paths})


def _saved(log: Path) -> dict[str, list[Path]]:
    """The files of each split in folders named after them."""
    folders = {_SPLITS[path.name]: path for path in log.iterdir() if path.name in _SPLITS}
    found = {split: _tables(path) for split, path in folders.items()}
    return _in_order({split: paths for split, paths in found.items() if paths})


def _in_order(found: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    if "train" not in found:
        return {}
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _log_among(log: Path, tables: Sequence[Path]) -> tuple[list[Path], Head]:
    """The files of rows among tables: those of the same columns that are largest together."""
    alike: dict[tuple[str, ...], list[Head]] = {}
    for path in tables:
        try:
            head = read_head(path)
        except DataError:
            continue
        if guess.has_ids(head) and not _describes(path):
            key = (path.suffix, head.format, *head.columns)
            alike.setdefault(key, []).append(head)
    if not alike:
        raise DataError(f"{log}: no file with rows of users and items in it; name the file")
    heads = max(alike.values(), key=lambda heads: sum(x.path.stat().st_size for x in heads))
    return [head.path for head in heads], heads[0]


def _name_of(log: Path, paths: Sequence[Path]) -> str:
    """A name for the configuration that means exactly these files."""
    names = [path.relative_to(log).as_posix() for path in paths]
    if len(names) == 1:
        return names[0]
    folder = paths[0].parent
    if folder != log and set(_tables(folder)) == set(paths):
        splits = {registry.split_of(path.name) for path in paths}
        if len(splits) == 1:
            return folder.relative_to(log).as_posix()
    first = os.path.commonprefix(names)
    last = os.path.commonprefix([name[::-1] for name in names])[::-1]
    last = last[-min(len(last), min(map(len, names)) - len(first)) :] if last else ""
    pattern = f"{first}*{last}"
    if {path for path in log.glob(pattern) if path.is_file()} != set(paths):
        raise DataError(
            f"{log}: {len(names)} files of rows ({names[0]}, ...), which no pattern tells from the "
            "others; name one of them, or move them into a folder of their own"
        )
    return pattern


def _describes(path: Path) -> str | None:
    """'user' or 'item' if the name of a file says that it describes them."""
    stem = guess.plain(path.name.split(".")[0])
    kinds = [kind for kind, words in _DESCRIBED.items() if stem.startswith(words)]
    return kinds[0] if kinds else None


def _content(folder: Path, rows: Sequence[Path]) -> dict[str, Head]:
    """Heads of the files beside the log whose names say that they describe users or items."""
    found = {}
    for path in _tables(folder):
        kind = _describes(path)
        if kind is None or path in rows or kind in found:
            continue
        try:
            found[kind] = read_head(path)
        except DataError:  # it is not named, and hinders nobody
            continue
    return found
