"""Raw values to ids: exactly, or hashed where there are too many to keep.

Ids of a column are 1, 2, ... in the order of its values; id 0 stands for every value that is not
among them. A column with more distinct training values than it may have is hashed instead: the id
of any value is then 1 + mix64(value) % size, and nothing has to be kept.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import raw, sampling

_LEAST_PENDING = 1 << 16  # counted values that wait to be merged


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What gives the values of a column their ids.

    Attributes:
      values: [n] sorted distinct values, int64 or unicode; empty if ids are hashed.
      hashed: number of ids that values are hashed to, or 0 if `values` are the vocabulary.
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
        values = _of_kind(values, self.values.dtype.kind)
        # In order the search goes through a large vocabulary once instead of all over it.
        order = np.argsort(values)
        ordered = values[order]
        places = np.minimum(np.searchsorted(self.values, ordered), len(self.values) - 1)
        ids = np.empty(len(values), np.int32)
        ids[order] = np.where(self.values[places] == ordered, places + 1, 0)
        return ids

    def coded_ids(self, column: pa.DictionaryArray) -> np.ndarray:
        """Ids of a column of a chunk: [N] int32."""
        return self.ids(raw_of(column.dictionary))[column.indices.to_numpy()]


class Counter:
    """Counts the values of a column over chunks, in memory bounded by their distinct number."""

    def __init__(self, most: int):
        """`most`: distinct values to keep; beyond it the column will be hashed. 0: any number."""
        self.most = most
        self.overflowed = False
        self.merged: pa.Table | None = None
        self.pending: list[pa.Table] = []
        self.waiting = 0

    def add(self, dictionary: pa.Array, counts: np.ndarray) -> None:
        """Adds `counts` [n] of the values of a dictionary [n]; those of 0 do not count."""
        if self.overflowed:
            return
        there = counts > 0
        values = dictionary.filter(pa.array(there))
        self.pending.append(pa.table({"value": values, "count": counts[there]}))
        self.waiting += len(values)
        if self.waiting > max(_LEAST_PENDING, len(self.merged or ())):
            self.settle()

    def merge(self, other: "Counter") -> None:
        """Adds what another has counted."""
        other.settle()
        self.overflowed |= other.overflowed
        if self.overflowed:
            self.merged, self.pending = None, []
        elif other.merged is not None:
            self.pending.append(other.merged)
            self.settle()

    def settle(self) -> None:
        """Merges what waits, so that nothing is held twice."""
        tables = self.pending if self.merged is None else [self.merged, *self.pending]
        self.pending, self.waiting = [], 0
        if not tables:
            return
        table = pa.concat_tables(tables)
        grouped = table.group_by("value", use_threads=False).aggregate([("count", "sum")])
        self.merged = grouped.rename_columns({"count_sum": "count"})
        if self.most and len(self.merged) > self.most:
            self.overflowed, self.merged = True, None

    def vocabulary(self, min_count: int) -> Vocabulary:
        """The values of at least `min_count` rows."""
        self.settle()
        if self.overflowed:
            return Vocabulary(np.zeros(0, np.int64), self.most)
        if self.merged is None:
            return Vocabulary(np.zeros(0, np.int64))
        frequent = self.merged.filter(pc.field("count") >= min_count)["value"]
        return Vocabulary(np.sort(raw.raw_values(frequent)))


def of(values: np.ndarray, min_count: int = 1) -> Vocabulary:
    """The vocabulary of a column [N] in memory: the values of at least `min_count` rows."""
    distinct, counts = np.unique(values, return_counts=True)
    return Vocabulary(distinct[counts >= min_count])


def raw_of(dictionary: pa.Array) -> np.ndarray:
    """The values of a chunk's dictionary as NumPy holds them, each as it is written."""
    values = dictionary.to_numpy(zero_copy_only=False)
    return values if pa.types.is_integer(dictionary.type) else np.asarray(values, str)


def values_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of a chunk as NumPy holds it: [N] numbers or unicode."""
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy()
    return raw_of(column.cast(column.type.value_type).combine_chunks())


def cross(columns: list[np.ndarray]) -> np.ndarray:
    """One int64 key >= 0 for each distinct combination of values: C columns [N] -> [N].

    A single column is returned as it is; several are hashed to 63 bits.
    """
    if len(columns) == 1:
        return columns[0]
    return cross_hashes([hash_of(column) for column in columns])


def cross_coded(columns: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """`cross` of columns of a chunk."""
    if len(columns) == 1:
        return columns[0]
    hashes = [hash_of(raw_of(x.dictionary))[x.indices.to_numpy()] for x in columns]
    return raw.coded(cross_hashes(hashes))


def cross_hashes(hashes: list[np.ndarray]) -> np.ndarray:
    """`cross` of columns that are `hash_of` values already."""
    key = np.zeros(len(hashes[0]), np.uint64)
    for seed, column in enumerate(hashes):
        key = sampling.mix64(key ^ column, seed)
    return (key >> np.uint64(1)).astype(np.int64)


def hash_of(values: np.ndarray) -> np.ndarray:
    """Hashes of raw values: [N] integers or unicode -> [N] uint64.

    A plain integer has the same hash as a number and as text, so that it does not matter whether
    a reader could tell that a column holds integers alone.
    """
    if values.dtype.kind != "U":
        return values.astype(np.uint64)
    integers, plain = raw.plain_integers(pa.array(values))
    letters = np.ascontiguousarray(values).view(np.uint32).reshape(len(values), -1)
    key = np.zeros(len(values), np.uint64)
    for letter in letters.T:  # trailing zeros of short strings must not depend on the width
        key = np.where(letter == 0, key, sampling.mix64(key ^ letter.astype(np.uint64), 0))
    return np.where(plain, integers.astype(np.uint64), key)


def _of_kind(values: np.ndarray, kind: str) -> np.ndarray:
    """Values as a vocabulary of `kind` has them, so that '7' is found among integers."""
    if values.dtype.kind == kind:
        return values
    if kind == "U":
        return values.astype(str)
    if values.dtype.kind != "U":
        return values.astype(np.int64)
    integers, plain = raw.plain_integers(pa.array(values))
    return np.where(plain, integers, np.iinfo(np.int64).min)  # which no vocabulary holds
