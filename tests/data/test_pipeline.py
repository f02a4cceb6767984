"""The stream of batches: each row once an epoch, a start at any step, and static shapes."""

import itertools
import subprocess
import sys
import unittest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cadc_jax.data import pipeline, sampling, shuffle
from cadc_jax.data.likely import LikelyItems
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.errors import ConfigError

ROWS = {
    "user": np.arange(10, dtype=np.int32),
    "item": np.arange(10, dtype=np.int32) + 100,
    "label": np.arange(10, dtype=np.float32) % 2,
    "dense": np.arange(20, dtype=np.float32).reshape(10, 2),
    "categorical": np.arange(30, dtype=np.int32).reshape(10, 3),
}
POSITIVES = {name: x for name, x in ROWS.items() if name != "label"}
LIKELY = LikelyItems.of(  # of a user who has a row, about a quarter of the items
    (np.random.default_rng(0).normal(size=(10, 4)), np.random.default_rng(1).normal(size=(200, 4))),
    ROWS["user"],
    0.02,
)
SAMPLER = NegativeSampling.of(ROWS, 3, 200, LIKELY)
BOTH = pytest.mark.parametrize(
    ("rows", "sampler"), [(ROWS, None), (POSITIVES, SAMPLER)], ids=["labels", "negatives"]
)


@pytest.fixture(params=["tf.data", "NumPy"])
def engine(request, monkeypatch):
    """What makes samples and batches."""
    if request.param == "NumPy":
        monkeypatch.setattr(pipeline, "import_tf_data", lambda: None)


WITH_BOTH_ENGINES = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Makes a few steps of these small batches cross from block to block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "BLOCK_ITEMS", 40)
        yield


def take(count, rows=ROWS, batch_rows=4, seed=0, **options):
    return list(
        itertools.islice(pipeline.training_batches(rows, batch_rows, seed, **options), count)
    )


def assert_same_batches(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)


# Samples.


@pytest.mark.parametrize("rate", [1e-9, 0.01, 1.0])
@pytest.mark.parametrize("num_rows", [0, 1, 1000, 2 * pipeline.RULE_ROWS + 17])
def test_sampled_ids_are_the_rows_that_the_rule_keeps(num_rows, rate):
    ids = pipeline.sampled_ids(num_rows, rate, 5)
    expected = np.flatnonzero(sampling.keep(np.arange(num_rows), rate, 5)).astype(np.int32)
    np.testing.assert_array_equal(ids, expected, strict=True)


