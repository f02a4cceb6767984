"""Rows that are dealt out in turn, and put back in the order of ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.cost import hlo
from cadc_jax.tables import dealt

V, D = 21, 3


def parts_of(table, devices):
    size = -(-len(table) // devices)
    return [dealt.part_of(table, nth, devices, size) for nth in range(devices)]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_device_gets_each_dth_row_and_rows_of_zeros_to_divide_evenly(devices):
    table = np.arange(1, V * D + 1, dtype=np.float32).reshape(V, D)
    places = np.concatenate(parts_of(table, devices))
    size = len(places) // devices
    found = places[dealt.place(jnp.arange(V), devices, size)]
    np.testing.assert_array_equal(found, table)
    assert (places == 0).all(axis=1).sum() == len(places) - V


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("shape", [(V, D), (V,)])
def test_rows_are_put_in_the_order_of_ids_and_back(devices, shape):
    table = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    parts = parts_of(table, devices)
    there = sharding.named(mesh, sharding.TABLE)
    places = jax.device_put(np.concatenate(parts), there)
    ordered = jax.jit(dealt.in_order, static_argnums=1)(places, mesh)
    assert ordered.sharding.is_equivalent_to(there, ordered.ndim)
    np.testing.assert_array_equal(ordered[:V], table)
    assert not np.any(ordered[V:])
    back = jax.jit(dealt.in_places, static_argnums=(1, 2))(ordered, mesh, len(parts[0]))
    np.testing.assert_array_equal(back, places)


def test_reordering_moves_each_row_once():
    mesh, rows = sharding.make_mesh(), 8 * 800
    there = sharding.named(mesh, sharding.TABLE)
    table = jax.ShapeDtypeStruct((rows, D), jnp.float32, sharding=there)
    compiled = jax.jit(dealt.in_order, static_argnums=1).lower(table, mesh).compile()
    received = hlo.received_bytes(compiled.as_text())
    assert received["all-to-all"] == sum(received.values()) == 7 / 8 * 800 * D * 4
