import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from cadc_jax import metrics


@pytest.mark.parametrize("levels", [3, 1000])  # few levels: many ties
def test_auc_equals_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    labels, scores = rng.integers(0, 2, 2000), rng.integers(0, levels, 2000) / levels
    expected = sklearn.metrics.roc_auc_score(labels, scores)
    assert float(metrics.auc(labels, scores)) == pytest.approx(expected, abs=1e-6)


def test_auc_by_hand():
    assert metrics.auc(jnp.array([0, 1, 0, 1]), jnp.array([0.1, 0.2, 0.3, 0.4])) == 0.75
    assert metrics.auc(jnp.array([0, 1]), jnp.array([5.0, 5.0])) == 0.5


def test_auc_of_one_class_is_not_a_number():
    assert np.isnan(metrics.auc(jnp.array([1, 1]), jnp.array([0.0, 1.0])))
    assert np.isnan(metrics.auc(jnp.array([0, 0]), jnp.array([0.0, 1.0])))


def test_log_loss_equals_scikit_learns():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 500), rng.normal(size=500) * 3
    expected = sklearn.metrics.log_loss(labels, 1 / (1 + np.exp(-logits)))
    assert float(metrics.log_loss(labels, logits)) == pytest.approx(expected, rel=1e-5)


def test_log_loss_of_a_certain_mistake_is_finite():
    assert float(metrics.log_loss(jnp.array([1.0]), jnp.array([-200.0]))) == pytest.approx(200)


def test_hit_rate_counts_ranks_before_the_cut():
    assert metrics.hit_rate(np.array([0, 9, 10, 500]), 10) == 0.5


def test_ndcg_equals_scikit_learns():
    scores = np.random.default_rng(0).normal(size=(50, 30))
    relevant = np.zeros_like(scores)
    relevant[:, 4] = 1
    ranks = np.sum(scores > scores[:, 4:5], axis=1)
    expected = sklearn.metrics.ndcg_score(relevant, scores, k=10)
    assert float(metrics.ndcg(ranks, 10)) == pytest.approx(expected, rel=1e-5)
