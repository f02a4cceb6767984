"""Statistics of the study, against SciPy, scikit-learn and their definitions."""

import numpy as np
import pytest
import sklearn.metrics

from cadc_jax.study import paired


def test_the_spread_is_the_sample_standard_deviation():
    assert paired.mean_and_sd(np.array([1.0, 3.0])) == pytest.approx((2, 2**0.5))
    mean, sd = paired.mean_and_sd(np.array([1.0]))
    assert mean == 1 and np.isnan(sd)


def scored_rows(n=300, seeds=2):
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.3).astype(np.float32)
    scores = np.round(rng.normal(size=(seeds, n)) + labels, 1)  # with ties
    return labels, scores


def test_auc_agrees_with_scikit_learn_on_scores_with_ties():
    labels, scores = scored_rows()
    assert paired.auc(labels, scores[0]) == pytest.approx(
        sklearn.metrics.roc_auc_score(labels, scores[0])
    )
    assert np.isnan(paired.auc(np.ones(5), np.arange(5.0)))


def test_the_place_of_a_row_is_its_share_of_the_rows_of_the_other_label():
    """Clicks score 3 and 1, the others 1, 2 and 0: ties count half."""
    labels, scores = np.array([1, 1, 0, 0, 0]), np.array([3.0, 1.0, 1.0, 2.0, 0.0])
    clicks, others = paired.placements(labels, scores)
    np.testing.assert_allclose(clicks, [1, 1.5 / 3])
    np.testing.assert_allclose(others, [1.5 / 2, 1 / 2, 1])
    assert clicks.mean() == pytest.approx(others.mean())


def test_the_best_possible_auc_is_the_share_of_pairs_in_order():
    p = np.array([0.1, 0.5, 0.5, 0.9, 0.3])
    weight = p[:, None] * (1 - p)[None]
    order = (p[:, None] > p[None]) + (p[:, None] == p[None]) / 2
    off = ~np.eye(5, dtype=bool)
    expected = (weight * order)[off].sum() / weight[off].sum()
    assert paired.bayes_auc(p) == pytest.approx(expected)


def test_the_probabilities_reach_the_best_possible_auc_on_drawn_labels():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    labels = rng.random(200_000) < p
    assert paired.bayes_auc(p) == pytest.approx(paired.auc(labels, p), abs=0.003)


def test_a_factorisation_is_paid_back_by_the_seconds_that_trainings_save():
    assert paired.break_even(30, full=12, sampled=2) == 3
    assert paired.break_even(30, full=2, sampled=2) == np.inf


def test_deciles_hold_a_tenth_each_and_keep_equal_sizes_together():
    assert np.bincount(paired.deciles(np.arange(200))).tolist() == [20] * 10
    assert len(set(paired.deciles(np.array([1] * 50 + [2] * 50)))) == 2
