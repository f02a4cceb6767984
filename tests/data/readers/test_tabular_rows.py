"""Conversion of columns: types, missing values, faults, and what a chunk leaves out."""

import datetime
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data.raw import TEST
from cadc_jax.data.readers import tabular_rows
from cadc_jax.data.readers.tabular_rows import Field, FileRows
from cadc_jax.errors import DataError


def faults_of(convert, *values, kind=None):
    """Index of a value -> the text of its first fault."""
    _, faults = convert(pa.array(values, kind))
    found = {}
    for fault in faults:
        for row in np.flatnonzero(fault.rows).tolist():
            found.setdefault(row, fault.template.format(values[row]))
    return found


def converted(convert, *values, kind=None):
    column, _ = convert(pa.array(values, kind))
    return column.to_pylist()


# Types of values.


def test_only_integers_that_int64_holds_fit_int64():
    assert tabular_rows.fits_int64(pa.int8()) and tabular_rows.fits_int64(pa.uint32())
    assert not any(map(tabular_rows.fits_int64, (pa.uint64(), pa.float32(), pa.string())))


def test_coded_values_are_distinct_values_and_codes():
    column, faults = tabular_rows.as_coded(pa.array(["b", "a", "b", None]))
    assert column.dictionary.to_pylist() == ["b", "a", ""]
    assert column.indices.to_pylist() == [0, 1, 0, 2]
    assert not any(fault.rows.any() for fault in faults)


def test_coded_values_have_the_type_that_is_asked_for():
    column, _ = tabular_rows.as_coded(pa.array([5.0, float("nan"), 7.0]), pa.int64())
    assert column.to_pylist() == [5, -1, 7]
    column, _ = tabular_rows.as_coded(pa.array([5, None, 2**63], pa.uint64()))
    assert column.to_pylist() == ["5", "", str(2**63)]


def test_an_id_must_be_there_short_and_text():
    as_ids = tabular_rows.as_coded
    values = b"a", b"\xff", b"x" * 1000, b"x" * 1001, b"b\0"
    faults = faults_of(as_ids, *values)
    assert faults[1] == "b'\\xff' is not text in UTF-8"
    assert faults[3].endswith("is longer than 1,000 characters")
    assert faults[4] == "b'b\\x00' has a NUL character in it"
    assert sorted(faults) == [1, 3, 4]
    column, faults = as_ids(pa.array(["a", "", None]), required=True)
    missing = next(fault for fault in faults if fault.template == "the value is missing")
    assert missing.rows.tolist() == [False, True, True]


def test_labels_are_zero_or_one():
    labels = tabular_rows.as_labels
    assert converted(labels, "0", "1", "1.0") == [0, 1, 1]
    assert converted(labels, True, False) == [1, 0]
    assert faults_of(labels, "2", "1", "", "yes", "nan") == {
        0: "2 is not 0 or 1",
        2: "the value is missing",
        3: "'yes' is not a number",
        4: "nan is not 0 or 1",
    }


def test_values_are_finite_numbers():
    values = tabular_rows.as_values
    assert converted(values, "4.5", "-1e3") == [4.5, -1000]
    assert faults_of(values, "4.5", "", "inf", "1_0") == {
        1: "the value is missing",
        2: "inf is not a finite number",
        3: "'1_0' is not a number",
    }


def test_a_dense_feature_may_be_missing_but_not_infinite():
    column, _ = tabular_rows.as_dense(pa.array(["9.99", "", None]))
    np.testing.assert_array_equal(column.to_numpy(), np.float32([9.99, np.nan, np.nan]))
    assert column.type == pa.float32()
    assert faults_of(tabular_rows.as_dense, "1", None, "1e40", "x") == {
        2: "1e40 is not a finite number",
        3: "'x' is not a number",
    }


def test_seconds_come_from_numbers_text_and_times():
    seconds = tabular_rows.as_seconds
    assert converted(seconds, 1, 2**40) == [1, 2**40]
    assert converted(seconds, "1.5e9", "-7", str(2**53 + 1)) == [1_500_000_000, -7, 2**53 + 1]
    day = datetime.datetime(1970, 1, 2, 0, 0, 1)
    assert converted(seconds, day, kind=pa.timestamp("ms")) == [86_401]


def test_dates_become_seconds():
    dates = ("1970-01-02", "1970-01-02 00:00:01", "1970-01-02T00:00", "1970-01-01 00:01:00.75")
    zoned = ("1970-01-02T00:00:00Z", "1970-01-02 02:00:00+02:00", "1970-01-01T22:00:00-0200")
    assert converted(tabular_rows.as_seconds, *dates) == [86_400, 86_401, 86_400, 60]
    assert converted(tabular_rows.as_seconds, *zoned, "7") == [86_400] * 3 + [7]


def test_a_date_that_does_not_exist_is_no_number():
    found = faults_of(tabular_rows.as_seconds, "2024-02-30", "2024-02-29", "2024-02-29 25:00")
    assert found == {0: "'2024-02-30' is not a number", 2: "'2024-02-29 25:00' is not a number"}


def test_seconds_must_be_finite_numbers_of_64_bits():
    assert faults_of(tabular_rows.as_seconds, "1", "", "monday", "nan", "1e30", "9" * 20) == {
        1: "the value is missing",
        2: "'monday' is not a number",
        3: "nan is not a finite number",
        4: "1e30 is not a number of 64 bits",
        5: f"{'9' * 20} is not a number of 64 bits",
    }


