"""Scores of factors with and without biases, and equivalent tables and bases."""

import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.factorization.factors import (
    Factors,
    balanced_axes,
    check_sizes,
    dot_tables,
    principal_axes,
    scores,
    with_bias_columns,
)

RNG = np.random.default_rng(0)
USER, ITEM = RNG.normal(size=(4, 3)), RNG.normal(size=(5, 3))
USER_BIAS, ITEM_BIAS = RNG.normal(size=4), RNG.normal(size=5)
PLAIN = Factors(jnp.asarray(USER, jnp.float32), jnp.asarray(ITEM, jnp.float32))
BIASED = PLAIN.replace(
    user_bias=jnp.asarray(USER_BIAS, jnp.float32),
    item_bias=jnp.asarray(ITEM_BIAS, jnp.float32),
    global_bias=jnp.float32(0.7),
)
WANT = {
    "plain": USER @ ITEM.T,
    "biased": USER @ ITEM.T + USER_BIAS[:, None] + ITEM_BIAS + 0.7,
}
MODELS = {"plain": PLAIN, "biased": BIASED}


@pytest.mark.parametrize("kind", MODELS)
def test_scores_broadcast_users_against_items(kind):
    got = scores(MODELS[kind], jnp.arange(4)[:, None], jnp.arange(5))
    np.testing.assert_allclose(got, WANT[kind], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_dot_products_with_bias_columns_are_the_scores(kind):
    user, item = with_bias_columns(MODELS[kind])
    assert user.shape == (4, 5)
    assert item.shape == (5, 5)
    np.testing.assert_allclose(user @ item.T, WANT[kind], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "width"), [("plain", 3), ("biased", 5)])
def test_dot_products_of_the_tables_are_the_scores(kind, width):
    user, item = dot_tables(MODELS[kind])
    assert user.shape == (4, width)
    np.testing.assert_allclose(user @ item.T, WANT[kind], rtol=1e-5, atol=1e-6)


def test_factors_have_all_biases_or_none():
    assert PLAIN.biases is None
    assert PLAIN.replace(user_bias=BIASED.user_bias).biases is None
    assert BIASED.biases == (BIASED.user_bias, BIASED.item_bias, BIASED.global_bias)


@pytest.mark.parametrize("sizes", [(3, 5, 3), (4, 6, 3), (4, 5, 2)])
def test_factors_of_other_sizes_are_rejected(sizes):
    check_sizes(PLAIN, 4, 5, 3)
    with pytest.raises(ConfigError, match=r"init has factors of shapes \(\(4, 3\), \(5, 3\)\)"):
        check_sizes(PLAIN, *sizes)


@pytest.mark.parametrize("kind", MODELS)
def test_principal_axes_change_no_score_and_separate_the_directions_of_the_items(kind):
    rotated = principal_axes(MODELS[kind])
    got = scores(rotated, jnp.arange(4)[:, None], jnp.arange(5))
    np.testing.assert_allclose(got, WANT[kind], rtol=1e-5, atol=1e-6)
    gram = np.asarray(rotated.item).T @ rotated.item
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-5)
    assert (np.diff(np.diag(gram)) < 0).all()


def test_principal_axes_turn_the_encoder_with_the_items():
    turned = principal_axes(PLAIN.replace(encoder=PLAIN.item))
    np.testing.assert_array_equal(turned.encoder, turned.item)


def test_bfloat16_factors_are_scored_in_float32():
    narrow = Factors(PLAIN.user.astype(jnp.bfloat16), PLAIN.item.astype(jnp.bfloat16))
    got = scores(narrow, jnp.arange(4)[:, None], jnp.arange(5))
    assert got.dtype == jnp.float32
    exact = np.asarray(narrow.user, np.float64) @ np.asarray(narrow.item, np.float64).T
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)


def test_balanced_axes_keep_the_scores_and_have_one_mean_square():
    rng = np.random.default_rng(0)
    user = rng.normal(size=(30, 4)) * [1, 10, 0.1, 0]  # the last axis has no users
    item, encoder = rng.normal(size=(20, 4)) * [2, 1, 5, 1], rng.normal(size=(20, 4))
    made = balanced_axes(Factors(user, item, encoder=encoder))
    np.testing.assert_allclose(made.user @ made.item.T, user @ item.T, rtol=1e-5, atol=1e-6)
    squares = [np.mean(np.square(x), axis=0)[:3] for x in (made.user, made.item)]
    np.testing.assert_allclose(*squares, rtol=1e-5)
    scale = np.append(made.user[0, :3] / user[0, :3], 1)
    np.testing.assert_allclose(made.encoder, encoder * scale, rtol=1e-5)
