"""Interactions between users and items, and their packing into arrays of static shape.

`Interactions.from_rows` builds the sparse matrix of a log, by user and by item. `make_layout`
assigns the rows of one side to chunks of equal size, and `pack` fills the chunks with entries.
All of it is NumPy on the host, without a Python loop over rows or entries.

Layouts follow from the numbers of entries alone. A process packs nothing but the chunks of its own
devices, so a matrix need not be in its memory (`log_matrix`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import flax.struct
import jax
import numpy as np
import scipy.sparse

from cadc_jax.errors import DataError
from cadc_jax.tables import dealt

VALUE_SCALES = ("linear", "log", "none")


def scaled_values(value: np.ndarray, scale: str) -> np.ndarray | None:
    """What the values of rows count for, in a matrix of implicit feedback.

    Args:
      value: [N] float.
      scale: 'linear', the value x itself; 'log', log(1 + x), and of a negative x -log(1 - x); or
        'none', 1 for every row.

    Returns:
      [N] float32; None: all are 1.
    """
    if scale == "none":
        return None
    value = np.asarray(value, np.float32)
    return value if scale == "linear" else np.copysign(np.log1p(np.abs(value)), value)


class Rows(Protocol):
    """One side of a matrix, as factorisations read it."""

    @property
    def counts(self) -> np.ndarray:
        """[N] int64: entries of each row."""

    @property
    def total(self) -> float:
        """The sum of all values."""

    @property
    def all_ones(self) -> bool:
        """Whether every value is 1."""

    def take(self, rows: np.ndarray) -> "SparseRows":
        """Some of the rows [n], whose ids are distinct and ascend."""


@dataclasses.dataclass(frozen=True)
class SparseRows:
    """A sparse matrix by rows (CSR). Column ids are distinct and ascend within a row."""

    offsets: np.ndarray  # [N + 1] int64; row i has the entries offsets[i] to offsets[i + 1] - 1
    columns: np.ndarray  # [nnz] int32
    values: np.ndarray  # [nnz] float32

    @property
    def counts(self) -> np.ndarray:
        """[N] int64: entries of each row."""
        return np.diff(self.offsets)

    @property
    def total(self) -> float:
        """The sum of all values."""
        return float(self.values.sum(dtype=np.float64))

    @property
    def all_ones(self) -> bool:
        """Whether every value is 1."""
        return not np.any(self.values != 1)

    def take(self, rows: np.ndarray) -> "SparseRows":
        """Some of the rows [n], whose ids are distinct and ascend; all of them are not copied."""
        if len(rows) == len(self.offsets) - 1:
            return self
        counts = self.counts[rows]
        at = _ranges(self.offsets[rows], counts)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return SparseRows(offsets, self.columns[at], self.values[at])


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much there is in a matrix. Users and items without entries do not count.

    Factorisations measure their regularisation in it, so the same setting suits logs of any size.
    """

    users: int
    items: int
    entries: int

    @property
    def user_mean(self) -> float:
        """Entries of a user, on average."""
        return self.entries / max(self.users, 1)

    @property
    def item_mean(self) -> float:
        """Entries of an item, on average."""
        return self.entries / max(self.items, 1)

    @property
    def noise(self) -> float:
        """The largest singular value of a matrix with as many entries at random places.

        It is that of independent entries less their mean (Marchenko and Pastur 1967).
        """
        return float(np.sqrt(self.user_mean) + np.sqrt(self.item_mean))


R = TypeVar("R", bound=Rows, covariant=True)


@dataclasses.dataclass(frozen=True)
class Interactions(Generic[R]):
    """The interaction matrix, by user and by item."""

    by_user: R  # U rows
    by_item: R  # I rows

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.by_user.counts)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.by_item.counts)

    @property
    def num_entries(self) -> int:
        """Distinct (user, item) pairs."""
        return int(self.by_user.counts.sum())

    @property
    def extent(self) -> Extent:
        """Users and items with entries, and the entries."""
        users, items = (int(np.count_nonzero(x.counts)) for x in (self.by_user, self.by_item))
        return Extent(users, items, self.num_entries)

    @staticmethod
    def from_rows(
        user: np.ndarray,
        item: np.ndarray,
        num_users: int,
        num_items: int,
        value: np.ndarray | None = None,
    ) -> "Interactions[SparseRows]":
        """Builds the matrix from the rows of a log. The values of a repeated pair are added.

        Args:
          user: [N] integer in [0, num_users).
          item: [N] integer in [0, num_items).
          num_users: U. Users without a row are allowed.
          num_items: I. Items without a row are allowed.
          value: [N] float, a rating or a weight; None counts each row as 1.

        Raises:
          DataError: if the lengths differ, an id is out of range, or a value is not finite.
        """
        user, item = np.asarray(user), np.asarray(item)
        value = np.ones(len(user), np.float32) if value is None else np.asarray(value, np.float32)
        if not len(user) == len(item) == len(value):
            raise DataError(
                f"user, item and value have {len(user)}, {len(item)} and {len(value)} rows"
            )
        check_rows(user, item, value, num_users, num_items)
        matrix = csr_matrix(user, item, value, (num_users, num_items))
        return Interactions(sparse_rows(matrix), sparse_rows(matrix.T.tocsr()))


