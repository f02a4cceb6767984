"""Rows of a dealt table for the ids of a batch: asked of their owners, and returned.

A device asks for each distinct row once, in rounds if there are too many (see `tables.rounds`), and
no more of them cross between devices than can be helped (see `tables.trips`). What a device
receives depends on its own part of the batch and not on the number of devices, as in model-parallel
embeddings of TorchRec (arXiv 2210.11703, section 2).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cadc_jax import sharding
from cadc_jax.tables import dealt, packed, rounds, trips
from cadc_jax.tables.dealt import Dealt
from cadc_jax.tables.packed import AnyTable
from cadc_jax.tables.rounds import Capacity, Round


def distinct(ids: jax.Array) -> jax.Array:
    """Number [] float32 of distinct ids >= 0 among a device's own [n], the mean of all devices."""
    ids = jnp.sort(ids)
    begins = (ids >= 0) & jnp.append(True, ids[1:] != ids[:-1])
    return lax.pmean(jnp.sum(begins, dtype=jnp.float32), sharding.EVERYWHERE)


def read(table: AnyTable, ids: jax.Array) -> jax.Array:
    """Rows [n, D] of ids [n], outside of `jax.shard_map`, of a table in any form.

    Ids outside the table read some finite row.
    """
    if not isinstance(table, Dealt) or not len(ids):
        return packed.read(dealt.rows_of(table), ids)
    n, devices = len(ids), table.mesh.size
    ids = jnp.pad(ids, (0, -n % devices), constant_values=-1)
    ragged = trips.can_be_ragged(table.mesh)
    room = rounds.capacity(len(ids) / devices, devices, len(table), ragged=ragged)
    return on_owners(table, ids, room)[:n]


def on_owners(table: Dealt, ids: jax.Array, capacity: Capacity) -> jax.Array:
    """`lookup` for ids [n] that are split over the devices of a table, as the rows [n, D] are."""
    rows: jax.Array = jax.shard_map(
        functools.partial(lookup, capacity=capacity),
        mesh=table.mesh,
        in_specs=(sharding.TABLE, sharding.BATCH),
        out_specs=sharding.BATCH,
        check_vma=False,
    )(table.rows, ids)
    return rows


def lookup(part: AnyTable, ids: jax.Array, capacity: Capacity) -> jax.Array:
    """Rows [n, D] of a device's own ids [n], inside `jax.shard_map`; others get zeros.

    Args:
      part: [m, D], the device's part of the table.
      ids: [n] int32.
      capacity: room for the rows of a round.
    """
    devices, size, width = lax.axis_size(sharding.EVERYWHERE), len(part), part.shape[1]
    wants = rounds.sort_ids(ids, devices, size)
    words = words_of(width, part.dtype)

    def fetch(turn: Round, rows: jax.Array) -> jax.Array:
        trip = trips.ask(wants, turn, capacity, size, words)
        found = trip.to_askers(lambda rows: as_words(packed.read(part, rows)))
        slot = trips.slot_by_id(wants, turn, trip, ids % devices)
        own = found.at[jnp.maximum(slot, 0)].get(mode="clip")
        return jnp.where((slot >= 0)[:, None], own, rows)

    none = jnp.zeros((len(ids), words), jnp.uint32)
    rows = rounds.in_rounds(wants, capacity, size, fetch, none)
    return numbers(rows, width, part.dtype)


# Rows travel as words of 32 bits. For products that round their inputs a TPU's compiler rounds what
# enters the loop of rounds, which is the whole table; and a TPU moves 16 bits at the price of 32.


def words_of(width: int, dtype: Any) -> int:
    """Words of a row of numbers of 32 or 16 bits."""
    return -(-width * jnp.dtype(dtype).itemsize // 4)


def as_words(rows: jax.Array) -> jax.Array:
    """Rows [n, D] of numbers of 32 or 16 bits as words [n, W]."""
    if rows.dtype.itemsize == 4:
        return lax.bitcast_convert_type(rows, jnp.uint32)
    bits = lax.bitcast_convert_type(rows, jnp.uint16).astype(jnp.uint32)
    half = words_of(rows.shape[1], rows.dtype)
    return bits[:, :half] | jnp.pad(bits[:, half:] << 16, ((0, 0), (0, rows.shape[1] % 2)))


def numbers(words: jax.Array, width: int, dtype: Any) -> jax.Array:
    """Rows [n, D] of words [n, W]: the inverse of `as_words`."""
    if jnp.dtype(dtype).itemsize == 4:
        return lax.bitcast_convert_type(words, dtype)
    bits = jnp.concatenate([words, words >> 16], axis=1)[:, :width].astype(jnp.uint16)
    return lax.bitcast_convert_type(bits, dtype)
