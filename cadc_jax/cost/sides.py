"""Sizes of the packing of users and items (`factorization.interactions`)."""

import math
import statistics
from typing import NamedTuple

import numpy as np

from cadc_jax.cost.arithmetic import up
from cadc_jax.cost.model import Sizes
from cadc_jax.factorization import fixed_rows, interactions
from cadc_jax.factorization.interactions import Chunking

_CELL = 8  # an index and a value; programs leave values out if every one of them is 1
# Bytes on the host: of an entry of the whole matrix by one host, of an entry of the side that one
# of several hosts packs (as read, and by rows), and of the counts and places of a row.
_WHOLE_ENTRY, _OWN_ENTRY, _ROW = 40, 20, 64


class Filling(NamedTuple):
    """What a full chunk holds: rows, and their entries without padding."""

    rows: float
    entries: float


class Side(NamedTuple):
    """Sizes of the `Layout` and the chunks of users or items, on all devices.

    Attributes (the others are as in `Layout`):
      long_chunks: chunks of long rows.
      in_short: what the fullest chunk of short rows holds.
      in_long: what a chunk of long rows holds.
      sizes: [k] distinct numbers of entries of a row.
      owned: [d, k] how many rows of each such number a device has; [1, k] if all have the same.
    """

    rows: int
    table_rows: int
    chunks: int
    chunk_rows: int
    segments: int
    segment: int
    long_rows: int
    long_chunks: int
    in_short: Filling
    in_long: Filling
    sizes: np.ndarray
    owned: np.ndarray

    @property
    def places(self) -> int:
        """Entries of a chunk, padding included."""
        return self.segments * self.segment

    @property
    def entries(self) -> int:
        """Entries, padding included."""
        return (self.chunks + self.long_chunks) * self.places

    @property
    def entry_bytes(self) -> int:
        """Bytes of the entries."""
        segments = (self.chunks + self.long_chunks) * self.segments
        return self.entries * _CELL + segments * 8


def host_memory(sizes: Sizes, width: int, hosts: int) -> dict[str, float]:
    """Purpose -> bytes that a host holds while it packs entries, as docs/scale.md derives them.

    Args:
      sizes: sizes of the data.
      width: of a table of users or items.
      hosts: number of hosts.
    """
    rows = sizes.num_users + sizes.num_items
    entries = _WHOLE_ENTRY * sizes.entries if hosts == 1 else _OWN_ENTRY * sizes.entries / hosts
    return {
        "entries that it packs": entries,
        "numbers and places of all rows": _ROW * rows,
        "factors of all rows": 2 * 4 * width * rows,
    }


def both_sides(sizes: Sizes, chunking: Chunking, devices: int) -> tuple[Side, Side]:
    """Users and items, in chunks."""
    users = _side(sizes.num_users, sizes.user_counts, sizes.entries, chunking, devices)
    return users, _side(sizes.num_items, sizes.item_counts, sizes.entries, chunking, devices)


def _side(
    rows: int, counts: np.ndarray | None, entries: int, chunking: Chunking, devices: int
) -> Side:
    if counts is None:
        return _even_side(rows, entries, chunking, devices)
    layout = interactions.make_layout(counts, chunking, devices)
    need = -(-counts // layout.segment)
    is_long = layout.chunk == layout.chunks
    long_segments = int(need[is_long].sum())
    share = layout.segments / max(1, long_segments)  # of all long rows, in one chunk
    entries_of = np.bincount(layout.chunk, counts, layout.chunks + 1)[:-1]
    fullest = int(entries_of.argmax())
    sizes, size = np.unique(counts, return_inverse=True)
    owner = layout.position // (layout.table_rows // devices)
    owned = np.bincount(owner * len(sizes) + size, minlength=devices * len(sizes))
    return Side(
        rows=rows,
        table_rows=layout.table_rows,
        chunks=layout.chunks,
        chunk_rows=layout.chunk_rows,
        segments=layout.segments,
        segment=layout.segment,
        long_rows=layout.long_rows,
        long_chunks=up(long_segments, layout.segments * devices) * devices,
        in_short=Filling(
            int(np.count_nonzero(counts[layout.chunk == fullest])), float(entries_of[fullest])
        ),
        in_long=Filling(share * is_long.sum(), share * int(counts[is_long].sum())),
        sizes=sizes,
        owned=owned.reshape(devices, -1),
    )


def _even_side(rows: int, entries: int, chunking: Chunking, devices: int) -> Side:
    """The layout of rows that all have the same number of entries, without a list of them."""
    count = max(1, up(entries, rows))
    single = interactions.make_layout(np.array([count]), chunking, 1)
    segment, is_long = single.segment, single.long_rows > 0
    need, target = up(count, segment), max(1, chunking.entries // segment)
    most_rows = min(target, chunking.rows or target)
    alike = np.array([count]), np.array([[rows / devices]])
    if is_long:
        long_rows = up(rows, devices) * devices
        chunks = up(rows * need, devices) * devices  # of one segment: no short row sets it
        # Each device has a chunk of one row, which is empty.
        sizes = rows, long_rows + devices, devices, 1, 1, segment, long_rows, chunks
        return Side(*sizes, Filling(0, 0), Filling(1 / need, count / need), *alike)
    chunks = up(max(up(rows * need, target), up(rows, most_rows)), devices) * devices
    chunk_rows = up(rows, chunks)
    segments = chunk_rows * need
    sizes = rows, chunks * chunk_rows, chunks, chunk_rows, segments, segment, 0, 0
    return Side(*sizes, Filling(chunk_rows, chunk_rows * count), Filling(0, 0), *alike)


def asked_rows(chunk: Filling, fixed: Side, devices: int, chunks: int) -> int:
    """P of `fixed_rows`: the most rows of the fixed side that a device asks of one of them.

    The columns of a row are taken to be independent of those of other rows. A row of n entries then
    has a column of a share s of all entries with a probability of n s, and r rows ask for it with
    1 - (1 - n s)^r. P is the median of the largest over all chunks and owners, taken for normal
    numbers. What a chunk asks of all d devices hardly varies, so what it asks of one has 1 - 1 / d
    of the variance.

    Args:
      chunk: what a chunk of the solved side holds.
      fixed: the other side.
      devices: d.
      chunks: of the solved side, on all devices.
    """
    rows = max(1.0, chunk.rows)
    per_row = fixed.owned.sum(axis=0) / fixed.owned.sum()  # share of the rows with each number
    share = fixed.sizes / max(1.0, fixed.rows * float(fixed.sizes @ per_row))
    likely = 1 - (1 - np.minimum(1, chunk.entries / rows * share)) ** rows
    mean = fixed.owned @ likely
    variance = (1 - 1 / devices) * (fixed.owned @ (likely * (1 - likely)))
    z = statistics.NormalDist().inv_cdf(0.5 ** (1 / (chunks * devices)))
    return fixed_rows.room_for(max(1, math.ceil((mean + z * np.sqrt(variance)).max())))
