"""Interactions between users and items, and their packing into arrays of one static shape.

Everything here is NumPy on the host, without a Python loop over rows or entries.
"""

import dataclasses

import flax.struct
import jax
import numpy as np
import scipy.sparse

from cadc_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class SparseRows:
    """A sparse matrix by rows (CSR). Column ids ascend within a row, and are distinct."""

    offsets: np.ndarray  # [N + 1] int64; row i is entries offsets[i] to offsets[i + 1]
    columns: np.ndarray  # [nnz] int32
    values: np.ndarray  # [nnz] float32

    @property
    def counts(self) -> np.ndarray:
        """[N] int64: entries of each row."""
        return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class Interactions:
    """All training interactions, by user and by item."""

    by_user: SparseRows  # U rows
    by_item: SparseRows  # I rows

    @property
    def num_users(self) -> int:
        return len(self.by_user.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.by_item.offsets) - 1

    @property
    def num_entries(self) -> int:
        """Distinct (user, item) pairs."""
        return len(self.by_user.columns)

    @classmethod
    def from_rows(
        cls,
        user: np.ndarray,
        item: np.ndarray,
        num_users: int,
        num_items: int,
        value: np.ndarray | None = None,
    ) -> "Interactions":
        """Builds both orders from a log; the values of a repeated pair are added.

        Args:
          user: [N] integer in [0, num_users).
          item: [N] integer in [0, num_items).
          num_users: U. Users without a row are allowed, as are items.
          num_items: I.
          value: [N] float (a rating, or a weight), or None for 1 a row.

        Raises:
          DataError: if lengths differ, an id is outside its range, or a value is not finite.
        """
        user, item = np.asarray(user), np.asarray(item)
        value = np.ones(len(user), np.float32) if value is None else np.asarray(value, np.float32)
        if not len(user) == len(item) == len(value):
            raise DataError(
                f"user, item and value have {len(user)}, {len(item)} and {len(value)} rows"
            )
        for name, ids, size in (("user", user, num_users), ("item", item, num_items)):
            if len(ids) and not (0 <= ids.min() and ids.max() < size):
                raise DataError(
                    f"{name} ids run from {ids.min()} to {ids.max()}, outside [0, {size})"
                )
        if not np.isfinite(value).all():
            raise DataError(f"{np.sum(~np.isfinite(value))} values are not finite numbers")
        matrix = scipy.sparse.coo_matrix((value, (user, item)), shape=(num_users, num_items))
        matrix = matrix.tocsr()  # adds repeats
        matrix.sort_indices()
        return cls(_rows(matrix), _rows(matrix.T.tocsr()))


def _rows(matrix: scipy.sparse.csr_matrix) -> SparseRows:
    values = matrix.data
    if np.all(values == 1):
        values = np.broadcast_to(np.float32(1), values.shape)  # takes no memory
    return SparseRows(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False), values
    )


