"""Rivals without a network: their scores, and how their options are chosen."""

import numpy as np
import pytest
import scipy.sparse

from cadc_jax.data.table import Features, Schema, Table
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.study import rivals


def interactions(users=30, items=8):
    dense = np.random.default_rng(0).random((users, items)) < 0.3
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


def small_table():
    """Users 1 and 2, items 1 to 4. User 1 trained on item 1, twice, and user 2 on item 2."""
    train = {"user": np.array([1, 2, 1], np.int32), "item": np.array([1, 2, 1], np.int32)}
    users = np.array([1, 2], np.int32)
    splits = {
        "train": train,
        "validation": {"user": users, "item": np.array([3, 3], np.int32)},
        "test": {"user": users, "item": np.array([4, 4], np.int32)},
    }
    known = {"offsets": np.array([0, 0, 1, 2]), "items": np.array([1, 2], np.int32)}
    schema = Schema("ranking", 3, 5, Features(), Features(), Features())
    return Table(schema, splits, {}, {}, known)


def test_the_matrix_has_a_1_for_each_training_pair():
    expected = np.zeros((3, 5))
    expected[1, 1] = expected[2, 2] = 1
    np.testing.assert_array_equal(rivals.matrix_of(small_table()).toarray(), expected)


def test_ease_is_the_ridge_regression_of_each_item_on_the_others():
    x = interactions().toarray().astype(np.float64)
    found = rivals.ease(interactions(), 2.0)
    for item in range(x.shape[1]):
        others = np.delete(x, item, axis=1)
        gram = others.T @ others + 2.0 * np.eye(others.shape[1])
        expected = np.insert(np.linalg.solve(gram, others.T @ x[:, item]), item, 0)
        np.testing.assert_allclose(found[:, item], expected, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_scores_are_rows_of_x_b_for_own_and_for_shared_items(sparse):
    b = np.random.default_rng(1).random((8, 8)).astype(np.float32)
    scorer = rivals.scorer(interactions(), scipy.sparse.csr_matrix(b) if sparse else b)
    expected = interactions().toarray() @ b
    user, own = np.array([3, 1]), np.array([[2, 5], [0, 7]])
    np.testing.assert_allclose(
        scorer.score({"user": user, "item": own}), expected[user[:, None], own], rtol=1e-5
    )
    shared = np.arange(8)[None]
    np.testing.assert_allclose(
        scorer.score({"user": user, "item": shared}), expected[user], rtol=1e-5
    )


def test_ease_has_a_candidate_for_each_regularisation():
    batch = {"user": np.arange(30), "item": np.arange(8)[None]}
    candidates = list(rivals.ease_candidates(interactions()))
    assert [options["regularization"] for options, _ in candidates] == list(rivals.REGULARIZATIONS)
    for options, scorer in candidates:
        expected = interactions() @ rivals.ease(interactions(), options["regularization"])
        np.testing.assert_allclose(scorer.score(batch), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Method expects CSR")  # the library warns about itself
def test_neighbours_by_cosine_are_those_of_a_dense_product():
    pytest.importorskip("implicit")
    x = interactions().toarray()
    norm = np.maximum(np.linalg.norm(x, axis=0), 1e-9)
    options, scorer = next(rivals.neighbour_candidates(interactions()))
    assert options == {"kind": "cosine", "K": 20}  # more than the 8 items there are
    found = scorer.score({"user": np.arange(30), "item": np.arange(8)[None]})
    np.testing.assert_allclose(found, x @ (x.T @ x / norm / norm[:, None]), atol=1e-4)


def favours(item):
    """A scorer that ranks an item first."""

    def score(batch):
        found = (np.asarray(batch["item"]) == item).astype(np.float32)
        return np.broadcast_to(found, (len(batch["user"]), found.shape[1]))

    return Scorer(score)


@pytest.mark.parametrize("order", [(3, 4, 1), (4, 1, 3), (1, 3, 4)])
def test_the_candidate_with_the_best_validation_is_chosen(order):
    """Item 3 validates and item 4 tests: the scorer that favours item 4 must not be chosen."""
    said = []
    candidates = (({"favours": item}, favours(item)) for item in order)
    options, scorer = rivals.best(candidates, small_table(), 1, 0, said.append)
    assert options == {"favours": 3}
    batch = {"user": np.array([1]), "item": np.array([[3, 4]])}
    assert np.asarray(scorer.score(batch)).tolist() == [[1, 0]]
    results = {line.split(": ", 1)[1]: line.split(":")[0] for line in said}
    assert results["{'favours': 3}"] == "validation ndcg@1 1.0000"
    assert results["{'favours': 4}"] == "validation ndcg@1 0.0000"
