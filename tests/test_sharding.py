"""Meshes, and arrays that are put on them and read back."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding


def test_a_mesh_has_one_axis_of_all_devices_that_are_given():
    assert dict(sharding.make_mesh().shape) == {"data": 8}
    assert dict(sharding.make_mesh(jax.devices()[:3]).shape) == {"data": 3}


def test_a_mesh_keeps_the_devices_of_a_process_together():
    class Device:  # of two processes whose devices alternate
        def __init__(self, number):
            self.id, self.process_index = number, number % 2

    mesh = sharding.make_mesh([Device(k) for k in range(4)])
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 1, 1]


def test_arrays_and_keys_that_are_put_on_a_mesh_are_read_back_whole():
    mesh = sharding.make_mesh()
    tree = {"x": np.arange(16.0).reshape(8, 2), "key": jax.random.key(1)}
    table = sharding.put(tree["x"], sharding.named(mesh, sharding.BATCH))
    assert table.addressable_shards[0].data.shape == (1, 2)
    np.testing.assert_array_equal(sharding.local(table), tree["x"])
    key = sharding.put(tree, sharding.named(mesh, sharding.REPLICATED))["key"]
    assert jax.random.bits(key) == jax.random.bits(tree["key"])


def test_the_mesh_of_an_array_is_the_one_that_it_was_put_on():
    mesh = sharding.make_mesh()
    x = sharding.put(np.zeros((8, 2)), sharding.named(mesh, P(sharding.EVERYWHERE)))
    assert sharding.mesh_of(x) == mesh
    assert sharding.mesh_of(jax.jit(lambda x: x + 1)(x)) == mesh


def test_an_array_on_the_host_is_read_as_it_is():
    x = np.arange(3)
    assert sharding.local(x) is x


@pytest.mark.parametrize(
    "settings, devices",
    [
        ({}, len(os.sched_getaffinity(0))),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
    ],
)
def test_each_core_becomes_a_device_unless_their_number_is_set(settings, devices):
    code = (
        "from cadc_jax import sharding; import jax; print(sharding.split_cores(), "
        "len(jax.devices()), sharding.split_cores())"
    )
    env = {n: x for n, x in os.environ.items() if n not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env | settings, check=True, capture_output=True, text=True
    )
    assert ran.stdout.split() == [str(not settings), str(devices), str(not settings)]
