"""Metrics against scikit-learn, plain references and values by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax import metrics

# AUC.


def pairwise_auc(labels, scores):
    """Share of (click, non-click) pairs in the right order, ties counted half."""
    click, other = scores[labels == 1][:, None], scores[labels == 0]
    return np.mean((click > other) + 0.5 * (click == other))


@pytest.mark.parametrize("levels", [2, 30, 10**6])  # few levels: many ties
def test_auc_equals_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    labels, scores = rng.integers(0, 2, 2000), rng.integers(0, levels, 2000) / levels
    expected = sklearn.metrics.roc_auc_score(labels, scores)
    assert float(metrics.auc(labels, scores)) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=12))
def test_auc_is_the_share_of_pairs_in_order(rows):
    labels, scores = np.array(rows).T
    if labels.min() == labels.max():
        assert np.isnan(metrics.auc(labels, scores.astype(np.float32)))
    else:
        found = float(metrics.auc(labels, scores.astype(np.float32)))
        assert found == pytest.approx(pairwise_auc(labels, scores), abs=1e-6)


def test_auc_by_hand():
    assert metrics.auc(jnp.array([0, 1, 0, 1]), jnp.array([0.1, 0.2, 0.3, 0.4])) == 0.75
    assert metrics.auc(jnp.array([0, 1]), jnp.array([5.0, 5.0])) == 0.5
    assert metrics.auc(jnp.array([0, 1]), jnp.array([1.0, 2.0])) == 1
    assert metrics.auc(jnp.array([0, 1]), jnp.array([2.0, 1.0])) == 0


def test_auc_takes_labels_of_any_type():
    scores = jnp.array([0.1, 0.2, 0.3, 0.4])
    for kind in (bool, np.int8, np.int64, np.float32):
        assert metrics.auc(np.array([0, 1, 0, 1], kind), scores) == 0.75


def test_auc_counts_more_pairs_than_32_bits_hold():
    half = 70_000  # 4.9e9 pairs
    labels = np.repeat([0, 1], half)
    scores = np.concatenate([np.arange(half), np.arange(half)]).astype(np.float32)
    assert float(metrics.auc(labels, scores)) == pytest.approx(0.5, abs=1e-6)
    assert float(metrics.auc(labels, scores + labels * half)) == pytest.approx(1, abs=1e-6)


def test_auc_of_infinite_scores_is_that_of_their_order():
    scores = jnp.array([-jnp.inf, jnp.inf, 0.2, 0.1])
    assert metrics.auc(jnp.array([0, 1, 0, 1]), scores) == 0.75


def test_auc_of_one_class_is_not_a_number():
    assert np.isnan(metrics.auc(jnp.array([1, 1]), jnp.array([0.0, 1.0])))
    assert np.isnan(metrics.auc(jnp.array([0, 0]), jnp.array([0.0, 1.0])))


def test_auc_of_a_score_that_is_no_number_is_not_a_number():
    """A model that has diverged must not look like a coin, or better."""
    labels = jnp.array([0, 1, 0, 1])
    assert np.isnan(metrics.auc(labels, jnp.full(4, jnp.nan)))
    assert np.isnan(metrics.auc(labels, jnp.array([0.1, jnp.nan, 0.2, 0.3])))


# Log loss.


def test_log_loss_equals_scikit_learns():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 500), rng.normal(size=500) * 3
    expected = sklearn.metrics.log_loss(labels, 1 / (1 + np.exp(-logits)))
    assert float(metrics.log_loss(labels, logits)) == pytest.approx(expected, rel=1e-5)


def test_log_loss_by_hand():
    logits = jnp.log(jnp.array([1.0, 3.0, 3.0]))  # probabilities 1/2, 3/4 and 3/4
    expected = -(np.log(1 / 2) + np.log(3 / 4) + np.log(1 / 4)) / 3
    assert float(metrics.log_loss(jnp.array([1, 1, 0]), logits)) == pytest.approx(expected)


def test_log_loss_of_a_certain_mistake_is_finite():
    labels, logits = jnp.array([1.0, 0.0]), jnp.array([-200.0, 400.0])
    assert float(metrics.log_loss(labels, logits)) == pytest.approx(300)


def test_log_loss_of_a_logit_that_is_no_number_is_not_a_number():
    assert np.isnan(metrics.log_loss(jnp.array([1.0, 0.0]), jnp.array([jnp.nan, 0.0])))


# Rankings.


def test_hit_rate_counts_ranks_before_the_cut():
    assert metrics.hit_rate(np.array([0, 9, 10, 500]), 10) == 0.5
    assert metrics.hit_rate(np.array([0, 1]), 1) == 0.5


def test_ndcg_by_hand():
    assert float(metrics.ndcg(np.array([0]), 1)) == 1
    assert float(metrics.ndcg(np.array([1]), 2)) == pytest.approx(1 / np.log2(3))
    assert float(metrics.ndcg(np.array([2]), 2)) == 0
    assert float(metrics.ndcg(np.array([0, 2, 6, 10]), 10)) == pytest.approx(
        (1 + 1 / 2 + 1 / 3) / 4
    )


@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_ndcg_equals_scikit_learns(k):
    scores = np.random.default_rng(0).normal(size=(50, 30))
    relevant = np.zeros_like(scores)
    relevant[:, 4] = 1
    ranks = np.sum(scores > scores[:, 4:5], axis=1)
    expected = sklearn.metrics.ndcg_score(relevant, scores, k=k)
    assert float(metrics.ndcg(ranks, k)) == pytest.approx(expected, rel=1e-5)
