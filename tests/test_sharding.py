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
