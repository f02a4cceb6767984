"""The sampling rule: which training rows are kept, as a pure function of (row, rate, seed).

Row i is kept if and only if ``mix64(i, seed) < floor(rate * 2**64)``. `mix64(i, seed)` is output i
of the SplitMix64 generator (Steele, Lea and Flood, 'Fast splittable pseudorandom number
generators', OOPSLA 2014), whose state starts at the finalised seed. The decision on a row does not
depend on hosts, shards, batch size, order, library version or platform. Rates nest: the sample at
10 % contains the sample at 1 %.

`keep` is the rule in NumPy, the reference, and `keep_tf` in TensorFlow operations, by which
`tf.data` chooses rows; they agree bit for bit.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

GAMMA = 0x9E3779B97F4A7C15  # the constants of SplitMix64
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
MASK64 = (1 << 64) - 1


def mix64(row_ids: np.ndarray, seed: int) -> np.ndarray:
    """The hash of each row.

    Args:
      row_ids: [N] integers >= 0, indices in the training split.
      seed: any integer (taken modulo 2**64).

    Returns:
      [N] uint64, uniform over all 64-bit numbers.
    """
    x = np.array(row_ids, np.uint64)  # a copy, changed in place, which halves the time
    x += np.uint64(1)
    x *= np.uint64(GAMMA)
    x += np.uint64(start(seed))
    return _finalise(x)


def threshold(rate: float) -> int:
    """The limit of the rule, ``floor(rate * 2**64)``, exactly: rows of smaller hashes are kept.

    Returns:
      An integer in [0, 2**64]; 2**64, which needs 65 bits, keeps all rows.

    Raises:
      ValueError: if rate is outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], not {rate}")
    return int(rate * 2.0**64)  # scaling by a power of two does not round


def keep(row_ids: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Whether the sample keeps each row: [N] row ids -> [N] bool.

    Raises:
      ValueError: if rate is outside (0, 1].
    """
    limit = threshold(rate)
    if limit > MASK64:
        return np.ones(np.shape(row_ids), bool)
    return mix64(row_ids, seed) < np.uint64(limit)


def mix64_tf(row_ids: "tf.Tensor", seed: int) -> "tf.Tensor":
    """`mix64` as TensorFlow operations: [...] int64 -> [...] uint64, equal bit for bit."""
    import tensorflow as tf

    def constant(value: int) -> tf.Tensor:
        return tf.constant(value, tf.uint64)

    # (row + 1) * GAMMA + start
    x = tf.bitcast(row_ids, tf.uint64) * constant(GAMMA) + constant(GAMMA + start(seed) & MASK64)
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, constant(shift)))
        x = x * constant(multiplier)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, constant(31)))


def keep_tf(row_ids: "tf.Tensor", rate: float, seed: int) -> "tf.Tensor":
    """`keep` as TensorFlow operations, for `tf.data`: [N] int64 -> [N] bool, equal bit for bit."""
    import tensorflow as tf

    limit = threshold(rate)
    if limit > MASK64:
        return tf.ones_like(row_ids, tf.bool)
    return mix64_tf(row_ids, seed) < tf.constant(limit, tf.uint64)


def _finalise(x: np.ndarray) -> np.ndarray:
    """Applies SplitMix64's finaliser in place: [N] uint64."""
    shifted = np.empty_like(x)
    np.right_shift(x, np.uint64(30), out=shifted)
    x ^= shifted
    x *= np.uint64(MULTIPLIERS[0])
    np.right_shift(x, np.uint64(27), out=shifted)
    x ^= shifted
    x *= np.uint64(MULTIPLIERS[1])
    np.right_shift(x, np.uint64(31), out=shifted)
    x ^= shifted
    return x


def start(seed: int) -> int:
    """The generator's first state, hashed: near seeds must not give shifted copies of a stream."""
    return int(_finalise(np.array([int(seed) & MASK64], np.uint64))[0])
