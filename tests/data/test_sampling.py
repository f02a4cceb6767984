import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import sampling

MASK = (1 << 64) - 1
GOLDEN = [
    [16294208416658607535, 7960286522194355700, 487617019471545679],
    [10996452266160306281, 2958219263312191191, 7406622554204047885],
]
KEPT = [2, 32, 33, 41, 42, 43, 53, 94, 95]  # of 100 rows, at 10 %, with seed 0
SEEDS = (0, 1, -5, 2**63, 2**64 - 1)


def finalise(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def splitmix64(state, n):
    """The first n outputs of the generator, in plain integers."""
    return [finalise((state + (i + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(n)]


def test_the_reference_is_the_published_generator():
    assert splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_hash_is_splitmix64_started_at_the_finalised_seed(seed):
    expected = splitmix64(finalise(seed & MASK), 50)
    assert sampling.mix64(np.arange(50), seed).tolist() == expected


def test_golden_values_never_change():
    assert sampling.mix64(np.arange(3), 0).tolist() == GOLDEN[0]
    assert sampling.mix64(np.array([0, 1, 10**12]), 42).tolist() == GOLDEN[1]
    kept = np.flatnonzero(sampling.keep(np.arange(100), 0.1, 0)).tolist()
    assert kept == KEPT


@given(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50),
    st.floats(1e-9, 1.0),
    st.integers(-(2**40), 2**64),
)
def test_numpy_and_jax_agree_bit_for_bit(ids, rate, seed):
    expected = sampling.keep(np.array(ids), rate, seed)
    np.testing.assert_array_equal(sampling.keep_jax(jnp.array(ids), rate, seed), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.1, 1 / 3, 0.5, 1.0])
def test_numpy_jax_and_tensorflow_agree_bit_for_bit(rate, seed):
    import tensorflow as tf

    ids = np.arange(20_000)
    expected = sampling.keep(ids, rate, seed)
    np.testing.assert_array_equal(sampling.keep_tf(tf.constant(ids), rate, seed), expected)
    in_jax = jax.jit(sampling.keep_jax, static_argnums=(1, 2))(jnp.array(ids), rate, seed)
    np.testing.assert_array_equal(in_jax, expected)


def test_rows_beyond_32_bits_are_named_by_two_words_in_jax():
    ids = np.arange(5_000_000_000, 5_000_001_000)
    low = jnp.array(ids & 0xFFFFFFFF, jnp.uint32)
    in_jax = sampling.keep_jax(low, 0.3, 7, high=jnp.array(ids >> 32, jnp.uint32))
    np.testing.assert_array_equal(in_jax, sampling.keep(ids, 0.3, 7))


def test_keep_is_nested_across_rates():
    ids = np.arange(100_000)
    kept = [sampling.keep(ids, rate, 3) for rate in (0.001, 0.01, 0.1, 0.5, 1.0)]
    for smaller, larger in zip(kept, kept[1:], strict=False):
        assert np.all(larger[smaller])
    assert kept[-1].all()


@pytest.mark.parametrize("rate", [0, -0.1, 1.0001, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match="rate must be in"):
        sampling.keep(np.arange(3), rate, 0)


def test_a_rows_fate_does_not_depend_on_the_batch_it_is_judged_in():
    ids = np.arange(1000)
    parts = [sampling.keep(part, 0.2, 1) for part in np.array_split(ids, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), sampling.keep(ids, 0.2, 1))


def test_kept_rows_are_uniform_over_positions_for_a_hundred_seeds():
    """Chi-square of 50 equal blocks of rows: its mean over seeds is near 49, the degrees of
    freedom (standard error about 1), and hardly any seed passes its 99.99 % quantile."""
    expected = 2000 * 0.1
    values = []
    for seed in range(100):
        kept = sampling.keep(np.arange(100_000), 0.1, seed).reshape(50, 2000).sum(axis=1)
        values.append(np.sum((kept - expected) ** 2 / (expected * 0.9)))
    assert 45 < np.mean(values) < 53
    assert np.max(values) < 110


def test_neighbouring_rows_and_neighbouring_seeds_are_independent():
    ids = np.arange(200_000)
    kept = sampling.keep(ids, 0.5, 0)
    for other in (np.roll(kept, 1), sampling.keep(ids, 0.5, 1), sampling.keep(ids + 1, 0.5, 0)):
        assert abs(np.corrcoef(kept, other)[0, 1]) < 0.01  # 4.5 standard errors
