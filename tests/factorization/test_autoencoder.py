"""Fits of the linear autoencoder, refreshing and folding in, against dense float64 references."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from cadc_jax.errors import ConfigError
from cadc_jax.factorization import autoencoder
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.factors import Factors, principal_axes, scores
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stopped
from tests.factorization import reference
from tests.factorization.reference import I, U

KEY = jax.random.key(0)
PLAIN = AutoencoderConfig(factors=6, regularization=0.06, dropout=0.0, passes=3)
SETTINGS = {
    "plain": PLAIN,
    "dropout": dataclasses.replace(PLAIN, dropout=0.3),
    "all": dataclasses.replace(
        PLAIN, dropout=0.3, user_exponent=0.5, start_exponent=0.5, item_exponent=0.5
    ),
}


@pytest.fixture(params=SETTINGS)
def config(request):
    return SETTINGS[request.param]


@pytest.fixture(scope="module", params=["values", "ones"])
def data(request):
    """Interactions and the same as a dense matrix [U, I], with values or with ones."""
    user, item, value = reference.sparse_data()
    if request.param == "ones":
        user, item = np.unique([user, item], axis=1)
        value = np.ones(len(user), np.float32)
    else:
        value = value / 4
    matrix = reference.dense(user, item, value, U, I)
    return Interactions.from_rows(user, item, U, I, value), matrix


def weights_of(factors):
    return reference.autoencoder_weights(factors.encoder, factors.item)


def test_the_reported_objective_is_that_of_the_factors_and_falls(config, data):
    interactions, matrix = data
    factors, losses = autoencoder.fit(interactions, config, KEY)
    want = reference.autoencoder_objective(matrix, factors.encoder, factors.item, config)
    np.testing.assert_allclose(losses[-1], want, rtol=1e-5)
    assert len(losses) == 3
    assert np.all(np.diff(losses) < 0)


def test_added_rows_give_the_users_of_all_rows(config):
    user, item, _ = reference.sparse_data()
    kept = np.random.default_rng(0).random(len(user)) < 0.3
    part = Interactions.from_rows(user[~kept], item[~kept], U, I)
    factors, _ = autoencoder.fit(part, config, KEY)
    grown = autoencoder.add_rows(factors, user[kept], item[kept])
    whole = autoencoder.refresh(factors.encoder, Interactions.from_rows(user, item, U, I), config)
    np.testing.assert_allclose(grown, whole.user, atol=1e-5)


def test_users_are_their_interactions_times_the_encoder(config, data):
    interactions, matrix = data
    factors, _ = autoencoder.fit(interactions, config, KEY)
    np.testing.assert_allclose(factors.user, matrix @ np.float64(factors.encoder), atol=1e-5)
    folded = autoencoder.fold_in(factors, interactions)
    np.testing.assert_allclose(folded, factors.user, atol=1e-6)


def test_items_are_the_best_ones_for_the_encoder(config, data):
    interactions, matrix = data
    factors, _ = autoencoder.fit(interactions, config, KEY)
    want = reference.autoencoder_items(matrix, factors.encoder, config)
    np.testing.assert_allclose(
        weights_of(factors), reference.autoencoder_weights(factors.encoder, want), atol=1e-4
    )


def test_many_passes_end_where_no_change_of_the_encoder_helps(config, data):
    interactions, matrix = data
    config = dataclasses.replace(config, passes=100, factors=3, cg_steps=8)
    factors, losses = autoencoder.fit(interactions, config, KEY)
    encoder, item = np.float64(factors.encoder), np.float64(factors.item)
    norm = np.linalg.norm(encoder)
    for direction in np.random.default_rng(0).normal(size=(20, I, 3)):
        step = 1e-3 * norm * direction / np.linalg.norm(direction)
        both = [
            reference.autoencoder_objective(matrix, encoder + sign * step, item, config)
            for sign in (1, -1)
        ]
        slope = (both[0] - both[1]) / 2
        curvature = (both[0] + both[1]) / 2 - losses[-1]
        assert abs(slope) < 0.5 * abs(curvature) + 1e-6 * losses[-1]


@pytest.mark.parametrize("factors", [I - 1, I, I + 5])
def test_with_as_many_factors_as_items_the_weights_are_those_of_full_rank(factors, config, data):
    interactions, matrix = data
    config = dataclasses.replace(config, factors=factors, passes=1)
    found, _ = autoencoder.fit(interactions, config, KEY)
    np.testing.assert_allclose(
        weights_of(found), reference.full_autoencoder(matrix, config), atol=2e-5
    )


def test_without_dropout_and_exponents_full_rank_is_ease(interactions, matrix):
    config = dataclasses.replace(PLAIN, factors=I, passes=1)
    factors, _ = autoencoder.fit(interactions, config, KEY)
    _, penalty, _ = reference.autoencoder_terms(matrix, config)
    assert len(np.unique(penalty)) == 1
    inverse = np.linalg.inv(matrix.T @ matrix + np.diag(penalty))  # arXiv 1905.03375, eq. 8
    want = inverse / -np.diag(inverse)
    np.fill_diagonal(want, 0)
    np.testing.assert_allclose(weights_of(factors), want, atol=2e-5)


def test_the_start_spans_the_leading_eigenvectors(data):
    interactions, matrix = data
    config = dataclasses.replace(SETTINGS["all"], passes=1, start_rounds=12)
    factors, _ = autoencoder.fit(interactions, config, KEY)
    products, _, _ = reference.autoencoder_terms(matrix, config)
    n = np.diag(products)
    scale = np.where(n > 0, np.where(n > 0, n, 1) ** -0.5, 0)
    _, vectors = np.linalg.eigh(scale[:, None] * products * scale)
    want = scale[:, None] * vectors[:, -config.factors :]
    spans = [np.linalg.qr(x)[0] for x in (want, np.float64(factors.encoder))]
    cosines = np.linalg.svd(spans[0].T @ spans[1])[1]
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


def test_users_and_items_without_entries_are_zero(config, data):
    interactions, matrix = data
    factors, _ = autoencoder.fit(interactions, config, KEY)
    assert not np.asarray(factors.user)[~matrix.any(1)].any()
    for table in (factors.item, factors.encoder):
        assert not np.asarray(table)[~matrix.any(0)].any()


def test_users_and_items_have_the_same_mean_square_length(data):
    factors, _ = autoencoder.fit(data[0], PLAIN, KEY)
    user, item = (np.sum(np.square(x), 1) for x in (factors.user, factors.item))
    np.testing.assert_allclose(user[user > 0].mean(), item[item > 0].mean(), rtol=1e-5)


def test_repeated_rows_are_a_larger_value():
    once = Interactions.from_rows([0, 1, 1], [0, 0, 1], 2, 2, [2.0, 1.0, 3.0])
    often = Interactions.from_rows([0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], 2, 2)
    both = [autoencoder.fit(x, PLAIN, KEY)[0] for x in (once, often)]
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_one_item_has_nothing_to_be_predicted_from():
    factors, losses = autoencoder.fit(Interactions.from_rows([0, 1], [0, 0], 3, 1), PLAIN, KEY)
    np.testing.assert_allclose(np.asarray(factors.item), 0, atol=1e-5)
    np.testing.assert_allclose(losses, 2.0, rtol=1e-5)


def test_refreshed_factors_are_exact_for_a_given_encoder(config, data):
    interactions, matrix = data
    part = matrix * (np.arange(U * I).reshape(U, I) % 3 > 0)
    users, items = np.nonzero(part)
    some = Interactions.from_rows(users, items, U, I, part[users, items])
    first, _ = autoencoder.fit(some, config, KEY)
    factors = autoencoder.refresh(first.encoder, interactions, config)
    np.testing.assert_array_equal(factors.encoder, first.encoder)
    np.testing.assert_allclose(factors.user, matrix @ np.float64(first.encoder), atol=1e-4)
    want = reference.autoencoder_items(matrix, first.encoder, config)
    np.testing.assert_allclose(
        weights_of(factors), reference.autoencoder_weights(first.encoder, want), atol=1e-4
    )


def test_users_of_all_rows_are_those_of_its_parts_together(data):
    _, matrix = data
    kept = np.arange(U * I).reshape(U, I) % 3 == 0
    factors, _ = autoencoder.fit(data[0], PLAIN, KEY)
    parts = []
    for part in (matrix * kept, matrix * ~kept):
        users, items = np.nonzero(part)
        rows = Interactions.from_rows(users, items, U, I, part[users, items])
        parts.append(autoencoder.fold_in(factors, rows))
    np.testing.assert_allclose(parts[0] + parts[1], factors.user, atol=1e-5)


def test_one_pass_from_other_factors_is_a_refresh(data):
    first, _ = autoencoder.fit(data[0], PLAIN, KEY)
    other = dataclasses.replace(PLAIN, regularization=5.0)
    want = autoencoder.refresh(first.encoder, data[0], other)
    got, _ = autoencoder.fit(data[0], other.refreshing(5), jax.random.key(1), init=first)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_further_passes_continue_those_of_the_factors_they_start_from(data):
    want, want_losses = autoencoder.fit(data[0], dataclasses.replace(PLAIN, passes=5), KEY)
    first, _ = autoencoder.fit(data[0], PLAIN, KEY)
    got, losses = autoencoder.fit(data[0], PLAIN, KEY, init=first)
    np.testing.assert_allclose(losses, want_losses[2:], rtol=1e-5)
    np.testing.assert_allclose(weights_of(got), weights_of(want), atol=1e-3)


def test_turning_to_the_principal_axes_turns_the_encoder_too(data):
    factors, _ = autoencoder.fit(data[0], PLAIN, KEY)
    turned = principal_axes(factors)
    np.testing.assert_allclose(
        autoencoder.fold_in(turned, data[0]), np.asarray(turned.user), atol=1e-5
    )
    np.testing.assert_allclose(weights_of(turned), weights_of(factors), atol=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_give_the_factors_of_one(devices, config, data):
    want, want_losses = autoencoder.fit(data[0], config, KEY)
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2), ("data", "model"))
    got, losses = autoencoder.fit(data[0], config, KEY, mesh=mesh)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    np.testing.assert_allclose(got.user, want.user, atol=2e-3)
    np.testing.assert_allclose(got.item, want.item, atol=2e-3)
    folded = autoencoder.fold_in(got, data[0], mesh=mesh)
    np.testing.assert_allclose(folded, np.asarray(got.user), atol=1e-5)


def test_the_same_key_gives_the_same_factors(data):
    first, again = (autoencoder.fit(data[0], PLAIN, KEY)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_the_key_matters_little(data):
    config = dataclasses.replace(PLAIN, start_rounds=8)
    losses = [autoencoder.fit(data[0], config, jax.random.key(seed))[1][-1] for seed in range(3)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-3)


def test_the_scores_of_unseen_items_are_those_of_the_weights(data):
    interactions, matrix = data
    factors, _ = autoencoder.fit(interactions, PLAIN, KEY)
    got = np.asarray(scores(factors, np.arange(U)[:, None], np.arange(I)))
    unseen = matrix == 0
    np.testing.assert_allclose(got[unseen], (matrix @ weights_of(factors))[unseen], atol=1e-4)


def test_progress_is_called_after_each_pass(data):
    calls = []
    _, losses = autoencoder.fit(data[0], PLAIN, KEY, progress=lambda *call: calls.append(call))
    assert [call[0] for call in calls] == [1, 2, 3]
    assert [call[1] for call in calls] == list(losses)
    assert np.all(np.diff([call[2] for call in calls]) > 0)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_fit_resumed_after_any_pass_gives_the_same_bits(devices, data, tmp_path):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    want, want_losses = autoencoder.fit(data[0], PLAIN, KEY, mesh=mesh)
    for done in (0, 1, 2):
        calls = itertools.count()
        with Checkpoints(tmp_path / str(done), stop=lambda: next(calls) >= done) as saved:  # noqa: B023
            with pytest.raises(Stopped):
                autoencoder.fit(data[0], PLAIN, KEY, mesh=mesh, saved=saved)
        assert saved.newest == done
        with Checkpoints(tmp_path / str(done)) as saved:
            got, losses = autoencoder.fit(data[0], PLAIN, KEY, mesh=mesh, saved=saved)
        np.testing.assert_array_equal(losses, want_losses)
        jax.tree.map(np.testing.assert_array_equal, got, want)


patterns = st.sets(st.tuples(st.integers(0, U - 1), st.integers(0, I - 1)), min_size=1, max_size=60)


@pytest.mark.slow
@settings(max_examples=4)
@given(pattern=patterns, dense_row=st.booleans(), name=st.sampled_from(sorted(SETTINGS)))
@example(pattern={(2, 3)}, dense_row=False, name="plain")
@example(pattern={(2, 3), (3, 3), (4, 5)}, dense_row=False, name="all")
@example(pattern={(0, 0)}, dense_row=True, name="plain")  # item 0 is in the span of the encoder
def test_any_pattern_gives_finite_factors_and_a_falling_objective(pattern, dense_row, name):
    user, item = map(np.array, zip(*sorted(pattern), strict=True))
    if dense_row:
        user, item = np.append(user, np.full(I, 5)), np.append(item, np.arange(I))
    user, item = np.unique([user, item], axis=1)
    matrix = reference.dense(user, item, np.ones(len(user)), U, I)
    config = SETTINGS[name]
    factors, losses = autoencoder.fit(Interactions.from_rows(user, item, U, I), config, KEY)
    want = reference.autoencoder_objective(matrix, factors.encoder, factors.item, config)
    np.testing.assert_allclose(losses[-1], want, rtol=1e-4)
    assert np.all(np.diff(losses) <= 1e-5 * losses[:-1])
    np.testing.assert_allclose(factors.user, matrix @ np.float64(factors.encoder), atol=1e-4)


@pytest.mark.parametrize("on_other", [{}, {"factors": 7}])
def test_factors_of_other_sizes_or_methods_are_no_start(on_other, data):
    encoder = None if not on_other else np.zeros((I, 6))
    other = Factors(np.zeros((U, 6)), np.zeros((I, 6)), encoder=encoder)
    message = r"no encoder" if encoder is None else rf"shape \({I}, 6\); this fit needs \({I}, 7\)"
    with pytest.raises(ConfigError, match=message):
        autoencoder.fit(data[0], dataclasses.replace(PLAIN, **on_other), KEY, init=other)


def test_folding_in_rejects_another_number_of_items(data):
    other = Factors(np.zeros((U, 6)), np.zeros((I, 6)), encoder=np.zeros((I + 1, 6)))
    with pytest.raises(ConfigError, match=f"{I} items, the model has {I + 1}"):
        autoencoder.fold_in(other, data[0])


@pytest.mark.parametrize("rows", [([], [], None), ([1], [0], [0.0])], ids=["none", "zeros"])
def test_a_fit_without_interactions_is_rejected(rows):
    user, item, value = rows
    empty = Interactions.from_rows(user, item, 2, 2, value)
    for call in (
        lambda: autoencoder.fit(empty, PLAIN, KEY),
        lambda: autoencoder.refresh(np.zeros((2, 6)), empty, PLAIN),
    ):
        with pytest.raises(ConfigError, match="no interactions"):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": 0}, "autoencoder.factors=0: must be above 0"),
        ({"regularization": 0.0}, "autoencoder.regularization=0.0: must be above 0"),
        ({"dropout": 1.0}, r"autoencoder.dropout=1.0: must be in \[0, 1\)"),
        ({"user_exponent": -0.1}, "autoencoder.user_exponent=-0.1: must be at least 0"),
        ({"item_exponent": float("nan")}, "autoencoder.item_exponent=nan: must be at least 0"),
        ({"passes": 0}, "autoencoder.passes=0: must be above 0"),
        ({"cg_steps": 0}, "autoencoder.cg_steps=0: must be above 0"),
        ({"start_rounds": 0}, "autoencoder.start_rounds=0: must be above 0"),
    ],
)
def test_a_config_that_cannot_work_is_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        AutoencoderConfig(**change)
