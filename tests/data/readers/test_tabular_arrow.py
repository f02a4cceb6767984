"""Arrow streams and files, such as a data set of Hugging Face that was saved to disk."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pytest

from cadc_jax.data import raw
from cadc_jax.data.readers import tabular, tabular_arrow
from cadc_jax.errors import DataError

TABLE = pa.table(
    {
        "user": pa.array([f"u{n % 3}" for n in range(10)]).dictionary_encode(),
        "item": list(range(10)),
        "when": pa.array([datetime.datetime(1970, 1, 2)] * 10, pa.timestamp("us")),
        "words": pa.array([["a"]] * 10),
    }
)
COLUMNS = tabular.ColumnNames("user", "item", timestamp="when")


def write(path, table=TABLE, kind="stream", rows=4):
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as out:
        out.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize("kind", ["stream", "file"])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_rows_are_those_of_all_batches(tmp_path, monkeypatch, kind, rows):
    monkeypatch.setattr(tabular_arrow, "_ROWS", 3)
    write(tmp_path / "x.arrow", kind=kind, rows=rows)
    found = tabular.read_rows(tmp_path, "x.arrow", COLUMNS)
    assert found.user.tolist() == TABLE["user"].to_pylist()
    assert found.item.tolist() == TABLE["item"].to_pylist()
    assert found.timestamp.tolist() == [86_400] * 10


def test_small_batches_are_joined_and_their_bytes_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tabular_arrow, "_ROWS", 4)
    path = write(tmp_path / "x.arrow", rows=3)
    file = tabular_arrow.open_file(path, ["item"])
    assert file.types == {"item": pa.int64()}
    blocks = list(tabular_arrow.read_arrow_rows(file))
    parsed = [parse() for _, parse in blocks]
    assert [len(rows.table) for rows in parsed] == [6, 4]
    assert [rows.number(0) for rows in parsed] == [1, 7]
    assert 0 < sum(consumed for consumed, _ in blocks) <= path.stat().st_size


def test_a_folder_of_a_saved_data_set_is_read_whatever_its_state_says(tmp_path):
    """The names in state.json are not followed: they may lead anywhere."""
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    for part in (0, 1):
        write(folder / f"data-0000{part}-of-00002.arrow", TABLE.slice(5 * part, 5))
    write(tmp_path / "secret.arrow")
    (folder / "dataset_info.json").write_text("{}")
    names = {"_data_files": [{"filename": "../../secret.arrow"}]}
    (folder / "state.json").write_text(json.dumps(names))
    from cadc_jax.configuration import default_config
    from cadc_jax.data.readers import registry

    data = default_config().data
    data.train_file = "train"
    data.columns.update(user="user", item="item")
    source = registry.open_raw_data("tabular", tmp_path / "saved", data.to_dict())
    assert raw.collect(source).item.tolist() == list(range(10))


def test_a_malformed_value_is_named_by_its_row(tmp_path):
    table = pa.table({"user": ["a", None, "b"], "item": [1, 2, 3]})
    write(tmp_path / "x.arrow", table, rows=1)
    with pytest.raises(DataError, match="x.arrow: row 2: user: the value is missing"):
        tabular.read_rows(tmp_path, "x.arrow", tabular.ColumnNames("user", "item"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["gone"], "no column 'gone'; there are user, item, when, words"),
        (["words"], "column 'words' holds list"),
    ],
)
def test_columns_that_cannot_be_read_are_named(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        tabular_arrow.open_file(write(tmp_path / "x.arrow"), columns)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_damaged_files_are_errors(tmp_path, kind):
    path = write(tmp_path / "x.arrow", kind=kind)
    whole = path.read_bytes()
    for content in (b"no arrow at all, but some text", whole[:40], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="x.arrow: not a whole Arrow file|x.arrow: no rows"):
            tabular.read_rows(tmp_path, "x.arrow", COLUMNS)


def test_a_file_without_rows_is_an_error(tmp_path):
    write(tmp_path / "x.arrow", TABLE.slice(0, 0))
    with pytest.raises(DataError, match="x.arrow: no rows"):
        tabular_arrow.open_file(tmp_path / "x.arrow", None)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_no_damaged_byte_is_more_than_an_error(tmp_path, kind):
    whole = write(tmp_path / "whole.arrow", kind=kind).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(600):
        content = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        (tmp_path / "x.arrow").write_bytes(content)
        try:
            tabular.read_rows(tmp_path, "x.arrow", COLUMNS)
        except DataError as error:
            assert "x.arrow" in str(error)
