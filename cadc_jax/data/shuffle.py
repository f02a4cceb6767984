"""A stateless shuffle: position k of an epoch as a keyed bijection, with no buffer to save.

The bijection is a Feistel network over Z_a x Z_b with a * b just above n (Black and Rogaway,
'Ciphers with arbitrary finite domains', CT-RSA 2002), walked until it falls inside [0, n). So any
element of any epoch is reached in O(1), and resuming needs only the step. As b is a power of two,
a round takes a dozen operations on 64-bit words and no division.
"""

import numpy as np

from cadc_jax.data import sampling

ROUNDS = 4  # each changes both halves


def permute(positions: np.ndarray, n: int, seed: int, epoch: np.ndarray | int) -> np.ndarray:
    """Where a shuffled epoch takes its elements from.

    Args:
      positions: integers in [0, n), of any shape: places in the shuffled order.
      n: size of the epoch, from 1 to 2**62.
      seed: key of the shuffle.
      epoch: another permutation for each epoch; one for all positions, or an array that broadcasts
        against them.

    Returns:
      int64 in [0, n), of the shape of `positions`: a bijection of [0, n) over all positions.
    """
    result = _feistel(np.asarray(positions), n, seed, epoch)
    outside = np.nonzero(result >= n)
    while len(outside[0]):  # a * b exceeds n by less than b, so hardly any position walks on
        epochs = np.broadcast_to(epoch, result.shape)[outside]
        result[outside] = _feistel(result[outside], n, seed, epochs)
        outside = tuple(axis[result[outside] >= n] for axis in outside)
    return result.view(np.int64)


def _feistel(x: np.ndarray, n: int, seed: int, epoch: np.ndarray | int) -> np.ndarray:
    """A bijection of [0, a * b), where b = 2**bits is about the root of n: uint64 of x's shape."""
    bits = (n - 1).bit_length() // 2
    a = np.uint64(-(-n >> bits))  # n / b, rounded up
    x = x.astype(np.uint64)
    left, right = x >> np.uint64(bits), x & np.uint64((1 << bits) - 1)
    hashed, scratch = np.empty_like(x), np.empty_like(x)  # for all rounds
    numbers = np.asarray(epoch, np.int64)[..., None] * (2 * ROUNDS) + np.arange(2 * ROUNDS)
    keys = np.moveaxis(sampling.mix64(numbers, seed), -1, 0)
    for left_key, right_key in keys.reshape(ROUNDS, 2, *keys.shape[1:]):
        # The hash's upper half, a fraction of 2**32, times a: uniform below a, with no division.
        _hash(right, left_key, hashed, scratch)
        hashed >>= np.uint64(32)
        hashed *= a
        hashed >>= np.uint64(32)
        left += hashed
        np.subtract(left, a, out=scratch)
        np.minimum(left, scratch, out=left)  # modulo a: left < 2a, and left - a wraps around
        _hash(left, right_key, hashed, scratch)
        hashed >>= np.uint64(64 - bits)
        right ^= hashed
    left <<= np.uint64(bits)
    left |= right
    return left


def _hash(x: np.ndarray, key: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
    """Writes a keyed hash of x to `out`: 64 bits, of which the upper ones are good."""
    np.add(x, key, out=out)
    out *= np.uint64(sampling.MULTIPLIERS[0])
    np.right_shift(out, np.uint64(32), out=scratch)
    out ^= scratch
    out *= np.uint64(sampling.MULTIPLIERS[1])
