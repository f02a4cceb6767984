"""Rows of a split table of the fixed side, for the chunks of the devices that solve the other side.

The host knows every entry of a chunk. So it lists once, before the first iteration, which rows a
chunk needs of each device, each of them once, and the devices send one another these lists. While
chunks are solved, nothing but the rows that are asked for crosses between devices: what a device
receives depends on its own chunk. All lists are as long as the longest, so shapes are static, and
one exchange is always enough.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding
from cadc_jax.factorization.interactions import Chunks, Layout
from cadc_jax.tables import exchange
from cadc_jax.tables.rounds import ROUND_UP


def place(chunks: Chunks, fixed: Layout, mesh: Mesh) -> Chunks:
    """Puts the chunks of this process on its devices, with what they ask for; all processes call.

    Args:
      chunks: of this process, on the host, as `interactions.pack` makes them.
      fixed: layout of the fixed side, over all devices.
      mesh: the devices.

    Returns:
      The chunks with `asked`, and with the places among the rows that come as `index`.
    """
    places = np.asarray(chunks.index)
    needs = [np.unique(chunk) for chunk in places]
    bounds = _part(fixed) * np.arange(fixed.devices + 1)
    starts = np.array([np.searchsorted(need, bounds) for need in needs], np.int32)
    starts = starts.reshape(len(needs), len(bounds))  # also if there are no chunks
    room = room_for(sharding.largest(np.diff(starts).max(axis=1, initial=0), mesh))
    index, wanted = _by_slot(places, needs, starts, fixed, room)
    given = dataclasses.replace(chunks, index=index, asked=wanted)
    placed: Chunks = sharding.put_own(given, mesh)
    return dataclasses.replace(placed, asked=_to_owners(placed.asked, mesh))


def room_for(rows: int) -> int:
    """P, the length of all lists, if a device asks for at most so many rows of another."""
    return rows + -rows % ROUND_UP


def fetch(fixed: jax.Array, chunk: Chunks, axes: tuple[str, ...]) -> jax.Array:
    """The rows [S, L, K] float32 of a chunk's entries, inside of `jax.shard_map`.

    Args:
      fixed: [m, K], the device's part of the table.
      chunk: one of those that `place` returned.
      axes: of the mesh.
    """
    assert chunk.asked is not None
    devices, room = chunk.asked.shape
    rows = fixed.at[chunk.asked.reshape(-1)].get(mode="promise_in_bounds")
    words = exchange.as_words(rows).reshape(devices, room, -1)
    words = lax.all_to_all(words, axes, 0, 0, tiled=True).reshape(devices * room, -1)
    own = words.at[chunk.index.reshape(-1)].get(mode="promise_in_bounds")
    rows = exchange.numbers(own, fixed.shape[1], fixed.dtype).astype(jnp.float32)
    return rows.reshape(*chunk.index.shape, -1)


def _part(fixed: Layout) -> int:
    """m, rows of a device's part of the table."""
    return fixed.table_rows // fixed.devices


def _by_slot(
    index: np.ndarray, needs: list[np.ndarray], starts: np.ndarray, fixed: Layout, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the entries among the rows that come, and the lists of these rows.

    Args:
      index: [C, S, L] places in the whole table.
      needs: the distinct ones of each chunk, in order.
      starts: [C, d + 1] where in them those of each device begin.
      fixed: layout of the table.
      room: P.

    Returns:
      [C, S, L] int32 below d * P, and [C, d, P] int32: rows of each device's part.
    """
    slot = np.zeros(fixed.table_rows, np.int32)  # of the places that the chunk at hand needs
    wanted = np.zeros((len(index), fixed.devices * room), np.int32)
    slots = np.empty_like(index)
    for nth, need in enumerate(needs):
        owner, row = np.divmod(need, _part(fixed))
        slot[need] = owner * room + np.arange(len(need)) - starts[nth][owner]
        wanted[nth][slot[need]] = row
        slots[nth] = slot[index[nth]]
    return slots, wanted.reshape(len(index), fixed.devices, room)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _to_owners(wanted: jax.Array, mesh: Mesh) -> jax.Array:
    """[C, d, P] rows by owner, for each chunk of a device -> by asker, for those of all devices."""
    axes = mesh.axis_names
    return jax.shard_map(
        lambda own: lax.all_to_all(own, axes, 1, 1, tiled=True),
        mesh=mesh,
        in_specs=P(axes),
        out_specs=P(axes),
        check_vma=False,
    )(wanted)
