"""The cost of an ALS iteration, and of a step of logistic SGD."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.cost.arithmetic import (
    GPU,
    all_reduce,
    doublings,
    f32,
    i32,
    sums_of_equal_ids,
    table_bytes,
    tree_bytes,
    up,
)
from cadc_jax.cost.model import Cost, Sizes
from cadc_jax.cost.sides import Side, asked_rows, both_sides, host_memory
from cadc_jax.cost.trace import launches
from cadc_jax.factorization import als_solver, sgd_rows, sgd_step
from cadc_jax.factorization.als import ALSConfig, chunking
from cadc_jax.factorization.als_solver import ELIMINATION_BLOCK, HalfStepConfig, SideData
from cadc_jax.factorization.interactions import Chunks
from cadc_jax.factorization.sgd import SGDConfig
from cadc_jax.factorization.sgd_rows import Block, Penalties
from cadc_jax.factorization.sgd_step import State, StepConfig
from cadc_jax.tables import exchange, rounds
from cadc_jax.tables.packed import stored_width
from cadc_jax.tables.rounds import Capacity

# Bytes on the host of a row of a block of SGD, at the peak: as measured on one device, and on
# several, for which rows are sorted by their owner.
_ORDER, _DEALT_ORDER = 22, 72


def als(
    sizes: Sizes, config: ALSConfig, devices: int = 1, platform: str = GPU, hosts: int = 1
) -> Cost:
    """The cost of an ALS iteration, which is two half-steps.

    Args:
      sizes: sizes of the data.
      config: settings of the factorisation.
      devices: number of devices.
      platform: what they are: 'cpu', 'gpu' or 'tpu'.
      hosts: number of hosts that have them.
    """
    sides = both_sides(sizes, chunking(config, platform), devices)
    halves = [_HalfStep(*half, config, devices, platform) for half in (sides, sides[::-1])]
    held = sum(side.table_rows for side in sides) / devices
    entries = sum(half.solved.entry_bytes + half.asked for half in halves)
    received = [half.received for half in halves]
    return Cost(
        name=f"factorize, als: {config.factors} factors, fixed side {config.fixed_side}",
        memory={
            "tables of users and items": held * halves[0].row,
            "regularization of their rows": held * 4,
            "entries, by user and by item": entries / devices,
            "copy of the fixed side": max(half.copied for half in halves),
            "solved rows, a chunk and its exchange": max(half.working for half in halves),
        },
        unit="iteration",
        flops=sum(half.flops for half in halves),
        precision="highest",
        traffic=sum(half.traffic for half in halves),
        received={kind: sum(half[kind] for half in received) for kind in received[0]},
        launches=sum(half.launches for half in halves),
        units=config.iterations,
        whole="factorisation",
        host=host_memory(sizes, config.width, hosts),
    )


@dataclasses.dataclass(frozen=True)
class _HalfStep:
    """The solve of one side, on one device. K is the width of a table."""

    solved: Side
    fixed: Side
    config: ALSConfig
    devices: int
    platform: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number in a table."""
        return jnp.dtype(self.config.dtype).itemsize

    @property
    def row(self) -> int:
        """Bytes that a row of a table takes."""
        return stored_width(self.config.width, self.platform) * self.itemsize

    @property
    def wide_row(self) -> int:
        """Bytes that a row takes while it is solved, or gathered."""
        return stored_width(self.config.width, self.platform) * 4

    @property
    def passes(self) -> int:
        """Passes over the entries."""
        return 1 + self.config.cg_steps if self.config.solver == "cg" else 1

    @property
    def rows(self) -> float:
        """Table rows of the device."""
        return self.solved.table_rows / self.devices

    @property
    def places(self) -> int:
        """Entries of a chunk, padding included."""
        return self.solved.places

    @property
    def entries(self) -> float:
        """Entries of the device, padding included."""
        return self.solved.entries / self.devices

    @property
    def fetches(self) -> float:
        """Chunks for which rows of the fixed side are read: once if short, in each pass if long."""
        short, long = self.solved.chunks / self.devices, self.solved.long_chunks / self.devices
        return short + long * self.passes

    @property
    def copied(self) -> int:
        """Bytes of the copy of the fixed side."""
        if self.config.fixed_side == "sharded":
            return 0
        return self.fixed.table_rows * self.row

    @functools.cached_property
    def rooms(self) -> tuple[int, int]:
        """Rows that a device asks of each device for a chunk of short rows, and for one of long."""
        if self.config.fixed_side == "gathered":
            return 0, 0
        solved = self.solved
        kinds = (solved.in_short, solved.chunks), (solved.in_long, solved.long_chunks)
        short, long = (
            asked_rows(chunk, self.fixed, self.devices, count) if count else 0
            for chunk, count in kinds
        )
        return short, long

    @property
    def asked(self) -> int:
        """Bytes of the lists of these rows, on all devices."""
        short, long = self.rooms
        return 4 * self.devices * (self.solved.chunks * short + self.solved.long_chunks * long)

    @property
    def crossing(self) -> float:
        """Rows that a device gets for all its chunks, its own and unused ones counted."""
        solved, (short, long) = self.solved, self.rooms
        return solved.chunks * short + self.passes * solved.long_chunks * long

    @property
    def working(self) -> float:
        """Bytes of the solved rows, and of a chunk while it is solved."""
        matrices = 0
        if self.config.solver == "exact":
            systems = 3 * max(self.solved.chunk_rows, 1) + self.solved.segments
            matrices = systems * self.matrix
        crossing = 2 * self.devices * max(self.rooms)  # rows as they are sent, and as they come
        return (self.rows + 2 * self.places + crossing) * self.wide_row + matrices

    @property
    def flops(self) -> float:
        """FLOPs of matrix products."""
        width, entries, rows = self.config.width, self.entries, self.rows
        square = width * width
        # A pass of conjugate gradients: a score and a sum for each entry, and the shared K x K
        # matrix for each row. Exact: an outer product for each entry, and block elimination.
        if self.config.solver == "cg":
            flops = self.passes * (4 * entries * width + 2 * rows * square)
        else:
            padded = up(width, ELIMINATION_BLOCK) * ELIMINATION_BLOCK
            flops = 2 * entries * (square + width)
            flops += 2 * rows * padded * (padded + 1) * (padded + ELIMINATION_BLOCK)
        if self.config.feedback == "implicit":
            flops += 2 * self.fixed.table_rows / self.devices * square
        return flops

    @property
    def traffic(self) -> float:
        """Bytes read from and written to the device's memory."""
        # Rows of the fixed side are read and written once a fetch. If they cross between devices,
        # they are read and written to be sent, and written as they come.
        moved = self.fetches * self.places * (self.row + self.wide_row) + self.entries * 4
        moved += 3 * self.crossing * self.row
        rows = self.rows * (4 * self.passes * self.wide_row + 2 * self.row)
        if self.config.solver == "cg":  # each pass reads them for the scores, then for their sums
            return moved + rows + 2 * self.passes * self.entries * self.wide_row
        # The matrix of each segment is written and added to its row's, which is read and solved.
        segments = self.entries / self.solved.segment
        return (
            moved + rows + self.entries * self.wide_row + 2 * (segments + self.rows) * self.matrix
        )

    @property
    def matrix(self) -> int:
        """Bytes of a row's matrix and right-hand side."""
        return self.config.width * stored_width(self.config.width + 1, self.platform) * 4

    @property
    def launches(self) -> int:
        """Kernels of the traced half-step."""
        solved, width = self.solved, self.config.width
        chunk_rows = max(1, solved.chunk_rows)

        def chunks(count: int, room: int) -> Chunks:
            row: Any = i32(count, solved.segments)
            index: Any = i32(*row.shape, solved.segment)
            asked: Any = i32(count, self.devices, room) if self.rooms[0] else None
            return Chunks(index, row, row, None, asked)

        table = f32(solved.long_rows + solved.chunks * chunk_rows, width)
        fixed, penalties = f32(self.fixed.table_rows, width), f32(self.fixed.table_rows)
        penalty: Any = f32(table.shape[0])
        counts = solved.chunks, solved.long_chunks
        side = SideData(penalty, *map(chunks, counts, self.rooms))
        static = HalfStepConfig(
            self.config.feedback, self.config.solver, self.config.cg_steps, chunk_rows
        )
        mesh = AbstractMesh((self.devices,), (sharding.EVERYWHERE,))
        one = functools.partial(als_solver.half_step, config=static, mesh=mesh)
        traced = jax.make_jaxpr(one)(table, side, fixed, penalties, f32(), f32())
        return launches(traced.jaxpr, 0, self.platform)

    @property
    def received(self) -> dict[str, float]:
        """Purpose -> bytes from other devices."""
        width, devices = self.config.width, self.devices
        share = (devices - 1) / devices
        fixed = share * self.fixed.table_rows * width * self.itemsize
        if self.config.fixed_side == "sharded":
            row_bytes = 4 * exchange.words_of(width, self.config.dtype)
            fixed = share * self.crossing * row_bytes
        implicit, cg = self.config.feedback == "implicit", self.config.solver == "cg"
        # For long rows, each pass gathers the solution and reduce-scatters the sums.
        numbers = 2 if cg else width + 1
        long = self.passes * (devices - 1) / devices * self.solved.long_rows * width * 4 * numbers
        received = {
            "fixed side": fixed,
            "K x K matrix": all_reduce(4 * width * width, devices) if implicit else 0,
            "rows of many entries": long,
        }
        return received if devices > 1 else dict.fromkeys(received, 0.0)


