import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.errors import ConfigError, TrainingError
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.runtime.checkpoints import CheckpointConfig, Checkpoints
from cadc_jax.runtime.interrupts import Stopped
from cadc_jax.tables import exchange, packed
from cadc_jax.training import loop
from cadc_jax.training.feeds import HostFeed
from cadc_jax.training.loop import FitOptions, StartTables
from cadc_jax.training.step import TrainConfig, train_steps
from tests.training.examples import batch, content, tables

MODEL = TwoTower((8,))
ON_STOP = CheckpointConfig(math.inf)
CONFIG = TrainConfig(
    batch_rows=8,
    negatives=2,
    max_evaluations=10,
    patience=2,
    evaluation_steps=2,
    table_learning_rate=0.1,
)


def fit(validate, frozen=(), config=CONFIG, batches=None, steps=1, predict_with=None, **options):
    return loop.fit(
        MODEL,
        config,
        StartTables(tables(), frozenset(frozen), predict_with or {}),
        content(),
        HostFeed(batches or (lambda start: itertools.repeat(batch())), steps),
        validate,
        jax.random.key(0),
        FitOptions(**options),
    )


def stream(start):
    """A batch of its own for every step."""
    return ({**batch(), "label": batch()["label"] * (k % 5)} for k in itertools.count(start))


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
        fit(scripted(range(11)), batches=lambda start: itertools.repeat(broken))


@pytest.mark.parametrize("device_bytes", [math.inf, 400])
def test_tables_to_predict_with_are_validated_and_returned_but_not_trained_on(device_bytes):
    seen = []

    def validate(params, tables):
        seen.append(tables)
        return len(seen)

    settings = {"frozen": ("user", "item"), "device_bytes": device_bytes}
    settings["mesh"] = sharding.make_mesh()
    others = {name: tables()[name] + 1 for name in ("user", "item")}
    fitted = fit(validate, predict_with=others, **settings)
    plain = fit(scripted(range(11)), **settings)
    jax.tree.map(np.testing.assert_array_equal, fitted.params, plain.params)
    for name, table in others.items():
        np.testing.assert_array_equal(fitted.tables[name], table)
        for given in seen:
            rows = exchange.read(given[name], jnp.arange(len(table)))
            np.testing.assert_array_equal(rows, table)
    np.testing.assert_array_equal(fitted.tables["features"], plain.tables["features"])


def test_batches_are_taken_in_order_whatever_a_call_holds():
    """Seven steps as 1 + 1 + ..., 3 + 3 + 1 and 7 steps a call."""
    results = []
    for size in (1, 3, 8):
        config = dataclasses.replace(CONFIG, steps_per_call=size, max_evaluations=2)
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


@pytest.mark.parametrize("device_bytes", [math.inf, 400])
def test_a_fit_compiles_its_steps_once(device_bytes):
    smoothing = 0.01 if device_bytes == 400 else 0.02  # no other test has this program
    config = dataclasses.replace(CONFIG, label_smoothing=smoothing, steps_per_call=3)
    before = train_steps._cache_size()
    mesh = sharding.make_mesh()
    fit(scripted(range(11)), config=config, steps=7, mesh=mesh, device_bytes=device_bytes)
    assert train_steps._cache_size() - before == 1


def test_fits_that_differ_in_their_rates_and_in_when_they_end_share_their_program():
    config = dataclasses.replace(CONFIG, label_smoothing=0.03, l2=0.01)
    before, other = train_steps._cache_size(), {"learning_rate": 0.02, "table_learning_rate": 0.2}
    first = fit(scripted(range(11)), config=config)
    longer = dataclasses.replace(config, max_evaluations=12, patience=3, l2=0.02, **other)
    second = fit(scripted(range(13)), config=longer)
    assert train_steps._cache_size() - before == 1
    assert first.history[1]["loss"] != second.history[1]["loss"]


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("frozen", [(), ("user", "item")])
def test_split_tables_train_as_on_one_device(frozen, devices):
    def losses(devices, device_bytes):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        config = dataclasses.replace(CONFIG, table_optimizer="adagrad", max_evaluations=3)
        settings = {"mesh": mesh, "device_bytes": device_bytes, "steps": 2}
        fitted = fit(scripted(range(4)), frozen, config, **settings)
        assert {name: x.shape for name, x in fitted.tables.items()} == {
            name: x.shape for name, x in tables().items()
        }
        return [h["loss"] for h in fitted.history[1:]], fitted.tables

    want, got = losses(1, math.inf), losses(devices, 300 - 20 * devices)
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


STEPS = 7  # an interval is calls of 3 + 3 + 1 steps
RESUMED = dataclasses.replace(
    CONFIG,
    table_optimizer="adam",
    table_dtype="bfloat16",
    stochastic_rounding=True,
    max_evaluations=3,
    patience=3,
    steps_per_call=3,
)


