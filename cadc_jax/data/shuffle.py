"""A stateless shuffle: position k of an epoch as a keyed bijection, with no buffer to save.

The bijection is a Feistel network over Z_a x Z_b with a * b just above n (Black and Rogaway,
'Ciphers with arbitrary finite domains', CT-RSA 2002), walked until it falls inside [0, n). So any
element of any epoch is reached in O(1), and resuming needs only the step.
"""

import math

import numpy as np

from cadc_jax.data import sampling

ROUNDS = 4


def permute(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a shuffled epoch takes its elements from.

    Args:
      positions: [N] integers in [0, n), places in the shuffled order.
      n: size of the epoch, at least 1.
      seed: key of the shuffle.
      epoch: another permutation for each epoch.

    Returns:
      [N] int64 in [0, n), a bijection of [0, n) over all positions.
    """
    a = math.isqrt(n - 1) + 1  # ceil(sqrt(n))
    b = -(-n // a)
    result = np.asarray(positions, np.int64).copy()
    outside = np.arange(len(result))
    while len(outside):  # a * b exceeds n by less than a, so hardly any position walks on
        result[outside] = _feistel(result[outside], a, b, seed, epoch)
        outside = outside[result[outside] >= n]
    return result


def _feistel(x: np.ndarray, a: int, b: int, seed: int, epoch: int) -> np.ndarray:
    left, right = (part.astype(np.uint64) for part in (x // b, x % b))
    for i in range(ROUNDS):
        key = seed * 1_000_003 + epoch * 2 * ROUNDS + 2 * i
        left = (left + sampling.mix64(right, key) % np.uint64(a)) % np.uint64(a)
        right = (right + sampling.mix64(left, key + 1) % np.uint64(b)) % np.uint64(b)
    return (left * np.uint64(b) + right).astype(np.int64)
