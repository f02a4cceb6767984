"""How rows cross between devices in a round of an exchange.

In a ragged exchange exactly those rows cross that are asked for, between buffers in which they lie
one device after another. What is received, and the buffers, then hardly depend on the number of
devices. Otherwise each pair of devices exchanges a buffer of `Capacity.pair` rows, filled up.

A TPU moves whole rows of 128 words of 32 bits. So narrow rows travel side by side, and row numbers,
which are far smaller than rows, always in buffers that are filled up.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh

from cadc_jax import sharding
from cadc_jax.tables.packed import LANES
from cadc_jax.tables.rounds import Capacity, Round, Wants


@functools.cache
def can_be_ragged(mesh: Mesh | AbstractMesh) -> bool:
    """Whether exchanges on these devices can be ragged: on TPUs whose compiler can do it.

    It cannot for the larger slices of v5e. XLA has no such operation for CPUs. On GPUs it was not
    tried.
    """
    if not sharding.is_tpu(mesh) or mesh.size == 1:
        return False
    slots, rows = mesh.size * mesh.size, mesh.size * LANES

    def local(sizes: jax.Array, x: jax.Array) -> jax.Array:
        return lax.ragged_all_to_all(x, x, *[sizes] * 4, axis_name=sharding.EVERYWHERE)

    split = sharding.named(mesh, sharding.TABLE)
    given = (
        jax.ShapeDtypeStruct((slots,), jnp.int32, sharding=split),
        jax.ShapeDtypeStruct((rows, LANES), jnp.uint32, sharding=split),
    )
    run = jax.shard_map(
        local, mesh=mesh, in_specs=sharding.TABLE, out_specs=sharding.TABLE, check_vma=False
    )
    try:
        jax.jit(run).lower(*given).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


_Read = Callable[[jax.Array], jax.Array]


class Slots(NamedTuple):
    """Where in a buffer of R rows those of each device lie.

    Attributes:
      begins: [d] first slot of each device; first wide row, if rows travel side by side.
      rows: [d] rows of each device.
      other: [R] whose each slot is.
      nth: [R] which one of that device it is.
    """

    begins: jax.Array
    rows: jax.Array
    other: jax.Array
    nth: jax.Array

    @property
    def used(self) -> jax.Array:
        """[R] whether a slot has a row."""
        return self.nth < self.rows[self.other]


class Trip(NamedTuple):
    """What crosses in a round.

    Attributes:
      asks: slots of the rows that this device asks for.
      asked: slots of the rows that it is asked for.
      rows: [R] these rows, counted in its part; the size of the part in slots that are not used.
      together: rows that travel side by side in a ragged exchange; else 0.
    """

    asks: Slots
    asked: Slots
    rows: jax.Array
    together: int

    def to_owners(self, read: _Read, rows: jax.Array) -> jax.Array:
        """Rows [R, W] of 32-bit numbers, in the slots `asks`, as the owners get them: [R, W].

        Args:
          read: makes rows [k, W] of some of `rows` [k].
          rows: [R].
        """
        return _travel(read, rows, self.asks, self.asked, self.together)

    def to_askers(self, read: _Read) -> jax.Array:
        """Rows `rows` [R, W], in the slots `asked`, as the askers get them: [R, W] in `asks`."""
        return _travel(read, self.rows, self.asked, self.asks, self.together)


def ask(wants: Wants, turn: Round, capacity: Capacity, size: int, width: int) -> Trip:
    """Tells the owners which rows are wanted in a round.

    Args:
      wants: what this device wants.
      turn: the round.
      capacity: its room.
      size: m, rows of a device's part of the table.
      width: W, 32-bit numbers in a row that is to travel.
    """
    nth = jnp.arange(capacity.pair, dtype=jnp.int32)
    place = wants.place.at[(wants.starts[:-1] + turn.sent)[:, None] + nth].get(mode="clip")
    wanted = _all_to_all(jnp.where(nth < turn.rows[:, None], place % size, size))
    if not capacity.ragged:
        slots = _filled_up(turn.rows, capacity.pair)
        return Trip(slots, slots, wanted.reshape(-1), 0)
    together = LANES // width if LANES % width == 0 else 1
    room = -(-(capacity.total + len(wanted) * (together - 1)) // together)
    asks = _one_after_another(turn.rows, room, together)
    count = jnp.sum(wanted < size, axis=1, dtype=jnp.int32)
    asked = _one_after_another(count, room, together)
    rows = wanted.at[asked.other, asked.nth].get(mode="clip")
    return Trip(asks, asked, jnp.where(asked.used, rows, size), together)


def _filled_up(rows: jax.Array, pair: int) -> Slots:
    """Slots of buffers that are filled up: `pair` for each device."""
    slot = jnp.arange(len(rows) * pair, dtype=jnp.int32)
    begins = pair * jnp.arange(len(rows), dtype=jnp.int32)
    return Slots(begins, rows, slot // pair, slot % pair)


def _one_after_another(rows: jax.Array, room: int, together: int) -> Slots:
    """Slots of `room` wide rows, of which every device has as many as it needs.

    The first parts of all wide rows come first, then all second ones: cutting and joining them so
    moves no number to another lane row, which a TPU would do through padded copies of the buffer.
    """
    wide = -(-rows // together)
    ends = jnp.cumsum(wide, dtype=jnp.int32)
    row = jnp.arange(room, dtype=jnp.int32)
    other = jnp.searchsorted(ends, row, side="right", method="compare_all").astype(jnp.int32)
    other = jnp.minimum(other, len(rows) - 1)
    part = jnp.arange(together, dtype=jnp.int32)[:, None]
    nth = (row - (ends - wide)[other]) * together + part
    return Slots(ends - wide, rows, jnp.tile(other, together), nth.reshape(-1))


def wanted_by_slot(wants: Wants, turn: Round, slots: Slots) -> jax.Array:
    """Which distinct row each slot [R] of `Trip.asks` has; any where it is not used."""
    return (wants.starts[:-1] + turn.sent)[slots.other] + slots.nth


def slot_by_id(wants: Wants, turn: Round, trip: Trip, owner: jax.Array) -> jax.Array:
    """Slot of `Trip.asks` of each id [n], whose owners are `owner` [n]; -1 outside of the round."""
    nth = wants.rank - (wants.starts[:-1] + turn.sent)[owner]
    here = (wants.rank < len(owner)) & (nth >= 0) & (nth < turn.rows[owner])
    together = max(1, trip.together)
    room = len(trip.asks.nth) // together
    slot = nth % together * room + trip.asks.begins[owner] + nth // together
    return jnp.where(here, slot, -1)


def _travel(read: _Read, rows: jax.Array, here: Slots, there: Slots, together: int) -> jax.Array:
    """Sends rows in the slots `here` to their devices, where they arrive in the slots `there`."""
    if not together:
        x = read(rows)
        return _all_to_all(x.reshape(len(here.rows), -1, x.shape[1])).reshape(x.shape)
    # One part after the other: rows of 64 numbers take the memory of 128 until they are joined.
    wide = jnp.concatenate([read(part) for part in jnp.split(rows, together)], axis=1)
    sent, received = (-(-slots.rows // together) for slots in (here, there))
    begins = _all_to_all(there.begins)  # where the others want them
    wide = lax.ragged_all_to_all(
        *(wide, jnp.zeros_like(wide), here.begins, sent, begins, received),
        axis_name=sharding.EVERYWHERE,
    )
    return jnp.concatenate(jnp.split(wide, together, axis=1))


def _all_to_all(x: jax.Array) -> jax.Array:
    """x [d, ...], by receiver -> by sender."""
    return lax.all_to_all(x, sharding.EVERYWHERE, 0, 0, tiled=True)
