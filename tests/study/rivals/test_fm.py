"""The factorisation machine: its formula, and its fit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.study.rivals import fm
from cadc_jax.study.rivals.fm import FMConfig, Params
from cadc_jax.study.rivals.one_hot import Encoded


def random_rows(rows=5, slots=4, size=9, seed=0):
    rng = np.random.default_rng(seed)
    place = np.stack([rng.permutation(size)[:slots] for _ in range(rows)])
    return Encoded(place.astype(np.int32), rng.normal(size=(rows, slots)).astype(np.float32))


def test_logits_are_a_sum_over_all_pairs_of_features():
    rng, rows = np.random.default_rng(1), random_rows()
    w, v = rng.normal(size=9), rng.normal(size=(9, 3))
    expected = []
    for x in rows.matrix(9).toarray().astype(np.float64):
        pairs = sum(
            x[i] * x[j] * (v[i] @ v[j]) for i, j in itertools.combinations(range(len(x)), 2)
        )
        expected.append(0.5 + w @ x + pairs)
    params = Params(jnp.asarray(0.5), jnp.asarray(w), jnp.asarray(v))
    np.testing.assert_allclose(fm.logits(params, *rows), expected, rtol=1e-4)


def crossed(seed, rows=3000):
    """The click depends on whether both of two features are even, and on neither alone."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 6, (2, rows))
    place = np.stack([left, 6 + right], 1).astype(np.int32)
    label = (rng.random(rows) < np.where((left + right) % 2, 0.1, 0.9)).astype(np.float32)
    return Encoded(place, np.ones(place.shape, np.float32)), label


def test_a_fit_finds_what_only_a_pair_of_features_tells():
    config = FMConfig(factors=4, penalty=0.1, learning_rate=0.2)
    params = fm.fit(12, crossed(0), crossed(1), config, jax.random.key(0))
    rows, label = crossed(2)
    probability = np.asarray(jax.nn.sigmoid(fm.logits(params, *rows)))
    even = rows.place.sum(1) % 2 == 0
    np.testing.assert_allclose(probability[even].mean(), 0.9, atol=0.03)
    np.testing.assert_allclose(probability[~even].mean(), 0.1, atol=0.03)


def test_a_large_penalty_leaves_the_click_rate_alone():
    config = FMConfig(penalty=1e7)
    rows, label = crossed(0)
    params = fm.fit(12, (rows, label), crossed(1), config, jax.random.key(0))
    found = np.asarray(jax.nn.sigmoid(fm.logits(params, *rows)))
    np.testing.assert_allclose(found, label.mean(), atol=0.05)


def test_the_epoch_that_validates_best_counts():
    """Labels that the training rows have wrong: each epoch is worse than the start."""
    rows, label = crossed(0)
    config = FMConfig(factors=4, learning_rate=0.3)
    params = fm.fit(12, (rows, label), (rows, 1 - label), config, jax.random.key(0))
    assert not np.asarray(params.linear).any()  # the start
