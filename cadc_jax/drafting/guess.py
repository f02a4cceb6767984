"""Guesses what the columns of a log are, from their names and their first values."""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

from cadc_jax.drafting.heads import ADJACENCY, Head
from cadc_jax.errors import DataError

# Names without case and marks, the likeliest first; then words that a name may begin or end with.
_USERS = (
    *("userid", "user", "uid", "customerid", "customer", "visitorid", "visitor", "reviewerid"),
    *("reviewer", "memberid", "member", "clientid", "client", "accountid", "account", "personid"),
    *("listenerid", "readerid", "viewerid", "playerid", "studentid", "sessionid", "session"),
)
_ITEMS = (
    *("itemid", "item", "iid", "productid", "product", "movieid", "movie", "filmid", "film"),
    *("bookid", "isbn", "parentasin", "asin", "businessid", "artistid", "trackid", "songid"),
    *("videoid", "adid", "ad", "articleid", "newsid", "venueid", "locationid", "poi", "gameid"),
    *("gmapid", "appid", "courseid", "recipeid", "anime", "animeid", "sku", "artist", "track"),
    *("song", "video", "article", "news", "venue", "location", "game", "app", "course", "recipe"),
)
_TIMES = (
    *("timestamp", "time", "ts", "unixtime", "unixreviewtime", "seconds", "datetime", "date"),
    *("when", "createdat", "eventtime", "ratedat", "reviewtime"),
)
_LABELS = ("label", "click", "clicked", "isclick", "iscl", "target", "y", "purchased", "converted")
_RATINGS = ("rating", "stars", "score", "overall", "ratings", "grade")
_COUNTS = (
    *("value", "count", "counts", "plays", "playcount", "times", "weight", "quantity", "qty"),
    *("freq", "frequency", "watchratio", "hours", "playtime", "minutes", "listens"),
)
_MOST_SCALE = 1_000  # distinct values of an integer that is a category
_MANY_ITEMS = 500  # that a user has not seen: 99 can be drawn of them
_LEAST_ROWS = 3  # of a user whose last rows can be held out


@dataclasses.dataclass
class Guess:
    """What the columns of a log are.

    Attributes:
      roles: 'user', 'item', 'timestamp', 'label' or 'value' -> its column.
      why: a line about each guess, and about what was left out.
      min_value: least value of a positive; 0: all are.
      value_scale: as `data.value_scale`.
      dense, categorical: features of the rows, of a click log alone.
      user_features, item_features: columns that stand for a user or an item that none names.
      split: as `data.split`.
      num_negatives: as `data.num_negatives`.
    """

    roles: dict[str, str] = dataclasses.field(default_factory=dict)
    why: list[str] = dataclasses.field(default_factory=list)
    min_value: float = 0.0
    value_scale: str = "linear"
    dense: list[str] = dataclasses.field(default_factory=list)
    categorical: list[str] = dataclasses.field(default_factory=list)
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()
    split: str = "leave_one_out"
    num_negatives: int = 99

    @property
    def task(self) -> str:
        """'click' if there are labels, else 'ranking'."""
        return "click" if "label" in self.roles else "ranking"


def plain(name: str) -> str:
    """A name without case and marks."""
    return re.sub("[^a-z0-9]", "", name.lower())


def guess(head: Head, own_split: bool = False) -> Guess:
    """Guesses the columns of a log.

    Args:
      head: its first rows.
      own_split: whether the log has test files.

    Raises:
      DataError: if no column may be the user, or none the item.
    """
    found = Guess()
    if head.format == ADJACENCY:
        found.roles = {"user": "user", "item": "item"}
        found.why.append("each line is a user and its items: data.format = 'adjacency'")
    else:
        _find_by_name(head, found)
        if head.header:
            _find_by_place(head, found)
        if "label" in found.roles:
            _find_features(head, found)
        _check_ids(head, found)
    if own_split:
        found.split = "given"
    else:
        _choose_split(head, found)
    _choose_values(head, found)
    if found.task == "ranking":
        found.num_negatives = _negatives_for(head, found)
    for name in head.skipped:
        found.why.append(f"{name}: left out, its values are lists")
    return found


def has_ids(head: Head) -> bool:
    """Whether a file may be a log: some columns may be its user and its item."""
    try:
        guess(head)
    except DataError:
        return False
    return True


def _find_by_name(head: Head, found: Guess) -> None:
    tests: dict[str, tuple[Sequence[str], Callable[[str], bool]]] = {
        "label": (_LABELS, lambda name: _is_label(head, name)),
        "timestamp": (_TIMES, lambda name: head.kind(name) in ("integer", "number", "date")),
        "user": (_USERS, lambda name: True),
        "item": (_ITEMS, lambda name: True),
        "value": (_RATINGS + _COUNTS, lambda name: head.kind(name) in ("integer", "number")),
    }
    for role, (words, fits) in tests.items():
        free = [name for name in head.columns if name not in found.roles.values()]
        named = [name for word in words for name in free if plain(name) == word and fits(name)]
        if not named and role in ("user", "item"):
            short = [word for word in words if word.endswith("id")]
            named = [name for name in free if any(plain(name).endswith(x) for x in short)]
        if named:
            found.roles[role] = named[0]
            found.why.append(f"{named[0]}: the {role}, by its name")
    for name in head.columns:
        if plain(name) in _TIMES and name not in found.roles.values():
            found.why.append(f"{name}: no time that is read (seconds, or 2017-07-14 02:40:00)")
        if plain(name) in _LABELS and name not in found.roles.values():
            found.why.append(f"{name}: no label, as its first values are not 0 and 1 both")