@pytest.mark.parametrize("value", ["2024-13-01T12:00:00", "12.5.2024", "--", "1 2"])
def test_columns_of_malformed_values_take_no_longer_than_others(value):
    start = time.perf_counter()
    column = pa.array([value, "5", "nan", None, "0x10", "+7"] * 50_000)
    _, faults = tabular_rows.as_seconds(column)
    assert time.perf_counter() - start < 3  # value by value it would take 10 s
    bad = next(fault.rows for fault in faults if fault.template == "{!r} is not a number")
    assert bad[:6].tolist() == [True, False, False, False, True, False]
    assert np.count_nonzero(bad) == 100_000


def test_many_malformed_bytes_are_found():
    _, faults = tabular_rows.as_coded(pa.array([b"\xff", b"a", None] * 50_000))
    assert np.count_nonzero(faults[0].rows) == 50_000


LETTERS = "0123456789.+-einfatyNA()_ x"
numbers = st.from_regex(tabular_rows._NUMBER.replace("(?i)", ""), fullmatch=True, alphabet=LETTERS)


@given(st.lists(numbers | st.text(LETTERS, max_size=8), min_size=1))
def test_the_values_that_are_not_numbers_are_those_that_arrow_refuses_one_by_one(texts):
    def refused(text):
        try:
            pc.cast(pa.array([text]), pa.float64())
        except pa.ArrowInvalid:
            return True
        return False

    cast = tabular_rows._cast(pa.array(texts), pa.float64())
    assert [value is None for value in cast.to_pylist()] == [refused(text) for text in texts]


@pytest.mark.parametrize(
    ("convert", "values"),
    [
        (tabular_rows.as_coded, ["a", None, "", "x" * 1001, "a"]),
        (tabular_rows.as_coded, [b"a", b"\xff", None, b"a"]),
        (tabular_rows.as_dense, ["1", "x", None, "1"]),
        (tabular_rows.as_seconds, ["1", "", "monday", None]),
    ],
)
def test_a_dictionary_encoded_column_is_converted_like_its_values(convert, values):
    plain, encoded = pa.array(values), pa.array(values).dictionary_encode()
    halves = pa.chunked_array([encoded[:2], pa.array(values[2:]).dictionary_encode()])
    found = [
        tabular_rows.chunk(
            Path("x"),
            FileRows(pa.table({"a": column}), "x:", lambda row: row),
            [Field("a", "key", convert)],
            None,
        )
        for column in (plain, encoded, halves)
    ]
    assert found[0].report == found[1].report == found[2].report
    assert [str(chunk.rows["key"].to_pylist()) for chunk in found] == [
        str(found[0].rows["key"].to_pylist())
    ] * 3


# Chunks.

FIELDS = [
    Field("who", "user", tabular_rows.as_coded),
    Field("stars", "value", tabular_rows.as_values),
]


def rows_of(who, stars, **more):
    table = pa.table({"who": who, "stars": stars})
    return FileRows(table, "x.csv:", lambda row: 10 * row, **more)


def test_a_chunk_has_the_converted_columns_under_their_keys():
    chunk = tabular_rows.chunk(Path("x.csv"), rows_of(["a", "b"], ["1", "2"]), FIELDS, None)
    assert chunk.rows.column_names == ["user", "value"]
    assert chunk.rows["user"].to_pylist() == ["a", "b"]
    assert chunk.rows["value"].to_pylist() == [1, 2]
    assert chunk.report.rows == 2 and chunk.report.malformed == 0


def test_a_chunk_of_a_split_has_its_fold():
    chunk = tabular_rows.chunk(Path("x.csv"), rows_of(["a", "b"], ["1", "2"]), FIELDS, TEST)
    assert chunk.rows["fold"].to_pylist() == [TEST, TEST]
    assert chunk.rows["fold"].type == pa.int8()


def test_rows_with_a_fault_are_left_out_of_the_columns_and_their_dictionaries():
    rows = rows_of(["a", "b", "c"], ["1", "x", "3"], malformed=2, examples=[(5, "2 fields")])
    chunk = tabular_rows.chunk(Path("x.csv"), rows, FIELDS, None)
    assert chunk.rows["user"].chunk(0).dictionary.to_pylist() == ["a", "c"]
    assert chunk.rows["value"].to_pylist() == [1, 3]
    assert chunk.report.rows == 2 and chunk.report.malformed == 3
    assert chunk.report.examples == ("x.csv:5: 2 fields", "x.csv:10: stars: 'x' is not a number")


def test_a_report_quotes_the_first_five_malformed_rows_with_their_first_fault():
    rows = rows_of(["u" * 2000] * 9, ["x"] * 9, malformed=1, examples=[(45, "3 fields")])
    examples = tabular_rows.chunk(Path("x.csv"), rows, FIELDS, None).report.examples
    numbers = [example.split(": ")[0] for example in examples]
    assert numbers == [f"x.csv:{10 * row}" for row in range(5)]
    assert examples[0] == f"x.csv:0: who: '{'u' * 40}'.. is longer than 1,000 characters"


def test_a_column_of_lists_is_an_error_that_names_it():
    rows = FileRows(pa.table({"who": [[1]], "stars": [1]}), "x", lambda row: row)
    with pytest.raises(DataError, match="^x.csv: column 'who' holds list<.* cannot be read as us"):
        tabular_rows.chunk(Path("x.csv"), rows, FIELDS, None)
