"""Maps raw values to ids: exactly, or by a hash if there are too many values to keep.

Ids of a column are 1, 2, ... in the order of its values; id 0 stands for every other value. Values
that are met later (`grown`) follow at the end, so that no id changes. A
column with more distinct training values than allowed is hashed instead: the id of any value is
then 1 + mix64(value) % size, and no values are stored.

`Counter` counts the values of a column over chunks and makes its `Vocabulary`. `cross` combines
several columns into one.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import raw, sampling
from cadc_jax.data.raw import Values
from cadc_jax.errors import DataError

# Columns of counted values; text or numbers.
COUNTED = tuple(
    pa.schema([("value", kind), ("count", pa.int64())]) for kind in (pa.int64(), pa.string())
)
# Ids and rows of tables are int32. The difference to 2**31 is for rows that fill up the parts of a
# table that is split over devices, and for the id past the last one.
MOST_IDS = 2**31 - 2**16
_LEAST_PENDING = 1 << 16  # counted values that may wait before they are merged
_HASHED_AT_ONCE = 1 << 14  # texts: the arrays of so many stay in the cache


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The values of a column that have an id of their own.

    Attributes:
      values: [n] distinct values, sorted but for those that `grown` added; empty if ids are hashed.
      hashed: number of ids that values are hashed to, or 0 if `values` have the ids.

    Raises:
      DataError: if there are more ids than MOST_IDS.
    """

    values: Values
    hashed: int = 0
    _texts: "_TextPlaces | None" = dataclasses.field(init=False, repr=False)
    _order: np.ndarray | None = dataclasses.field(init=False, repr=False)  # None: they are sorted

    def __post_init__(self):
        if self.size > MOST_IDS:
            raise DataError(
                f"a column has {self.size:,} ids: at most {MOST_IDS:,} are possible; hash it to "
                "fewer by data.max_vocabulary"
            )
        values, texts, order = raw.as_values(self.values), None, None
        if isinstance(values, np.ndarray):
            values = values.astype(np.int64, copy=False)
            if not np.all(values[1:] > values[:-1]):
                order = np.argsort(values)
        else:
            texts = _TextPlaces(values)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "_texts", texts)
        object.__setattr__(self, "_order", order)

    @property
    def size(self) -> int:
        """Number of ids, id 0 included."""
        return (self.hashed or len(self.values)) + 1

    def ids(self, values: Values) -> np.ndarray:
        """Ids of raw values: [N] -> [N] int32 in [0, size)."""
        if self.hashed:
            keys = sampling.mix64(hash_of(values), 0)
            return (1 + keys % np.uint64(self.hashed)).astype(np.int32)
        if not len(self.values) or not len(values):
            return np.zeros(len(values), np.int32)
        if self._texts is not None:
            return self._texts.of(_as_texts(raw.as_values(values))) + np.int32(1)
        values = _as_integers(raw.as_values(values))
        # Sorted values are searched from one end of a large vocabulary to the other: faster.
        order = np.argsort(values)
        ordered = values[order]
        places = np.searchsorted(self.values, ordered, sorter=self._order)
        places = np.minimum(places, len(self.values) - 1)
        if self._order is not None:
            places = self._order[places]
        ids = np.empty(len(values), np.int32)
        ids[order] = np.where(self.values[places] == ordered, places + 1, 0)
        return ids

    def coded_ids(self, column: pa.DictionaryArray) -> np.ndarray:
        """Ids of a dictionary-encoded column: [N] int32."""
        return self.ids(raw.as_values(column.dictionary))[column.indices.to_numpy()]


