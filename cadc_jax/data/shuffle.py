"""A stateless shuffle: a keyed bijection maps positions of an epoch to elements, without a buffer.

The bijection is a Feistel network over Z_a x Z_b with a * b just above n, applied again until the
result is inside [0, n) (Black and Rogaway, 'Ciphers with arbitrary finite domains', CT-RSA 2002).
Any element of any epoch takes O(1), and resuming needs only the step. Because b is a power of two,
a round is a dozen operations on 64-bit words, without a division.
"""

import numpy as np

from cadc_jax.data import sampling

ROUNDS = 4  # each changes both halves


def permute(positions: np.ndarray, n: int, seed: int, epoch: np.ndarray | int) -> np.ndarray:
    """Elements at the given positions of a shuffled epoch.

    Args:
      positions: integers in [0, n), of any shape: positions in the shuffled order.
      n: size of the epoch, from 1 to 2**62.
      seed: key of the shuffle.
      epoch: number of the epoch, each with its own permutation; a number for all positions, or an
        array that broadcasts against them.

    Returns:
      int64 in [0, n), in the shape of `positions`. Over all positions it is a bijection of [0, n).
    """
    result = _feistel(np.asarray(positions), n, seed, epoch)
    outside = np.nonzero(result >= n)
    while len(outside[0]):  # few positions, because a * b exceeds n by less than b
        epochs = np.broadcast_to(epoch, result.shape)[outside]
        result[outside] = _feistel(result[outside], n, seed, epochs)
        outside = tuple(axis[result[outside] >= n] for axis in outside)
    return result.view(np.int64)


def halves(n: int) -> tuple[int, int]:
    """a and log2(b) of the bijection of [0, a * b): b is about the square root of n."""
    bits = (n - 1).bit_length() // 2
    return -(-n >> bits), bits  # n / b, rounded up


def _feistel(x: np.ndarray, n: int, seed: int, epoch: np.ndarray | int) -> np.ndarray:
    """A bijection of [0, a * b): uint64 in x's shape."""
    a, bits = np.uint64(halves(n)[0]), halves(n)[1]
    x = x.astype(np.uint64)
    left, right = x >> np.uint64(bits), x & np.uint64((1 << bits) - 1)
    hashed, scratch = np.empty_like(x), np.empty_like(x)  # buffers of all rounds
    numbers = np.asarray(epoch, np.int64)[..., None] * (2 * ROUNDS) + np.arange(2 * ROUNDS)
    keys = np.moveaxis(sampling.mix64(numbers, seed), -1, 0)
    for left_key, right_key in keys.reshape(ROUNDS, 2, *keys.shape[1:]):
        # The upper half of the hash times a, divided by 2**32: uniform below a.
        _hash(right, left_key, hashed, scratch)
        hashed >>= np.uint64(32)
        hashed *= a
        hashed >>= np.uint64(32)
        left += hashed
        np.subtract(left, a, out=scratch)
        np.minimum(left, scratch, out=left)  # modulo a: if left < a, left - a wraps to above it
        _hash(left, right_key, hashed, scratch)
        hashed >>= np.uint64(64 - bits)
        right ^= hashed
    left <<= np.uint64(bits)
    left |= right
    return left


def _hash(x: np.ndarray, key: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
    """Writes a keyed 64-bit hash of x to `out`; only its upper bits are well mixed."""
    np.add(x, key, out=out)
    out *= np.uint64(sampling.MULTIPLIERS[0])
    np.right_shift(out, np.uint64(32), out=scratch)
    out ^= scratch
    out *= np.uint64(sampling.MULTIPLIERS[1])
