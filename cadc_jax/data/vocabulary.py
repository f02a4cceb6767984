"""Maps raw values to ids: exactly, or by a hash if there are too many values to keep.

Ids of a column are 1, 2, ... in the order of its values; id 0 stands for every other value. A
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

_LEAST_PENDING = 1 << 16  # counted values that may wait before they are merged


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The values of a column that have an id of their own.

    Attributes:
      values: [n] sorted distinct values, int64 or unicode; empty if ids are hashed.
      hashed: number of ids that values are hashed to, or 0 if `values` have the ids.
    """

    values: np.ndarray
    hashed: int = 0

    @property
    def size(self) -> int:
        """Number of ids, id 0 included."""
        return (self.hashed or len(self.values)) + 1

    def ids(self, values: np.ndarray) -> np.ndarray:
        """Ids of raw values: [N] -> [N] int32 in [0, size)."""
        if self.hashed:
            keys = sampling.mix64(hash_of(values), 0)
            return (1 + keys % np.uint64(self.hashed)).astype(np.int32)
        if not len(self.values) or not len(values):
            return np.zeros(len(values), np.int32)
        values = _as_kind(values, self.values.dtype.kind)
        # Sorted values are searched from one end of a large vocabulary to the other: faster.
        order = np.argsort(values)
        ordered = values[order]
        places = np.minimum(np.searchsorted(self.values, ordered), len(self.values) - 1)
        ids = np.empty(len(values), np.int32)
        ids[order] = np.where(self.values[places] == ordered, places + 1, 0)
        return ids

    def coded_ids(self, column: pa.DictionaryArray) -> np.ndarray:
        """Ids of a dictionary-encoded column: [N] int32."""
        return self.ids(dictionary_values(column.dictionary))[column.indices.to_numpy()]


class Counter:
    """Counts the values of a column over chunks, in memory bounded by the distinct values."""

    def __init__(self, max_values: int):
        """`max_values`: distinct values to keep; with more the column is hashed. 0: no bound."""
        self.max_values = max_values
        self.overflowed = False
        self.merged: pa.Table | None = None
        self.pending: list[pa.Table] = []
        self.num_pending = 0

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
        return Vocabulary(np.sort(raw.raw_values(frequent)))


def of(values: np.ndarray, min_count: int = 1) -> Vocabulary:
    """The vocabulary of a column [N] in memory: the values of at least `min_count` rows."""
    distinct, counts = np.unique(values, return_counts=True)
    return Vocabulary(distinct[counts >= min_count])


def dictionary_values(dictionary: pa.Array) -> np.ndarray:
    """The values of a dictionary in NumPy: [n] int64, or unicode exactly as it is written."""
    values = dictionary.to_numpy(zero_copy_only=False)
    return values if pa.types.is_integer(dictionary.type) else np.asarray(values, str)


def values_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of a chunk in NumPy: [N] numbers or unicode."""
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy()
    return dictionary_values(column.cast(column.type.value_type).combine_chunks())


def cross(columns: list[np.ndarray]) -> np.ndarray:
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
    hashes = [hash_of(dictionary_values(x.dictionary))[x.indices.to_numpy()] for x in columns]
    return raw.coded(_cross_hashes(hashes))


def hash_of(values: np.ndarray) -> np.ndarray:
    """Hashes of raw values: [N] integers or unicode -> [N] uint64.

    A plain integer has the same hash as a number and as text, because only some chunks of a column
    may hold integers alone.
    """
    if values.dtype.kind != "U":
        return values.astype(np.uint64)
    integers, plain = raw.plain_integers(pa.array(values))
    letters = np.ascontiguousarray(values).view(np.uint32).reshape(len(values), -1)
    key = np.zeros(len(values), np.uint64)
    for letter in letters.T:  # zeros pad short text: skipped, as the width must not matter
        key = np.where(letter == 0, key, sampling.mix64(key ^ letter.astype(np.uint64), 0))
    return np.where(plain, integers.astype(np.uint64), key)


def _cross_hashes(hashes: list[np.ndarray]) -> np.ndarray:
    """Keys of C columns that are hashed already: [N] uint64 each -> [N] int64 >= 0."""
    key = np.zeros(len(hashes[0]), np.uint64)
    for seed, column in enumerate(hashes):
        key = sampling.mix64(key ^ column, seed)
    return (key >> np.uint64(1)).astype(np.int64)


def _as_kind(values: np.ndarray, kind: str) -> np.ndarray:
    """Values in the dtype kind of a vocabulary, which finds the text '7' among integers."""
    if values.dtype.kind == kind:
        return values
    if kind == "U":
        return values.astype(str)
    if values.dtype.kind != "U":
        return values.astype(np.int64)
    integers, plain = raw.plain_integers(pa.array(values))
    return np.where(plain, integers, np.iinfo(np.int64).min)  # a value of no vocabulary
