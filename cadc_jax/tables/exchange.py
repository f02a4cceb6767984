"""Rows of a dealt table for the ids of a batch: asked of their owners, and returned.

Most of it runs inside `jax.shard_map`. A device sorts its ids by owner and row, and keeps each
distinct one once. It asks an owner for at most `capacity` rows at a time, so that the shapes of an
all-to-all are known.

If some device wants more of an owner, there are further rounds. In each, the devices agree on the
rows of every owner that all of them can ask for, from low to high. So a row is asked for by all
devices in the same round, and an optimizer sees the sum of their gradients.

What a device receives depends on its own part of the batch and not on the number of devices, as in
model-parallel embeddings of TorchRec (arXiv 2210.11703, section 2).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cadc_jax import sharding
from cadc_jax.tables import dealt, packed
from cadc_jax.tables.dealt import Dealt
from cadc_jax.tables.packed import AnyTable

_ROUND_UP = 8  # rows of a tile on a TPU
_STEPS = 10  # at most one in so many is expected to need a second round


def capacity(distinct: float, devices: int, rows: int) -> int:
    """Rows that a device asks of an owner in a round.

    An owner holds each d-th id. If ids come and go independently, the number of its distinct ones
    in a part of a batch has a mean of n / d and at most this variance. One of d^2 pairs exceeds
    n / d + z sqrt(n / d) with a probability of at most d^2 exp(-z^2 / 2), by the tail of a normal
    distribution. z = sqrt(2 ln(10 d^2)) makes this a tenth.

    Args:
      distinct: n, distinct ids in the part of a batch of a device.
      devices: d.
      rows: V.
    """
    mean = distinct / devices
    margin = math.sqrt(2 * math.log(_STEPS * devices**2) * mean)
    wanted = math.ceil(mean + margin)
    wanted += -wanted % _ROUND_UP
    return max(1, min(wanted, math.ceil(distinct), -(-rows // devices)))


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
    room = capacity(len(ids) / devices, devices, len(table))
    return on_owners(table, ids, room)[:n]


def on_owners(table: Dealt, ids: jax.Array, capacity: int) -> jax.Array:
    """`lookup` for ids [n] that are split over the devices of a table, as the rows [n, D] are."""
    rows: jax.Array = jax.shard_map(
        functools.partial(lookup, capacity=capacity),
        mesh=table.mesh,
        in_specs=(sharding.TABLE, sharding.BATCH),
        out_specs=sharding.BATCH,
        check_vma=False,
    )(table.rows, ids)
    return rows


def lookup(part: AnyTable, ids: jax.Array, capacity: int) -> jax.Array:
    """Rows [n, D] of a device's own ids [n]; ids outside the table get zeros.

    Args:
      part: [m, D], the device's part of the table.
      ids: [n] int32.
      capacity: rows to ask of an owner in a round.
    """
    devices, size, width = lax.axis_size(sharding.EVERYWHERE), len(part), part.shape[1]
    wants = sort_ids(ids, devices, size)
    owner = ids % devices
    # Rows travel as bits. For products that round their inputs a TPU's compiler rounds what enters
    # the loop of rounds, which is the whole table.
    bits = jnp.dtype(f"uint{8 * part.dtype.itemsize}")

    def fetch(turn: Round, rows: jax.Array) -> jax.Array:
        asked = all_to_all(rows_to_ask(wants, turn, capacity, size))
        found = lax.bitcast_convert_type(packed.read(part, asked.reshape(-1)), bits)
        found = all_to_all(found.reshape(devices, capacity, width)).reshape(-1, width)
        slot = wants.rank - (wants.starts[:-1] + turn.sent)[owner]
        here = (wants.rank < len(ids)) & (slot >= 0) & (slot < turn.rows[owner])
        own = found.at[jnp.where(here, owner * capacity + slot, 0)].get(mode="clip")
        return jnp.where(here[:, None], own, rows)

    rows = in_rounds(wants, capacity, size, fetch, jnp.zeros((len(ids), width), bits))
    return lax.bitcast_convert_type(rows, part.dtype)


class Wants(NamedTuple):
    """The distinct rows that a device wants, in the order of places.

    Attributes:
      order: [n] positions of the ids in this order; those without a row are last.
      rank: [n] which of the distinct rows each id has; n for none.
      first: [n + 1] where in `order` each distinct row begins; the end of all ids after the last.
      place: [n] place of each distinct row; d * m after the last.
      starts: [d + 1] first distinct row of each owner.
    """

    order: jax.Array
    rank: jax.Array
    first: jax.Array
    place: jax.Array
    starts: jax.Array


class Round(NamedTuple):
    """A round of an exchange.

    Attributes:
      number: [] int32, from 0.
      sent: [d] distinct rows of each owner that were asked for before.
      rows: [d] the same in this round, at most the capacity.
    """

    number: jax.Array
    sent: jax.Array
    rows: jax.Array


def sort_ids(ids: jax.Array, devices: int, size: int) -> Wants:
    """What a device wants for its ids [n] of `devices` parts of `size` rows."""
    n, nowhere = len(ids), devices * size
    position = jnp.arange(n, dtype=jnp.int32)
    place = dealt.place(ids, devices, size)
    place = jnp.where((ids >= 0) & (ids < nowhere), place, nowhere)
    place, order = lax.sort_key_val(place, position)
    real = place < nowhere
    begins = real & jnp.append(True, place[1:] != place[:-1])
    rank = jnp.cumsum(begins, dtype=jnp.int32) - 1
    first = jnp.full(n + 1, jnp.sum(real, dtype=jnp.int32))
    first = first.at[jnp.where(begins, rank, n + 1 + position)].set(
        position, mode="drop", unique_indices=True
    )
    distinct = jnp.where(first[:-1] < first[1:], place.at[first[:-1]].get(mode="clip"), nowhere)
    return Wants(
        order=order,
        rank=jnp.zeros_like(rank).at[order].set(jnp.where(real, rank, n), unique_indices=True),
        first=first,
        place=distinct,
        starts=_number_below(distinct, size * jnp.arange(devices + 1, dtype=jnp.int32)),
    )


def _number_below(ascending: jax.Array, bounds: jax.Array) -> jax.Array:
    """How many of `ascending` [n] are below each of `bounds` [k]: [k] int32."""
    return jnp.searchsorted(ascending, bounds, method="compare_all").astype(jnp.int32)


def in_rounds(
    wants: Wants, capacity: int, size: int, run: Callable[[Round, Any], Any], carry: Any
) -> Any:
    """Runs rounds until every device has asked for all that it wants; one, if capacity allows."""
    begins, ends = wants.starts[:-1], wants.starts[1:]
    bounds = size * jnp.arange(len(begins), dtype=jnp.int32)

    def one(state: Any) -> Any:
        _, sent, number, carry = state
        past = begins + sent + capacity  # the first row of each owner that may be too much
        limit = jnp.where(past < ends, wants.place.at[past].get(mode="clip") - bounds, size)
        limit = lax.pmin(limit, sharding.EVERYWHERE)
        after = _number_below(wants.place, bounds + limit) - begins
        return limit, after, number + 1, run(Round(number, sent, after - sent), carry)

    none = jnp.zeros_like(begins)
    start = none, none, jnp.zeros((), jnp.int32), carry
    return lax.while_loop(lambda state: jnp.any(state[0] < size), one, start)[-1]


def in_slots(wants: Wants, turn: Round, capacity: int) -> jax.Array:
    """Which distinct row each slot [d, C] of a round has; anything in slots that are not used."""
    return (wants.starts[:-1] + turn.sent)[:, None] + jnp.arange(capacity, dtype=jnp.int32)


def rows_to_ask(wants: Wants, turn: Round, capacity: int, size: int) -> jax.Array:
    """Rows [d, C] to ask of each owner, counted in its part; `size` in slots that are not used."""
    used = jnp.arange(capacity) < turn.rows[:, None]
    place = wants.place.at[in_slots(wants, turn, capacity)].get(mode="clip")
    return jnp.where(used, place % size, size)


def all_to_all(x: jax.Array) -> jax.Array:
    """x [d, C, ...], by receiver -> by sender."""
    return lax.all_to_all(x, sharding.EVERYWHERE, 0, 0, tiled=True)