class Counter:
    """Counts the values of a column over chunks, in memory bounded by the distinct values."""

    def __init__(self, max_values: int):
        """`max_values`: distinct values to keep; with more the column is hashed. 0: no bound."""
        self.max_values = max_values
        self.overflowed = False
        self.merged: pa.Table | None = None
        self.pending: list[pa.Table] = []
        self.num_pending = 0

    @classmethod
    def of_counts(cls, max_values: int, counts: pa.Table | None) -> "Counter":
        """A counter of these counts, with columns as in `COUNTED`; None if it has overflowed."""
        counter = cls(max_values)
        counter.merged, counter.overflowed = counts, counts is None
        return counter

    def add(self, dictionary: pa.Array, counts: np.ndarray) -> None:
        """Adds the `counts` [n] of the values of a dictionary [n], some of which may be 0."""
        if self.overflowed:
            return
        present = counts > 0
        values = dictionary.filter(pa.array(present))
        self.pending.append(pa.table({"value": values, "count": counts[present]}))
        self.num_pending += len(values)
        if self.num_pending > max(_LEAST_PENDING, len(self.merged or ())):
            self.merge_pending()

    def merge(self, other: "Counter") -> None:
        """Adds the counts of another counter."""
        other.merge_pending()
        self.overflowed |= other.overflowed
        if self.overflowed:
            self.merged, self.pending = None, []
        elif other.merged is not None:
            self.pending.append(other.merged)
            self.merge_pending()

    def merge_pending(self) -> None:
        """Merges pending counts, after which each value is stored once."""
        tables = self.pending if self.merged is None else [self.merged, *self.pending]
        self.pending, self.num_pending = [], 0
        if not tables:
            return
        table = pa.concat_tables(tables)
        grouped = table.group_by("value", use_threads=False).aggregate([("count", "sum")])
        self.merged = grouped.rename_columns({"count_sum": "count"})
        if self.max_values and len(self.merged) > self.max_values:
            self.overflowed, self.merged = True, None

    def vocabulary(self, min_count: int) -> Vocabulary:
        """The values of at least `min_count` rows, or the hash if there were too many values."""
        self.merge_pending()
        if self.overflowed:
            return Vocabulary(np.zeros(0, np.int64), self.max_values)
        if self.merged is None:
            return Vocabulary(np.zeros(0, np.int64))
        frequent = self.merged.filter(pc.field("count") >= min_count)["value"]
        return Vocabulary(_sorted(raw.raw_values(frequent)))


def of(values: Values, min_count: int = 1) -> Vocabulary:
    """The vocabulary of a column [N] in memory: the values of at least `min_count` rows."""
    values = raw.as_values(values)
    if isinstance(values, np.ndarray):
        distinct, counts = np.unique(values, return_counts=True)
        return Vocabulary(distinct[counts >= min_count])
    distinct, counts = pc.value_counts(values).flatten()
    return Vocabulary(_sorted(distinct.filter(pc.greater_equal(counts, min_count))))


def grown(known: Vocabulary, values: Values) -> Vocabulary:
    """The vocabulary with those of the distinct `values` [n] that it lacks, sorted, at its end.

    Hashed ids stay as they are. If only one of both has text, integers become text.
    """
    if known.hashed:
        return known
    old, new = known.values, _sorted(raw.as_values(values))
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return Vocabulary(np.concatenate([old, new[known.ids(new) == 0]]))
    old, new = _with_missing(old), _with_missing(new)
    unknown = pa.array(Vocabulary(old).ids(new) == 0)
    return Vocabulary(pa.concat_arrays([old, new.filter(unknown)]))


def _with_missing(values: Values) -> pa.Array:
    """Values as text, in which '' is missing as -1 is among integers."""
    if not isinstance(values, np.ndarray):
        return values
    return pc.if_else(pa.array(values == -1), pa.scalar("", raw.TEXT), _as_texts(values))


def values_of(column: pa.ChunkedArray) -> Values:
    """A column of a chunk in memory: [N] numbers or text."""
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy()
    return raw.as_values(column.cast(column.type.value_type))


def cross(columns: list[Values]) -> Values:
    """Crosses columns into one int64 key >= 0 for each distinct combination: C columns [N] -> [N].

    Several columns are hashed to 63 bits. A single column is returned as it is.
    """
    if len(columns) == 1:
        return columns[0]
    return _cross_hashes([hash_of(column) for column in columns])


