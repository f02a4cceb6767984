"""CSV and TSV files: headers, blocks of whole rows, quotes, and rows that cannot be parsed."""

import gzip

import pyarrow as pa
import pytest

from cadc_jax.data.readers import tabular_text
from cadc_jax.errors import ConfigError, DataError


def open_text(tmp_path, text, name="x.csv", separator="", header=(), names=None):
    path = tmp_path / name
    path.write_bytes(text)
    return tabular_text.open_file(path, separator, header, names)


def rows_of(file, block_bytes=1 << 20):
    """The rows of all blocks: a list of tables."""
    return [parse() for _, parse in tabular_text.read_text_rows(file, block_bytes)]


def values_of(file, block_bytes=1 << 20):
    """All rows as tuples, in order."""
    tables = [rows.table for rows in rows_of(file, block_bytes)]
    return list(zip(*pa.concat_tables(tables).to_pydict().values(), strict=True))


# Headers.


def test_the_header_names_the_columns_and_the_first_row_is_no_data(tmp_path):
    file = open_text(tmp_path, b"a,b\n1,2\n3,4\n")
    assert file.names == ["a", "b"] and file.has_header
    assert values_of(file) == [("1", "2"), ("3", "4")]


def test_a_file_without_a_header_has_the_given_names(tmp_path):
    file = open_text(tmp_path, b"1,2\n", header=["a", "b"])
    assert not file.has_header and values_of(file) == [("1", "2")]


def test_only_the_wanted_columns_are_parsed_in_their_order(tmp_path):
    file = open_text(tmp_path, b"a,b,c\n1,2,3\n", names=["c", "a"])
    assert values_of(file) == [("3", "1")]


def test_a_header_may_be_quoted_and_follow_blank_lines(tmp_path):
    file = open_text(tmp_path, b'\n\n"a, or\nA","b"\n1,2\n')
    assert file.names == ["a, or\nA", "b"]
    assert values_of(file) == [("1", "2")]


@pytest.mark.parametrize("name", ["x.tsv", "x.tsv.gz"])
def test_a_name_with_tsv_means_tabs(tmp_path, name):
    text = b"a\tb\n1\t2,3\n"
    file = open_text(tmp_path, gzip.compress(text) if name.endswith(".gz") else text, name)
    assert file.separator == "\t" and values_of(file) == [("1", "2,3")]


@pytest.mark.parametrize("block_bytes", [16, 1 << 20])
def test_two_colons_separate_fields(tmp_path, block_bytes):
    file = open_text(tmp_path, b"a::b::c\n1::2:3::x,y\n4::5::\n", separator="::")
    assert file.names == ["a", "b", "c"]
    assert values_of(file, block_bytes) == [("1", "2:3", "x,y"), ("4", "5", None)]


def test_a_row_of_other_fields_between_two_colons_is_malformed(tmp_path):
    (rows,) = rows_of(open_text(tmp_path, b"1::2\n3::4::5\n", separator="::", header=["a", "b"]))
    assert rows.examples == [(2, "3 fields, where a row has 2")]


@pytest.mark.parametrize("separator", ["||", '"', "\n", "é"])
def test_a_separator_is_one_ascii_character(tmp_path, separator):
    with pytest.raises(ConfigError, match="it must be a single character of ASCII"):
        open_text(tmp_path, b"a\n1\n", separator=separator)


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (b"", None, "the file is empty"),
        (b"\n\n", None, "no rows"),
        (b"a,b\n\n", None, "no rows"),
        (b"a,b\n1,2\n", ["c"], "no column 'c'"),
        (b"a,\xe9\n1,2\n", None, "a binary file"),
    ],
)
def test_a_file_without_rows_or_the_columns_is_an_error(tmp_path, text, names, message):
    with pytest.raises(DataError, match=f"x.csv: {message}"):
        open_text(tmp_path, text, names=names)


