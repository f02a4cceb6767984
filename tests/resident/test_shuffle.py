"""The shuffle and its hash on devices are those of the host, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax.data import sampling, shuffle
from cadc_jax.resident import shuffle as resident
from cadc_jax.resident import uint64

EPOCHS = np.array([0, 5, 2**31 - 1], np.uint32)


@pytest.mark.parametrize("seed", [0, -1, 2**63])
def test_the_hash_is_the_hosts(seed):
    numbers = np.array([0, 1, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1])
    given = uint64.UInt64(*(jnp.asarray(x, jnp.uint32) for x in np.divmod(numbers, 2**32)))
    hashed = resident.mix64(given, uint64.of(sampling.start(seed)))
    found = np.asarray(hashed.high).astype(np.uint64) << np.uint64(32) | np.asarray(hashed.low)
    np.testing.assert_array_equal(found, sampling.mix64(numbers, seed))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 100, 2**16 + 1, 10**6, 2**31 - 1, 2**31])
def test_the_order_of_an_epoch_is_the_hosts(n):
    positions = np.random.default_rng(0).integers(0, n, (3, 40), np.uint32)
    start = uint64.of(sampling.start(7))
    found = jax.jit(resident.permute, static_argnums=1)(positions, n, start, EPOCHS)
    expected = shuffle.permute(positions, n, 7, EPOCHS[:, None].astype(np.int64))
    np.testing.assert_array_equal(found, expected)