def sgd_factorization(
    sizes: Sizes, config: SGDConfig, devices: int = 1, platform: str = GPU
) -> Cost:
    """The cost of a step of logistic SGD on each device, if all have the same share of the rows.

    Args:
      sizes: sizes of the data.
      config: settings of the factorisation.
      devices: number of devices.
      platform: what they are: 'cpu', 'gpu' or 'tpu'.
    """
    width = config.factors + 1
    labelled = sizes.task == "click"
    items = 1 if labelled else 1 + config.negatives
    users = up(sizes.num_users, devices)
    tables = [f32(rows, width) for rows in (users, up(sizes.num_items, devices))]
    slots = [
        jax.eval_shape(functools.partial(sparse_optimizers.init, config.optimizer), x)
        for x in tables
    ]
    block = min(sizes.rows, sgd_rows.BLOCK_ROWS) if labelled else sizes.rows
    batch = min(config.batch_rows, block)
    own_block, own_batch = up(block, devices), up(batch, devices)
    known = 0 if labelled else 4 * (up(sizes.entries, devices) + users)
    touched = own_batch * (1 + items)
    row = stored_width(width, platform) * 4
    plain = config.optimizer == "sgd"
    # Rows are read, written for the gradients, and updated; gradients are written, read and summed.
    moves = 6 if plain else 6 + sums_of_equal_ids(own_batch, platform)
    counts = sizes.item_counts
    shares = 1 / sizes.num_items if counts is None else counts / max(1, counts.sum())
    room = sgd_rows.item_capacity(batch, items - 1, sizes.num_items, devices, shares)
    return Cost(
        name=f"factorize, sgd: {config.factors} factors",
        memory={
            "tables of users and items": sum(_padded(x, platform) for x in tables),
            "their optimizer's state": sum(_padded(x, platform) for x in jax.tree.leaves(slots)),
            "penalties": 4 * (users + sizes.num_items),
            "rows on the device": own_block * (12 if labelled else 8) * 2 + known + 4 * own_block,
            "rows of the batch and gradients": 4 * touched * row,
            "rows to and from their owners": 4 * devices * room.pair * row,
        },
        unit="step",
        flops=3 * 2 * own_batch * items * width,
        precision="float32",
        traffic=touched * (moves * row + 2 * 8) + 4 * devices * room.pair * row,
        received=_sgd_received(width, room, devices),
        launches=_sgd_launches(sizes, config, devices, room, platform),
        units=up(sizes.rows, batch) * config.epochs,
        whole=f"{config.epochs} epochs",
        host=_sgd_host(sizes, width, block, devices),
    )


