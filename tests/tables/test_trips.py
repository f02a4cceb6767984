"""Where rows lie that cross between devices, and on what devices they cross ragged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.tables import trips

ROWS = [[3, 0, 4, 1], [0, 0, 0, 8], [0, 0, 0, 0], [8, 0, 0, 0]]


def used(slots):
    """(device, which of its rows) -> slot, for each slot that is used."""
    pairs = np.stack([slots.other, slots.nth], axis=1)
    slot = np.flatnonzero(slots.used)
    return dict(zip(map(tuple, pairs[slot].tolist()), slot.tolist(), strict=True))


@pytest.mark.parametrize("rows", ROWS)
def test_every_device_has_a_buffer_that_is_filled_up(rows):
    found = used(trips._filled_up(jnp.asarray(rows, jnp.int32), 8))
    assert found == {(d, nth): 8 * d + nth for d, n in enumerate(rows) for nth in range(n)}


@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("rows", ROWS)
def test_the_wide_rows_of_the_devices_lie_one_after_another(rows, together):
    """Each row is a part of a wide row; the first parts of all wide rows come first."""
    slots, expected, begin = trips._one_after_another(jnp.asarray(rows), 8, together), {}, 0
    for device, n in enumerate(rows):
        assert slots.begins[device] == begin
        for nth in range(n):
            expected[device, nth] = nth % together * 8 + begin + nth // together
        begin += -(-n // together)
    assert used(slots) == expected


def test_nothing_is_compiled_to_find_out_where_there_are_no_tpus(monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    assert not trips.can_be_ragged.__wrapped__(sharding.make_mesh())
    assert not trips.can_be_ragged.__wrapped__(
        jax.sharding.AbstractMesh((8,), (sharding.EVERYWHERE,))
    )


def test_a_compiler_that_cannot_do_it_is_asked_quietly(monkeypatch, capfd):
    """That of CPUs cannot."""
    monkeypatch.setattr(sharding, "is_tpu", lambda mesh: True)
    assert not trips.can_be_ragged.__wrapped__(sharding.make_mesh())
    assert capfd.readouterr() == ("", "")
