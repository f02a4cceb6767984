"""Statistics of the study, against SciPy, scikit-learn and their definitions."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cadc_jax.study import paired


def test_the_spread_is_the_sample_standard_deviation():
    assert paired.mean_and_sd(np.array([1.0, 3.0])) == pytest.approx((2, 2**0.5))
    mean, sd = paired.mean_and_sd(np.array([1.0]))
    assert mean == 1 and np.isnan(sd)


def test_the_interval_over_users_agrees_with_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, 50)), rng.random((2, 50))
    found = paired.over_users(ours, theirs)
    expected = scipy.stats.ttest_rel(ours.mean(0), theirs.mean(0)).confidence_interval(0.95)
    assert found == pytest.approx((ours.mean() - theirs.mean(), expected.low, expected.high))


def test_the_interval_of_three_users_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of two degrees 4.3027."""
    found = paired.over_users(np.array([[2.0, 4.0, 6.0]]), np.array([[1.0, 2.0, 3.0]]))
    assert found == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert found.verdict == "="


def test_a_single_user_has_no_interval():
    found = paired.over_users(np.ones((2, 1)), np.zeros((2, 1)))
    assert found.mean == 1 and np.isnan(found.low) and found.verdict == "="


def test_what_both_scorers_share_cancels_out():
    """Users differ far more from each other than the two scorers do."""
    of_user = np.random.default_rng(0).normal(size=1000) * 100
    better = of_user + 0.1 + np.random.default_rng(1).normal(size=1000) * 0.1
    assert paired.over_users(better[None], of_user[None]).verdict == "better"
    assert paired.over_users(of_user[None], better[None]).verdict == "worse"


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


def test_the_difference_of_aucs_has_the_variance_of_delong():
    """The reference is the definition: means over all pairs of a click and another row."""
    labels, (ours, theirs) = scored_rows()
    click = labels > 0

    def wins(scores):
        gap = scores[click][:, None] - scores[~click][None]
        return (gap > 0) + (gap == 0) / 2

    difference = wins(ours) - wins(theirs)
    variance = difference.mean(1).var(ddof=1) / click.sum()
    variance += difference.mean(0).var(ddof=1) / (~click).sum()
    mean, reach = difference.mean(), 1.959964 * variance**0.5
    found = paired.over_rows(labels, ours[None], theirs[None])
    assert found == pytest.approx((mean, mean - reach, mean + reach))


def test_aucs_of_several_seeds_are_averaged():
    labels, scores = scored_rows(seeds=4)
    found = paired.over_rows(labels, scores[:3], scores[3:])
    aucs = [sklearn.metrics.roc_auc_score(labels, x) for x in scores]
    assert found.mean == pytest.approx(np.mean(aucs[:3]) - aucs[3])


def test_the_interval_of_delong_is_about_as_wide_as_that_of_the_bootstrap():
    labels, (ours, theirs) = scored_rows(1000)
    found = paired.over_rows(labels, ours[None], theirs[None])
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, 1000, 1000) for _ in range(400)]
    resampled = [paired.auc(labels[d], ours[d]) - paired.auc(labels[d], theirs[d]) for d in drawn]
    width = np.diff(np.percentile(resampled, [2.5, 97.5]))[0]
    assert found.high - found.low == pytest.approx(width, rel=0.15)


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