def check_rows(
    user: np.ndarray, item: np.ndarray, value: np.ndarray | None, num_users: int, num_items: int
) -> None:
    """Raises DataError if an id of rows of a log is out of range, or a value is not finite."""
    for name, ids, size in (("user", user, num_users), ("item", item, num_items)):
        if len(ids) and not (0 <= ids.min() and ids.max() < size):
            raise DataError(f"{name} ids run from {ids.min()} to {ids.max()}, outside [0, {size})")
    if value is not None and not np.isfinite(value).all():
        raise DataError(f"{np.sum(~np.isfinite(value))} values are not finite numbers")


def csr_matrix(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_matrix:
    """The matrix of entries in any order, with columns that ascend; repeated ones are added."""
    matrix = scipy.sparse.coo_matrix((value, (row, column)), shape=shape).tocsr()
    matrix.sort_indices()
    return matrix


def sparse_rows(matrix: scipy.sparse.csr_matrix) -> SparseRows:
    """The rows of a matrix whose columns ascend."""
    values = matrix.data
    if np.all(values == 1):
        values = np.broadcast_to(np.float32(1), values.shape)  # takes no memory
    return SparseRows(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False), values
    )


@flax.struct.dataclass
class Chunks:
    """Entries of some rows, cut into segments of L entries, with S segments a chunk and C chunks.

    With L = 4 and S = 5, a chunk with three rows of 6, 3 and 5 entries (. is padding):

        row  length  index
        0    4       a b c d      index: places of the other side's factors in its table
        0    2       e f . .
        1    3       g h i .
        2    4       j k l m
        2    1       n . . .
    """

    index: jax.Array | np.ndarray  # [C, S, L] int32; with `asked` see `fixed_rows`
    row: jax.Array | np.ndarray  # [C, S] int32, ascending within a chunk
    length: jax.Array | np.ndarray  # [C, S] int32: number of entries of the segment
    value: jax.Array | np.ndarray | None  # [C, S, L] float32; None if every value is 1
    # [C, d, P] int32: rows of a device's part of a split table that each device asks of it for its
    # own chunk of the same number; None if `index` has places in the whole table.
    asked: jax.Array | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How large chunks are.

    Attributes:
      entries: entries of a chunk, about. A row with more than half of them is long.
      rows: most short rows of a chunk; None for any number.
      overhead: what a segment costs beyond its entries, counted in entries.
    """

    entries: int
    rows: int | None = None
    overhead: int = 4


@dataclasses.dataclass(frozen=True)
class Layout:
    """The place of each row of one side in its table, and the chunk that solves it.

    A row is *short* if it has at most half a chunk of entries. It is assigned as a whole to one of
    C chunks of at most R rows each, which all hold nearly the same number of segments. Other rows
    are *long*: their segments continue through further chunks, and their sums are added up over
    these chunks.

    Each device solves the rows that it stores. Its part of the table has its share of the long
    rows first, then R rows for each of its chunks. Unused places hold zeros.
    """

    counts: np.ndarray  # [N] int64: entries of each row
    position: np.ndarray  # [N] int32: place of the row in the table
    chunk: np.ndarray  # [N] int32: chunk of a short row; C if the row is long
    slot: np.ndarray  # [N] int32: number of the row in its chunk, or among the long rows
    devices: int
    chunks: int  # C, a multiple of `devices`
    chunk_rows: int  # R
    long_rows: int  # a multiple of `devices`
    segments: int  # S
    segment: int  # L

    @property
    def table_rows(self) -> int:
        """Rows of the table of all devices, unused places included."""
        return self.long_rows + self.chunks * self.chunk_rows


def make_layout(counts: np.ndarray, chunking: Chunking, devices: int = 1) -> Layout:
    """Assigns the rows of one side to chunks.

    Args:
      counts: [N] entries of each row.
      chunking: how large the chunks are.
      devices: number of devices that the chunks are split over.

    Raises:
      DataError: if the table would have more rows than int32 counts.
    """
    segment = _segment_length(counts, chunking.overhead)
    need = -(-counts // segment)  # segments of each row
    is_long = counts > chunking.entries // 2
    long, short = np.flatnonzero(is_long), np.flatnonzero(~is_long)

    target = max(1, chunking.entries // segment)  # segments that a chunk should hold
    most_rows = min(target, chunking.rows or target)
    chunks = max(1, -(-int(need[short].sum()) // target), -(-len(short) // most_rows))
    chunks = -(-chunks // devices) * devices
    chunk_of = np.full(len(counts), chunks)
    slot = np.zeros(len(counts), np.int64)
    # Rows of neighbouring ids and of like counts are on different devices: then a chunk needs about
    # as many rows of each device.
    local_chunks, local_long = chunks // devices, -(-len(long) // devices)
    slot[long] = dealt.place(np.arange(len(long)), devices, local_long)
    chunk, slot[short], load = _deal(need[short], chunks)
    chunk_of[short] = dealt.place(chunk, devices, local_chunks)
    chunk_rows = int(slot[short].max(initial=0)) + 1  # one, if all rows are long

    local_rows = local_long + local_chunks * chunk_rows
    device, nth = np.divmod(chunk_of, local_chunks)
    position = device * local_rows + local_long + nth * chunk_rows + slot
    device, nth = np.divmod(slot[long], max(1, local_long))
    position[long] = device * local_rows + nth
    check_places(local_rows * devices)
    return Layout(
        counts=counts,
        position=position.astype(np.int32),
        chunk=chunk_of.astype(np.int32),
        slot=slot.astype(np.int32),
        devices=devices,
        chunks=chunks,
        chunk_rows=chunk_rows,
        long_rows=local_long * devices,
        segments=max(1, int(load.max())),
        segment=segment,
    )


def _deal(need: np.ndarray, chunks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deals short rows to chunks that all hold nearly the same number of segments.

    Each turn gives the longest remaining rows to the emptiest chunks, at most one row to each.

    Args:
      need: [n] segments of each short row.
      chunks: C.

    Returns:
      chunk [n] and slot [n] of each row, and the segments that each chunk holds [C], all int64.
    """
    chunk, slot = np.zeros((2, len(need)), np.int64)
    load = np.zeros(chunks, np.int64)
    capacity = -(-int(need.sum()) // chunks)
    left = np.argsort(-need, kind="stable")
    turn = 0
    while len(left):
        emptiest = np.argsort(load, kind="stable")[: len(left)]
        emptiest = emptiest[load[emptiest] + need[left[0]] <= capacity]
        if not len(emptiest):
            capacity += 1 + capacity // 100
            continue
        dealt, left = left[: len(emptiest)], left[len(emptiest) :]
        load[emptiest] += need[dealt]
        chunk[dealt], slot[dealt] = emptiest, turn
        turn += 1
    return chunk, slot, load


def check_places(rows: int) -> None:
    """Raises DataError unless int32 counts the rows of a table."""
    if rows > np.iinfo(np.int32).max:
        raise DataError(
            f"a table of {rows:,} rows: at most {np.iinfo(np.int32).max:,} users or items can be "
            "factorised"
        )


def _segment_length(counts: np.ndarray, overhead: int) -> int:
    """The L with the lowest cost: for each segment its entries, padding included, and more."""
    # There is nothing to gain from longer segments unless each costs much.
    lengths = [1 << n for n in range(10) if 1 << n <= 8 * overhead]
    return min(lengths, key=lambda length: (length + overhead) * (-(-counts // length)).sum())


def pack(
    rows: Rows,
    layout: Layout,
    fixed_position: np.ndarray,
    devices: Sequence[int] | None = None,
) -> tuple[Chunks, Chunks]:
    """Fills chunks of a layout with the entries of `rows`.

    Args:
      rows: the side to solve, N rows.
      layout: `make_layout(rows.counts, ...)`.
      fixed_position: [number of columns] int32, `position` of the other side's layout.
      devices: whose chunks to fill, in ascending order; no rows but those in them are taken of
        `rows`. None: all.

    Returns:
      The chunks of the short rows, with `row` numbered within the chunk, and the chunks of the
      long rows, with `row` numbered over all long rows: those of one device after another, as many
      of each.
    """
    segments, width = layout.segments, layout.segment
    pieces = pieces_of(layout, range(layout.devices) if devices is None else devices)
    at = _ranges(pieces.place, pieces.need)
    row = np.full(pieces.chunks * segments, max(0, layout.chunk_rows - 1), np.int32)
    row[pieces.short_chunks * segments :] = max(0, layout.long_rows - 1)
    row[at] = np.repeat(layout.slot[pieces.row], pieces.need)
    counts = layout.counts[pieces.row] - pieces.skip * width
    counts = np.minimum(counts, pieces.need * width)
    length = np.zeros(pieces.chunks * segments, np.int32)
    nth = at - np.repeat(pieces.place, pieces.need)
    length[at] = np.minimum(np.repeat(counts, pieces.need) - nth * width, width)

    columns, values = _entries_of(rows, pieces, width, counts)
    at = _ranges(pieces.place * width, counts)
    index = np.zeros(pieces.chunks * segments * width, np.int32)
    index[at] = fixed_position[columns]
    value = None
    if not rows.all_ones:
        value = np.zeros(pieces.chunks * segments * width, np.float32)
        value[at] = values

    def cut(part: slice) -> Chunks:
        return Chunks(
            index=index.reshape(-1, segments, width)[part],
            row=row.reshape(-1, segments)[part],
            length=length.reshape(-1, segments)[part],
            value=None if value is None else value.reshape(-1, segments, width)[part],
        )

    return cut(slice(pieces.short_chunks)), cut(slice(pieces.short_chunks, None))


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The rows of some devices. A long row may continue on other devices: then it is a part."""

    whole: bool  # whether these are all devices; `row` then has each row once, in order
    row: np.ndarray  # [n] ids
    skip: np.ndarray  # [n] segments of the row that are before this part
    need: np.ndarray  # [n] segments of the part
    place: np.ndarray  # [n] of its first segment among those of the devices' chunks
    short_chunks: int  # of these devices; they come first
    chunks: int  # of these devices


def pieces_of(layout: Layout, devices: Sequence[int]) -> Pieces:
    """Which segments the chunks of some devices hold."""
    chunk = layout.chunk.astype(np.int64)  # segments may be more than int32 counts
    need = -(-layout.counts // layout.segment)
    order = np.lexsort((layout.slot, layout.chunk))
    before = np.zeros_like(need)  # segments of all rows that come earlier in this order
    before[order] = np.cumsum(need[order]) - need[order]
    load = np.bincount(layout.chunk, need, layout.chunks + 1).astype(np.int64)
    # First segment of each row. Long rows follow each other without regard to chunks.
    first = chunk * layout.segments + before - (np.cumsum(load) - load)[chunk]
    short = layout.chunks // layout.devices * layout.segments  # segments of a device
    long = -(-load[-1] // (layout.segments * layout.devices)) * layout.segments
    count = len(devices)
    chunks = count * short // layout.segments, count * (short + long) // layout.segments
    if count == layout.devices:
        everywhere = np.arange(len(need))
        return Pieces(True, everywhere, np.zeros_like(need), need, first, *chunks)

    parts = []
    begin = np.where(layout.chunk < layout.chunks, first, -1)
    for nth, device in enumerate(devices):
        row = np.flatnonzero((begin >= device * short) & (begin < (device + 1) * short))
        row = row[need[row] > 0]
        parts.append((row, np.zeros_like(row), need[row], first[row] + (nth - device) * short))
    is_long = np.flatnonzero(layout.chunk == layout.chunks)
    begin = first[is_long] - layout.devices * short
    end = begin + need[is_long]
    for nth, device in enumerate(devices):
        low, high = device * long, (device + 1) * long
        at = np.flatnonzero((begin < high) & (end > low))
        start = np.maximum(begin[at], low)
        place = count * short + nth * long + start - low
        parts.append((is_long[at], start - begin[at], np.minimum(end[at], high) - start, place))
    row, skip, own, place = map(np.concatenate, zip(*parts, strict=True))
    return Pieces(False, row, skip, own, place, *chunks)


def _entries_of(
    rows: Rows, pieces: Pieces, width: int, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of the entries of pieces, `counts` [n] of each."""
    if pieces.whole:
        found = rows.take(pieces.row)
        return found.columns, found.values
    ids, which = np.unique(pieces.row, return_inverse=True)
    found = rows.take(ids)
    at = _ranges(found.offsets[which] + pieces.skip * width, counts)
    return found.columns[at], found.values[at]


def share_of_rows(counts: np.ndarray, process: int, processes: int) -> np.ndarray:
    """Ids of the share of rows that a process reads for all: a range, with about as many entries.

    Args:
      counts: [N] entries of each row.
      process: index of the process.
      processes: their number.
    """
    equal = counts.sum() / processes
    ends = np.searchsorted(np.cumsum(counts), np.arange(1, processes) * equal)
    ends = np.concatenate([[0], ends, [len(counts)]])
    return np.arange(ends[process], ends[process + 1])


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
    end = int((starts + counts).max(initial=0))
    dtype = np.int32 if end < 2**31 else np.int64  # half the memory, if it fits
    ranges = np.repeat((starts - (np.cumsum(counts) - counts)).astype(dtype), counts)
    ranges += np.arange(len(ranges), dtype=dtype)
    return ranges
