"""Vectors of new users: the parts for serving agree with the functions of the methods."""

import jax
import numpy as np
import pytest
import scipy.sparse

from cadc_jax.errors import ConfigError
from cadc_jax.factorization import als, autoencoder, fold_in, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.blend import Scale
from cadc_jax.factorization.interactions import Interactions

USERS, ITEMS = 80, 30
NEW = [[2, 5, 11], [7], [0, 1, 3, 4, 9]]
PADDED = np.array([[2, 5, 11, -1, -1, -1], [7, -1, -1, -1, -1, -1], [0, 1, 3, 4, 9, -1]])


def interactions():
    """Of users of two tastes, so that vectors mean something."""
    rng = np.random.default_rng(1)
    likes = (np.arange(USERS)[:, None] + np.arange(ITEMS)) % 2
    user, item = np.nonzero(rng.random((USERS, ITEMS)) < 0.1 + 0.4 * likes)
    return Interactions.from_rows(user, item, USERS, ITEMS)


def new_users():
    counts = list(map(len, NEW))
    return Interactions.from_rows(
        np.repeat(np.arange(3), counts), np.concatenate(NEW), len(NEW), ITEMS
    )


@pytest.mark.parametrize("exponent", [0.0, 0.7])
@pytest.mark.parametrize("scale", [Scale(1.0, 1.0), Scale(3.0, 0.2)])
def test_the_part_of_als_solves_the_equations_of_als(scale, exponent):
    rows = interactions()
    config = ALSConfig(factors=5, alpha=4.0, frequency_exponent=exponent, iterations=3)
    factors, _ = als.fit(rows, config, jax.random.key(0))
    expected, _ = fold_in.solve(factors, new_users(), config, extent=rows.extent)
    item = np.asarray(factors.item) * scale.item
    part = fold_in.solves(item, config, rows.extent, scale, PADDED.shape[1])
    found = fold_in.vectors((part,), PADDED.astype(np.int32))
    np.testing.assert_allclose(found, scale.user * np.asarray(expected), rtol=1e-4, atol=1e-5)


def test_parts_side_by_side_are_joined():
    factors, _ = autoencoder.fit(interactions(), AutoencoderConfig(factors=5), jax.random.key(0))
    part = fold_in.Sums(np.asarray(factors.encoder))
    found = fold_in.vectors((part, part), PADDED.astype(np.int32))
    expected, _ = fold_in.solve(factors, new_users(), AutoencoderConfig(factors=5))
    np.testing.assert_allclose(found, np.concatenate([expected, expected], axis=1), atol=1e-5)


def test_other_users_of_the_same_shape_compile_nothing():
    part = fold_in.Sums(np.ones((ITEMS, 4), np.float32))
    fold_in.vectors((part,), PADDED.astype(np.int32))
    compiled = fold_in.vectors._cache_size()
    fold_in.vectors((part,), np.full(PADDED.shape, -1, np.int32))
    assert fold_in.vectors._cache_size() == compiled


def test_without_the_encoder_known_users_are_combined():
    rows = interactions()
    factors, _ = autoencoder.fit(rows, AutoencoderConfig(factors=5), jax.random.key(0))
    offsets, columns = rows.by_user.offsets, rows.by_user.columns
    known = scipy.sparse.csr_matrix((np.ones(len(columns)), columns, offsets), (USERS, ITEMS))
    found = fold_in.combine(np.asarray(factors.user), known, list(map(np.array, NEW)))
    expected, _ = fold_in.solve(factors, new_users(), AutoencoderConfig(factors=5))
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 0.2  # 0.15: the damping
    assert np.all(np.sum(found * expected, axis=1) > 0)


def test_what_cannot_be_folded_in_is_named():
    factors, _ = als.fit(interactions(), ALSConfig(factors=2, iterations=1), jax.random.key(0))
    with pytest.raises(ConfigError, match="ALS needs the rows of its fit"):
        fold_in.solve(factors, new_users(), ALSConfig(factors=2))
    with pytest.raises(ConfigError, match="logistic SGD does not tell"):
        fold_in.solve(factors, new_users(), sgd.SGDConfig(factors=2))
