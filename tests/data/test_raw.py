"""How raw values travel: as codes into the distinct values of a chunk."""

import numpy as np
import pyarrow as pa
import pytest

from cadc_jax.data import raw
from cadc_jax.data.raw import RawTable, ReadReport
from cadc_jax.errors import DataError


def values(column):
    return column.cast(column.type.value_type).to_pylist()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (np.array([7, 3, 7], np.int32), [7, 3, 7]),
        (np.array(["b", "a", "b"]), ["b", "a", "b"]),
        (pa.array([1, None, -1]), [1, -1, -1]),
        (pa.array(["x", None, ""]), ["x", "", ""]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", "", "x"]),
        (pa.chunked_array([["x"], ["y", "x"]]), ["x", "y", "x"]),
        (pa.chunked_array([], pa.string()), []),
    ],
)
def test_codes_stand_for_the_values_and_missing_is_a_value(raw, expected):
    column = raw.coded(raw)
    assert values(column) == expected
    assert column.null_count == 0 and column.indices.type == pa.int32()
    assert len(set(column.dictionary.to_pylist())) == len(column.dictionary)


def test_values_that_occur_twice_in_a_dictionary_become_one():
    column = raw.distinct(pa.array([0, 1, 2], pa.int32()), pa.array([5, 6, 5]))
    assert values(column) == [5, 6, 5] and len(column.dictionary) == 2


def test_a_table_goes_through_chunks_unchanged(monkeypatch):
    monkeypatch.setattr(raw, "CHUNK_ROWS", 4)
    rows = 10
    table = RawTable(
        ReadReport(rows, padded=1),
        user=np.arange(rows) % 3,
        item=np.array([f"i{i}" for i in range(rows)]),
        label=np.ones(rows, np.float32),
        value=np.arange(rows, dtype=np.float32),
        timestamp=np.arange(rows),
        fold=np.zeros(rows, np.int8),
        dense={"x": np.array([np.nan] * rows, np.float32)},
        categorical={"c": np.array(["", "a"] * 5), "n": np.array([-1, 4] * 5)},
        negatives=np.arange(4).reshape(2, 2),
    )
    source = raw.of_table(table)
    assert sum(task.consumed for part in source.parts for task in part()) == source.size == rows
    back = raw.collect(source)
    assert back.report == table.report and back.negatives is table.negatives
    for name in ("user", "item", "label", "value", "timestamp", "fold"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    np.testing.assert_array_equal(back.dense["x"], table.dense["x"])
    for name, column in table.categorical.items():
        np.testing.assert_array_equal(back.categorical[name], column)


@pytest.mark.parametrize(
    ("texts", "integers", "plain"),
    [
        (["0", "-7", "123456789012345678"], [0, -7, 123456789012345678], [True] * 3),
        (["", "5"], [-1, 5], [True, True]),
        (["07", "+7", "7.0", "-0", "1234567890123456789", "x"], [7, 7, 7, 0, -1, -1], [False] * 6),
    ],
)
def test_plain_integers_are_written_in_one_way_only(texts, integers, plain):
    found, is_plain = raw.plain_integers(pa.array(texts))
    assert is_plain.tolist() == plain
    assert [x for x, good in zip(found.tolist(), plain, strict=True) if good] == [
        x for x, good in zip(integers, plain, strict=True) if good
    ]


def test_a_report_of_chunks_is_their_sum():
    parts = [ReadReport(2, 1, 3, ("a", "b", "c")), ReadReport(5, 0, 4, ("d", "e", "f"))]
    assert raw.total(parts) == ReadReport(7, 1, 7, ("a", "b", "c", "d", "e"))


def test_malformed_rows_are_put_up_with_to_a_share():
    report = ReadReport(9, malformed=1, examples=("file:3: bad",))
    raw.check("file", report, 0.1)
    with pytest.raises(DataError, match=r"file:3: bad \(1 of the 10 rows .*data.max_malformed"):
        raw.check("file", report, 0.09)
    with pytest.raises(DataError, match="file: no rows"):
        raw.check("file", ReadReport(0), 1.0)
