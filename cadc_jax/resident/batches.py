"""Batches of rows that are in the memory of the devices.

Batch k is the one of `data.pipeline`, bit for bit: the same shuffle, the same negatives. It is made
where it is used, inside the program of the training steps, and nothing is sent.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding
from cadc_jax.data import sampling
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.data.pipeline import steps_per_epoch
from cadc_jax.data.table import Columns
from cadc_jax.resident import negatives, records, uint64
from cadc_jax.resident.negatives import ResidentNegatives
from cadc_jax.resident.records import Layout
from cadc_jax.resident.shuffle import permute
from cadc_jax.resident.uint64 import UInt64
from cadc_jax.tables import packed
from cadc_jax.tables.packed import AnyTable

Batch = Mapping[str, jax.Array]


@struct.dataclass
class ResidentRows:
    """Training rows on the devices of a mesh, and how batches are made of them.

    Attributes:
      table: [N, W] uint32 records, with some rows of zeros at the end.
      negatives: how negatives are drawn; None for rows with labels.
      start: [2] uint32, `sampling.start` of the seed, the upper half first.
      layout: of the records.
      num_rows: N.
      batch_rows: B, rows of a batch of all devices.
      steps: K, batches of a call.
      split: whether the records are split over the devices; otherwise each has all of them.
      mesh: the devices.
    """

    table: AnyTable
    negatives: ResidentNegatives | None
    start: jax.Array
    layout: Layout = struct.field(pytree_node=False)
    num_rows: int = struct.field(pytree_node=False)
    batch_rows: int = struct.field(pytree_node=False)
    steps: int = struct.field(pytree_node=False)
    split: bool = struct.field(pytree_node=False)
    mesh: Mesh = struct.field(pytree_node=False)


def put(
    columns: Columns,
    layout: Layout,
    sampler: NegativeSampling | None,
    num_users: int,
    seed: int,
    batch_rows: int,
    mesh: Mesh,
    split: bool,
) -> ResidentRows:
    """Sends the rows to the devices; a process reads only what its own devices hold.

    They make one batch at a time until `steps` is replaced.

    Args:
      columns: of the rows, `user`, `item`, `label`, `dense`, `categorical` and others.
      layout: of their records, as `records.plan` makes it.
      sampler: negatives to add to each row, if rows are positives only.
      num_users: U.
      seed: seed of the order and of the negatives.
      batch_rows: B, a multiple of the number of devices.
      mesh: the devices.
      split: whether each holds a part of the rows, or all of them.
    """
    count, everywhere = len(columns["user"]), sharding.named(mesh, sharding.REPLICATED)
    where = sharding.named(mesh, sharding.BATCH if split else sharding.REPLICATED)
    lanes = sharding.is_tpu(mesh) and packed.LANES % layout.words == 0
    together = packed.rows_together(layout.words) if lanes else 1
    wide = -(-count // together)
    wide += -wide % (mesh.size if split else 1)

    def part(index: Any) -> np.ndarray:
        first, end, _ = index[0].indices(wide)
        made = records.pack(columns, layout, slice(first * together, end * together))
        return made.reshape(-1, together * layout.words)

    table: AnyTable = jax.make_array_from_callback((wide, together * layout.words), where, part)
    if lanes:
        table = packed.Packed(table, layout.words)
    drawn = None if sampler is None else negatives.of(sampler, num_users, count)
    start = np.array(uint64.of(sampling.start(seed)))
    drawn, start = sharding.put((drawn, start), everywhere)
    return ResidentRows(table, drawn, start, layout, count, batch_rows, 1, split, mesh)


class Order(NamedTuple):
    """Which rows the batches of K steps have.

    Attributes:
      chosen: [K, B] uint32, rows.
      weight: [K, B] float32, 0 for places that fill up the last batch of an epoch.
      epoch: [K, 1] uint32.
    """

    chosen: jax.Array
    weight: jax.Array
    epoch: jax.Array


_SPLIT: Any = (sharding.BATCHES, sharding.BATCHES, P())
_ORDER = Order(*_SPLIT)  # how it is split over the devices


def maker(rows: ResidentRows, first_step: jax.Array) -> Callable[[jax.Array], Batch]:
    """A function that gives batch 0 <= i < K, for use in a loop inside a jitted function.

    Rows with labels are read step by step: batches of many features would take much memory, on a
    TPU up to 128 lanes a row. Negatives are drawn for all steps together, because a loop that
    repeats draws until they are right waits for the host of a GPU.
    """
    found = order(rows, first_step)
    if rows.negatives is not None:
        stack = fill(rows, found)
        return lambda i: {name: x[i] for name, x in stack.items()}

    def batch(i: jax.Array) -> Batch:
        one = fill(rows, jax.tree.map(lambda x: x[i][None], found))
        return {name: x[0] for name, x in one.items()}

    return batch


def make(rows: ResidentRows, first_step: jax.Array) -> Batch:
    """The batches of K steps together, for use inside a jitted function.

    Args:
      rows: the rows.
      first_step: [] int32.

    Returns:
      `data.pipeline.training_batches`' arrays with a leading axis [K], split over the devices as
      batches are.
    """
    return fill(rows, order(rows, first_step))


def order(rows: ResidentRows, first_step: jax.Array) -> Order:
    """The rows of the batches of K steps, split over the devices as batches are."""
    n, own = rows.num_rows, rows.batch_rows // rows.mesh.size

    def local(start: jax.Array, first_step: jax.Array) -> Order:
        device = lax.axis_index(sharding.EVERYWHERE) if rows.mesh.size > 1 else 0
        steps = first_step.astype(jnp.uint32) + jnp.arange(rows.steps, dtype=jnp.uint32)
        epoch, step = jnp.divmod(steps[:, None], np.uint32(steps_per_epoch(n, rows.batch_rows)))
        first = jnp.asarray(device * own, jnp.uint32)
        places = step * np.uint32(rows.batch_rows) + first + jnp.arange(own, dtype=jnp.uint32)
        # Places past the end of the epoch, which fill up its last batch, repeat its last row.
        inside = jnp.minimum(places, np.uint32(n - 1))
        chosen = permute(inside, n, UInt64(start[0], start[1]), epoch[:, 0])
        return Order(chosen, (places < np.uint32(n)).astype(jnp.float32), epoch)

    if rows.mesh.size == 1:
        return local(rows.start, first_step)
    made: Order = jax.shard_map(
        local, mesh=rows.mesh, in_specs=(P(), P()), out_specs=_ORDER, check_vma=False
    )(rows.start, first_step)
    return made


def fill(rows: ResidentRows, order: Order) -> Batch:
    """The batches [K, B, ...] of an order."""
    local = functools.partial(_local, rows)
    if rows.mesh.size == 1:
        return local(rows.table, rows.negatives, rows.start, order)
    made: Batch = jax.shard_map(
        local,
        mesh=rows.mesh,
        in_specs=(sharding.BATCH if rows.split else P(), P(), P(), _ORDER),
        out_specs=sharding.BATCHES,
        check_vma=False,
    )(rows.table, rows.negatives, rows.start, order)
    return made


def _local(
    rows: ResidentRows,
    table: AnyTable,
    drawn: ResidentNegatives | None,
    start: jax.Array,
    order: Order,
) -> Batch:
    """A device's part of the batches."""
    chosen = order.chosen
    if rows.split and rows.mesh.size > 1:
        found = _exchange(table, chosen)
    else:
        found = packed.read(table, chosen.reshape(-1).astype(jnp.int32))
    found = found.reshape(*chosen.shape, rows.layout.words)
    batch = dict(records.unpack(found, rows.layout))
    batch["item"] = batch["item"][..., None]
    batch["weight"] = order.weight
    if drawn is None:
        batch["label"] = batch["label"][..., None]
        return batch
    draws = uint64.multiply(uint64.of_word(order.epoch), uint64.of(rows.num_rows))
    draws = uint64.add(draws, uint64.of_word(chosen))
    flat = UInt64(*(x.reshape(-1) for x in draws))
    items = negatives.draw(drawn, batch["user"].reshape(-1), flat, UInt64(start[0], start[1]))
    items = items.reshape(*chosen.shape, drawn.count)
    batch["item"] = jnp.concatenate([batch["item"], items], axis=-1)
    batch["label"] = jnp.zeros(batch["item"].shape, jnp.float32).at[..., 0].set(1)
    return batch


def _exchange(table: AnyTable, chosen: jax.Array) -> jax.Array:
    """Records [K, b, W] of a device's own rows [K, b]; each device holds a part of all rows.

    It receives 4 * B * W bytes a step.
    """
    first = lax.axis_index(sharding.EVERYWHERE) * len(table)

    def one(chosen: jax.Array) -> jax.Array:
        wanted = lax.all_gather(chosen, sharding.EVERYWHERE, tiled=True).astype(jnp.int32)
        place = wanted - first
        held = (place >= 0) & (place < len(table))
        found = jnp.where(held[:, None], packed.read(table, place), 0)
        return lax.psum_scatter(found, sharding.EVERYWHERE, tiled=True)

    return lax.map(one, chosen)
