import numpy as np
import pytest

from cadc_jax.data import negatives
from cadc_jax.errors import ConfigError

ITEMS = 21  # ids 1 .. 20
SEEN = np.unique(negatives.pair_keys(np.array([0, 0, 0, 1]), np.array([1, 2, 3, 20]), ITEMS))


def test_contains_finds_exactly_the_known_pairs():
    wanted = negatives.pair_keys(np.array([0, 0, 1, 1]), np.array([3, 4, 20, 3]), ITEMS)
    assert negatives.contains(SEEN, wanted).tolist() == [True, False, True, False]


def test_evaluation_negatives_are_distinct_and_unseen():
    drawn = negatives.draw_for_evaluation(np.array([0, 1]), SEEN, ITEMS, 17, seed=0)
    assert sorted(drawn[0]) == list(range(4, 21))  # all that user 0 has not seen
    assert len(set(drawn[1])) == 17 and 20 not in drawn[1] and 0 not in drawn[1]


def test_evaluation_negatives_depend_on_the_seed_alone():
    first, again, other = (
        negatives.draw_for_evaluation(np.array([0, 1]), SEEN, ITEMS, 5, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_too_few_unseen_items_say_what_to_lower():
    with pytest.raises(ConfigError, match="data.num_negatives"):
        negatives.draw_for_evaluation(np.array([0]), SEEN, ITEMS, 18, seed=0)


def test_training_negatives_are_never_known_to_a_user_of_few_items():
    draws = np.arange(5000)
    drawn = negatives.draw_for_training(np.zeros(5000, int), draws, SEEN, ITEMS, 4, seed=0)
    assert drawn.shape == (5000, 4) and drawn.dtype == np.int32
    assert set(np.unique(drawn)) == set(range(4, 21))
    counts = np.bincount(drawn.ravel())[4:]  # uniform over 17 items: chi-square, 16 degrees
    assert np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 45


def test_a_training_negative_depends_on_its_draw_and_the_seed_alone():
    user = np.array([0, 1, 0])
    whole = negatives.draw_for_training(user, np.array([5, 6, 7]), SEEN, ITEMS, 3, seed=2)
    part = negatives.draw_for_training(user[1:], np.array([6, 7]), SEEN, ITEMS, 3, seed=2)
    np.testing.assert_array_equal(part, whole[1:])
