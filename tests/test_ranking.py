import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import ranking

# Scores of 2 users for items 0..5; item 0 stands for 'out of vocabulary'.
GRID = jnp.array([[9.0, 1, 5, 3, 4, 2], [9, 5, 5, 5, 1, 0]])
SEEN = ranking.SeenItems(np.array([0, 1, 0]), np.array([2, 5, 4]), 2)  # user 0: 2, 4; user 1: 5


def full(user, item, block=3, grid=GRID):
    return ranking.full_ranks(
        lambda users: grid[users], np.array(user), np.array(item), SEEN, block
    ).tolist()


def test_seen_items_do_not_compete():
    assert full([0], [3]) == [0]  # 2 and 4 score higher, but are seen
    assert full([0], [5]) == [1]


def test_ties_count_against_the_model():
    assert full([1], [1]) == [2]


def test_an_item_out_of_vocabulary_ranks_last_and_never_competes():
    assert full([0, 1], [0, 4]) == [6, 3]


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_the_size_of_a_block_changes_nothing(block):
    user, item = [0, 0, 1, 1, 0], [1, 3, 1, 4, 5]
    assert full(user, item, block) == [2, 0, 2, 3, 1]


def test_scores_that_are_no_numbers_rank_last():
    assert full([0], [3], grid=GRID * jnp.nan) == [6]
    scores = ranking.sampled_ranks(
        lambda users, items: jnp.full(items.shape, jnp.nan),
        np.array([0]),
        np.array([1]),
        np.array([[2, 3]]),
        2,
    )
    assert scores.tolist() == [2]


@pytest.mark.parametrize("block", [1, 2, 5])
def test_sampled_ranks_are_among_the_given_negatives_only(block):
    ranks = ranking.sampled_ranks(
        lambda users, items: GRID[users[:, None], items],
        np.array([0, 0, 1]),
        np.array([3, 1, 1]),
        np.array([[2, 4, 5], [2, 3, 4], [2, 4, 5]]),
        block,
    )
    assert ranks.tolist() == [2, 3, 1]


def test_a_negative_out_of_vocabulary_never_competes_and_such_an_item_ranks_last():
    ranks = ranking.sampled_ranks(
        lambda users, items: GRID[users[:, None], items],
        np.array([0, 0]),
        np.array([3, 0]),
        np.array([[0, 4], [1, 2]]),
        2,
    )
    assert ranks.tolist() == [1, 2]


def test_seen_items_are_padded_with_the_item_that_never_competes():
    np.testing.assert_array_equal(SEEN.padded(np.array([0, 1])), [[2, 4], [5, 0]])
