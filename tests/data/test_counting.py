"""Counts over staged chunks: training rows only, and the same for any number of hosts."""

import dataclasses
import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import counting, encoding, raw, staging
from cadc_jax.data.encoding import Statistics
from cadc_jax.data.hosts import Message
from cadc_jax.data.raw import FOLD_IN, TEST, TRAIN, VALIDATION, RawTable, ReadReport

TABLE = RawTable(
    ReadReport(6),
    user=np.array(["a", "b", "a", "a", "c", "b"]),
    item=np.array([7, 7, 8, 9, 9, 7]),
    dense={"x": np.array([1, np.nan, 5, 3, 99, 5], np.float32)},
    categorical={"kind": np.array([1, 1, 2, 2, 2, 1])},
    fold=np.array([TRAIN, TRAIN, TRAIN, VALIDATION, TEST, TRAIN], np.int8),
)


def fold_of(rows, chunk):
    return rows["fold"].to_numpy()


@pytest.fixture
def chunks(tmp_path, monkeypatch):
    """The table in chunks of two rows."""
    monkeypatch.setattr(raw, "CHUNK_ROWS", 2)
    staged, _ = staging.stage_rows(tmp_path / "staging", raw.of_table(TABLE))
    return staged


def counts_of(counter):
    counter.merge_pending()
    columns = (counter.merged[name].to_pylist() for name in ("value", "count"))
    return dict(zip(*columns, strict=True))


def test_training_rows_are_counted_and_no_others(chunks):
    found = counting.count_chunks(chunks, fold_of, max_vocabulary=0, flag=1.0)
    assert {name: counts_of(counter) for name, counter in found.values.items()} == {
        "user": {"a": 2, "b": 2},
        "item": {7: 3, 8: 1},
        "categorical/kind": {1: 3, 2: 1},
    }
    assert found.rows.tolist() == [4, 1, 1, 0]
    assert found.dense == ["x"]
    # Each chunk has one value that is there and trains: 1, 5 and 5.
    assert found.moments.tolist() == [[[1, 1, 0, True]], [[1, 5, 0, False]], [[1, 5, 0, False]]]


def test_of_fold_in_rows_users_alone_are_counted(chunks):
    def folded_in(rows, chunk):
        return np.where(fold_of(rows, chunk) == TEST, np.int8(FOLD_IN), fold_of(rows, chunk))

    found = counting.count_chunks(chunks, folded_in, max_vocabulary=0, flag=1.0)
    plain = counting.count_chunks(chunks, fold_of, max_vocabulary=0, flag=1.0)
    assert counts_of(found.values["user"]) == {"a": 2, "b": 2, "c": 1}
    for name in ("item", "categorical/kind"):
        assert counts_of(found.values[name]) == counts_of(plain.values[name])
    np.testing.assert_array_equal(found.moments, plain.moments)
    assert found.rows.tolist() == [4, 1, 0, 1]


def test_columns_of_too_many_values_are_hashed(chunks):
    found = counting.count_chunks(chunks, fold_of, max_vocabulary=1, flag=1.0)
    assert found.values["user"].vocabulary(1).hashed == 1


def test_rows_that_are_in_no_split_count_nowhere(chunks):
    def dropped(rows, chunk):
        return np.where(fold_of(rows, chunk) == TRAIN, np.int8(-1), fold_of(rows, chunk))

    found = counting.count_chunks(chunks, dropped, max_vocabulary=0, flag=1.0)
    assert found.rows.tolist() == [0, 1, 1, 0]
    assert counts_of(found.values["user"]) == {}


@pytest.mark.parametrize("borders", [[0, 3], [0, 1, 3], [0, 1, 1, 2, 3]])
def test_the_counts_of_all_hosts_add_up_to_those_of_one(chunks, borders):
    shares = [chunks[a:b] for a, b in itertools.pairwise(borders)]
    parts = [counting.count_chunks(share, fold_of, 0, 1.0) for share in shares]
    found = counting.total(parts)
    values = TABLE.dense["x"][TABLE.fold == TRAIN]
    whole = encoding.statistics_of(values)
    assert counts_of(found.values["item"]) == {7: 3, 8: 1}
    assert found.statistics["x"].count == whole.count == 3
    assert found.statistics["x"].mean == pytest.approx(whole.mean)
    assert found.statistics["x"].squares == pytest.approx(whole.squares)
    assert found.rows_by_host.shape == (len(shares), 4)
    assert found.rows_by_host.sum(axis=0).tolist() == [4, 1, 1, 0]


@given(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=9), st.integers(0, 9))
def test_sums_do_not_depend_on_how_hosts_share_the_chunks(values, border):
    """To the last bit, because each chunk is added separately."""
    moments = np.array(
        [
            [dataclasses.astuple(encoding.statistics_of(np.array([value, 2 * value], np.float32)))]
            for value in values
        ],
        np.float64,
    )

    def part(some):
        return counting.Counts({}, ["x"], some, np.zeros(4, np.int64))

    one = counting.total([part(moments)])
    two = counting.total([part(moments[:border]), part(moments[border:])])
    assert one.statistics == two.statistics
    assert isinstance(one.statistics["x"], Statistics)


# What a host tells the others.


@pytest.mark.parametrize("max_vocabulary", [0, 2])
def test_counts_are_told_as_they_are(chunks, max_vocabulary):
    counts = counting.count_chunks(chunks, fold_of, max_vocabulary, flag=1.0)
    message = counting.COUNTS.pack(counts)
    again = counting.COUNTS.unpack(Message(json.loads(json.dumps(message.plain)), message.tables))
    assert again.dense == counts.dense
    assert again.moments.tobytes() == counts.moments.tobytes()
    assert again.moments.shape == counts.moments.shape
    assert again.rows.tolist() == counts.rows.tolist()
    for name, counter in counts.values.items():
        for min_count in (1, 3):
            told, known = (x.vocabulary(min_count) for x in (again.values[name], counter))
            assert told.hashed == known.hashed
            assert told.values.tolist() == known.values.tolist()


def test_counts_without_dense_features_are_told_too():
    counts = counting.Counts({}, [], np.zeros((3, 0, 4)), np.array([1, 2, 3, 0]))
    again = counting.COUNTS.unpack(counting.COUNTS.pack(counts))
    assert again.moments.shape == (3, 0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_values": {"user": 0, "nobody": 0}},
        {"max_values": {"user": -1}},
        {"chunks": 4},
        {"dense": ["x", "y"]},
        {"rows": [4, 1, 1]},
        {"rows": [4, 1, 1.5, 0]},
    ],
    ids=str,
)
def test_counts_of_another_kind_are_refused(chunks, wrong):
    counts = counting.count_chunks(chunks, fold_of, max_vocabulary=0, flag=1.0)
    message = counting.COUNTS.pack(counts)
    with pytest.raises(ValueError):
        counting.COUNTS.unpack(message._replace(plain=message.plain | wrong))


def test_counted_values_of_another_type_are_refused(chunks):
    counts = counting.count_chunks(chunks, fold_of, max_vocabulary=0, flag=1.0)
    message = counting.COUNTS.pack(counts)
    floats = pa.table({"value": [0.5], "count": [1]})
    with pytest.raises(ValueError, match="no table 'item' of value int64, count int64 or value"):
        counting.COUNTS.unpack(message._replace(tables={**message.tables, "item": floats}))
