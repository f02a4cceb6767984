"""Sending batches ahead: all of them, in order, no more than asked for, split over the devices."""

import jax
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.training import prefetch

MESH = sharding.make_mesh()
SPLIT = sharding.named(MESH, sharding.BATCH)


def batches(count, taken=None):
    for k in range(count):
        if taken is not None:
            taken.append(k)
        yield {"user": np.arange(16) + k, "dense": np.full((16, 2), k, np.float32)}


@pytest.mark.parametrize("depth", [0, 1, 2, 9])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_all_batches_arrive_in_order(count, depth):
    arrived = list(prefetch.device_batches(batches(count), SPLIT, depth))
    assert len(arrived) == count
    for found, expected in zip(arrived, batches(count), strict=True):
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_as_many_batches_as_asked_for_are_on_their_way(depth):
    taken = []
    stream = prefetch.device_batches(batches(100, taken), SPLIT, depth)
    assert taken == []
    for k in range(4):
        next(stream)
        assert len(taken) == k + 1 + depth


def test_batches_are_split_over_the_devices():
    batch = next(prefetch.device_batches(batches(1), SPLIT))
    assert all(array.sharding == SPLIT for array in batch.values())
    assert batch["dense"].addressable_shards[0].data.shape == (16 // MESH.size, 2)


def test_hosts_join_their_parts(monkeypatch):
    """With several processes each gives what it has; here the one process has everything."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    batch = next(prefetch.device_batches(batches(1), SPLIT))
    np.testing.assert_array_equal(batch["user"], np.arange(16))
    assert batch["user"].sharding == SPLIT
