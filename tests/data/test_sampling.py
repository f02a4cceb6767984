"""The sampling rule: its published hash, two forms that agree, and statistics of kept rows."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import sampling

MASK = (1 << 64) - 1
GOLDEN = {  # (row, seed): hash
    (0, 0): 16294208416658607535,
    (1, 0): 7960286522194355700,
    (2, 0): 487617019471545679,
    (0, 42): 10996452266160306281,
    (1, 42): 2958219263312191191,
    (10**12, 42): 7406622554204047885,
}
KEPT = [2, 32, 33, 41, 42, 43, 53, 94, 95]  # of 100 rows, at 10 %, with seed 0
SEEDS = (0, 1, -5, 2**40 + 3, 2**63, 2**64 - 1)
RATES = (1e-12, 1e-6, 0.01, 0.1, 1 / 3, 0.5, 1 - 2**-53, 1.0)

rows = st.integers(0, 2**63 - 1)
seeds = st.integers(-(2**64), 2**65)


def finalise(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def splitmix64(state, n):
    """The first n outputs of the generator, in plain integers."""
    return [finalise((state + (i + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(n)]


def reference_hash(row, seed):
    return finalise((finalise(seed & MASK) + (row + 1) * 0x9E3779B97F4A7C15) & MASK)


def keep_in_tensorflow(ids, rate, seed):
    import tensorflow as tf

    return sampling.keep_tf(tf.constant(ids, tf.int64), rate, seed).numpy()


FORMS = {"numpy": sampling.keep, "tensorflow": keep_in_tensorflow}
in_both_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


# The hash.


def test_the_reference_is_the_published_generator():
    assert splitmix64(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_hash_is_splitmix64_started_at_the_finalised_seed(seed):
    expected = splitmix64(finalise(seed & MASK), 50)
    assert sampling.mix64(np.arange(50), seed).tolist() == expected


@pytest.mark.parametrize(("place", "value"), GOLDEN.items())
def test_golden_hashes_never_change(place, value):
    row, seed = place
    assert reference_hash(row, seed) == value
    assert sampling.mix64(np.array([row]), seed).tolist() == [value]


@in_both_forms
def test_golden_rows_never_change(form):
    kept = [i for i in range(100) if reference_hash(i, 0) < 2**64 // 10]
    assert kept == KEPT
    assert np.flatnonzero(form(np.arange(100), 0.1, 0)).tolist() == KEPT


@given(rows, seeds)
def test_the_hash_of_any_row_and_seed_is_that_of_the_reference(row, seed):
    assert sampling.mix64(np.array([row]), seed).tolist() == [reference_hash(row, seed)]


@pytest.mark.parametrize("kind", [np.int32, np.uint32, np.int64, np.uint64])
def test_the_type_of_row_ids_does_not_matter(kind):
    ids = np.arange(100, dtype=kind)
    assert sampling.mix64(ids, 3).tolist() == sampling.mix64(np.arange(100), 3).tolist()


def test_seeds_count_modulo_2_to_the_64():
    ids = np.arange(100)
    assert sampling.mix64(ids, -5).tolist() == sampling.mix64(ids, 2**64 - 5).tolist()


@pytest.mark.parametrize("seed", [5, -5])
def test_a_seed_may_be_a_numpy_integer(seed):
    ids = np.arange(100)
    assert sampling.mix64(ids, np.int64(seed)).tolist() == sampling.mix64(ids, seed).tolist()


# Both forms.


@in_both_forms
@pytest.mark.parametrize("seed", SEEDS)
def test_the_limit_is_compared_with_all_64_bits_of_the_hash(monkeypatch, form, seed):
    """A row is kept if the limit is just above its hash, and dropped if it equals the hash."""
    for row in (0, 1, 2**31, 2**32 - 1, 2**32, 5 * 10**9, 2**63 - 1):
        own = reference_hash(row, seed)
        monkeypatch.setattr(sampling, "threshold", lambda rate, own=own: own + 1)
        assert form([row], 0.5, seed).tolist() == [True]
        monkeypatch.setattr(sampling, "threshold", lambda rate, own=own: own)
        assert form([row], 0.5, seed).tolist() == [False]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", RATES)
def test_numpy_and_tensorflow_agree(rate, seed):
    for ids in (np.arange(5_000), 2**32 - 2_500 + np.arange(5_000)):
        expected = sampling.keep(ids, rate, seed)
        np.testing.assert_array_equal(keep_in_tensorflow(ids, rate, seed), expected)


@given(st.lists(rows, min_size=1, max_size=20), st.floats(1e-19, 1.0), seeds)
def test_exactly_the_rows_of_hashes_below_the_limit_are_kept(ids, rate, seed):
    limit = int(Fraction(rate) * 2**64)  # the floor, without rounding
    expected = [reference_hash(row, seed) < limit for row in ids]
    for form in FORMS.values():
        assert form(np.array(ids), rate, seed).tolist() == expected


# The rate.


@in_both_forms
def test_a_rate_of_1_keeps_all_rows(form):
    assert form(np.arange(10_000), 1.0, 4).all()
    assert form(np.arange(10_000), 1, 4).all()


@in_both_forms
def test_a_rate_below_one_hash_keeps_nothing(form):
    assert sampling.threshold(1e-30) == 0
    assert not form(np.arange(1000), 1e-30, 0).any()


def test_the_limit_is_the_exact_floor():
    assert sampling.threshold(0.5) == 2**63
    assert sampling.threshold(1.0) == 2**64
    assert sampling.threshold(1 / 3) == int(Fraction(1 / 3) * 2**64)


@in_both_forms
@pytest.mark.parametrize("rate", [0, -0.1, 1.0001, 10, float("nan"), float("inf")])
def test_a_rate_outside_its_range_is_refused(form, rate):
    with pytest.raises(ValueError, match="rate must be in"):
        form(np.arange(3), rate, 0)


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), seeds)
def test_a_larger_rate_keeps_all_rows_of_a_smaller_one(a, b, seed):
    ids = np.arange(2000)
    smaller, larger = (sampling.keep(ids, rate, seed) for rate in sorted((a, b)))
    assert np.all(larger[smaller])


@in_both_forms
def test_the_decision_on_a_row_does_not_depend_on_its_batch(form):
    ids = np.arange(1000)
    parts = [form(part, 0.2, 1) for part in np.array_split(ids, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), form(ids, 0.2, 1))


# Statistics. Hashes are fixed numbers, so these tests cannot fail by chance.


def chi_square(kept, group, rate):
    """Chi-square of the kept rows of each group against `rate`, a degree of freedom per group."""
    size, count = np.bincount(group), np.bincount(group, weights=kept)
    return np.sum((count - rate * size) ** 2 / (size * rate * (1 - rate)))


def assert_p_values_are_uniform(p):
    """Checks that few are small, and that all together are uniform."""
    assert np.sum(np.array(p) < 0.01) <= scipy.stats.binom.ppf(0.999, len(p), 0.01)
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_kept_rows_are_uniform_over_positions_for_a_hundred_seeds(rate):
    position = np.arange(50_000) // 1000
    p = [
        scipy.stats.chi2.sf(
            chi_square(sampling.keep(np.arange(50_000), rate, s), position, rate), 50
        )
        for s in range(100)
    ]
    assert_p_values_are_uniform(p)


def test_kept_rows_are_uniform_over_users_for_a_hundred_seeds():
    """Users with few and with many rows keep the same share."""
    user = np.sort(np.random.default_rng(0).zipf(1.5, 200_000).clip(max=400)) - 1
    size = np.bincount(user)
    assert size.max() > 50_000 and size.min() < 40
    p = [
        scipy.stats.chi2.sf(chi_square(sampling.keep(np.arange(200_000), 0.2, s), user, 0.2), 400)
        for s in range(100)
    ]
    assert_p_values_are_uniform(p)


def test_the_number_of_kept_rows_is_binomial_over_a_hundred_seeds():
    counts = np.array([sampling.keep(np.arange(10_000), 0.1, seed).sum() for seed in range(100)])
    assert abs(counts.mean() - 1000) < 3 * 30 / 10  # standard error of the mean: 30 / sqrt(100)
    assert 24 < counts.std() < 37  # of a binomial: 30


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_neighbouring_rows_are_independent(rate):
    kept = sampling.keep(np.arange(200_000), rate, 0)
    for lag in (1, 2, 3, 4, 8, 16, 64, 256, 4096):
        assert abs(np.corrcoef(kept[lag:], kept[:-lag])[0, 1]) < 0.009  # 4 standard errors


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_near_seeds_are_independent_even_for_shifted_rows(rate):
    ids = np.arange(200_000)
    kept = sampling.keep(ids, rate, 10)
    for seed in (-10, 9, 11, 12, 10 + 2**32):
        for shift in (0, 1, 2):
            other = sampling.keep(ids + shift, rate, seed)
            assert abs(np.corrcoef(kept, other)[0, 1]) < 0.009  # 4 standard errors
