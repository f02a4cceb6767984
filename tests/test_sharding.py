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


class Device:
    def __init__(self, process, coords=None, slice_index=0):
        self.process_index, self.coords, self.slice_index = process, coords, slice_index
        self.platform = "cpu" if coords is None else "tpu"


def slice_of(shape, host=(2, 2, 1), slice_index=0):
    """Chips of a slice in the order of their numbers, with a process for each box of them."""
    hosts = -(-np.array(shape) // host)
    found = []
    for z, y, x in np.ndindex(shape[::-1]):
        box = np.array([x, y, z]) // host
        process = box[0] + hosts[0] * (box[1] + hosts[1] * box[2])
        found.append(Device(slice_index * hosts.prod() + process, (x, y, z), slice_index))
    return found


def hops(devices):
    coords = np.array([device.coords for device in devices])
    return np.abs(np.diff(coords, axis=0)).sum(axis=1)


def stretches(values):
    return 1 + np.count_nonzero(np.diff(values))


def test_a_mesh_keeps_the_devices_of_a_process_together():
    mesh = sharding.make_mesh([Device(k % 2) for k in range(4)])  # they alternate
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 2, 1), (2, 4, 1), (4, 4, 1), (16, 16, 1), (2, 2, 2), (4, 4, 8)]
)
def test_a_mesh_follows_the_torus_of_a_slice_from_process_to_process(shape):
    """By their numbers alone, chips that follow one another are up to 16 hops apart."""
    chips = slice_of(shape)
    found = list(sharding.make_mesh(chips).devices.flat)
    assert set(found) == set(chips)
    processes = [chip.process_index for chip in found]
    assert stretches(processes) == len(set(processes))
    assert hops(found).max(initial=0) <= 2
    assert len(found) == 1 or hops(found).mean() < 1.15


def test_chips_of_a_slice_stay_together_on_a_mesh():
    chips = [chip for nth in range(2) for chip in slice_of((4, 4, 1), slice_index=nth)]
    found = list(sharding.make_mesh(chips[::-1]).devices.flat)
    assert stretches([chip.slice_index for chip in found]) == 2
    assert stretches([chip.process_index for chip in found]) == 8
    assert hops(found[:16]).max() <= 2


def test_any_chips_of_a_slice_make_a_mesh():
    chips = slice_of((4, 4, 1))[1:12:2]
    assert set(sharding.make_mesh(chips).devices.flat) == set(chips)


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
