"""Factorisations side by side: the score is the weighted sum, and the best weights are found."""

import numpy as np
import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.factorization import blend
from cadc_jax.factorization.factors import Factors


def part(seed, rank, scale=1.0):
    rng = np.random.default_rng(seed)
    user, item = rng.normal(size=(30, rank)), rng.normal(size=(40, rank))
    return Factors((user * scale).astype(np.float32), (item / 7).astype(np.float32))


def scores(factors):
    return np.asarray(factors.user) @ np.asarray(factors.item).T


def test_the_score_is_the_sum_of_the_parts_in_units_of_their_root_mean_square():
    parts = [part(0, 4, scale=100.0), part(1, 3)]
    whole = blend.join(parts, [blend.scale_of(x, w) for x, w in zip(parts, (1, 0.5), strict=True)])
    assert whole.user.shape == (30, 7) and whole.item.shape == (40, 7)
    first, second = (scores(x) / np.sqrt(np.mean(scores(x) ** 2)) for x in parts)
    np.testing.assert_allclose(scores(whole), first + 0.5 * second, rtol=1e-4, atol=1e-5)


def test_all_items_have_the_same_mean_square_entry():
    parts = [part(0, 4, scale=100.0), part(1, 3)]
    whole = blend.join(parts, [blend.scale_of(x, 1.0) for x in parts])
    for columns in (whole.item[:, :4], whole.item[:, 4:]):
        assert np.mean(np.square(columns)) == pytest.approx(1, rel=1e-5)


def test_the_weight_of_the_best_validation_result_is_chosen():
    parts = [part(0, 4), part(1, 3), part(2, 5)]
    scales = [blend.scale_of(x, w) for x, w in zip(parts, (1, 0.35, 0.0), strict=True)]
    target = scores(blend.join(parts, scales))

    def quality(factors):
        return -np.mean((scores(factors) - target) ** 2)

    assert blend.choose_weights(parts, quality) == (1.0, 0.35, 0.0)


def test_a_part_without_scores_is_refused():
    with pytest.raises(ConfigError, match="scores all pairs with 0"):
        blend.scale_of(Factors(np.zeros((3, 2)), np.ones((4, 2))), 1.0)