@pytest.mark.parametrize("rate", [1e-9, 0.3, 1.0])
@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 65, 1000])
@WITH_BOTH_ENGINES
def test_a_sample_is_the_kept_rows_in_order_in_blocks(monkeypatch, num_rows, rate):
    monkeypatch.setattr(pipeline, "SAMPLE_ROWS", 64)
    rng = np.random.default_rng(0)
    columns = {
        "user": rng.integers(0, 9, num_rows, np.int32),
        "dense": rng.random((num_rows, 3), np.float32),
        "categorical": np.zeros((num_rows, 0), np.int32),
    }
    blocks = list(pipeline.sampled_rows(columns, rate, 5))
    assert len(blocks) == max(1, -(-num_rows // 64))
    kept = np.flatnonzero(sampling.keep(np.arange(num_rows), rate, 5))
    expected = {"row": kept} | {name: column[kept] for name, column in columns.items()}
    for name, column in expected.items():
        found = np.concatenate([block[name] for block in blocks])
        np.testing.assert_array_equal(found, column, strict=True)


@WITH_BOTH_ENGINES
def test_a_sample_of_a_rate_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="rate must be in"):
        next(pipeline.sampled_rows(ROWS, 0, 0))


@pytest.mark.parametrize(("num_rows", "dtype"), [(2**31, np.int32), (2**31 + 1, np.int64)])
def test_ids_take_64_bits_if_32_cannot_hold_the_last_one(num_rows, dtype):
    assert pipeline.id_dtype(num_rows) is dtype
    assert num_rows - 1 <= np.iinfo(dtype).max


def test_a_table_without_rows_is_refused():
    with pytest.raises(ConfigError, match="no rows"):
        take(1, {name: column[:0] for name, column in ROWS.items()})


# Hosts.


@pytest.mark.parametrize("batch_rows", [8, 16, 40])
@pytest.mark.parametrize("host_count", [1, 2, 8])
@BOTH
def test_the_parts_of_all_hosts_are_the_batch_of_one(rows, sampler, host_count, batch_rows):
    def options(**more):
        return {"rows": rows, "batch_rows": batch_rows, "sampler": sampler, "start": 3, **more}

    hosts = [
        take(5, **options(host_index=host, host_count=host_count)) for host in range(host_count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]
    assert len(hosts[0][0]["user"]) == batch_rows // host_count
    assert_same_batches(joined, take(5, **options()))


@given(st.integers(1, 60), st.sampled_from([1, 2, 8]), st.integers(1, 5), st.integers(0, 2**40))
@settings(max_examples=15)
def test_all_hosts_together_see_each_row_of_an_epoch_once(n, host_count, own_rows, seed):
    rows = {"user": np.arange(n), "item": np.arange(n), "label": np.zeros(n, np.float32)}
    batch_rows = own_rows * host_count
    steps = pipeline.steps_per_epoch(n, batch_rows)
    seen = [
        batch["user"][batch["weight"] > 0]
        for host in range(host_count)
        for batch in take(steps, rows, batch_rows, seed, host_index=host, host_count=host_count)
    ]
    assert sorted(np.concatenate(seen)) == list(range(n))


def test_hosts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match="batch_rows=4 does not split evenly over 3 hosts"):
        take(1, host_count=3)


@pytest.mark.parametrize("host_index", [-1, 2])
def test_a_host_index_outside_the_hosts_is_refused(host_index):
    with pytest.raises(ValueError, match="host_index"):
        take(1, host_index=host_index, host_count=2)


# Epochs.


@given(st.integers(1, 25), st.integers(1, 30), st.integers(0, 3), st.integers(0, 2**40))
@settings(max_examples=25)
def test_an_epoch_has_each_row_once_and_then_rows_of_weight_0(n, batch_rows, epoch, seed):
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


def test_each_seed_has_its_own_order():
    first, again, other = (
        np.concatenate([batch["user"] for batch in take(3, seed=seed)]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@BOTH
def test_the_columns_of_a_row_stay_together(rows, sampler):
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


def test_the_stream_can_start_at_a_very_late_step():
    far = 3 * 10**9
    batches = take(3, POSITIVES, start=far, sampler=SAMPLER)
    assert_same_batches(take(2, POSITIVES, start=far + 1, sampler=SAMPLER), batches[1:])
    assert sorted(np.concatenate([b["user"] for b in batches])[:10]) == list(range(10))


def test_columns_may_be_memory_mapped(tmp_path):
    mapped = {}
    for name, column in ROWS.items():
        np.save(tmp_path / f"{name}.npy", column)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    assert_same_batches(take(3, mapped), take(3))


@BOTH
def test_a_step_does_not_depend_on_the_block_it_is_made_in(monkeypatch, rows, sampler):
    expected = take(12, rows, sampler=sampler)
    for block in (1, 20, 70, 1000):
        monkeypatch.setattr(pipeline, "BLOCK_ITEMS", block)
        assert_same_batches(take(12, rows, sampler=sampler), expected)


def test_columns_may_be_in_fortran_order():
    assert_same_batches(take(3, {n: np.asfortranarray(x) for n, x in ROWS.items()}), take(3))


# Without TensorFlow.


@BOTH
@pytest.mark.parametrize("start", [0, 7])
def test_without_tensorflow_the_batches_are_the_same(monkeypatch, rows, sampler, start):
    options = {"start": start, "sampler": sampler, "host_index": 1, "host_count": 2}
    expected = take(12, rows, **options)
    monkeypatch.setattr(pipeline, "import_tf_data", lambda: None)
    assert_same_batches(take(12, rows, **options), expected)


def test_without_tensorflow_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(pipeline, "import_tf_data", lambda: None)
    monkeypatch.setattr(shuffle, "permute", lambda *arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        take(1)


def test_that_tensorflow_is_missing_is_said_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delitem(sys.modules, "cadc_jax.data.tf_data", raising=False)
    monkeypatch.delattr("cadc_jax.data.tf_data", raising=False)
    with unittest.TestCase().assertLogs("absl", "WARNING") as logged:
        assert pipeline.import_tf_data.__wrapped__() is None
    (record,) = logged.records
    assert record.getMessage().startswith("TensorFlow is not installed: ")


# The end of a program.


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["tf.data", "NumPy"])
def test_a_program_ends_although_streams_are_open(engine):
    """It does not wait for the threads that make batches ahead."""
    program = "import sys\n" + ("sys.modules['tensorflow'] = None" if engine == "NumPy" else "")
    program += """
import numpy as np
from cadc_jax.data import pipeline
rows = {name: np.zeros(400_000, np.int32) for name in ("user", "item", "label")}
streams = [pipeline.training_batches(rows, 2048, 0) for _ in range(8)]
for stream in streams:
    next(stream)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0


# Negatives.


def negatives_of(batches):
    """The negatives of each user, in rows that have weight."""
    return {
        int(user): tuple(items[1:])
        for batch in batches
        for user, items, weight in zip(batch["user"], batch["item"], batch["weight"], strict=True)
        if weight
    }


def test_the_positive_comes_first_and_is_not_among_its_negatives():
    for batch in take(6, POSITIVES, sampler=SAMPLER):
        np.testing.assert_array_equal(batch["item"][:, 0], batch["user"] + 100)
        assert np.all(batch["item"][:, 1:] != batch["user"][:, None] + 100)
        assert batch["item"].min() >= 1 and batch["item"].max() < 200
        np.testing.assert_array_equal(batch["label"], [[1, 0, 0, 0]] * 4)


def test_each_row_epoch_and_seed_draws_its_own_negatives():
    steps = 3
    first = negatives_of(take(steps, POSITIVES, sampler=SAMPLER))
    epoch = negatives_of(take(steps, POSITIVES, sampler=SAMPLER, start=steps))
    seed = negatives_of(take(steps, POSITIVES, sampler=SAMPLER, seed=1))
    assert len(set(first.values())) == 10
    assert all(first[user] != epoch[user] for user in range(10))
    assert all(first[user] != seed[user] for user in range(10))


def test_without_negatives_a_sampler_labels_positives():
    """The loss 'in_batch' takes its negatives from the batch."""
    sampler = NegativeSampling(0, SAMPLER.known, SAMPLER.num_items)
    for batch in take(6, POSITIVES, sampler=sampler):
        np.testing.assert_array_equal(batch["item"], batch["user"][:, None] + 100)
        np.testing.assert_array_equal(batch["label"], [[1]] * 4)


def test_the_negatives_of_a_row_do_not_depend_on_the_size_of_the_batch():
    found = []
    for size in (1, 3, 16):
        steps = pipeline.steps_per_epoch(10, size)
        second_epoch = take(steps, POSITIVES, size, start=steps, sampler=SAMPLER)
        found.append(negatives_of(second_epoch))
    assert found[0] == found[1] == found[2]
