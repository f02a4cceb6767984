"""Item-item weights, against plain dense formulas."""

import numpy as np
import pytest

from cadc_jax.study.rivals import item_weights
from tests.study.rivals.small import interactions


def test_ease_is_the_ridge_regression_of_each_item_on_the_others():
    x = interactions().toarray().astype(np.float64)
    found = item_weights.ease(interactions(), 2.0)
    for item in range(x.shape[1]):
        others = np.delete(x, item, axis=1)
        gram = others.T @ others + 2.0 * np.eye(others.shape[1])
        expected = np.insert(np.linalg.solve(gram, others.T @ x[:, item]), item, 0)
        np.testing.assert_allclose(found[:, item], expected, atol=1e-5)


@pytest.mark.parametrize(("l1", "l2"), [(0.5, 2.0), (2.0, 0.1), (1e-6, 5.0)])
def test_slim_is_the_least_of_its_loss(l1, l2):
    """By projected gradient descent on the whole matrix of weights."""
    pytest.importorskip("sklearn")
    x = interactions().toarray().astype(np.float64)
    gram = x.T @ x
    expected = np.zeros_like(gram)
    for _ in range(5000):
        gradient = gram @ expected - gram + l1 + l2 * expected
        expected = np.maximum(expected - gradient / (np.linalg.norm(gram, 2) + l2), 0)
        np.fill_diagonal(expected, 0)
    found = item_weights.slim(interactions(), l1, l2).toarray()
    np.testing.assert_allclose(found, expected, atol=0.02 * expected.max())
    assert expected.max() > 0.01


def test_slim_has_fewer_weights_with_a_larger_l1():
    pytest.importorskip("sklearn")
    sizes = [item_weights.slim(interactions(), l1, 1.0).nnz for l1 in (0.01, 1.0, 3.0)]
    assert sizes[0] > sizes[1] > sizes[2]


def dense_rp3beta(x, alpha, beta):
    """Sums over users of the powers of both probabilities, without a diagonal."""
    of_users, of_items = x.sum(1), x.sum(0)
    found = np.zeros((x.shape[1], x.shape[1]))
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            for u in np.flatnonzero(x[:, i] * x[:, j]):
                found[i, j] += (1 / of_items[i] / of_users[u]) ** alpha
            found[i, j] /= of_items[j] ** beta
    np.fill_diagonal(found, 0)
    return found


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.7, 0.5), (1.5, 1.0)])
def test_rp3beta_is_a_sum_over_walks(alpha, beta, monkeypatch):
    x = interactions()
    expected = dense_rp3beta(x.toarray().astype(np.float64), alpha, beta)
    found = item_weights.rp3beta(x, alpha, beta, 100)
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-4)
    monkeypatch.setattr(item_weights, "_BLOCK", 3 * x.shape[1])  # in blocks of three items
    blocks = item_weights.rp3beta(x, alpha, beta, 100)
    np.testing.assert_array_equal(blocks.toarray(), found.toarray())


def test_rp3beta_keeps_the_largest_weights_of_an_item():
    x = interactions()
    expected = dense_rp3beta(x.toarray().astype(np.float64), 1.0, 0.5)
    found = item_weights.rp3beta(x, 1.0, 0.5, 3).toarray()
    for own, kept in zip(expected, found, strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(-own)[:3])


def test_an_item_without_rows_has_no_weights():
    pytest.importorskip("sklearn")
    x = interactions().tolil()
    x[:, 2] = 0
    for weights in (
        item_weights.ease(x.tocsr(), 1.0),
        item_weights.slim(x.tocsr(), 0.1, 1.0).toarray(),
        item_weights.rp3beta(x.tocsr(), 1.0, 0.5, 8).toarray(),
    ):
        assert np.isfinite(weights).all()
        assert not weights[2].any() and not weights[:, 2].any()


def test_neighbours_by_cosine_are_those_of_a_dense_product():
    pytest.importorskip("implicit")
    x = interactions().toarray()
    norm = np.maximum(np.linalg.norm(x, axis=0), 1e-9)
    found = item_weights.neighbours(interactions(), 20, "cosine")  # more than the 8 items there are
    np.testing.assert_allclose(found.toarray(), x.T @ x / norm / norm[:, None], atol=1e-4)


def test_weightings_of_neighbours_differ_and_their_number_is_kept():
    pytest.importorskip("implicit")
    found = [item_weights.neighbours(interactions(), 3, name) for name in item_weights.WEIGHTINGS]
    assert all(np.diff(weights.indptr).max() <= 3 for weights in found)
    assert len({round(float(weights.sum()), 6) for weights in found}) == len(found)
