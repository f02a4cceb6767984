"""Parquet files: columns, row groups, and damaged files."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from cadc_jax.data.readers import tabular_parquet
from cadc_jax.errors import DataError
from tests.data.tables import peak_growth


@pytest.fixture
def path(tmp_path):
    """Ten rows in groups of four."""
    table = pa.table(
        {
            "user": list(range(10)),
            "item": pa.array([f"i{i % 3}" for i in range(10)]).dictionary_encode(),
            "more": [0.5] * 10,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    return tmp_path / "x.parquet"


def test_a_file_has_the_types_of_its_columns_and_of_the_values_of_dictionaries(path):
    file = tabular_parquet.open_file(path, None)
    assert file.types == {"user": pa.int64(), "item": pa.string(), "more": pa.float64()}
    assert tabular_parquet.open_file(path, ["item"]).types == {"item": pa.string()}


def test_a_row_group_is_a_block_with_the_numbers_of_its_rows(path):
    file = tabular_parquet.open_file(path, ["item", "user"])
    blocks = [read() for _, read in tabular_parquet.read_parquet_rows(file)]
    assert [rows.table["user"].to_pylist() for rows in blocks] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert blocks[1].table.to_pydict()["item"] == ["i1", "i2", "i0", "i1"]
    assert blocks[1].table["item"].type == pa.dictionary(pa.int32(), pa.string())
    assert blocks[0].table.column_names == ["item", "user"]
    assert [f"{rows.where}{rows.number(0)}" for rows in blocks] == [
        f"{path}: row 1",
        f"{path}: row 5",
        f"{path}: row 9",
    ]


def test_a_large_row_group_is_read_in_batches(path, monkeypatch):
    monkeypatch.setattr(tabular_parquet, "_GROUP_BYTES", 0)
    monkeypatch.setattr(tabular_parquet, "_LEAST_ROWS", 3)
    monkeypatch.setattr(tabular_parquet, "_BATCH_BYTES", 0)
    file = tabular_parquet.open_file(path, ["item", "user"])
    sizes, blocks = zip(*tabular_parquet.read_parquet_rows(file), strict=True)
    rows = [block().table["user"].to_pylist() for block in blocks]
    assert rows == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9]]
    assert [block().number(0) for block in blocks] == [1, 4, 5, 8, 9]
    assert sum(sizes) == path.stat().st_size


MANY = 20_000_000


def test_a_small_file_of_very_many_rows_does_not_fill_the_memory(tmp_path):
    table = pa.table({"user": pa.repeat(7, MANY), "item": pa.repeat(1.5, MANY)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=MANY)
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 20
    assert growth_of_reading(tmp_path / "x.parquet", MANY) < 150  # 320 MB as a whole


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.large_binary()])
def test_a_large_value_that_is_repeated_does_not_fill_the_memory(tmp_path, kind):
    values = pa.array(["x" * 1_000_000, "y"], kind)
    codes = pa.array([0, 1] * 5_000, pa.int32())
    table = pa.table({"user": pa.DictionaryArray.from_arrays(codes, values)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert growth_of_reading(tmp_path / "x.parquet", 10_000) < 150  # 5 GB without a dictionary


def growth_of_reading(path, rows):
    return peak_growth(
        """
        from pathlib import Path
        from cadc_jax.data.readers import tabular_parquet
        """,
        f"""
        file = tabular_parquet.open_file(Path({str(path)!r}), None)
        blocks = tabular_parquet.read_parquet_rows(file)
        assert sum(len(read().table) for _, read in blocks) == {rows}
        """,
    )


def test_a_column_of_lists_is_an_error_before_it_is_read(path):
    pyarrow.parquet.write_table(pa.table({"user": [[1, 2]]}), path)
    with pytest.raises(DataError, match="x.parquet: column 'user' holds list<.*convert it"):
        tabular_parquet.open_file(path, None)


def test_the_bytes_of_all_row_groups_are_the_size_of_the_file(path):
    file = tabular_parquet.open_file(path, None)
    consumed = [size for size, _ in tabular_parquet.read_parquet_rows(file)]
    assert sum(consumed) == path.stat().st_size
    assert consumed[2] < consumed[0]


def test_a_missing_column_and_a_file_without_rows_are_errors(path):
    with pytest.raises(DataError, match="no column 'users', did you mean 'user'"):
        tabular_parquet.open_file(path, ["users"])
    pyarrow.parquet.write_table(pa.table({"user": pa.array([], pa.int64())}), path)
    with pytest.raises(DataError, match="x.parquet: no rows"):
        tabular_parquet.open_file(path, ["user"])


def test_a_truncated_file_is_an_error_when_it_is_opened(path):
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        DataError, match="x.parquet: not a whole Parquet file .*; check `data.path`"
    ):
        tabular_parquet.open_file(path, None)


def test_a_damaged_page_is_an_error_when_its_row_group_is_read(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"user": list(range(1000))})
    pyarrow.parquet.write_table(
        table, path, use_dictionary=False, compression="none", write_page_checksum=True
    )
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    ((_, read),) = tabular_parquet.read_parquet_rows(tabular_parquet.open_file(path, None))
    with pytest.raises(DataError, match="not a whole Parquet file") as error:
        read()
    assert "\n" not in str(error.value)
