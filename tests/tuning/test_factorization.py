"""What a trial scores: that of a fit by itself, however it was come to, by one program for all."""

import dataclasses

import jax
import numpy as np
import pytest

from cadc_jax.errors import TrainingError
from cadc_jax.factorization import als, als_solver, autoencoder, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.factorization.sgd import SGDConfig, TrainingRows
from cadc_jax.tuning import factorization, space

USERS, ITEMS = 30, 20
KEY = jax.random.key(0)
ALS = ALSConfig(factors=4, iterations=6, tolerance=0.5)
NAMES = ("regularization", "alpha")


def rows():
    rng = np.random.default_rng(0)
    return np.unique(rng.integers(0, [USERS, ITEMS], (200, 2)), axis=0).T


@pytest.fixture(scope="module")
def matrix():
    return Interactions.from_rows(*rows(), USERS, ITEMS)


def mean_score(factors, config):
    """A number that depends on every factor and on the settings."""
    return float(np.sum(np.asarray(factors.user) @ np.asarray(factors.item).T)) + config.factors


def test_more_iterations_go_on_from_fewer_and_come_to_the_same(matrix):
    evaluate = factorization.of_als(matrix, ALS, NAMES, mean_score, KEY)
    _, state = evaluate((0.5, 3.0), 2, None)
    went_on, _ = evaluate((0.5, 3.0), 5, state)
    at_once, _ = evaluate((0.5, 3.0), 5, None)
    assert went_on == at_once
    alone = dataclasses.replace(ALS, regularization=0.5, alpha=3.0, iterations=5, tolerance=0.0)
    assert at_once == mean_score(als.fit(matrix, alone, KEY)[0], alone)


def test_all_settings_at_one_rank_share_their_programs(matrix):
    evaluate = factorization.of_als(matrix, ALS, (*NAMES, "frequency_exponent"), mean_score, KEY)
    evaluate((1.0, 4.0, 0.0), 2, None)
    before = als_solver.half_step._cache_size()
    trials = [(lam, alpha, nu) for lam in (0.1, 10.0) for alpha in (1, 2.0) for nu in (0.0, 1.0)]
    scores = {evaluate(trial, 2, None)[0] for trial in trials}
    assert len(scores) == len(trials)
    assert als_solver.half_step._cache_size() == before


def test_passes_of_the_autoencoder_are_those_of_a_fit(matrix):
    config = AutoencoderConfig(factors=4)
    evaluate = factorization.of_autoencoder(matrix, config, ("regularization",), mean_score, KEY)
    own = dataclasses.replace(config, regularization=0.7, passes=2)
    expected = mean_score(autoencoder.fit(matrix, own, KEY)[0], own)
    assert evaluate((0.7,), 2, evaluate((0.7,), 1, None)[1])[0] == expected


def test_epochs_of_sgd_are_those_of_a_fit():
    given = TrainingRows(*rows(), USERS, ITEMS)
    config = SGDConfig(factors=4, batch_rows=32, epochs=4)
    evaluate = factorization.of_sgd(given, config, ("regularization",), mean_score, KEY)
    own = dataclasses.replace(config, regularization=0.1, epochs=2)
    expected = mean_score(sgd.fit(given, own, KEY)[0], own)
    assert evaluate((0.1,), 2, None)[0] == pytest.approx(expected, rel=1e-6)


def test_a_rank_is_a_whole_number(matrix):
    evaluate = factorization.of_als(matrix, ALS, ("factors",), mean_score, KEY)
    _, (_, found) = evaluate((3.0,), 1, None)
    assert found.user.shape == (USERS, 3)


def test_factors_that_are_no_numbers_are_the_worst(matrix):
    def diverged(factors, config):
        raise TrainingError("the factors are not finite numbers")

    evaluate = factorization.of_als(matrix, ALS, NAMES, diverged, KEY)
    assert evaluate((1.0, 1.0), 1, None) == (-np.inf, None)


@pytest.mark.parametrize(
    "config", [ALS, ALSConfig(feedback="explicit"), AutoencoderConfig(), SGDConfig()]
)
def test_every_value_of_a_space_is_a_valid_setting(config):
    axes = factorization.axes(config)
    for trial in [*space.grid(list(axes.values())), *space.drawn(list(axes.values()), 20, 0)]:
        factorization.changed(config, list(axes), trial)
    assert factorization.resource(config) >= 1
