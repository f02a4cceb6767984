"""What a device wants of the owners of rows, and the rounds in which it asks for it.

It runs inside `jax.shard_map`. A device sorts its ids by owner and row, and keeps each distinct one
once. In a round it asks for as many rows as there is room for, so that the shapes of an exchange
are known.

If some device wants more, there are further rounds. In each, the devices agree on the rows of every
owner that all of them can ask for, from low to high. So a row is asked for by all devices in the
same round, and an optimizer sees the sum of their gradients.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cadc_jax import sharding
from cadc_jax.tables import dealt

ROUND_UP = 8  # rows of a tile on a TPU
_STEPS = 10  # at most one in so many is expected to need a second round
_UNEVEN = 1 / 32  # of the rows of an owner, for ids that many devices want at once


class Capacity(NamedTuple):
    """Rows that a device has room for in a round.

    Attributes:
      pair: that one device asks of one owner.
      total: of a ragged exchange, where no more rows travel than are asked for: those that a device
        asks of all owners, and that all devices ask of an owner, at least one for each device; else
        0.
    """

    pair: int
    total: int = 0

    @property
    def ragged(self) -> bool:
        """Whether no more rows travel than are asked for."""
        return self.total > 0


NO_ROOM = Capacity(0)  # for rows that stay where they are


def capacity(distinct: float, devices: int, rows: int, *, ragged: bool) -> Capacity:
    """Room for the rows of a table with which few steps need a second round.

    An owner holds each d-th id. If ids come and go independently, the number of its distinct ones
    in a part of a batch has a mean of n / d and at most this variance. One of d^2 pairs exceeds
    n / d + z sqrt(n / d) with a probability of at most d^2 exp(-z^2 / 2), by the tail of a normal
    distribution. z = sqrt(2 ln(10 d^2)) makes this a tenth. What all devices ask of one of d owners
    has a mean of n. Its devices' ids are not independent, so that it has more room than that.

    Args:
      distinct: n, distinct ids in the part of a batch of a device.
      devices: d.
      rows: V.
      ragged: whether only rows that are asked for travel.
    """
    mean = distinct / devices
    wanted = math.ceil(mean + _margin(mean, devices**2))
    wanted += -wanted % ROUND_UP
    pair = max(1, min(wanted, math.ceil(distinct), -(-rows // devices)))
    if not ragged:
        return Capacity(pair)
    total = math.ceil((1 + _UNEVEN) * distinct + _margin(distinct, devices))
    return Capacity(pair, max(devices, min(total, devices * pair)))


def received_bytes(capacity: Capacity, devices: int, row_bytes: int) -> int:
    """The most bytes that a device receives in a round of a lookup, or of an update.

    Args:
      capacity: room for its rows.
      devices: d.
      row_bytes: of a row as it travels.
    """
    others = devices - 1
    asked = others * capacity.pair * 4
    if capacity.ragged:  # all-reduces of 3 d numbers, and an all-to-all of d
        return asked + others * capacity.total * row_bytes // devices + (3 * 2 + 1) * 4 * others
    return asked + others * capacity.pair * row_bytes + 2 * 4 * others


def _margin(mean: float, of: int) -> float:
    """By how much the largest of so many numbers exceeds their mean in one of _STEPS steps."""
    return math.sqrt(2 * math.log(_STEPS * of) * mean)


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
      rows: [d] the same in this round, at most `Capacity.pair`.
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
    wants: Wants,
    capacity: Capacity,
    size: int,
    run: Callable[[Round, Any], Any],
    carry: Any,
) -> Any:
    """Runs rounds until every device has asked for all that it wants; one, if there is room.

    Args:
      wants: what this device wants.
      capacity: room for the rows of a round.
      size: m, rows of a device's part of the table.
      run: makes the next carry of a round and the last one.
      carry: the first one.
    """
    begins, ends = wants.starts[:-1], wants.starts[1:]
    devices = len(begins)
    bounds = size * jnp.arange(devices, dtype=jnp.int32)

    def agree(sent: jax.Array, most: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        past = begins + sent + most  # the first row of each owner that may be too much
        limit = jnp.where(past < ends, wants.place.at[past].get(mode="clip") - bounds, size)
        limit = lax.pmin(limit, sharding.EVERYWHERE)
        return limit, _number_below(wants.place, bounds + limit) - begins

    def one(state: Any) -> Any:
        _, sent, number, carry = state
        limit, after = agree(sent, capacity.pair)
        if capacity.ragged:
            fits = _fits(after - sent, capacity.total)
            most = jnp.where(fits, capacity.pair, capacity.total // devices)
            limit, after = agree(sent, most)
        return limit, after, number + 1, run(Round(number, sent, after - sent), carry)

    none = jnp.zeros_like(begins)
    start = none, none, jnp.zeros((), jnp.int32), carry
    return lax.while_loop(lambda state: jnp.any(state[0] < size), one, start)[-1]


def _fits(rows: jax.Array, total: int) -> jax.Array:
    """Whether no device asks for more than `total` rows, and no owner is asked for more.

    Args:
      rows: [d] that a device asks of each owner.
      total: the same on all devices.
    """
    own = jnp.sum(rows) > total
    asked = lax.psum(jnp.append(rows, own.astype(rows.dtype)), sharding.EVERYWHERE)
    return jnp.all(asked[:-1] <= total) & (asked[-1] == 0)
