"""Rivals that rank: their scores."""

import numpy as np
import pytest
import scipy.sparse

from cadc_jax.study.rivals import item_weights, rankings
from cadc_jax.study.rivals.given import Given
from tests.study.rivals import small
from tests.study.rivals.small import interactions


def test_the_matrix_has_a_1_for_each_training_pair():
    expected = np.zeros((3, 5))
    expected[1, 1] = expected[2, 2] = 1
    np.testing.assert_array_equal(rankings.matrix_of(small.rankings()).toarray(), expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_scores_are_rows_of_x_b_for_own_and_for_shared_items(sparse):
    b = np.random.default_rng(1).random((8, 8)).astype(np.float32)
    scorer = rankings.scorer(interactions(), scipy.sparse.csr_matrix(b) if sparse else b)
    expected = interactions().toarray() @ b
    user, own = np.array([3, 1]), np.array([[2, 5], [0, 7]])
    np.testing.assert_allclose(
        scorer.score({"user": user, "item": own}), expected[user[:, None], own], rtol=1e-5
    )
    shared = np.arange(8)[None]
    np.testing.assert_allclose(
        scorer.score({"user": user, "item": shared}), expected[user], rtol=1e-5
    )


def test_factors_and_ease_are_added_in_units_of_their_deviations():
    table = small.rankings()
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(3, 2)).astype("f4"), rng.normal(size=(5, 2)).astype("f4")
    matrix = rankings.matrix_of(table)
    of_factors = factors[0] @ factors[1].T
    of_ease = matrix @ item_weights.ease(matrix, 0.5)
    batch = {"user": np.arange(3), "item": np.arange(5)[None]}
    fit = rankings.factors_and_ease(Given(table, factors))
    for weight in (0.25, 4.0):
        found = fit({"regularization": 0.5, "weight": weight}).score(batch)
        deviation = of_ease.std() or 1.0
        expected = of_factors / of_factors.std() + weight * of_ease / deviation
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
