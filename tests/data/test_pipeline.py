"""The input stream: every row once an epoch, any step reachable, shapes that never change."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cadc_jax.data import negatives, pipeline, sampling, shuffle

ROWS = {
    "user": np.arange(10, dtype=np.int32),
    "item": np.arange(10, dtype=np.int32) + 100,
    "label": np.arange(10, dtype=np.float32) % 2,
    "dense": np.arange(20, dtype=np.float32).reshape(10, 2),
    "categorical": np.arange(30, dtype=np.int32).reshape(10, 3),
}
POSITIVES = {name: x for name, x in ROWS.items() if name != "label"}
SAMPLER = pipeline.NegativeSampling(
    3, np.unique(negatives.pair_keys(ROWS["user"], ROWS["item"], 200)), 200
)
BOTH = pytest.mark.parametrize(
    ("rows", "sampler"), [(ROWS, None), (POSITIVES, SAMPLER)], ids=["labels", "negatives"]
)


def take(count, rows=ROWS, batch_rows=4, seed=0, **options):
    return list(
        itertools.islice(pipeline.training_batches(rows, batch_rows, seed, **options), count)
    )


def assert_same_batches(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)


# The sample.


@pytest.mark.parametrize("rate", [1e-9, 0.01, 1.0])
@pytest.mark.parametrize("num_rows", [1, 1000, 2 * pipeline.RANGE + 17])
def test_sampled_ids_are_those_the_rule_keeps(num_rows, rate):
    ids = np.concatenate(list(pipeline.sampled_ids(num_rows, rate, 5).as_numpy_iterator()))
    expected = np.flatnonzero(sampling.keep(np.arange(num_rows), rate, 5))
    np.testing.assert_array_equal(ids, expected, strict=True)


def test_sampled_ids_come_in_ranges_of_bounded_size():
    sizes = [len(ids) for ids in pipeline.sampled_ids(3 * pipeline.RANGE, 1.0, 0)]
    assert sizes == [pipeline.RANGE] * 3


# Epochs.


@given(st.integers(1, 25), st.integers(1, 30), st.integers(0, 3), st.integers(0, 2**40))
@settings(max_examples=25)
def test_an_epoch_holds_every_row_once_and_is_filled_up_with_weight_0(n, batch_rows, epoch, seed):
    rows = {"user": np.arange(n), "item": np.arange(n), "label": np.zeros(n, np.float32)}
    steps = pipeline.steps_per_epoch(n, batch_rows)
    assert (steps - 1) * batch_rows < n <= steps * batch_rows
    batches = take(steps, rows, batch_rows, seed, start=epoch * steps)
    weight = np.concatenate([batch["weight"] for batch in batches])
    user = np.concatenate([batch["user"] for batch in batches])
    assert weight.tolist() == [1] * n + [0] * (steps * batch_rows - n)
    assert sorted(user[:n]) == list(range(n))


def test_the_order_of_an_epoch_is_the_stateless_shuffle():
    steps = pipeline.steps_per_epoch(10, 4)
    for epoch in range(3):
        batches = take(steps, seed=7, start=epoch * steps)
        user = np.concatenate([batch["user"] for batch in batches])[:10]
        np.testing.assert_array_equal(user, shuffle.permute(np.arange(10), 10, 7, epoch))


def test_seeds_have_orders_of_their_own():
    first, again, other = (
        np.concatenate([batch["user"] for batch in take(3, seed=seed)]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@BOTH
def test_columns_of_a_row_stay_together(rows, sampler):
    for batch in take(3, rows, sampler=sampler):
        user = batch["user"]
        np.testing.assert_array_equal(batch["item"][:, 0], user + 100)
        np.testing.assert_array_equal(batch["dense"], ROWS["dense"][user])
        np.testing.assert_array_equal(batch["categorical"], ROWS["categorical"][user])
        expected = ROWS["label"][user] if sampler is None else np.ones(4)
        np.testing.assert_array_equal(batch["label"][:, 0], expected)


@BOTH
def test_all_batches_have_one_shape(rows, sampler):
    group = 1 if sampler is None else 4
    expected = {
        "user": ((4,), np.int32),
        "item": ((4, group), np.int32),
        "label": ((4, group), np.float32),
        "dense": ((4, 2), np.float32),
        "categorical": ((4, 3), np.int32),
        "weight": ((4,), np.float32),
    }
    for batch in take(7, rows, sampler=sampler):
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == expected


# Any step.


@BOTH
@given(start=st.integers(0, 20))
@settings(max_examples=10)
def test_the_stream_can_start_at_any_step(rows, sampler, start):
    whole = take(start + 4, rows, sampler=sampler)
    assert_same_batches(take(4, rows, start=start, sampler=sampler), whole[start:])


def test_a_late_step_is_no_harder_to_reach():
    far = 3 * 10**9
    batches = take(3, POSITIVES, start=far, sampler=SAMPLER)
    assert_same_batches(take(2, POSITIVES, start=far + 1, sampler=SAMPLER), batches[1:])
    assert sorted(np.concatenate([b["user"] for b in batches])[:10]) == list(range(10))


def test_columns_may_be_mapped_from_disk(tmp_path):
    mapped = {}
    for name, column in ROWS.items():
        np.save(tmp_path / f"{name}.npy", column)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    assert_same_batches(take(3, mapped), take(3))


# Negatives.


def negatives_of(batches):
    """user -> negatives, of rows with weight."""
    return {
        int(user): tuple(items[1:])
        for batch in batches
        for user, items, weight in zip(batch["user"], batch["item"], batch["weight"], strict=True)
        if weight
    }


def test_each_positive_comes_first_among_its_negatives():
    for batch in take(6, POSITIVES, sampler=SAMPLER):
        np.testing.assert_array_equal(batch["item"][:, 0], batch["user"] + 100)
        assert np.all(batch["item"][:, 1:] != batch["user"][:, None] + 100)
        assert batch["item"].min() >= 1 and batch["item"].max() < 200
        np.testing.assert_array_equal(batch["label"], [[1, 0, 0, 0]] * 4)


def test_negatives_are_fresh_for_every_row_epoch_and_seed():
    steps = 3
    first = negatives_of(take(steps, POSITIVES, sampler=SAMPLER))
    epoch = negatives_of(take(steps, POSITIVES, sampler=SAMPLER, start=steps))
    seed = negatives_of(take(steps, POSITIVES, sampler=SAMPLER, seed=1))
    assert len(set(first.values())) == 10
    assert all(first[user] != epoch[user] for user in range(10))
    assert all(first[user] != seed[user] for user in range(10))


def test_a_rows_negatives_do_not_depend_on_the_size_of_the_batch():
    found = []
    for size in (1, 3, 16):
        steps = pipeline.steps_per_epoch(10, size)
        second_epoch = take(steps, POSITIVES, size, start=steps, sampler=SAMPLER)
        found.append(negatives_of(second_epoch))
    assert found[0] == found[1] == found[2]
