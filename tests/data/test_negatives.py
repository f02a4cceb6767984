"""Sets of known pairs, and negatives: uniform, seeded and unknown to the user."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cadc_jax.data import negatives, sampling
from cadc_jax.errors import ConfigError

ITEMS = 21  # ids 1 .. 20
SEEN = np.unique(negatives.pair_keys(np.array([0, 0, 0, 1]), np.array([1, 2, 3, 20]), ITEMS))
KNOWN = negatives.PairSet.of(SEEN)


def keys_of(user, items, num_items):
    """The pairs of one user."""
    return np.unique(negatives.pair_keys(np.full(len(items), user), np.array(items), num_items))


def known_to(user, items, num_items):
    return negatives.PairSet.of(keys_of(user, items, num_items))


def test_pair_keys_order_by_user_and_then_item_beyond_32_bits():
    user = np.array([0, 0, 1, 3_000_000], np.int32)
    keys = negatives.pair_keys(user, np.array([0, 5, 0, 2_999_999], np.int32), 3_000_000)
    assert keys.tolist() == [0, 5, 3_000_000, 9_000_002_999_999]


@given(st.sets(st.integers(0, 50), min_size=1), st.lists(st.integers(-5, 60)))
def test_contains_finds_exactly_the_known_keys(known, wanted):
    keys = np.array(sorted(known), np.int64)
    expected = [key in known for key in wanted]
    assert negatives.contains(keys, np.array(wanted, np.int64)).tolist() == expected


@pytest.fixture(params=[3, 4, 30])
def filter_bits(request, monkeypatch):
    """Two filters in which keys share bits, and an exact one."""
    monkeypatch.setattr(negatives, "FILTER_BITS", request.param)


@given(st.sets(st.integers(0, 50)), st.lists(st.integers(0, 300)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_pair_set_contains_exactly_its_pairs(filter_bits, known, wanted):
    pairs = negatives.PairSet.of(np.array(sorted(known), np.int64))
    expected = [key in known for key in wanted]
    assert pairs.contains(np.array(wanted, np.int64)).tolist() == expected


def test_a_pair_set_contains_keys_above_the_size_of_its_filter():
    keys = np.array([5, 2**30 + 7, 2**40, 2**62])
    pairs = negatives.PairSet.of(keys)
    assert len(pairs.filter) == 2**27
    assert pairs.contains(keys).all()
    assert not pairs.contains(np.array([7, 2**30 + 5, 0, 2**41, 2**62 + 5])).any()


# For evaluation.


def test_evaluation_negatives_are_distinct_and_unseen():
    drawn = negatives.draw_for_evaluation(np.array([0, 1]), SEEN, ITEMS, 17, seed=0)
    assert sorted(drawn[0]) == list(range(4, 21))  # all that user 0 has not seen
    assert len(set(drawn[1])) == 17 and 20 not in drawn[1] and 0 not in drawn[1]
    assert drawn.dtype == np.int32


def test_evaluation_negatives_are_uniform():
    drawn = negatives.draw_for_evaluation(np.zeros(3000, int), SEEN, ITEMS, 5, seed=0)
    assert set(np.unique(drawn)) == set(range(4, 21))
    for column in drawn.T:
        assert scipy.stats.chisquare(np.bincount(column)[4:]).pvalue > 1e-3


def test_evaluation_negatives_depend_on_row_and_seed_only():
    user = np.array([0, 1, 0, 1])
    first, again, other = (
        negatives.draw_for_evaluation(user, SEEN, ITEMS, 5, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.all(np.any(first != other, axis=1))
    assert np.any(first[0] != first[2])  # two rows of the same user
    np.testing.assert_array_equal(
        negatives.draw_for_evaluation(user[:2], SEEN, ITEMS, 5, 0), first[:2]
    )


@pytest.mark.parametrize("count", [18, 10**12])
def test_too_few_unseen_items_are_refused(count):
    with pytest.raises(ConfigError, match="data.num_negatives"):
        negatives.draw_for_evaluation(np.array([0]), SEEN, ITEMS, count, seed=0)


def test_rare_unseen_items_are_found():
    """A user who has seen 900 of 1000 items draws 99 of the other hundred."""
    seen = keys_of(0, range(1, 901), 1001)
    drawn = negatives.draw_for_evaluation(np.array([0]), seen, 1001, 99, seed=0)
    assert len(set(drawn[0])) == 99 and drawn.min() > 900


# For training.


def test_training_negatives_are_uniform_over_unknown_items():
    draws = np.arange(5000)
    drawn = negatives.draw_for_training(np.zeros(5000, int), draws, KNOWN, ITEMS, 4, seed=0)
    assert drawn.shape == (5000, 4) and drawn.dtype == np.int32
    assert set(np.unique(drawn)) == set(range(4, 21))
    for column in drawn.T:
        assert scipy.stats.chisquare(np.bincount(column)[4:]).pvalue > 1e-3


def test_each_user_avoids_only_their_own_items():
    drawn = negatives.draw_for_training(np.ones(2000, int), np.arange(2000), KNOWN, ITEMS, 1, 0)
    assert set(np.unique(drawn)) == set(range(1, 20))  # 1, 2 and 3 are known to user 0 only


def test_training_negatives_depend_on_user_draw_and_seed_only():
    user = np.array([0, 1, 0, 0])
    draws = np.array([5, 6, 7, 5])
    whole = negatives.draw_for_training(user, draws, KNOWN, ITEMS, 3, seed=2)
    part = negatives.draw_for_training(user[1:], draws[1:], KNOWN, ITEMS, 3, seed=2)
    np.testing.assert_array_equal(part, whole[1:])
    np.testing.assert_array_equal(whole[0], whole[3])  # equal numbers draw equal items
    other = negatives.draw_for_training(user, draws, KNOWN, ITEMS, 3, seed=3)
    assert np.all(np.any(whole != other, axis=1))


@given(st.sets(st.integers(1, 9), min_size=1), st.integers(0, 10**12), st.integers(0, 2**64))
def test_a_training_negative_is_the_first_unknown_item_of_its_attempts(known, draw, seed):
    expected = []
    for place in range(3):
        first = (draw * 3 + place) * negatives.ATTEMPTS
        attempts = sampling.mix64(first + np.arange(negatives.ATTEMPTS), seed) % np.uint64(9) + 1
        unknown = [item for item in attempts.tolist() if item not in known]
        expected.append(unknown[0] if unknown else int(attempts[-1]))
    drawn = negatives.draw_for_training(
        np.array([4]), np.array([draw]), known_to(4, sorted(known), 10), 10, 3, seed
    )
    assert drawn.tolist() == [expected]


def test_one_negative_in_256_is_known_if_the_user_knows_half_the_items():
    known = known_to(0, range(1, 11), ITEMS)
    drawn = negatives.draw_for_training(
        np.zeros(20_000, int), np.arange(20_000), known, ITEMS, 4, 0
    )
    share = np.mean(drawn <= 10)
    assert share == pytest.approx(0.5**negatives.ATTEMPTS, rel=0.25)  # 4 standard errors


def test_a_user_who_knows_all_items_draws_known_ones():
    known = known_to(0, range(1, ITEMS), ITEMS)
    drawn = negatives.draw_for_training(np.zeros(500, int), np.arange(500), known, ITEMS, 2, 0)
    assert set(np.unique(drawn)) == set(range(1, ITEMS))
