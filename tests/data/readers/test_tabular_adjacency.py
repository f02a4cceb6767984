"""Lines of a user and its items: what becomes a row, and lines that cannot be read."""

import gzip

import pytest

from cadc_jax.data import raw
from cadc_jax.data.readers import tabular, tabular_adjacency
from cadc_jax.errors import DataError


def blocks_of(path, block_bytes=1 << 20):
    file = tabular_adjacency.open_file(path)
    return [parse() for _, parse in tabular_adjacency.read_adjacency_rows(file, block_bytes)]


def pairs_of(path, block_bytes=1 << 20):
    columns = [rows.table.to_pydict().values() for rows in blocks_of(path, block_bytes)]
    return [pair for block in columns for pair in zip(*block, strict=True)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.txt"


@pytest.mark.parametrize("block_bytes", [16, 1 << 20])
def test_each_item_of_a_line_is_a_row_of_its_user(path, block_bytes):
    path.write_text("0 5 6 7\n\n1 5\n2\nann  x\ty \n0 9\n")
    assert pairs_of(path, block_bytes) == [
        *(("0", "5"), ("0", "6"), ("0", "7")),
        *(("1", "5"), ("ann", "x"), ("ann", "y"), ("0", "9")),
    ]


def test_a_compressed_file_without_a_last_newline(path):
    path.write_bytes(gzip.compress(b"0 5\r\n1 6 7"))
    assert pairs_of(path) == [("0", "5"), ("1", "6"), ("1", "7")]


def test_the_number_of_a_row_is_that_of_its_line(path):
    path.write_text("0 5 6\n1\n\n2 7\n")
    (rows,) = blocks_of(path)
    assert [rows.number(row) for row in range(3)] == [1, 1, 4]


def test_a_line_that_is_not_in_utf8_is_malformed(path, monkeypatch):
    monkeypatch.setattr(tabular_adjacency, "_HEAD_BYTES", 16)  # it is not in the head of the file
    path.write_bytes(b"0 5\n" * 4 + b"1 6 \xff\n2 7\n")
    first, last = blocks_of(path, block_bytes=16)
    assert (len(first.table), len(last.table)) == (4, 1)
    assert (last.malformed, last.examples) == (1, [(5, "the line is not in UTF-8")])


def test_malformed_ids_are_named_by_their_line(tmp_path):
    (tmp_path / "x.txt").write_text(f"0 5\n1 6 {'9' * 1001}\n")
    files = tabular.TableFiles("x.txt", format="adjacency")
    source = tabular.open_rows(tmp_path, files, tabular.ColumnNames("user", "item"))
    with pytest.raises(DataError, match=r"x.txt:2: item: .* longer than 1,000 characters"):
        raw.collect(source)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"0\n1\n\n", "no rows"), (b"0 \0 1\n", "a binary")]
)
def test_a_file_without_rows_is_an_error(path, content, message):
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        tabular_adjacency.open_file(path)