def _is_label(head: Head, name: str) -> bool:
    return set(head.columns[name]) == {"0", "1"}


def _find_by_place(head: Head, found: Guess) -> None:
    """Of a file without a header: the user, the item, then what the values look like."""
    names = list(head.columns)
    for role, name in zip(("user", "item"), names, strict=False):
        found.roles[role] = name
        found.why.append(f"{name}: the {role}, by its place (there is no header)")
    for name in names[2:]:
        if _looks_like_time(head, name):
            role = "timestamp"
        elif _is_label(head, name):
            role = "label"
        elif _scale_of(head, name):
            role = "value"
        else:
            continue
        if role not in found.roles:
            found.roles[role] = name
            found.why.append(f"{name}: the {role}, by its values")


def _looks_like_time(head: Head, name: str) -> bool:
    if head.kind(name) == "date":
        return True
    numbers = _numbers(head, name)
    return bool(numbers) and 1e8 < min(numbers) and max(numbers) < 1e14


def _scale_of(head: Head, name: str) -> int:
    """5 or 10 if the values are clearly ratings of 1 to 5 or to 10, else 0."""
    numbers = set(_numbers(head, name))
    if len(numbers) < 3 or min(numbers) < 0.5 or any(x % 0.5 for x in numbers):
        return 0
    return int(max(numbers)) if max(numbers) in (5, 10) else 0


def _numbers(head: Head, name: str) -> list[float]:
    if head.kind(name) not in ("integer", "number"):
        return []
    return [float(x) for x in head.columns[name] if x]


def _find_features(head: Head, found: Guess) -> None:
    """Features of the rows of a click log: what is left."""
    for name in head.columns:
        if name in found.roles.values():
            continue
        distinct = len(set(head.columns[name]))
        kind = head.kind(name)
        if distinct < 2:
            found.why.append(f"{name}: left out, it has one value")
        elif kind == "number" or (kind == "integer" and distinct > _MOST_SCALE):
            found.dense.append(name)
        elif distinct > 0.9 * head.rows and head.rows > 50:
            found.why.append(f"{name}: left out, nearly all its values occur once")
        else:
            found.categorical.append(name)
    if found.dense or found.categorical:
        found.why.append(
            f"features of the rows: {len(found.dense)} dense, {len(found.categorical)} categorical"
        )


def _check_ids(head: Head, found: Guess) -> None:
    """Finds a user or an item that no name tells, among columns whose values are repeated."""
    for role in ("user", "item"):
        if role in found.roles:
            continue
        taken = {*found.roles.values(), *found.user_features}
        free = found.categorical if found.task == "click" else list(head.columns)
        free = [name for name in free if name not in taken and head.kind(name) != "number"]
        sizes = {name: len(set(head.columns[name])) for name in free}
        repeated = [name for name in free if 1 < sizes[name] < max(2, head.rows)]
        if not repeated:
            raise DataError(
                f"{head.path}: no column that may be the {role} ({', '.join(head.columns)}): give "
                "the file a header that names it 'user_id' or 'item_id', or write the configuration"
            )
        chosen = max(repeated, key=lambda name: sizes[name])
        found.why.append(
            f"{chosen}: stands for the {role}, which no name tells: it has the most values"
        )
        if found.task == "ranking":
            found.roles[role] = chosen
        elif role == "user":
            found.user_features = (chosen,)
        else:
            found.item_features = (chosen,)


def _choose_split(head: Head, found: Guess) -> None:
    when = found.roles.get("timestamp")
    if when is not None and len(set(head.columns[when])) < 2:
        found.why.append(f"{when}: left out, all its first values are equal")
        del found.roles["timestamp"]
        when = None
    if found.task == "click":
        found.split = "random" if when is None else "time"
        return
    pairs = set(zip(*(head.columns[found.roles[x]] for x in ("user", "item")), strict=True))
    rows_of = collections.Counter(user for user, _ in pairs)
    enough = sum(count >= _LEAST_ROWS for count in rows_of.values())
    if head.whole and enough < len(rows_of) / 2:
        found.split = "random" if when is None else "time"
        found.why.append(f"data.split = {found.split!r}: most users have fewer than 3 rows")
    elif when is None:
        found.why.append("no column of times: a seeded order stands in for them")


def _negatives_for(head: Head, found: Guess) -> int:
    """Items that can be drawn for each held-out one, whatever its user has seen."""
    user, item = (head.columns[found.roles[role]] for role in ("user", "item"))
    items_of = collections.Counter(user for user, _ in set(zip(user, item, strict=True)))
    unseen = len(set(item)) - max(items_of.values())
    return min(99, unseen // 2) if head.whole or unseen < _MANY_ITEMS else 99


def _choose_values(head: Head, found: Guess) -> None:
    name = found.roles.get("value")
    if name is None:
        return
    if found.task == "click":
        del found.roles["value"]
        found.why.append(f"{name}: not used as a value, as there are labels")
        if name not in found.dense:
            found.dense.append(name)
        return
    scale, numbers = _scale_of(head, name), _numbers(head, name)
    if scale:
        found.min_value, found.value_scale = 0.8 * scale, "none"
        found.why.append(
            f"{name}: ratings up to {scale}; those of {found.min_value:g} and more are positives"
        )
    elif plain(name) in _RATINGS or not numbers or min(numbers) < 0:
        found.value_scale = "none"
        found.why.append(f"{name}: no clear scale, so that every row counts alike")
    else:
        found.value_scale = "log" if max(numbers) > 20 else "linear"
        how = f"data.value_scale = {found.value_scale!r}"
        found.why.append(f"{name}: the strength of a row ({how})")
