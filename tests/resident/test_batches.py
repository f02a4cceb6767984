"""Batches that devices make are the host's, bit for bit, whatever the devices hold."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.data import negatives as host_negatives
from cadc_jax.data import pipeline
from cadc_jax.data.likely import LikelyItems
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.resident import batches, negatives, records
from cadc_jax.tables import packed

N, USERS, BATCH, SEED, STEPS = 1000, 300, 64, 3, 5  # 15.6 batches an epoch
DRAW = np.random.default_rng(0)
ROWS = {
    "user": DRAW.integers(0, USERS, N, np.int32),
    "item": DRAW.integers(1, 200, N, np.int32),
    "label": DRAW.integers(0, 2, N).astype(np.float32),
    "dense": DRAW.normal(size=(N, 3)).astype(np.float32),
    "categorical": DRAW.integers(0, [3, 300, 70_000], (N, 3)).astype(np.int32),
}
POSITIVES = {name: x for name, x in ROWS.items() if name != "label"}
STARTS = pytest.mark.parametrize("step", [0, 14, 10**9])  # 14: over the border of an epoch
MESHES = pytest.mark.parametrize(
    ("devices", "split"), [(1, False), (2, False), (2, True), (8, True)]
)


def sampler(num_items=200, likely=True, count=4):
    found = None
    if likely:
        sizes = USERS, num_items
        found = LikelyItems.of(tuple(DRAW.normal(size=(n, 8)) for n in sizes), ROWS["user"], 0.1)
    return NegativeSampling.of(POSITIVES, count, num_items, found)


def check(rows, drawn, step, devices=1, split=False):
    """Compares STEPS batches."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    layout = records.plan(rows)
    made = batches.put(rows, layout, drawn, USERS, SEED, BATCH, mesh, split)
    found = jax.jit(batches.make)(dataclasses.replace(made, steps=STEPS), jnp.int32(step))
    expected = pipeline.training_batches(rows, BATCH, SEED, step, drawn)
    for k, batch in enumerate(itertools.islice(expected, STEPS)):
        assert batch.keys() == found.keys()
        for name, array in batch.items():
            np.testing.assert_array_equal(found[name][k], array, strict=True, err_msg=name)


@MESHES
@STARTS
def test_rows_with_labels(step, devices, split):
    check(ROWS, None, step, devices, split)


@MESHES
@STARTS
def test_positives_with_negatives(step, devices, split):
    check(POSITIVES, sampler(), step, devices, split)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("devices", "split"), [(1, False), (4, False), (4, True)])
def test_batches_of_a_loop_are_those_made_together(labelled, devices, split):
    rows, drawn = (ROWS, None) if labelled else (POSITIVES, sampler())
    mesh = sharding.make_mesh(jax.devices()[:devices])
    made = batches.put(rows, records.plan(rows), drawn, USERS, SEED, BATCH, mesh, split)
    made = dataclasses.replace(made, steps=STEPS)

    @jax.jit
    def one_by_one(made, first_step):
        return jax.lax.map(batches.maker(made, first_step), jnp.arange(STEPS))

    found, expected = one_by_one(made, jnp.int32(14)), jax.jit(batches.make)(made, jnp.int32(14))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("likely", [False, True])
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("filter_bits", [10, 30])
def test_negatives_whether_pairs_are_marked_scored_or_searched(
    monkeypatch, likely, marked, filter_bits
):
    """A filter of 10 bits leaves most pairs to the search."""
    monkeypatch.setattr(host_negatives, "FILTER_BITS", filter_bits)
    monkeypatch.setattr(negatives, "_MARK_EPOCHS", 128 if marked else 0)
    drawn = sampler(likely=likely)
    made = negatives.of(drawn, USERS, N)
    assert (made.marks is not None) == (likely and marked)
    assert (made.likely is not None) == (likely and not marked)
    assert (made.items is not None) == (filter_bits == 10)
    check(POSITIVES, drawn, 14)


def test_negatives_of_more_pairs_than_a_word_counts():
    check(POSITIVES, sampler(num_items=2**31 - 1, likely=False), 14)


@pytest.mark.parametrize("together", [1, 8, 5000])
def test_negatives_however_many_are_repeated_together(monkeypatch, together):
    """With 5000, one at a time: many passes."""
    monkeypatch.setattr(negatives, "_TOGETHER", together)
    check(POSITIVES, sampler(num_items=8, count=2), 3)


def test_packed_records_give_the_same_batches(monkeypatch):
    monkeypatch.setattr(sharding, "is_tpu", lambda mesh: True)
    mesh = sharding.make_mesh(jax.devices()[:2])
    layout = records.plan(ROWS, lanes=True)
    made = batches.put(ROWS, layout, None, USERS, SEED, BATCH, mesh, True)
    assert isinstance(made.table, packed.Packed)
    found = jax.jit(batches.make)(dataclasses.replace(made, steps=1), jnp.int32(2))
    (expected,) = itertools.islice(pipeline.training_batches(ROWS, BATCH, SEED, 2), 1)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name][0], array, strict=True)


def test_a_part_of_the_rows_is_on_each_device_if_they_are_split():
    mesh = sharding.make_mesh(jax.devices()[:8])
    layout = records.plan(ROWS)
    made = batches.put(ROWS, layout, None, USERS, SEED, BATCH, mesh, True)
    shapes = {shard.data.shape for shard in made.table.addressable_shards}
    assert shapes == {(N // 8, layout.words)}


def test_later_steps_share_a_program():
    mesh = sharding.make_mesh(jax.devices()[:1])
    made = batches.put(POSITIVES, records.plan(POSITIVES), sampler(), USERS, SEED, 32, mesh, False)
    make = jax.jit(batches.make)
    before = make._cache_size()
    for step in (0, 7, 10**6):
        make(made, jnp.int32(step))
    assert make._cache_size() - before == 1
