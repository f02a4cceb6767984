"""The first rows of files in all formats."""

import gzip

import pytest

from cadc_jax.drafting import heads
from cadc_jax.errors import DataError


def head_of(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return heads.read_head(path)


@pytest.mark.parametrize(
    ("text", "name", "separator"),
    [
        ("a,b\n1,2\n3,4\n", "x.csv", ""),
        ("a\tb\n1\t2\n3\t4\n", "x.tsv", ""),
        ("a\tb\n1\t2\n3\t4\n", "x.txt", "\t"),
        ("a;b\n1;2\n3;4\n", "x.csv", ";"),
        ("a::b\n1::2\n3::4\n", "x.dat", "::"),
        ("a b\n1 2\n3 4\n", "x.txt", " "),
        ('a,b\n1,"2"\n"3",4\n', "x.csv", ""),
    ],
)
def test_the_separator_is_found(tmp_path, text, name, separator):
    found = head_of(tmp_path, text, name)
    assert found.columns == {"a": ["1", "3"], "b": ["2", "4"]}
    assert (found.separator, found.header, found.whole) == (separator, (), True)


@pytest.mark.parametrize(
    ("text", "has_header"),
    [
        ("user,item\n1,2\n", True),
        ("1,2\n3,4\n", False),
        ("ann,2\nbob,4\n", False),  # a name of a column is no number
        ("who,what\nann,tea\nbob,jam\n", True),
        ("ann,tea\nbob,jam\nann,jam\n", False),  # it is a value as well
        ("a,a\n1,2\n", False),
    ],
)
def test_a_header_is_told_from_a_row(tmp_path, text, has_header):
    assert (head_of(tmp_path, text).header == ()) == has_header


def test_lines_of_any_number_of_words_are_adjacency_lists(tmp_path):
    found = head_of(tmp_path, "0 5 6\n1 5\n2 7 8 9\n", "train.txt")
    assert found.format == heads.ADJACENCY
    assert found.columns == {"user": list("001222"), "item": list("565789")}


def test_a_compressed_file_is_unpacked(tmp_path):
    assert head_of(tmp_path, gzip.compress(b"a,b\n1,2\n"), "x.csv.gz").columns["b"] == ["2"]


def test_a_malformed_row_is_left_out(tmp_path):
    text = "a,b\n" + "1,2\n" * 50 + "1\n"
    assert head_of(tmp_path, text).rows == 50


def test_a_large_file_is_not_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "ROWS", 10)
    found = head_of(tmp_path, "a,b\n" + "1,2\n" * 50)
    assert found.rows < 11 and not found.whole


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", ""], "integer"),
        (["1", "2.5", "1e3"], "number"),
        (["2020-01-02", "2020-01-02 03:04:05", "2020-01-02T03:04:05Z"], "date"),
        (["1", "x"], "text"),
        (["", ""], "text"),
        (["nan", "1"], "text"),
    ],
)
def test_the_kind_of_a_column(tmp_path, values, kind):
    assert heads.Head(tmp_path, {"a": values}).kind("a") == kind


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("\n\n", "no rows"), ("x\ny\n", "no separator that all")],
)
def test_a_file_without_rows_is_an_error(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        head_of(tmp_path, text)
