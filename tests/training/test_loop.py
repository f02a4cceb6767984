import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.errors import ConfigError, TrainingError
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.training import loop
from cadc_jax.training.step import TrainConfig, train_steps
from tests.training.test_step import batch, content, tables

MODEL = TwoTower((8,))
CONFIG = TrainConfig(
    batch_rows=8,
    negatives=2,
    max_evaluations=10,
    patience=2,
    evaluation_steps=2,
    table_learning_rate=0.1,
)


def fit(validate, frozen=(), config=CONFIG, batches=None, steps=1, **settings):
    return loop.fit(
        MODEL,
        config,
        tables(),
        frozenset(frozen),
        content(),
        batches or itertools.repeat(batch()),
        steps,
        validate,
        jax.random.key(0),
        **settings,
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


def test_factors_may_be_scaled_as_others_are():
    """A model trained on `like` knows its scale, and no other."""
    like = np.full((2, 3), 5.0, np.float32), np.full((4, 3), -0.1, np.float32)
    made = loop.scaled((2 * like[0], like[1]), like)
    np.testing.assert_allclose(made["user"], 2, rtol=1e-6)
    np.testing.assert_allclose(made["item"], -1, rtol=1e-6)


@pytest.mark.parametrize("model, device_bytes", [(1, math.inf), (4, 400)])
def test_tables_to_predict_with_are_validated_and_returned_but_not_trained_on(model, device_bytes):
    seen = []

    def validate(params, tables):
        seen.append(tables)
        return len(seen)

    settings = {"frozen": ("user", "item"), "device_bytes": device_bytes}
    settings["mesh"] = sharding.make_mesh(model)
    others = {name: tables()[name] + 1 for name in ("user", "item")}
    fitted = fit(validate, predict_with=others, **settings)
    plain = fit(scripted(range(11)), **settings)
    jax.tree.map(np.testing.assert_array_equal, fitted.params, plain.params)
    for name, table in others.items():
        np.testing.assert_array_equal(fitted.tables[name], table)
        for given in seen:
            np.testing.assert_array_equal(given[name][: len(table)], table)
    np.testing.assert_array_equal(fitted.tables["features"], plain.tables["features"])


def test_batches_are_taken_in_order_whatever_a_call_holds():
    """Seven steps as 1 + 1 + ..., 3 + 3 + 1 and 7 steps a call."""
    results = []
    for size in (1, 3, 8):
        config = dataclasses.replace(CONFIG, steps_per_call=size, max_evaluations=2)
        stream = ({**batch(), "label": batch()["label"] * (k % 5)} for k in itertools.count())
        results.append(fit(scripted(range(3)), config=config, batches=stream, steps=7))
    for other in results[1:]:
        np.testing.assert_allclose(
            [h["loss"] for h in other.history[1:]],
            [h["loss"] for h in results[0].history[1:]],
            rtol=1e-5,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            other.params,
            results[0].params,
        )


@pytest.mark.parametrize("model, device_bytes", [(1, math.inf), (4, 400)])
def test_a_fit_compiles_its_steps_once(model, device_bytes):
    config = dataclasses.replace(CONFIG, learning_rate=0.01 * model, steps_per_call=3)
    before = train_steps._cache_size()
    mesh = sharding.make_mesh(model)
    fit(scripted(range(11)), config=config, steps=7, mesh=mesh, device_bytes=device_bytes)
    assert train_steps._cache_size() - before == 1


@pytest.mark.parametrize("model, devices", [(2, 2), (2, 4), (4, 8), (8, 8)])
@pytest.mark.parametrize("frozen", [(), ("user", "item")])
def test_split_tables_train_as_on_one_device(frozen, model, devices):
    def losses(model, devices, device_bytes):
        mesh = sharding.make_mesh(model, jax.devices()[:devices])
        config = dataclasses.replace(CONFIG, table_optimizer="adagrad", max_evaluations=3)
        settings = {"mesh": mesh, "device_bytes": device_bytes, "steps": 2}
        fitted = fit(scripted(range(4)), frozen, config, **settings)
        assert {name: x.shape for name, x in fitted.tables.items()} == {
            name: x.shape for name, x in tables().items()
        }
        return [h["loss"] for h in fitted.history[1:]], fitted.tables

    want, got = losses(1, 1, math.inf), losses(model, devices, 300 - 20 * model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), want, got)


def test_a_batch_that_does_not_divide_is_refused():
    for field, value in (("batch_rows", 9), ("microbatch_rows", 100)):
        with pytest.raises(ConfigError, match=field):
            fit(scripted(range(9)), config=dataclasses.replace(CONFIG, **{field: value}))


def test_every_evaluation_is_recorded_and_one_interval_traced(tmp_path):
    seen = []
    fitted = fit(scripted(range(11)), record=seen.append, trace=str(tmp_path))
    assert seen == fitted.history[1:]
    assert list(tmp_path.rglob("*.xplane.pb"))
