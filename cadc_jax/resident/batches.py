"""Batches of rows that are in the memory of the devices.

Batch k is the one of `data.pipeline`, bit for bit: the same shuffle, the same negatives. It is made
where it is used, inside the program of the training steps, and nothing is sent.
"""

import functools
from collections.abc import Mapping
from typing import Any

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
from cadc_jax.data.table import Columns
from cadc_jax.resident import negatives, records, uint64
from cadc_jax.resident.negatives import ResidentNegatives
from cadc_jax.resident.records import Layout
from cadc_jax.resident.shuffle import permute
from cadc_jax.resident.uint64 import UInt64
from cadc_jax.tables import packed
from cadc_jax.tables.packed import AnyTable

_EVERYWHERE = (sharding.DATA, sharding.MODEL)


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
      steps: K, batches that are made together.
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


def make(rows: ResidentRows, first_step: jax.Array) -> Mapping[str, jax.Array]:
    """The batches of K steps, for use inside a jitted function.

    Args:
      rows: the rows.
      first_step: [] int32.

    Returns:
      `data.pipeline.training_batches`' arrays with a leading axis [K], split over the devices as
      batches are.
    """
    local = functools.partial(_local, rows)
    if rows.mesh.size == 1:
        return local(rows.table, rows.negatives, rows.start, first_step)
    return jax.shard_map(
        local,
        mesh=rows.mesh,
        in_specs=(sharding.BATCH if rows.split else P(), P(), P(), P()),
        out_specs=sharding.BATCHES,
        check_vma=False,
    )(rows.table, rows.negatives, rows.start, first_step)


def _local(
    rows: ResidentRows,
    table: AnyTable,
    drawn: ResidentNegatives | None,
    start: jax.Array,
    first_step: jax.Array,
) -> Mapping[str, jax.Array]:
    """A device's part of the batches."""
    n, seed = rows.num_rows, UInt64(start[0], start[1])
    device = lax.axis_index(_EVERYWHERE) if rows.mesh.size > 1 else 0
    own = rows.batch_rows // rows.mesh.size
    steps = first_step.astype(jnp.uint32) + jnp.arange(rows.steps, dtype=jnp.uint32)
    epoch, step = jnp.divmod(steps, np.uint32(-(-n // rows.batch_rows)))

    def places_of(first: jax.Array | int, size: int) -> jax.Array:
        offset = jnp.asarray(first, jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)
        return step[:, None] * np.uint32(rows.batch_rows) + offset

    def chosen_at(places: jax.Array) -> jax.Array:
        # Places past the end of the epoch, which fill up its last batch, repeat its last row.
        return permute(jnp.minimum(places, np.uint32(n - 1)), n, seed, epoch)

    places = places_of(device * own, own)
    chosen = chosen_at(places)
    if rows.split and rows.mesh.size > 1:
        found = _exchange(table, chosen_at(places_of(0, rows.batch_rows)), device)
    else:
        found = packed.read(table, chosen.reshape(-1).astype(jnp.int32)).reshape(
            *chosen.shape, rows.layout.words
        )
    batch = dict(records.unpack(found, rows.layout))
    batch["item"] = batch["item"][..., None]
    batch["weight"] = (places < np.uint32(n)).astype(jnp.float32)
    if drawn is None:
        batch["label"] = batch["label"][..., None]
        return batch
    draws = uint64.multiply(uint64.of_word(epoch[:, None]), uint64.of(n))
    draws = uint64.add(draws, uint64.of_word(chosen))
    items = negatives.draw(
        drawn, batch["user"].reshape(-1), UInt64(*(x.reshape(-1) for x in draws)), seed
    )
    batch["item"] = jnp.concatenate(
        [batch["item"], items.reshape(*chosen.shape, drawn.count)], axis=-1
    )
    batch["label"] = jnp.zeros(batch["item"].shape, jnp.float32).at[..., 0].set(1)
    return batch


def _exchange(table: AnyTable, chosen: jax.Array, device: jax.Array | int) -> jax.Array:
    """A device's records [K, B / d, W] of the rows [K, B] of all; each device holds a part of them.

    It receives 4 * B * W bytes a step.
    """

    def one(chosen: jax.Array) -> jax.Array:
        place = chosen.astype(jnp.int32) - device * len(table)
        held = (place >= 0) & (place < len(table))
        found = jnp.where(held[:, None], packed.read(table, place), 0)
        return lax.psum_scatter(found, _EVERYWHERE, tiled=True)

    return lax.map(one, chosen)