# Fields.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"plain", "plain"),
        (b'"a, b"', "a, b"),
        (b'"two\nlines"', "two\nlines"),
        (b'"say ""hi"""', 'say "hi"'),
        (b'5" disk', '5" disk'),
        (b'""', None),
        (b"", None),
        (b" x ", " x "),
    ],
)
def test_a_field_may_be_quoted_if_it_begins_with_a_quote(tmp_path, field, value):
    assert values_of(open_text(tmp_path, b"a,b\n1," + field + b"\n")) == [("1", value)]


# Blocks.

LINES = ["1,one", '2,"a\nb"', "", '3,"x, y"', '4,"\n\n"', "5,five"] * 4


@pytest.mark.parametrize("block_bytes", [16, 32, 50, 1 << 20])
def test_a_row_is_never_divided_between_blocks(tmp_path, block_bytes):
    file = open_text(tmp_path, ("a,b\n" + "\n".join(LINES)).encode())
    expected = [("1", "one"), ("2", "a\nb"), ("3", "x, y"), ("4", "\n\n"), ("5", "five")] * 4
    assert values_of(file, block_bytes) == expected
    consumed = sum(size for size, _ in tabular_text.read_text_rows(file, block_bytes))
    assert consumed == file.path.stat().st_size


@pytest.mark.parametrize("block_bytes", [16, 1 << 20])
def test_the_number_of_a_row_is_the_line_on_which_it_begins(tmp_path, block_bytes):
    file = open_text(tmp_path, ("a,b\n" + "\n".join(LINES)).encode())
    blocks = rows_of(file, block_bytes)
    assert (len(blocks) > 5) == (block_bytes == 16)
    numbers = [rows.number(row) for rows in blocks for row in range(len(rows.table))]
    lines = [2, 3, 6, 7, 10]  # of the first five rows; the next five begin 9 lines later
    assert numbers == [line + 9 * turn for turn in range(4) for line in lines]


@pytest.mark.parametrize("more", [0, 100])
def test_a_quote_without_an_end_is_an_error_with_the_line_of_its_row(tmp_path, more):
    file = open_text(tmp_path, b'a,b\n"1\n",2\n\n3,"x\n' + b"4,y\n" * more)
    with pytest.raises(DataError, match="x.csv:5: a quoted field of this row has no end within"):
        rows_of(file, 64)


# Rows that cannot be parsed.


def test_rows_with_another_number_of_fields_are_left_out_with_their_line(tmp_path):
    file = open_text(tmp_path, b'a,b\n1,2\n3\n4,5,6\n\n"7\n",8,9\n10,11\n')
    (rows,) = rows_of(file)
    assert rows.table.to_pydict() == {"a": ["1", "10"], "b": ["2", "11"]}
    assert rows.malformed == 3
    assert list(rows.examples) == [
        (3, "1 fields, where a row has 2"),
        (4, "3 fields, where a row has 2"),
        (6, "3 fields, where a row has 2"),
    ]
    assert [rows.number(row) for row in range(2)] == [2, 8]


def test_rows_that_are_not_in_utf8_are_left_out_after_the_head_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tabular_text, "HEAD_BYTES", 16)
    file = open_text(tmp_path, b"a,b\n" + b"1,2\n" * 8 + b"3,\xff\n4,\xc3\xa9\n")
    blocks = rows_of(file, 32)
    assert values_of(file, 32) == [("1", "2")] * 8 + [("4", "é")]
    assert [example for rows in blocks for example in rows.examples] == [
        (10, "the row is not in UTF-8")
    ]


def test_a_block_of_malformed_rows_is_an_empty_table(tmp_path):
    (rows,) = rows_of(open_text(tmp_path, b"a,b\n1\n2\n"))
    assert rows.table.num_rows == 0 and rows.malformed == 2
    assert rows.table.column_names == ["a", "b"]


def test_a_header_may_be_longer_than_a_block_of_arrow(tmp_path):
    names = [f"column_{i}" for i in range(100_000)]  # 1.3 MB
    (tmp_path / "wide.csv").write_text(",".join(names) + "\n" + ",".join("1" * len(names)) + "\n")
    opened = tabular_text.open_file(tmp_path / "wide.csv", ",", (), ["column_7"])
    assert opened.names == names