def _sgd_host(sizes: Sizes, width: int, block: int, devices: int) -> dict[str, float]:
    """Purpose -> bytes that a host holds, whichever devices are its own."""
    rows = sizes.num_users + sizes.num_items
    return {
        "order of the rows of a block": block * (_ORDER if devices == 1 else _DEALT_ORDER),
        "counts of users and items": 16 * rows,
        "factors of all rows": 2 * 4 * width * rows,
    }


def _sgd_received(width: int, room: Capacity, devices: int) -> dict[str, float]:
    """Purpose -> bytes from other devices in a step."""
    if devices == 1:
        return {}
    one_way = rounds.received_bytes(room, devices, 4 * width)
    sums = all_reduce(2 * 4, devices)  # of the gradient of the bias, and of weights
    return {"item rows": one_way, "their gradients": one_way, "global bias": sums}


def _sgd_launches(
    sizes: Sizes, config: SGDConfig, devices: int, room: Capacity, platform: str
) -> int:
    """Kernels of the traced step."""
    labelled = sizes.task == "click"
    batch = up(config.batch_rows, devices)
    held = min(sizes.rows, sgd_rows.BLOCK_ROWS) if labelled else sizes.rows
    users, rows = up(sizes.num_users, devices), up(held, devices)
    mesh = AbstractMesh((devices,), (sharding.EVERYWHERE,))
    static = StepConfig(
        *(config.optimizer, 0 if labelled else config.negatives, sizes.num_items, room, mesh)
    )
    width, items = config.factors + 1, up(sizes.num_items, devices)
    tables: list[Any] = [f32(n * devices, width) for n in (users, items)]
    init = functools.partial(sparse_optimizers.init, config.optimizer)
    slots = [jax.eval_shape(init, table) for table in tables]
    bias: Any = f32()
    state = State(tables[0], tables[1], bias, slots[0], slots[1])
    ids: Any = i32(rows * devices)
    label: Any = f32(rows * devices) if labelled else None
    offsets: Any = None if labelled else i32((users + 1) * devices)
    known: Any = None if labelled else i32(up(max(1, sizes.entries), devices) * devices)
    block = Block(ids, ids, label, ids if not labelled and devices > 1 else None, offsets, known)
    each: Any = (f32(users * devices), f32(sizes.num_items))
    traced = jax.make_jaxpr(functools.partial(sgd_step.train_block, config=static))(
        *(state, block, i32(1, batch * devices), Penalties(*each), f32(), jax.random.key(0))
    )
    return launches(traced.jaxpr, doublings(batch), platform)


def _padded(x: jax.ShapeDtypeStruct, platform: str) -> int:
    """Bytes of a table or a vector."""
    if x.ndim != 2:
        return tree_bytes(x)
    rows, width = x.shape
    return table_bytes(rows, width, x.dtype.itemsize, platform)
