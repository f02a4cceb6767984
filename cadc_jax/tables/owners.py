"""Updates of a dealt table: gradients travel to the owners of their rows, which apply them.

It runs inside `jax.shard_map`, in the rounds of `tables.rounds`. The gradients of equal ids are
summed before they travel.
"""

import jax
import jax.numpy as jnp
from jax import lax

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.tables import rounds, trips
from cadc_jax.tables.packed import AnyTable
from cadc_jax.tables.rounds import Capacity, Round, Wants

_State = tuple[AnyTable, sparse_optimizers.Slots]


def update(
    optimizer: str,
    part: AnyTable,
    slots: sparse_optimizers.Slots,
    ids: jax.Array,
    grads: jax.Array,
    learning_rate: float | jax.Array,
    key: jax.Array | None,
    capacity: Capacity,
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
      capacity: room for the rows of a round.
    """
    devices, size = lax.axis_size(sharding.EVERYWHERE), len(part)
    wants = rounds.sort_ids(ids, devices, size)
    total = lax.platform_dependent(
        *(wants, grads.astype(jnp.float32)), cpu=_totals_by_scatter, default=_totals_by_sort
    )
    if key is not None:
        key = jax.random.fold_in(key, lax.axis_index(sharding.EVERYWHERE))
    before = {name: slots[name] for name in ("count",) if name in slots}

    def apply(turn: Round, state: _State) -> _State:
        part, slots = state
        trip = trips.ask(wants, turn, capacity, size, total.shape[1])
        wanted = trips.wanted_by_slot(wants, turn, trip.asks)
        wanted = jnp.where(trip.asks.used, wanted, len(total))
        sums = trip.to_owners(lambda rows: total.at[rows].get(mode="fill", fill_value=0), wanted)
        own_key = None if key is None else jax.random.fold_in(key, turn.number)
        return sparse_optimizers.update(
            *(optimizer, part, slots | before, trip.rows, sums, learning_rate), key=own_key
        )

    state: _State = rounds.in_rounds(wants, capacity, size, apply, (part, slots))
    return state


def _totals_by_scatter(wants: Wants, grads: jax.Array) -> jax.Array:
    """Sums [n, D] of the gradients [n, D] of each distinct row, in no particular order."""
    return jnp.zeros_like(grads).at[wants.rank].add(grads, mode="drop")


def _totals_by_sort(wants: Wants, grads: jax.Array) -> jax.Array:
    """The same sums, each in a fixed order."""
    n = len(grads)
    rank = wants.rank[wants.order]
    kept = rank < n
    own = jnp.where(kept[:, None], grads[wants.order], 0)
    sums = sparse_optimizers.sums_of_runs(rank, kept, own)
    return sums.at[wants.first[1:] - 1].get(mode="clip")
