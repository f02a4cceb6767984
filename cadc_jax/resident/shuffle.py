"""The shuffle of `data.shuffle` on devices, for up to 2**31 rows; equal bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.data import sampling
from cadc_jax.data.shuffle import ROUNDS, halves
from cadc_jax.resident import uint64
from cadc_jax.resident.uint64 import UInt64

MOST_ROWS = 1 << 31
_FIRST, _SECOND = (uint64.of(multiplier) for multiplier in sampling.MULTIPLIERS)


def mix64(numbers: UInt64, start: UInt64) -> UInt64:
    """`sampling.mix64` of numbers, where `start` is `sampling.start` of the seed."""
    x = uint64.multiply(uint64.add(numbers, uint64.of(1)), uint64.of(sampling.GAMMA))
    x = uint64.xor_shifted(uint64.add(x, start), 30)
    x = uint64.xor_shifted(uint64.multiply(x, _FIRST), 27)
    return uint64.xor_shifted(uint64.multiply(x, _SECOND), 31)


def permute(positions: jax.Array, n: int, start: UInt64, epoch: jax.Array) -> jax.Array:
    """Elements at the given positions of shuffled epochs; see `data.shuffle.permute`.

    Args:
      positions: [K, B] uint32 in [0, n).
      n: size of the epoch, from 1 to MOST_ROWS.
      start: `sampling.start` of the seed.
      epoch: [K] uint32, number of the epoch of each row of positions.

    Returns:
      [K, B] uint32 in [0, n).
    """
    numbers = uint64.multiply(uint64.of_word(epoch[:, None]), uint64.of(2 * ROUNDS))
    numbers = uint64.add(numbers, uint64.of_word(jnp.arange(2 * ROUNDS, dtype=jnp.uint32)))
    keys = mix64(numbers, start)

    def inside(x: jax.Array) -> jax.Array:
        return jnp.where(x >= np.uint32(n), _feistel(x, n, keys), x)

    return jax.lax.while_loop(
        lambda x: jnp.any(x >= np.uint32(n)), inside, _feistel(positions, n, keys)
    )


def _feistel(x: jax.Array, n: int, keys: UInt64) -> jax.Array:
    """The bijection of `data.shuffle`, by [K, 2 * ROUNDS] keys: [K, B] uint32 in the same shape."""
    a, bits = halves(n)
    left, right = x >> bits, x & ((1 << bits) - 1)
    for k in range(0, 2 * ROUNDS, 2):
        left_key, right_key = (UInt64(keys.high[:, [i]], keys.low[:, [i]]) for i in (k, k + 1))
        left += uint64.upper_half(_hash(right, left_key), np.uint32(a))
        left = jnp.minimum(left, left - np.uint32(a))
        if bits:
            right ^= _hash(left, right_key) >> (32 - bits)
    return left << bits | right


def _hash(x: jax.Array, key: UInt64) -> jax.Array:
    """The upper 32 bits of a keyed hash of x."""
    hashed = uint64.multiply(uint64.add(uint64.of_word(x), key), _FIRST)
    hashed = UInt64(hashed.high, hashed.low ^ hashed.high)
    return uint64.multiply(hashed, _SECOND).high
