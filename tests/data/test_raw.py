"""Raw rows: columns as codes into distinct values, chunks, and reports of what a reader found."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import raw
from cadc_jax.data.raw import Chunk, RawData, RawTable, ReadReport, Task
from cadc_jax.errors import DataError


def values(column):
    return column.cast(column.type.value_type).to_pylist()


# Columns.


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_coded_columns_hold_their_values_and_missing_is_a_value(given, expected):
    column = raw.coded(given)
    assert values(column) == expected
    assert column.null_count == 0 and column.indices.type == pa.int32()
    assert len(set(column.dictionary.to_pylist())) == len(column.dictionary)


def test_a_repeated_value_of_a_dictionary_becomes_one():
    column = raw.distinct(pa.array([0, 1, 2], pa.int32()), pa.array([5, 6, 5]))
    assert values(column) == [5, 6, 5] and len(column.dictionary) == 2


def test_a_table_has_the_types_of_a_chunk():
    coded = raw.coded(np.array(["x", "y"]))
    table = raw.table_of(
        {
            "user": np.array([7, 8], np.int16),
            "item": coded,
            "label": [0, 1],
            "timestamp": np.array([5, 6], np.int32),
            "fold": [0, 2],
            "dense/a": np.array([0.5, np.nan]),
            "categorical/b": np.array(["p", "p"]),
        }
    )
    assert table.schema == pa.schema(
        {
            "user": pa.dictionary(pa.int32(), pa.int64()),
            "item": pa.dictionary(pa.int32(), pa.string()),
            "label": pa.float32(),
            "timestamp": pa.int64(),
            "fold": pa.int8(),
            "dense/a": pa.float32(),
            "categorical/b": pa.dictionary(pa.int32(), pa.string()),
        }
    )
    assert table["item"].chunk(0).equals(coded)
    assert table["timestamp"].to_pylist() == [5, 6]


@pytest.mark.parametrize(
    ("text", "integer"),
    [("0", 0), ("-7", -7), ("123456789012345678", 123456789012345678), ("", -1)],
)
def test_plain_integers_are_read(text, integer):
    integers, plain = raw.plain_integers(pa.array([text]))
    assert (integers.tolist(), plain.tolist()) == ([integer], [True])


@pytest.mark.parametrize("text", ["07", "+7", "7.0", "-0", " 7", "1234567890123456789", "x", "-"])
def test_other_spellings_of_integers_are_text(text):
    integers, plain = raw.plain_integers(pa.array([text, "5"]))
    assert (integers.tolist()[1], plain.tolist()) == (5, [False, True])


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_every_integer_of_at_most_18_digits_is_plain(integer):
    integers, plain = raw.plain_integers(pa.array([str(integer)]))
    assert (integers.tolist(), plain.tolist()) == ([integer], [True])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([3, -1], pa.int32()), np.array([3, -1])),
        (pa.array(["3", ""]), np.array([3, -1])),
        (pa.chunked_array([["3"], ["4"]]), np.array([3, 4])),
    ],
)
def test_raw_values_are_integers_only_if_no_value_gets_lost(column, expected):
    np.testing.assert_array_equal(raw.raw_values(column), expected, strict=True)


@pytest.mark.parametrize("texts", [["3", "x"], ["3", "03"], ["-1", ""]])  # -1: a missing integer
def test_other_raw_values_stay_text(texts):
    for column in (pa.array(texts), pa.chunked_array([texts[:1], texts[1:]])):
        assert raw.raw_values(column).equals(pa.array(texts, raw.TEXT))


@pytest.mark.parametrize("texts", [[], ["a", "é", "a\0b", "x" * 1000]])
def test_text_of_any_kind_becomes_text_in_memory(texts):
    expected = pa.array(texts, raw.TEXT)
    columns = [np.array(texts, str), pa.array(texts, pa.string()), pa.array(texts, pa.binary())]
    for column in (*columns, pa.chunked_array([texts], pa.string())):
        assert raw.as_values(column).equals(expected)


@pytest.mark.parametrize("values", [np.array([5, 6, 7]), np.array(["a", "b", "c"])])
def test_values_at_places_are_taken(values):
    assert raw.take(values, np.array([2, 0, 2])).tolist() == values[[2, 0, 2]].tolist()


# Sources.


def table_of_all_columns(rows):
    return RawTable(
        ReadReport(rows, padded=1),
        user=np.arange(rows) % 3,
        item=np.array([f"i{i}" for i in range(rows)]),
        label=np.ones(rows, np.float32),
        value=np.arange(rows, dtype=np.float32),
        timestamp=np.arange(rows),
        fold=np.zeros(rows, np.int8),
        dense={"x": np.array([np.nan] * rows, np.float32)},
        categorical={"c": np.array(["", "a"] * (rows // 2)), "n": np.array([-1, 4] * (rows // 2))},
        negatives=raw.Negatives(np.arange(4), np.arange(4).reshape(2, 2)),
    )


def test_a_table_in_memory_is_a_source_of_chunks(monkeypatch):
    monkeypatch.setattr(raw, "CHUNK_ROWS", 4)
    source = raw.of_table(table_of_all_columns(10))
    (tasks,) = [list(part()) for part in source.parts]
    assert [task.consumed for task in tasks] == [4, 4, 2] and source.size == 10
    chunks = [task.decode() for task in tasks]
    assert [len(chunk.rows) for chunk in chunks] == [4, 4, 2]
    # The report belongs to the whole table and goes with the first chunk.
    assert [chunk.report for chunk in chunks] == [
        ReadReport(4, padded=1),
        ReadReport(4),
        ReadReport(2),
    ]


def test_a_source_is_collected_into_the_same_table(monkeypatch):
    monkeypatch.setattr(raw, "CHUNK_ROWS", 4)
    table = table_of_all_columns(10)
    found = raw.collect(raw.of_table(table))
    assert found.report == table.report and found.negatives is table.negatives
    assert found.item.tolist() == table.item.tolist() and found.item.type == raw.TEXT
    for name in ("user", "label", "value", "timestamp", "fold"):
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name), strict=True)
    np.testing.assert_array_equal(found.dense["x"], table.dense["x"], strict=True)
    for name, column in table.categorical.items():
        assert found.categorical[name].tolist() == column.tolist()


def source_of(chunks, confirm=lambda: None):
    tasks = [Task(1, lambda chunk=chunk: chunk) for chunk in chunks]
    return RawData("here", [lambda: iter(tasks)], len(tasks), confirm=confirm)


def chunk_of(column, **report):
    return Chunk(raw.table_of({"user": column}), ReadReport(len(column), **report))


def test_text_of_plain_integers_is_collected_as_integers():
    found = raw.collect(source_of([chunk_of(np.array([7])), chunk_of(np.array([8]))]))
    np.testing.assert_array_equal(found.user, np.array([7, 8]), strict=True)
    found = raw.collect(source_of([chunk_of(np.array(["7"])), chunk_of(np.array(["x"]))]))
    assert found.user.equals(pa.array(["7", "x"], raw.TEXT))


def test_malformed_rows_are_left_out_up_to_a_share():
    chunks = [chunk_of(np.array([7]), malformed=1, examples=("here:1: bad",))]
    assert raw.collect(source_of(chunks), max_malformed=0.5).user.tolist() == [7]
    with pytest.raises(DataError, match="here:1: bad"):
        raw.collect(source_of(chunks), max_malformed=0.4)


def test_nothing_is_read_after_a_malformed_row_if_none_is_allowed():
    def unread():
        raise AssertionError("the task after the malformed row was decoded")

    bad = chunk_of(np.array([7]), malformed=1, examples=("here:1: bad",))
    tasks = [Task(1, lambda: bad), Task(1, unread)]
    with pytest.raises(DataError, match="here:1: bad"):
        raw.collect(RawData("here", [lambda: iter(tasks)], 2))


def test_a_change_of_the_source_is_told_before_other_faults():
    def confirm():
        raise DataError("changed")

    bad = chunk_of(np.array([7]), malformed=1, examples=("here:1: bad",))
    with pytest.raises(DataError, match="changed"):
        raw.collect(source_of([bad], confirm))


# Reports.


def test_the_report_of_several_chunks_is_their_sum():
    parts = [ReadReport(2, 1, 3, ("a", "b", "c")), ReadReport(5, 0, 4, ("d", "e", "f"))]
    assert raw.total(parts) == ReadReport(7, 1, 7, ("a", "b", "c", "d", "e"))
    assert raw.total(parts, examples=1).examples == ("a",)


def test_a_report_passes_up_to_a_share_of_malformed_rows():
    report = ReadReport(9, malformed=1, examples=("file:3: bad",))
    raw.check_report("file", report, 0.1)
    with pytest.raises(DataError, match=r"file:3: bad \(1 of the 10 rows .*data.max_malformed"):
        raw.check_report("file", report, 0.09)


def test_a_report_of_no_rows_does_not_pass():
    with pytest.raises(DataError, match="file: no rows"):
        raw.check_report("file", ReadReport(0), 1.0)