def cross_coded(columns: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """`cross` for dictionary-encoded columns."""
    if len(columns) == 1:
        return columns[0]
    hashes = [hash_of(raw.as_values(x.dictionary))[x.indices.to_numpy()] for x in columns]
    return raw.coded(_cross_hashes(hashes))


def hash_of(values: Values) -> np.ndarray:
    """Hashes of raw values: [N] -> [N] uint64.

    A plain integer has the same hash as a number and as text, because only some chunks of a column
    may hold integers alone.
    """
    values = raw.as_values(values)
    if isinstance(values, np.ndarray):
        return values.astype(np.uint64)
    integers, plain = raw.plain_integers(values)
    return np.where(plain, integers.astype(np.uint64), _hash_letters(values))


def _hash_letters(texts: pa.Array) -> np.ndarray:
    """Hashes of texts [N], letter by letter: [N] uint64."""
    starts = range(0, len(texts), _HASHED_AT_ONCE)
    blocks = [_hash_block(texts[start : start + _HASHED_AT_ONCE]) for start in starts]
    return np.concatenate([np.zeros(0, np.uint64), *blocks])


def _hash_block(texts: pa.Array) -> np.ndarray:
    texts = pc.replace_substring(texts, "\0", "")  # NUL is no letter: NumPy pads text with it
    lengths = pc.utf8_length(texts).to_numpy()
    letters = _letters(texts, int(lengths.sum()))
    # The longest texts come first, so the ones that have a letter at a place are a prefix.
    order = np.argsort(-lengths, kind="stable")
    starts = (np.cumsum(lengths) - lengths)[order]
    keys = np.zeros(len(texts), np.uint64)
    longer = len(texts) - np.cumsum(np.bincount(lengths))[:-1]  # texts longer than 0, 1, ...
    for place, count in enumerate(longer.tolist()):
        letter = letters[starts[:count] + place].astype(np.uint64)
        keys[:count] = sampling.mix64(keys[:count] ^ letter, 0)
    hashes = np.empty_like(keys)
    hashes[order] = keys
    return hashes


def _letters(texts: pa.Array, count: int) -> np.ndarray:
    """The code points of all texts, one text after the other: [count] integers."""
    if not count:
        return np.zeros(0, np.uint8)
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset)
    utf8 = memoryview(data)[bounds[0] : bounds[-1]]
    if len(utf8) == count:  # ASCII
        return np.frombuffer(utf8, np.uint8)
    return np.frombuffer(bytes(utf8).decode().encode("utf-32-le"), np.uint32)


class _TextPlaces:
    """Finds the places of texts by their hashes, twice as fast as by comparing texts."""

    def __init__(self, texts: pa.Array):
        """`texts`: [n] distinct."""
        hashes = _hash_letters(texts)
        order = np.argsort(hashes)
        self.texts, self.order, self.hashes = texts, order.astype(np.int32), hashes[order]

    def of(self, texts: pa.Array) -> np.ndarray:
        """Place of each text, -1 if it is not there: [N] int32."""
        wanted = _hash_letters(texts)
        order = np.argsort(wanted)  # see `Vocabulary.ids`
        candidates = np.empty(len(texts), np.int64)
        candidates[order] = np.searchsorted(self.hashes, wanted[order])
        found = np.full(len(texts), -1, np.int32)
        rest = np.arange(len(texts))
        while True:  # more than once only if different texts have the same hash
            hashes = self.hashes[np.minimum(candidates, len(self.hashes) - 1)]
            maybe = (candidates < len(self.hashes)) & (hashes == wanted[rest])
            rest, candidates = rest[maybe], candidates[maybe]
            if not len(rest):
                return found
            places = self.order[candidates]
            same = pc.equal(self.texts.take(pa.array(places)), texts.take(pa.array(rest)))
            same = same.to_numpy(zero_copy_only=False)
            found[rest[same]] = places[same]
            rest, candidates = rest[~same], candidates[~same] + 1


def _cross_hashes(hashes: list[np.ndarray]) -> np.ndarray:
    """Keys of C columns that are hashed already: [N] uint64 each -> [N] int64 >= 0."""
    key = np.zeros(len(hashes[0]), np.uint64)
    for seed, column in enumerate(hashes):
        key = sampling.mix64(key ^ column, seed)
    return (key >> np.uint64(1)).astype(np.int64)


def _sorted(values: Values) -> Values:
    """Sorted values. Text sorts by its bytes in UTF-8, which is the order of code points."""
    if isinstance(values, np.ndarray):
        return np.sort(values)
    return values.take(pc.array_sort_indices(values))


def _as_texts(values: Values) -> pa.Array:
    return pc.cast(pa.array(values), raw.TEXT) if isinstance(values, np.ndarray) else values


def _as_integers(values: Values) -> np.ndarray:
    """Integers, also those that are written as text."""
    if isinstance(values, np.ndarray):
        return values.astype(np.int64, copy=False)
    integers, plain = raw.plain_integers(values)
    return np.where(plain, integers, np.iinfo(np.int64).min)  # a value of no vocabulary