def by_weights(params, tables):
    """A quality that any change of a table changes."""
    return -float(sum(np.abs(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tables)))


def breaks_at(folder, chance, **settings):
    """Trains until that chance to save, counted from 0, and is stopped there; returns the step."""
    calls = itertools.count()
    with Checkpoints(folder, ON_STOP, stop=lambda: next(calls) >= chance) as saved:
        with pytest.raises(Stopped):
            fit(batches=stream, saved=saved, **settings)
    return saved.newest


def resumes(folder, **settings):
    with Checkpoints(folder, ON_STOP, say=lambda line: None) as saved:
        started = []
        fitted = fit(
            batches=lambda start: started.append(start) or stream(start), saved=saved, **settings
        )
        assert started[-1] == saved.newest  # the stream starts where the checkpoint stands
    return fitted


def assert_same(got, want):
    assert (got.history, got.best_step) == (want.history, want.best_step)
    jax.tree.map(
        np.testing.assert_array_equal, (got.params, got.tables), (want.params, want.tables)
    )


@pytest.mark.parametrize("frozen", [(), ("user", "item")])
def test_a_fit_resumed_at_any_call_is_bit_for_bit_an_undisturbed_one(tmp_path, frozen):
    settings = {"validate": by_weights, "config": RESUMED, "steps": STEPS, "frozen": frozen}
    want = fit(batches=stream, **settings)
    assert len(want.history) == 4
    chances = [0, 3, 6, 7, 7, 10, 13, 14, 14, 17, 20, 21]  # between calls, and about evaluations
    for number in (2, 4, 11) if frozen else (1, 3, 5, 8):
        step = chances[number]
        folder = tmp_path / str(number)
        assert breaks_at(folder, number, **settings) == step
        assert_same(resumes(folder, **settings), want)


def test_a_fit_that_breaks_again_and_again_gets_there(tmp_path):
    settings = {"validate": by_weights, "config": RESUMED, "steps": STEPS}
    want = fit(batches=stream, **settings)
    stopped = [breaks_at(tmp_path, 2, **settings) for _ in range(4)]
    assert stopped == sorted(set(stopped))
    assert_same(resumes(tmp_path, **settings), want)


def test_resuming_trains_on_with_the_program_of_before(tmp_path):
    config = dataclasses.replace(RESUMED, label_smoothing=0.04)
    settings = {"validate": by_weights, "config": config, "steps": STEPS}
    before = train_steps._cache_size()
    breaks_at(tmp_path, 4, **settings)
    resumes(tmp_path, **settings)
    assert train_steps._cache_size() - before == 1


@pytest.mark.parametrize("first, second", [(1, 8), (8, 2)])
def test_a_fit_goes_on_on_other_devices(tmp_path, first, second):
    """Numbers of devices; tables of 5 and 7 rows are padded in other ways."""

    def settings(devices):
        return {
            "validate": by_weights,
            "config": dataclasses.replace(CONFIG, table_optimizer="adam", max_evaluations=3),
            "steps": 2,
            "mesh": sharding.make_mesh(jax.devices()[:devices]),
            "device_bytes": math.inf if devices == 1 else 900 - 40 * devices,
        }

    want = fit(batches=stream, **settings(1))
    assert breaks_at(tmp_path, 4, **settings(first)) > 0
    got = resumes(tmp_path, **settings(second))
    for one, other in zip(got.history, want.history, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (got.params, got.tables),
        (want.params, want.tables),
    )


def test_no_checkpoint_holds_a_state_that_is_no_number(tmp_path):
    def breaks_down(start):
        for k, made in enumerate(stream(start), start):
            yield made if k < 4 else {**made, "label": made["label"] * math.nan}

    config = dataclasses.replace(CONFIG, steps_per_call=1)
    for _ in range(2):  # the second run goes on from the good state
        with Checkpoints(tmp_path, CheckpointConfig(0), say=lambda line: None) as saved:
            with pytest.raises(TrainingError, match="at step 5 .*last good checkpoint at step 4"):
                fit(scripted(range(11)), config=config, batches=breaks_down, saved=saved)
        assert saved.newest == 4


@pytest.mark.parametrize("first", [True, False])
def test_a_fit_goes_on_with_tables_in_the_other_form(tmp_path, monkeypatch, first):
    monkeypatch.setattr(packed, "NARROWEST", 4)  # the tables of these tests

    def settings(packs):
        monkeypatch.setattr(sharding, "is_tpu", lambda mesh: packs)
        config = dataclasses.replace(CONFIG, table_optimizer="adam", max_evaluations=3)
        mesh = sharding.make_mesh(jax.devices()[:2])
        return {"validate": by_weights, "config": config, "steps": 2, "mesh": mesh}

    want = fit(batches=stream, **settings(False))
    assert breaks_at(tmp_path, 4, **settings(first)) > 0
    got = resumes(tmp_path, **settings(not first))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (got.params, got.tables),
        (want.params, want.tables),
    )