@flax.struct.dataclass
class Chunks:
    """Entries of some rows, cut into segments of L entries, S segments a chunk, C chunks.

    With L = 4, S = 5, a chunk of three rows of 6, 3 and 5 entries (. is padding):

        row  length  index
        0    4       a b c d      index: where the other side's factors stand in its table
        0    2       e f . .
        1    3       g h i .
        2    4       j k l m
        2    1       n . . .
    """

    index: jax.Array | np.ndarray  # [C, S, L] int32
    row: jax.Array | np.ndarray  # [C, S] int32, ascending within a chunk
    length: jax.Array | np.ndarray  # [C, S] int32: how many entries of the segment are real
    value: jax.Array | np.ndarray | None  # [C, S, L] float32; None if every value is 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each row of one side stands in its table, and in which chunk it is solved.

    A row of at most half a chunk is *short*: it is dealt, with its whole entries, to one of C
    chunks of R rows each, in such a way that all chunks hold nearly as many segments. The others
    are *long*: their segments run on through further chunks, and are summed across them.

    The table of each of the devices is its share of the long rows, then R rows for each of its
    chunks; unused places hold zeros. So a device solves the rows that it stores.
    """

    counts: np.ndarray  # [N] int64: entries of each row
    position: np.ndarray  # [N] int32: place of the row in the table
    chunk: np.ndarray  # [N] int32: chunk of a short row; C if the row is long
    slot: np.ndarray  # [N] int32: which of the R rows of its chunk; or which long row
    devices: int
    chunks: int  # C, a multiple of `devices`
    chunk_rows: int  # R
    long_rows: int  # a multiple of `devices`
    segments: int  # S
    segment: int  # L

    @property
    def table_rows(self) -> int:
        return self.long_rows + self.chunks * self.chunk_rows


def make_layout(counts: np.ndarray, chunk: int, devices: int = 1) -> Layout:
    """Deals rows of the given lengths to chunks of about `chunk` entries.

    Args:
      counts: [N] entries of each row.
      chunk: entries gathered at once; a row of more than half of it is long.
      devices: over how many devices the chunks are spread.
    """
    segment = _segment_length(counts)
    target = max(1, chunk // segment)  # segments a chunk should hold
    need = -(-counts // segment)
    is_long = counts > chunk // 2
    long, short = np.flatnonzero(is_long), np.flatnonzero(~is_long)

    chunks = max(1, -(-int(need[short].sum()) // target), -(-len(short) // target))
    chunks = -(-chunks // devices) * devices
    chunk_of = np.full(len(counts), chunks)
    slot = np.zeros(len(counts), np.int64)
    slot[long] = np.arange(len(long))
    load = np.zeros(chunks, np.int64)
    capacity = -(-int(need[short].sum()) // chunks)
    short = short[np.argsort(-need[short], kind="stable")]
    chunk_rows = 0
    while len(short):  # a turn gives the longest rows left to the emptiest chunks, one each
        emptiest = np.argsort(load, kind="stable")[: len(short)]
        emptiest = emptiest[load[emptiest] + need[short[0]] <= capacity]
        if not len(emptiest):
            capacity += 1 + capacity // 100
            continue
        dealt, short = short[: len(emptiest)], short[len(emptiest) :]
        load[emptiest] += need[dealt]
        chunk_of[dealt] = emptiest
        slot[dealt] = chunk_rows
        chunk_rows += 1

    local_chunks, local_long = chunks // devices, -(-len(long) // devices)
    local_rows = local_long + local_chunks * chunk_rows
    device, nth = np.divmod(chunk_of, local_chunks)
    position = device * local_rows + local_long + nth * chunk_rows + slot
    device, nth = np.divmod(np.arange(len(long)), max(1, local_long))
    position[long] = device * local_rows + nth
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


def _segment_length(counts: np.ndarray) -> int:
    """The L for which padding, and the work a segment adds to that of its entries, cost least."""
    lengths = (1, 2, 4, 8, 16, 32)
    return min(lengths, key=lambda length: (length + 4) * (-(-counts // length)).sum())


def pack(rows: SparseRows, layout: Layout, fixed_position: np.ndarray) -> tuple[Chunks, Chunks]:
    """Lays the entries of `rows` out in chunks.

    Args:
      rows: the side to be solved, N rows.
      layout: `make_layout(rows.counts, ...)`.
      fixed_position: [number of columns] int32, `position` of the other side's layout.

    Returns:
      The chunks of the short rows (C of them; `row` counts within the chunk), and those of the
      long rows (as many as they fill, a multiple of `devices`; `row` counts all long rows).
    """
    segments, width = layout.segments, layout.segment
    need = -(-layout.counts // width)
    order = np.lexsort((layout.slot, layout.chunk))
    before = np.zeros_like(need)  # segments of all rows that come first in this order
    before[order] = np.cumsum(need[order]) - need[order]
    load = np.bincount(layout.chunk, need, layout.chunks + 1).astype(np.int64)
    long_chunks = -(-load[-1] // (segments * layout.devices)) * layout.devices
    # A chunk's rows begin where the chunk does; those of the long chunks run on.
    first = layout.chunk * segments + before - (np.cumsum(load) - load)[layout.chunk]

    total = layout.chunks + long_chunks
    at = _ranges(first, need)
    row = np.full(total * segments, max(0, layout.chunk_rows - 1), np.int32)
    row[layout.chunks * segments :] = max(0, layout.long_rows - 1)
    row[at] = np.repeat(layout.slot, need)
    length = np.zeros(total * segments, np.int32)
    nth = at - np.repeat(first, need)
    length[at] = np.minimum(np.repeat(layout.counts, need) - nth * width, width)

    at = _ranges(first * width, layout.counts)
    index = np.zeros(total * segments * width, np.int32)
    index[at] = fixed_position[rows.columns]
    value = None
    if np.any(rows.values != 1):
        value = np.zeros(total * segments * width, np.float32)
        value[at] = rows.values

    def cut(part: slice) -> Chunks:
        return Chunks(
            index=index.reshape(total, segments, width)[part],
            row=row.reshape(total, segments)[part],
            length=length.reshape(total, segments)[part],
            value=None if value is None else value.reshape(total, segments, width)[part],
        )

    return cut(slice(layout.chunks)), cut(slice(layout.chunks, None))


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
    end = int((starts + counts).max(initial=0))
    dtype = np.int32 if end < 2**31 else np.int64  # half the memory where the log is largest
    ranges = np.repeat((starts - (np.cumsum(counts) - counts)).astype(dtype), counts)
    ranges += np.arange(len(ranges), dtype=dtype)
    return ranges
