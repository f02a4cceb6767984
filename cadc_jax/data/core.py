"""Leaves out users and items of few rows, until each one that stays has enough (a k-core).

Leaving out a user takes rows from items, and the other way round, so it is repeated until nothing
changes. The result does not depend on the order. It is a property of the log, found before rows are
split. If the data brings its own split, only training rows count, and a held-out row stays if its
user and its item do.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cadc_jax.data import encoding, raw
from cadc_jax.data.raw import TRAIN
from cadc_jax.data.staging import StagedChunk, map_chunks, ordered_map
from cadc_jax.data.vocabulary import Counter
from cadc_jax.errors import DataError


class LeftOut(NamedTuple):
    """Rows that are left out, and the users and items that have none left."""

    rows: int
    users: int
    items: int


def cut(
    folder: pathlib.Path, chunks: Sequence[StagedChunk], min_user_rows: int, min_item_rows: int
) -> tuple[list[StagedChunk], LeftOut]:
    """Rewrites staged chunks without users and items of few rows.

    Repeated rows of a pair count each. Memory holds the distinct users and items and a few chunks.

    Args:
      folder: for files of 12 bytes a row, which are deleted again.
      chunks: all rows, with the columns `user`, `item` and perhaps `fold`.
      min_user_rows: rows that a user needs.
      min_item_rows: rows that an item needs.

    Returns:
      The chunks that have rows left, renumbered, and what was left out.

    Raises:
      DataError: if no row is left.
    """
    sizes = _write_codes(folder, chunks)
    stays = [np.arange(size) > 0 for size in sizes]  # 0: has no training row
    before = [size - 1 for size in sizes]
    least = (max(1, min_user_rows), max(1, min_item_rows))
    changed = True
    while changed:
        changed = False
        for side, count in enumerate(_counts(folder, chunks, stays)):
            enough = stays[side] & (count >= least[side])
            changed |= bool(np.any(enough != stays[side]))
            stays[side] = enough
    kept: list[StagedChunk] = []
    start = 0
    for chunk in map_chunks("prepare: core", lambda x: _rewrite(folder, x, stays), chunks):
        if chunk.rows:
            kept.append(dataclasses.replace(chunk, start=start))
            start += chunk.rows
    if not start:
        raise DataError(
            f"data.min_user_rows={min_user_rows}, data.min_item_rows={min_item_rows}: no row is "
            "left; lower them"
        )
    users, items = (size - int(x.sum()) for size, x in zip(before, stays, strict=True))
    return kept, LeftOut(sum(chunk.rows for chunk in chunks) - start, users, items)


def _codes_file(folder: pathlib.Path, chunk: StagedChunk) -> pathlib.Path:
    return folder / f"{chunk.path.stem}.codes.npy"


def _is_training(rows: pa.Table) -> np.ndarray:
    if "fold" not in rows.column_names:
        return np.ones(len(rows), bool)
    return rows["fold"].to_numpy() == TRAIN


def _write_codes(folder: pathlib.Path, chunks: Sequence[StagedChunk]) -> list[int]:
    """Writes user, item and whether it is for training [3, n] int32 of the rows of each chunk.

    Returns:
      Numbers of ids of users and of items; id 0 stands for values without a training row.
    """
    counters = {kind: Counter(0) for kind in raw.CODED}
    for chunk in chunks:
        rows = chunk.read((*raw.CODED, "fold"))
        training = _is_training(rows)
        for kind, counter in counters.items():
            column = encoding.coded_column(rows, kind)
            codes = column.indices.to_numpy()[training]
            counter.add(column.dictionary, np.bincount(codes, minlength=len(column.dictionary)))
    known = [counter.vocabulary(1) for counter in counters.values()]

    def write(chunk: StagedChunk) -> None:
        rows = chunk.read((*raw.CODED, "fold"))
        ids = [
            vocabulary.coded_ids(encoding.coded_column(rows, kind))
            for kind, vocabulary in zip(raw.CODED, known, strict=True)
        ]
        codes = np.stack([*ids, _is_training(rows)]).astype(np.int32)
        np.save(_codes_file(folder, chunk), codes)

    for _ in ordered_map(write, chunks):
        pass
    return [vocabulary.size for vocabulary in known]


def _counts(
    folder: pathlib.Path, chunks: Sequence[StagedChunk], stays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Training rows of each user and each item whose user and item stay."""

    def count(chunk: StagedChunk) -> list[np.ndarray]:
        user, item, training = np.load(_codes_file(folder, chunk))
        here = stays[0][user] & stays[1][item] & (training > 0)
        return [user[here], item[here]]

    totals = [np.zeros(len(x), np.int64) for x in stays]
    for found in ordered_map(count, chunks):
        for total, ids in zip(totals, found, strict=True):
            total += np.bincount(ids, minlength=len(total))
    return totals


def _rewrite(folder: pathlib.Path, chunk: StagedChunk, stays: Sequence[np.ndarray]) -> StagedChunk:
    """Rewrites a chunk with the rows whose user and item stay; deletes it if there are none."""
    file = _codes_file(folder, chunk)
    user, item, _ = np.load(file)
    file.unlink()
    kept = stays[0][user] & stays[1][item]
    number = int(np.count_nonzero(kept))
    if number < chunk.rows:
        rows = chunk.read().filter(pa.array(kept))
        chunk.path.unlink()
        if number:
            with pa.OSFile(str(chunk.path), "wb") as out:
                with pa.ipc.new_file(out, rows.schema) as writer:
                    writer.write_table(rows.combine_chunks())
    return StagedChunk(chunk.path, 0, number, chunk.host)
