"""Where batches come from is no matter of results, and is chosen by bytes."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.data import pipeline
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.errors import ConfigError
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.resident import batches, records
from cadc_jax.resident.records import Layout
from cadc_jax.runtime.checkpoints import CheckpointConfig, Checkpoints
from cadc_jax.runtime.interrupts import Stopped
from cadc_jax.training import feeds, loop
from cadc_jax.training.feeds import HostFeed, ResidentFeed
from cadc_jax.training.loop import FitOptions, StartTables
from cadc_jax.training.step import TrainConfig, train_steps_of
from tests.training.examples import ITEMS, USERS, content, tables

MODEL = TwoTower((8,))
CONFIG = TrainConfig(batch_rows=8, negatives=2, max_evaluations=3, table_learning_rate=0.1)
DRAW = np.random.default_rng(0)
ROWS = {
    "user": DRAW.integers(0, USERS, 50, np.int32),
    "item": DRAW.integers(1, ITEMS, 50, np.int32),
    "dense": np.zeros((50, 0), np.float32),
    "categorical": np.zeros((50, 0), np.int32),
}
SAMPLER = NegativeSampling.of(ROWS, 2, ITEMS)


def by_weights(params, tables):
    return -float(sum(np.abs(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tables)))


def host():
    make = functools.partial(pipeline.training_batches, ROWS, 8, 0, sampler=SAMPLER)
    return HostFeed(lambda step: make(start=step), pipeline.steps_per_epoch(50, 8))


def resident(devices=1, split=False):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    layout = records.plan(ROWS)
    return ResidentFeed(batches.put(ROWS, layout, SAMPLER, USERS, 0, 8, mesh, split))


def fit(feed, devices=1, config=CONFIG, saved=None):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    start, key = StartTables(tables(), frozenset(("user",))), jax.random.key(0)
    options = FitOptions(mesh=mesh, saved=saved)
    return loop.fit(MODEL, config, start, content(), feed, by_weights, key, options)


def assert_same(got, want):
    assert (got.history, got.best_step) == (want.history, want.best_step)
    jax.tree.map(
        np.testing.assert_array_equal, (got.params, got.tables), (want.params, want.tables)
    )


def test_training_on_resident_rows_is_bit_for_bit_training_on_the_stream():
    assert_same(fit(resident()), fit(host()))


@pytest.mark.parametrize("split", [False, True])
def test_the_same_on_several_devices(split):
    assert_same(fit(resident(4, split), 4), fit(host(), 4))


@pytest.mark.parametrize("first, second", [(resident, host), (host, resident)])
def test_a_fit_that_was_stopped_resumes_from_the_other_input(tmp_path, first, second):
    config = dataclasses.replace(CONFIG, steps_per_call=3)
    chances = iter([False] * 3 + [True])
    on_stop = CheckpointConfig(math.inf)
    with Checkpoints(tmp_path, on_stop, stop=lambda: next(chances)) as saved:
        with pytest.raises(Stopped):
            fit(first(), config=config, saved=saved)
        assert saved.newest > 0
    with Checkpoints(tmp_path, on_stop, say=lambda line: None) as saved:
        got = fit(second(), config=config, saved=saved)
    assert_same(got, fit(host(), config=config))


def test_the_shapes_of_both_inputs_are_those_of_a_batch():
    assert resident().shapes(CONFIG) == host().shapes(CONFIG)


def test_an_accelerator_has_a_program_for_whole_calls_and_one_for_the_rest(monkeypatch):
    monkeypatch.setattr(sharding, "is_cpu", lambda mesh: False)
    config = dataclasses.replace(CONFIG, steps_per_call=3, clip_norm=9.0)
    before = train_steps_of._cache_size()
    got = fit(resident(), config=config)  # seven steps an epoch
    assert train_steps_of._cache_size() - before == 2
    for one, other in zip(got.history, fit(host()).history, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-5)


def test_parts_of_a_batch_are_for_cpus(monkeypatch):
    taken = []

    def steps(model, config, *rest):
        taken.append(config.microbatch_rows)
        return train_steps_of(model, config, *rest)

    monkeypatch.setattr(loop, "train_steps", steps)
    monkeypatch.setattr(loop, "train_steps_of", steps)
    config = dataclasses.replace(CONFIG, microbatch_rows=4, max_evaluations=1)
    fit(resident(), config=config)
    monkeypatch.setattr(sharding, "is_cpu", lambda mesh: False)
    fit(resident(), config=config)
    assert taken == [4, 0]


@pytest.mark.parametrize(
    "wanted, interval, steps", [(0, 97, 8), (0, 9, 5), (0, 3, 3), (6, 97, 6), (6, 4, 4)]
)
def test_calls_have_about_the_same_length_unless_one_is_given(wanted, interval, steps):
    config = dataclasses.replace(CONFIG, steps_per_call=wanted)
    assert feeds.steps_of_call(config, interval, sharding.make_mesh()) == steps


LAYOUT = Layout((), 25)  # 100 bytes a row
MEMORY = 4000.0  # of a device: room for 10 rows


@pytest.fixture
def small_devices(monkeypatch):
    monkeypatch.setattr(sharding, "memory", lambda mesh: MEMORY)


@pytest.mark.parametrize(
    "wanted, rows, devices, expected",
    [
        ("auto", 10, 1, (True, False)),
        ("auto", 11, 1, (False, False)),
        ("auto", 10, 8, (True, False)),
        ("auto", 11, 8, (True, True)),
        ("auto", 81, 8, (False, True)),
        ("resident", 11, 1, (True, False)),
        ("stream", 1, 1, (False, False)),
    ],
)
def test_rows_are_resident_if_they_fit(small_devices, wanted, rows, devices, expected):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    chosen = feeds.choose(wanted, LAYOUT, rows, mesh)
    assert chosen.resident == expected[0]
    if chosen.resident:
        assert chosen.split == expected[1]
    assert ("stream" in chosen.why) != chosen.resident


def test_more_rows_than_a_word_counts_stream_or_are_refused():
    mesh = sharding.make_mesh(jax.devices()[:1])
    tiny = Layout((), 0)
    assert not feeds.choose("auto", tiny, 2**31 + 1, mesh).resident
    with pytest.raises(ConfigError, match=r"train.input='resident': at most 2,147,483,648 rows"):
        feeds.choose("resident", tiny, 2**31 + 1, mesh)
    assert feeds.choose("resident", tiny, 2**31, mesh).resident
