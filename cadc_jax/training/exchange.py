"""Rows of a dealt table for the ids of a batch: asked of their owners, returned, and updated there.

All functions run inside `jax.shard_map`. A device sorts its ids by owner and row, and keeps each
distinct one once. It asks an owner for at most `capacity` rows at a time, so that the shapes of an
all-to-all are known. The gradients of equal ids are summed before they travel.

If some device wants more of an owner, there are further rounds. In each, the devices agree on the
rows of every owner that all of them can ask for, from low to high. So a row is asked for by all
devices in the same round, and its optimizer sees the sum of their gradients.

What a device receives depends on its own part of the batch and not on the number of devices, as in
model-parallel embeddings of TorchRec (arXiv 2210.11703, section 2).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.tables import dealt, packed
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


def lookup(part: AnyTable, ids: jax.Array, capacity: int) -> jax.Array:
    """Rows [n, D] of a device's own ids [n]; ids outside the table get zeros.

    Args:
      part: [m, D], the device's part of the table.
      ids: [n] int32.
      capacity: rows to ask of an owner in a round.
    """
    devices, size, width = lax.axis_size(sharding.EVERYWHERE), len(part), part.shape[1]
    wants = _wants(ids, devices, size)
    owner = ids % devices

    def fetch(turn: _Round, rows: jax.Array) -> jax.Array:
        asked = _all_to_all(_asked(wants, turn, capacity, size))
        found = packed.read(part, asked.reshape(-1)).reshape(devices, capacity, width)
        found = _all_to_all(found).reshape(-1, width)
        slot = wants.rank - (wants.starts[:-1] + turn.sent)[owner]
        here = (wants.rank < len(ids)) & (slot >= 0) & (slot < turn.rows[owner])
        own = found.at[jnp.where(here, owner * capacity + slot, 0)].get(mode="clip")
        return jnp.where(here[:, None], own, rows)

    return _in_rounds(wants, capacity, size, fetch, jnp.zeros((len(ids), width), part.dtype))


def update(
    optimizer: str,
    part: AnyTable,
    slots: sparse_optimizers.Slots,
    ids: jax.Array,
    grads: jax.Array,
    learning_rate: float | jax.Array,
    key: jax.Array | None,
    capacity: int,
) -> tuple[AnyTable, sparse_optimizers.Slots]:
    """`sparse_optimizers.update` of a device's part of a table by the gradients of all devices.

    Args:
      optimizer: the optimizer that made `slots`.
      part: [m, D], the device's part of the table.
      slots: the state of its rows.
      ids: [n] int32, the device's own.
      grads: [n, D] gradients with respect to their rows.
      learning_rate: scalar.
      key: of stochastic rounding, the same on all devices; None rounds to nearest.
      capacity: rows to send an owner in a round.
    """
    devices, size = lax.axis_size(sharding.EVERYWHERE), len(part)
    wants = _wants(ids, devices, size)
    total = lax.platform_dependent(
        *(wants, grads.astype(jnp.float32)), cpu=_totals_by_scatter, default=_totals_by_sort
    )
    if key is not None:
        key = jax.random.fold_in(key, lax.axis_index(sharding.EVERYWHERE))
    before = {name: slots[name] for name in ("count",) if name in slots}

    def apply(turn: _Round, state: Any) -> Any:
        part, slots = state
        wanted = _asked(wants, turn, capacity, size)
        sums = total.at[_first_of(wants, turn, capacity)].get(mode="clip")
        sums = jnp.where((wanted < size)[..., None], sums, 0)
        rows, sums = _all_to_all(wanted), _all_to_all(sums)
        own_key = None if key is None else jax.random.fold_in(key, turn.number)
        return sparse_optimizers.update(
            *(optimizer, part, slots | before, rows.reshape(-1), sums.reshape(-1, sums.shape[-1])),
            learning_rate,
            key=own_key,
        )

    state: tuple[AnyTable, sparse_optimizers.Slots] = _in_rounds(
        wants, capacity, size, apply, (part, slots)
    )
    return state


class _Wants(NamedTuple):
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


class _Round(NamedTuple):
    """A round of an exchange.

    Attributes:
      number: [] int32, from 0.
      sent: [d] distinct rows of each owner that were asked for before.
      rows: [d] the same in this round, at most the capacity.
    """

    number: jax.Array
    sent: jax.Array
    rows: jax.Array


def _wants(ids: jax.Array, devices: int, size: int) -> _Wants:
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
    return _Wants(
        order=order,
        rank=jnp.zeros_like(rank).at[order].set(jnp.where(real, rank, n), unique_indices=True),
        first=first,
        place=distinct,
        starts=_number_below(distinct, size * jnp.arange(devices + 1, dtype=jnp.int32)),
    )


def _number_below(ascending: jax.Array, bounds: jax.Array) -> jax.Array:
    """How many of `ascending` [n] are below each of `bounds` [k]: [k] int32."""
    return jnp.searchsorted(ascending, bounds, method="compare_all").astype(jnp.int32)


def _in_rounds(
    wants: _Wants, capacity: int, size: int, run: Callable[[_Round, Any], Any], carry: Any
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
        return limit, after, number + 1, run(_Round(number, sent, after - sent), carry)

    none = jnp.zeros_like(begins)
    start = none, none, jnp.zeros((), jnp.int32), carry
    return lax.while_loop(lambda state: jnp.any(state[0] < size), one, start)[-1]


def _first_of(wants: _Wants, turn: _Round, capacity: int) -> jax.Array:
    """Which distinct row each slot [d, C] of a round has; anything in slots that are not used."""
    return (wants.starts[:-1] + turn.sent)[:, None] + jnp.arange(capacity, dtype=jnp.int32)


def _asked(wants: _Wants, turn: _Round, capacity: int, size: int) -> jax.Array:
    """Rows [d, C] to ask of each owner, counted in its part; `size` in slots that are not used."""
    used = jnp.arange(capacity) < turn.rows[:, None]
    place = wants.place.at[_first_of(wants, turn, capacity)].get(mode="clip")
    return jnp.where(used, place % size, size)


def _totals_by_scatter(wants: _Wants, grads: jax.Array) -> jax.Array:
    """Sums [n, D] of the gradients [n, D] of each distinct row, in no particular order."""
    return jnp.zeros_like(grads).at[wants.rank].add(grads, mode="drop")


def _totals_by_sort(wants: _Wants, grads: jax.Array) -> jax.Array:
    """The same sums, each in a fixed order."""
    n = len(grads)
    rank = wants.rank[wants.order]
    kept = rank < n
    own = jnp.where(kept[:, None], grads[wants.order], 0)
    sums = sparse_optimizers.sums_of_runs(rank, kept, own)
    return sums.at[wants.first[1:] - 1].get(mode="clip")


def _all_to_all(x: jax.Array) -> jax.Array:
    """x [d, C, ...], by receiver -> by sender."""
    return lax.all_to_all(x, sharding.EVERYWHERE, 0, 0, tiled=True)
