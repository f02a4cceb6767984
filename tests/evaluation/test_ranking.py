"""Ranks of held-out items, on grids of scores that one can check by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax import sharding
from cadc_jax.evaluation import ranking

# Scores of 2 users for items 0..5; item 0 stands for 'not in training'.
GRID = jnp.array([[9.0, 1, 5, 3, 4, 2], [9, 5, 5, 5, 1, 0]])
SEEN = ranking.SeenItems.of_pairs(
    np.array([0, 1, 0]), np.array([2, 5, 4]), 2
)  # user 0: 2, 4; user 1: 5
NOTHING = ranking.SeenItems.of_pairs(np.array([1]), np.array([5]), 2)  # user 0 has seen none


def full(user, item, block=3, grid=GRID, seen=SEEN, lists=None):
    ranks = ranking.full_ranks(
        lambda users: grid[users], np.array(user), np.array(item), seen, block, lists
    )
    return ranks.tolist()


def alone(user, item, **settings):
    """Ranks of items each of which is the only one that is held out."""
    return [full([u], [i], **settings)[0] for u, i in zip(user, item, strict=True)]


def sampled(user, item, negatives, block=3, grid=GRID):
    ranks = ranking.sampled_ranks(
        lambda users, items: grid[users[:, None], items],
        np.array(user),
        np.array(item),
        np.array(negatives),
        block,
    )
    return ranks.tolist()


def reference_rank(scores, item, others):
    """Plain Python: how many of `others` (without 0 and the item) score at least as high."""
    return sum(not scores[other] < scores[item] for other in set(others) - {0, item})


# Among all items.


def test_the_rank_is_the_number_of_better_items():
    assert alone([0] * 5, [2, 4, 3, 5, 1], seen=NOTHING) == [0, 1, 2, 3, 4]


def test_other_held_out_items_of_the_user_do_not_compete():
    assert full([0] * 5, [2, 4, 3, 5, 1], seen=NOTHING) == [0] * 5
    assert full([0, 0, 1], [3, 1, 4], seen=NOTHING) == [2, 3, 3]  # after 2 and 4; these and 5


def test_the_jth_best_held_out_item_is_at_place_rank_plus_j():
    rng = np.random.default_rng(0)
    grid = rng.permuted(np.tile(np.arange(30.0), (4, 1)), axis=1)
    seen = ranking.SeenItems.of_pairs(np.repeat([0, 1, 2, 3], 5), rng.integers(1, 30, 20), 4)
    user = np.repeat([0, 1, 2, 3], [1, 3, 7, 2])
    item = np.concatenate(
        [
            rng.choice(np.setdiff1d(np.arange(1, 30), seen.padded(np.array([u]))), size=n)
            for u, n in enumerate([1, 3, 7, 2])
        ]
    )
    user, item = np.unique(np.stack([user, item]), axis=1)
    ranks = np.array(full(user, item, grid=jnp.asarray(grid), seen=seen))
    for u in range(4):
        own = item[user == u]
        listed = [i for i in np.argsort(-grid[u]) if i and i not in seen.padded(np.array([u]))[0]]
        places = sorted(listed.index(i) for i in own)
        assert (np.sort(ranks[user == u]) + np.arange(len(own))).tolist() == places


def test_seen_items_do_not_compete():
    assert full([0], [3]) == [0]  # 2 and 4 score higher, but are seen
    assert full([0], [5]) == [1]


def test_a_held_out_item_that_was_seen_before_is_ranked_all_the_same():
    assert alone([0, 0], [2, 4]) == [0, 0]  # 1, 3 and 5 compete, and all score lower


def test_ties_count_against_the_model():
    assert full([1], [1]) == [2]
    assert full([0], [3], grid=jnp.ones((2, 6)), seen=NOTHING) == [4]


def test_an_item_out_of_vocabulary_ranks_last_and_never_competes():
    assert full([0, 1], [0, 4]) == [6, 3]


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_the_size_of_a_block_changes_nothing(block):
    user, item = [0, 0, 1, 1, 0], [1, 3, 1, 4, 5]
    assert full(user, item, block) == [0, 0, 2, 2, 0]
    other = np.array([4, 1, 3, 0, 2])  # rows in any order
    assert full(np.array(user)[other], np.array(item)[other], block) == [0, 0, 2, 0, 2]


@pytest.mark.parametrize("group", [1, 2, 100])
def test_a_user_with_very_many_items_is_ranked_in_groups(monkeypatch, group):
    monkeypatch.setattr(ranking, "GROUP", group)
    shapes = []

    def score_grid(users):
        shapes.append(users.tolist())
        return GRID[users]

    user, item = np.array([1, 0, 1, 0, 0]), np.array([4, 1, 2, 5, 3])
    ranks = ranking.full_ranks(score_grid, user, item, NOTHING, 2)
    assert ranks.tolist() == [2, 2, 2, 2, 2]
    expected = {1: [[0, 0], [0, 1], [1, 1]], 2: [[0, 1], [0, 0]], 100: [[0, 1]]}
    assert shapes == expected[group]


def test_all_blocks_of_a_skewed_log_share_one_program():
    rng = np.random.default_rng(0)
    counts = np.minimum(rng.zipf(1.3, 50), 300)
    user = np.repeat(np.arange(50), counts)
    item = np.concatenate([rng.choice(np.arange(1, 400), n, replace=False) for n in counts])
    grid = jnp.asarray(rng.normal(size=(50, 400)), jnp.float32)
    seen = ranking.SeenItems.of_pairs(np.zeros(1, np.int32), np.ones(1, np.int32), 50)
    before = ranking.rank_block._cache_size()
    full(user, item, 7, grid, seen, lists=(10, lambda found: None))
    assert ranking.rank_block._cache_size() == before + 1


def test_scores_that_lie_on_eight_devices_rank_alike():
    rng = np.random.default_rng(0)
    grid = jnp.asarray(rng.normal(size=(16, 50)), jnp.float32)
    user, item = np.repeat(np.arange(16), 2), rng.integers(1, 50, 32)
    seen = ranking.SeenItems.of_pairs(user, rng.integers(1, 50, 32), 16)
    split = sharding.named(sharding.make_mesh(), sharding.BATCH)
    found = []
    for place in (lambda x: x, lambda x: jax.device_put(x, split)):
        lists = []
        ranks = ranking.full_ranks(
            lambda users, place=place: place(grid[users]), user, item, seen, 8, (5, lists.append)
        )
        found.append((ranks, np.concatenate(lists)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_scores_that_are_no_numbers_rank_last_and_count_against_others():
    assert full([0], [3], grid=GRID * jnp.nan) == [6]
    assert alone([0, 0], [3, 5], grid=GRID.at[0, 3].set(jnp.nan)) == [6, 1]


def test_lists_have_the_best_items_that_were_not_seen_held_out_ones_among_them():
    lists = []
    full([0, 1, 0], [3, 1, 5], 2, lists=(4, lists.append))
    np.testing.assert_array_equal(np.concatenate(lists), [[3, 5, 1, 0], [1, 2, 3, 4]])
    lists = []
    full([0], [3], 1, grid=GRID.at[0, 3].set(jnp.nan), lists=(3, lists.append))
    np.testing.assert_array_equal(lists[0], [[5, 1, 0]])


@given(st.data())
def test_full_ranks_are_what_counting_gives(data):
    grid = np.array(
        data.draw(
            st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=3, max_size=3)
        )
    )
    pairs = st.tuples(st.integers(0, 2), st.integers(0, 5))
    seen = data.draw(st.lists(pairs, min_size=1, max_size=8))
    rows = data.draw(st.lists(pairs, min_size=1, max_size=6))
    expected = []
    for user, item in rows:
        others = set(range(6)) - {i for u, i in seen + rows if u == user}
        expected.append(reference_rank(grid[user], item, others) if item else 6)
    user, item = zip(*rows, strict=True)
    found = ranking.SeenItems.of_pairs(*(np.array(column) for column in zip(*seen, strict=True)), 3)
    assert full(user, item, 4, jnp.asarray(grid, jnp.float32), found) == expected


# Among given negatives.


@pytest.mark.parametrize("block", [1, 2, 5])
def test_sampled_ranks_are_among_the_given_negatives_only(block):
    negatives = [[2, 4, 5], [2, 3, 4], [2, 4, 5]]
    assert sampled([0, 0, 1], [3, 1, 1], negatives, block) == [2, 3, 1]


def test_ties_with_negatives_count_against_the_model():
    assert sampled([1], [1], [[2, 3, 4]]) == [2]


def test_a_negative_out_of_vocabulary_never_competes_and_such_an_item_ranks_last():
    assert sampled([0, 0], [3, 0], [[0, 4], [1, 2]]) == [1, 2]


def test_among_negatives_too_scores_that_are_no_numbers_rank_last():
    assert sampled([0], [1], [[2, 3]], grid=GRID * jnp.nan) == [2]


@given(st.data())
def test_sampled_ranks_are_what_counting_gives(data):
    rows = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 1),
                st.integers(1, 5),
                st.lists(st.integers(0, 5), min_size=3, max_size=3, unique=True),
            ).filter(lambda row: row[1] not in row[2]),
            min_size=1,
            max_size=6,
        )
    )
    grid = np.asarray(GRID)
    expected = [reference_rank(grid[user], item, others) for user, item, others in rows]
    assert sampled(*zip(*rows, strict=True)) == expected


# Items seen.


def test_seen_items_are_padded_with_the_item_that_never_competes():
    np.testing.assert_array_equal(SEEN.padded(np.array([0, 1])), [[2, 4], [5, 0]])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=20))
def test_seen_items_are_those_of_each_user(rows):
    user, item = (np.array(column) for column in zip(*rows, strict=True))
    padded = ranking.SeenItems.of_pairs(user, item, 6).padded(np.arange(6))
    for u in range(6):
        assert padded[u][padded[u] > 0].tolist() == [i for v, i in rows if v == u]
