import itertools
import math

import jax
import numpy as np
import pytest

from cadc_jax.errors import TrainingError
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.training import loop
from cadc_jax.training.step import TrainConfig
from tests.training.test_step import batch, content, tables

MODEL = TwoTower((8,))
CONFIG = TrainConfig(
    negatives=2, max_evaluations=10, patience=2, evaluation_steps=2, table_learning_rate=0.1
)


def fit(validate, frozen=(), config=CONFIG, batches=None):
    return loop.fit(
        MODEL,
        config,
        tables(),
        frozenset(frozen),
        content(),
        batches or itertools.repeat(batch()),
        1,
        validate,
        jax.random.key(0),
    )


def scripted(values):
    """A validation whose results are given."""
    values = iter(values)
    return lambda params, tables: next(values)


def test_training_stops_when_patience_ends_and_keeps_the_best_state():
    seen = []

    def validate(params, tables):
        seen.append(jax.tree.map(np.asarray, (params, tables)))
        return [0.1, 0.5, 0.4, 0.3, 0.9][len(seen) - 1]

    fitted = fit(validate)
    assert [h["validation"] for h in fitted.history] == [0.1, 0.5, 0.4, 0.3]
    assert fitted.best_step == 2
    jax.tree.map(np.testing.assert_array_equal, seen[1], (fitted.params, dict(fitted.tables)))


def test_the_start_is_kept_if_training_only_makes_it_worse():
    fitted = fit(scripted([0.5, 0.4, 0.3]), frozen=("user", "item"))
    assert fitted.best_step == 0
    jax.tree.map(np.testing.assert_array_equal, dict(fitted.tables), tables())


def test_frozen_tables_stay_and_others_train():
    fitted = fit(scripted(range(11)), frozen=("user", "item"))
    np.testing.assert_array_equal(fitted.tables["user"], tables()["user"])
    assert not np.array_equal(fitted.tables["features"], tables()["features"])


def test_training_lowers_the_loss():
    fitted = fit(scripted(range(11)))
    assert fitted.history[-1]["loss"] < fitted.history[1]["loss"]


def test_the_same_key_gives_the_same_result():
    first, second = fit(scripted(range(11))), fit(scripted(range(11)))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_a_loss_that_is_no_number_stops_with_the_step():
    broken = {**batch(), "label": np.full_like(batch()["label"], math.nan)}
    with pytest.raises(TrainingError, match="step 2"):
        fit(scripted(range(11)), batches=itertools.repeat(broken))


def test_factors_are_scaled_to_a_root_mean_square_of_one():
    factors = np.full((2, 3), 5.0, np.float32), np.full((4, 3), -0.1, np.float32)
    made = loop.initial_tables(2, 4, 7, 3, 16, factors, jax.random.key(0))
    np.testing.assert_allclose(made["user"], 1, rtol=1e-6)
    np.testing.assert_allclose(made["item"], -1, rtol=1e-6)
    assert made["features"].shape == (7, 16)
