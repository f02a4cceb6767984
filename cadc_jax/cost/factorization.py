"""The cost of a pass of ALS and of logistic SGD."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax import sparse_optimizers
from cadc_jax.cost.arithmetic import all_reduce, f32, tree_bytes, up
from cadc_jax.cost.model import Cost, Sizes
from cadc_jax.factorization import interactions, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.sgd import SGDConfig


def als(sizes: Sizes, config: ALSConfig, devices: int = 1) -> Cost:
    """An ALS iteration, both half-steps, over so many devices."""
    width = config.factors + (config.feedback == "explicit")
    both = ((sizes.num_users, sizes.user_counts), (sizes.num_items, sizes.item_counts))
    chunk = config.chunk or max(256, 2**17 // config.factors)
    sides = [_side(rows, counts, sizes.entries, chunk, devices) for rows, counts in both]
    itemsize = jnp.dtype(config.dtype).itemsize
    halves = [
        _half_step(solved, fixed, config, width, itemsize, devices)
        for solved, fixed in (sides, sides[::-1])
    ]
    held = sum(side.table_rows for side in sides) / devices
    cell = 8  # an index and a value; the program leaves values out if every one of them is 1
    entries = sum(
        (side.chunks + side.long_chunks) * side.segments * (side.segment * cell + 8)
        for side in sides
    )
    return Cost(
        name=f"factorize, als: {config.factors} factors, fixed side {config.fixed_side}",
        memory={
            "tables of users and items": held * width * itemsize,
            "regularization of their rows": held * 4,
            "entries, by user and by item": entries / devices,
            "copy of the fixed side": max(half.copied for half in halves),
            "solved rows, a chunk and its exchange": max(half.working for half in halves),
        },
        unit="iteration",
        flops=sum(half.flops for half in halves),
        precision="highest",
        traffic=sum(half.traffic for half in halves),
        received={kind: sum(half.received[kind] for half in halves) for kind in halves[0].received},
        units=config.iterations,
        whole="factorisation",
    )


class _Side(NamedTuple):
    """What `interactions.Layout` and `pack` make of users or items, in numbers."""

    rows: int
    table_rows: int
    chunks: int
    chunk_rows: int
    segments: int
    segment: int
    long_rows: int
    long_chunks: int


def _side(rows: int, counts: np.ndarray | None, entries: int, chunk: int, devices: int) -> _Side:
    if counts is None:
        return _even_side(rows, entries, chunk, devices)
    layout = interactions.make_layout(counts, chunk, devices)
    need = -(-counts // layout.segment)
    of_long = int(need[layout.chunk == layout.chunks].sum())
    return _Side(
        rows=rows,
        table_rows=layout.table_rows,
        chunks=layout.chunks,
        chunk_rows=layout.chunk_rows,
        segments=layout.segments,
        segment=layout.segment,
        long_rows=layout.long_rows,
        long_chunks=up(of_long, layout.segments * devices) * devices,
    )


def _even_side(rows: int, entries: int, chunk: int, devices: int) -> _Side:
    """As `make_layout` would deal rows that all have as many entries; it holds none of them."""
    count = max(1, up(entries, rows))
    few = interactions.make_layout(np.array([count]), chunk, 1)  # chooses the segment for us
    segment, is_long = few.segment, few.long_rows > 0
    need, target = up(count, segment), max(1, chunk // few.segment)
    if is_long:
        long_rows = up(rows, devices) * devices
        chunks = up(rows * need, devices) * devices  # of one segment: no short row sets it
        return _Side(rows, long_rows, devices, 0, 1, segment, long_rows, chunks)
    chunks = up(max(up(rows * need, target), up(rows, target)), devices) * devices
    chunk_rows = up(rows, chunks)
    segments = chunk_rows * need
    return _Side(rows, chunks * chunk_rows, chunks, chunk_rows, segments, segment, 0, 0)


class _HalfStep(NamedTuple):
    copied: float
    working: float
    flops: float
    traffic: float
    received: dict[str, float]


def _half_step(
    solved: _Side, fixed: _Side, config: ALSConfig, width: int, itemsize: int, devices: int
) -> _HalfStep:
    """Solving one side, for one device; K is the width of a row."""
    implicit, cg = config.feedback == "implicit", config.solver == "cg"
    gathered = config.fixed_side == "gathered"
    passes = 1 + config.cg_steps if cg else 1  # over the entries
    short, long = solved.chunks / devices, solved.long_chunks / devices
    places = solved.segments * solved.segment  # of a chunk, padding included
    entries = (short + long) * places
    rows = solved.table_rows / devices
    # A pass of conjugate gradients: a score and a sum for each entry, and the shared K x K matrix
    # for each row. Cholesky: an outer product for each entry, and elimination in blocks of 8 rows.
    square = width * width
    if cg:
        flops = passes * (4 * entries * width + 2 * rows * square)
    else:
        padded = up(width, 8) * 8
        flops = 2 * entries * (square + width) + 2 * rows * padded * (padded + 1) * (padded + 8)
    flops += 2 * fixed.table_rows / devices * square if implicit else 0
    chunk_rows = places * width * 4
    matrices = 0 if cg else 3 * max(solved.chunk_rows, 1) * width * (width + 1) * 4
    fetches = short + long * passes
    index, found = places * 4, places * width * itemsize
    received = {
        "fixed side": (devices - 1) / devices * fixed.table_rows * width * itemsize,
        "K x K matrix": all_reduce(4 * square, devices) if implicit else 0,
        # The solution goes round, and the parts of the sums come back.
        "rows of many entries": passes
        * (devices - 1)
        / devices
        * solved.long_rows
        * width
        * 4
        * (2 if cg else width + 1),
    }
    exchange = 0
    if not gathered:
        received["fixed side"] = (devices - 1) * fetches * (index + found)
        exchange = devices * (index + found)
    return _HalfStep(
        copied=fixed.table_rows * width * itemsize if gathered else 0,
        working=rows * width * 4 + 2 * chunk_rows + matrices + exchange,
        flops=flops,
        # Rows of the fixed side read and written once a fetch, then read in each pass.
        traffic=fetches * places * width * (itemsize + 4)
        + passes * entries * width * 4
        + entries * 4
        + rows * width * (4 * passes * 4 + 2 * itemsize),
        received=received if devices > 1 else dict.fromkeys(received, 0.0),
    )


def sgd_factorization(sizes: Sizes, config: SGDConfig) -> Cost:
    """An epoch of `factorization.sgd`, which runs on one device."""
    width = config.factors + 1
    labelled = sizes.task == "click"
    items = 1 if labelled else 1 + config.negatives
    tables = [f32(rows, width) for rows in (sizes.num_users, sizes.num_items)]
    slots = [
        jax.eval_shape(functools.partial(sparse_optimizers.init, config.optimizer), x)
        for x in tables
    ]
    block = min(sizes.rows, sgd.BLOCK_ROWS) if labelled else sizes.rows
    batch = min(config.batch_rows, block)
    known = 0 if labelled else 4 * (sizes.entries + sizes.num_users)
    touched = batch * (1 + items)
    return Cost(
        name=f"factorize, sgd: {config.factors} factors, on one device whatever their number",
        memory={
            "tables of users and items": tree_bytes(tables),
            "their optimizer's state": tree_bytes(slots),
            "rows on the device": block * (12 if labelled else 8) * 2 + known + 4 * block,
            "rows of the batch and gradients": 4 * touched * width * 4,
        },
        unit="step",
        flops=3 * 2 * batch * items * width,
        precision="float32",
        traffic=touched * (9 * width * 4 + 2 * 8),
        received={},
        units=-(-sizes.rows // batch) * config.epochs,
        whole=f"{config.epochs} epochs",
    )
