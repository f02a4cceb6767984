"""The prepared table on disk: what is written is what is read back."""

import itertools

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


def test_other_files_are_not_columns(tmp_path):
    table.write_columns(tmp_path, {"user": np.arange(3)})
    (tmp_path / "notes.txt").write_text("x")
    assert set(table.read_columns(tmp_path)) == {"user"}


def test_known_pairs_are_the_user_and_item_of_each_training_row():
    opened = table.Table(
        SCHEMA, {}, {}, {}, {"offsets": np.array([0, 0, 2, 3]), "items": np.array([4, 7, 4])}
    )
    users, items = opened.known_pairs()
    assert (users.tolist(), items.tolist()) == ([1, 1, 2], [4, 7, 4])


def test_a_table_opens_with_its_schema_splits_and_content(tmp_path):
    table.write_schema(tmp_path, SCHEMA)
    for place, folder in enumerate(("train", "validation", "test", "users", "items", "known")):
        table.write_columns(tmp_path / folder, {"x": np.array([place])})
    opened = table.open_table(tmp_path)
    assert opened.schema == SCHEMA
    assert [opened.splits[name]["x"].tolist() for name in ("train", "validation", "test")] == [
        [0],
        [1],
        [2],
    ]
    assert (opened.users["x"].tolist(), opened.items["x"].tolist()) == ([3], [4])
    assert opened.known["x"].tolist() == [5]


def test_a_column_can_be_written_some_rows_at_a_time(tmp_path):
    rows = np.arange(12, dtype=np.int32).reshape(6, 2)
    writer = table.ColumnWriter(tmp_path / "x.npy", np.int32, (6, 2))
    for part in (rows[:1], rows[1:1], rows[1:]):
        writer.append(part)
    writer.close()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows, strict=True)


def test_several_writers_write_parts_of_one_column(tmp_path):
    for name, shape in {"x": (7, 2), "nothing": (7, 0), "no rows": (0, 2)}.items():
        expected = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        table.write_columns(tmp_path / "alone", {name: expected})
        (tmp_path / "together").mkdir(exist_ok=True)
        file = tmp_path / "together" / f"{name}.npy"
        borders = [0, 0, 3, 3, 7, 7] if shape[0] else [0, 0, 0]
        for rows in reversed(list(itertools.pairwise(borders))):  # the order does not matter
            writer = table.ColumnWriter(file, np.float32, shape, rows)
            writer.append(expected[slice(*rows)])
            writer.close()
        assert file.read_bytes() == (tmp_path / "alone" / f"{name}.npy").read_bytes()


def test_chosen_rows_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_ROWS", 3)
    columns = {"x": np.arange(20).reshape(10, 2), "y": np.arange(10, dtype=np.float32)}
    ids = np.array([0, 2, 3, 4, 7, 8, 9])
    table.write_rows(tmp_path / "a", columns, ids)
    for name, column in table.read_columns(tmp_path / "a").items():
        np.testing.assert_array_equal(column, columns[name][ids], strict=True)
    table.write_rows(tmp_path / "b", columns, ids[:0])
    assert table.read_columns(tmp_path / "b")["x"].shape == (0, 2)


def test_rows_of_another_type_shape_or_number_are_an_error(tmp_path):
    writer = table.ColumnWriter(tmp_path / "x.npy", np.int32, (3,))
    with pytest.raises(ValueError, match="float64"):
        writer.append(np.zeros(3))
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        writer.append(np.zeros((3, 1), np.int32))
    writer.append(np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="1 rows are missing"):
        writer.close()


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]", '{"task": "click"}'])
def test_a_folder_without_a_whole_schema_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "schema.json").write_text(content)
    with pytest.raises(ArtifactError, match=f"{tmp_path}: not a prepared table"):
        table.open_table(tmp_path)
