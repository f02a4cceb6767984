"""Where rows lie that cross between devices, and on what devices they cross ragged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.tables import trips


def used(slots):
    """(device, which of its rows) of each slot that is used."""
    pairs = np.stack([slots.other, slots.nth], axis=1)
    return [tuple(pair) for pair in pairs[np.asarray(slots.used)].tolist()]


@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("rows", [[3, 0, 4, 1], [0, 0, 0, 8], [0, 0, 0, 0], [8, 0, 0, 0]])
def test_each_row_has_a_slot(rows, together):
    rows = jnp.asarray(rows, jnp.int32)
    expected = [(device, nth) for device, n in enumerate(rows.tolist()) for nth in range(n)]
    forms = trips._filled_up(rows, 8), trips._one_after_another(rows, 20, together)
    for slots in forms:
        assert used(slots) == expected
        for device, nth in expected:
            slot = int(slots.begins[device]) + nth
            assert (int(slots.other[slot]), int(slots.nth[slot])) == (device, nth)
    assert not np.any(forms[1].begins % together)
    assert np.flatnonzero(forms[1].used).max(initial=-1) < 8 + 4 * (together - 1)


def test_exchanges_between_cpus_are_not_ragged():
    assert not trips.can_be_ragged(sharding.make_mesh())
    assert not trips.can_be_ragged(jax.sharding.AbstractMesh((8,), (sharding.EVERYWHERE,)))
