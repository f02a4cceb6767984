"""Requests of fixed shapes: the answers are those of `recommend`, and nothing is compiled anew."""

import numpy as np
import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.runtime import compilation
from cadc_jax.serving import recommend, trained
from cadc_jax.serving.online import Recommender, Shapes


def recommender(run, arm, **shapes):
    return Recommender(trained.open_trained(run, arm=arm), Shapes(**{"users": 4, "k": 5} | shapes))


@pytest.mark.parametrize("arm", ["sample", "cadc_frozen", "mf_alone", "popularity"])
def test_known_users_get_what_they_get_in_a_file(ranking_run, arm):
    found = recommender(ranking_run, arm)
    users = np.array([1, 7, 30], np.int32)
    scores, ids = found.best(users.tolist())
    ((_, expected, best),) = recommend.blocks(found.trained, users, 5)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ids, best)


def test_clicks_are_scored_in_the_context_of_the_user(click_run):
    found = recommender(click_run, "cadc_frozen")
    users = np.array([1, 2, 5], np.int32)
    ((_, expected, _),) = recommend.blocks(found.trained, users, 5)
    np.testing.assert_allclose(found.best(users.tolist())[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arm", ["cadc_frozen", "mf_alone", "popularity"])
def test_a_new_user_is_not_recommended_the_own_items(ranking_run, arm):
    found = recommender(ranking_run, arm, k=1000)
    own = np.array([4, 9, 33], np.int32)
    scores, ids = found.best([2, own])
    left = found.trained.table.schema.num_items - 1 - len(own)
    assert (ids[1] > 0).sum() == left and not set(own) & set(ids[1])
    assert np.all(np.diff(scores[1][:left]) <= 0)


def test_users_in_the_same_batch_do_not_disturb_each_other(ranking_run):
    found = recommender(ranking_run, "cadc_frozen")
    own = np.array([4, 9, 33], np.int32)
    together, alone = found.best([own, 5, own[:1]]), found.best([own])
    np.testing.assert_array_equal(together[1][0], alone[1][0])
    np.testing.assert_array_equal(together[1][1], found.best([5])[1][0])


def test_later_requests_compile_nothing(ranking_run):
    found = recommender(ranking_run, "cadc_frozen")
    found.best([1, np.array([3], np.int32)])
    found.similar(np.array([3]))
    before = compilation.seconds()
    found.best([2, 3, np.array([7, 8, 9], np.int32), 4])
    found.similar(np.array([5, 6]))
    assert compilation.seconds() == before > 0


def test_similar_items_are_others_with_the_largest_cosine(ranking_run):
    found = recommender(ranking_run, "mf_alone")
    cosines, ids = found.similar(np.array([6]))
    item = found.trained.tables["item"][:, :8]
    length = np.linalg.norm(item, axis=1)
    expected = item @ item[6] / np.where(length > 0, length, 1) / length[6]
    expected[[0, 6]] = -2
    np.testing.assert_allclose(cosines[0], np.sort(expected)[::-1][:5], rtol=1e-4)
    assert not {0, 6} & set(ids[0])


def test_popularity_knows_no_similar_items(ranking_run):
    with pytest.raises(ConfigError, match="has no vectors; choose --arm=mf_alone"):
        recommender(ranking_run, "popularity").similar(np.array([1]))
