"""Sizes of the packing of users and items (`factorization.interactions`)."""

from typing import NamedTuple

import numpy as np

from cadc_jax.cost.arithmetic import up
from cadc_jax.cost.model import Sizes
from cadc_jax.factorization import interactions
from cadc_jax.factorization.interactions import Chunking

_CELL = 8  # an index and a value; programs leave values out if every one of them is 1
# Bytes on the host: of an entry of the whole matrix by one host, of an entry of the side that one
# of several hosts packs (as read, and by rows), and of the counts and places of a row.
_WHOLE_ENTRY, _OWN_ENTRY, _ROW = 40, 20, 64


class Side(NamedTuple):
    """Sizes of the `Layout` and the chunks of users or items, on all devices."""

    rows: int
    table_rows: int
    chunks: int
    chunk_rows: int
    segments: int
    segment: int
    long_rows: int
    long_chunks: int

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
    long_segments = int(need[layout.chunk == layout.chunks].sum())
    return Side(
        rows=rows,
        table_rows=layout.table_rows,
        chunks=layout.chunks,
        chunk_rows=layout.chunk_rows,
        segments=layout.segments,
        segment=layout.segment,
        long_rows=layout.long_rows,
        long_chunks=up(long_segments, layout.segments * devices) * devices,
    )


def _even_side(rows: int, entries: int, chunking: Chunking, devices: int) -> Side:
    """The layout of rows that all have the same number of entries, without a list of them."""
    count = max(1, up(entries, rows))
    single = interactions.make_layout(np.array([count]), chunking, 1)
    segment, is_long = single.segment, single.long_rows > 0
    need, target = up(count, segment), max(1, chunking.entries // segment)
    most_rows = min(target, chunking.rows or target)
    if is_long:
        long_rows = up(rows, devices) * devices
        chunks = up(rows * need, devices) * devices  # of one segment: no short row sets it
        # Each device has a chunk of one row, which is empty.
        return Side(rows, long_rows + devices, devices, 1, 1, segment, long_rows, chunks)
    chunks = up(max(up(rows * need, target), up(rows, most_rows)), devices) * devices
    chunk_rows = up(rows, chunks)
    segments = chunk_rows * need
    return Side(rows, chunks * chunk_rows, chunks, chunk_rows, segments, segment, 0, 0)
