import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.errors import ConfigError


def test_the_axis_model_must_divide_the_devices():
    with pytest.raises(ConfigError, match="devices.model=3.*divisor.*8"):
        sharding.make_mesh(3)


def test_a_mesh_keeps_the_devices_of_a_process_together():
    class Device:  # of two hosts whose devices alternate in the order of ids
        def __init__(self, number):
            self.id, self.process_index = number, number % 2

    mesh = sharding.make_mesh(2, [Device(k) for k in range(4)])
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 1, 1]


def test_what_is_put_comes_back_whole_with_its_keys():
    mesh = sharding.make_mesh()
    tree = {"x": np.arange(16.0).reshape(8, 2), "key": jax.random.key(1)}
    table = sharding.put(tree["x"], sharding.named(mesh, sharding.BATCH))
    assert table.addressable_shards[0].data.shape == (1, 2)
    np.testing.assert_array_equal(sharding.local(table), tree["x"])
    key = sharding.put(tree, sharding.named(mesh, sharding.REPLICATED))["key"]
    assert jax.random.bits(key) == jax.random.bits(tree["key"])


@pytest.mark.parametrize(
    "said, devices",
    [
        ({}, len(os.sched_getaffinity(0))),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
    ],
)
def test_the_cpu_is_a_device_a_core_unless_it_is_said_how_many(said, devices):
    code = (
        "from cadc_jax import sharding; import jax; print(sharding.split_cores(), "
        "len(jax.devices()), sharding.split_cores())"
    )
    env = {n: x for n, x in os.environ.items() if n not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env | said, check=True, capture_output=True, text=True
    )
    assert ran.stdout.split() == [str(not said), str(devices), str(not said)]
