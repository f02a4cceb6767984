"""The prepared table on disk: what is written is what is read."""

import numpy as np
import pytest

from cadc_jax.data import table
from cadc_jax.data.table import Features, Schema
from cadc_jax.errors import ArtifactError

SCHEMA = Schema(
    "click",
    3,
    4,
    Features(("a",), ("b", "c"), (2, 9)),
    Features(),
    Features(categorical=("genre",), vocabulary_sizes=(5,)),
)


@pytest.mark.parametrize("rows", [0, 1, 5000])
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32, "U7"])
def test_columns_come_back_as_they_were_written(tmp_path, rows, kind):
    columns = {"x": np.arange(rows).astype(kind), "y": np.zeros((rows, 0), kind)}
    table.write_columns(tmp_path / "train", columns)
    read = table.read_columns(tmp_path / "train")
    assert read.keys() == columns.keys()
    for name, column in columns.items():
        assert read[name].dtype == column.dtype
        np.testing.assert_array_equal(read[name], column, strict=True)


def test_large_columns_are_mapped_and_read_only(tmp_path):
    table.write_columns(tmp_path, {"user": np.arange(5000, dtype=np.int32)})
    user = table.read_columns(tmp_path)["user"]
    assert isinstance(user, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        user[0] = 1


def test_other_files_are_no_columns(tmp_path):
    table.write_columns(tmp_path, {"user": np.arange(3)})
    (tmp_path / "notes.txt").write_text("x")
    assert set(table.read_columns(tmp_path)) == {"user"}


def test_a_table_opens_with_its_schema_splits_and_content(tmp_path):
    table.write_schema(tmp_path, SCHEMA)
    for place, folder in enumerate(("train", "validation", "test", "users", "items")):
        table.write_columns(tmp_path / folder, {"x": np.array([place])})
    opened = table.open_table(tmp_path)
    assert opened.schema == SCHEMA
    assert [opened.splits[name]["x"].tolist() for name in ("train", "validation", "test")] == [
        [0],
        [1],
        [2],
    ]
    assert (opened.users["x"].tolist(), opened.items["x"].tolist()) == ([3], [4])


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]", '{"task": "click"}'])
def test_a_folder_without_a_whole_schema_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "schema.json").write_text(content)
    with pytest.raises(ArtifactError, match=f"{tmp_path}: not a prepared table"):
        table.open_table(tmp_path)
