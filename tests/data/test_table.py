"""The prepared table on disk: what is written is what is read back."""

import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from cadc_jax.data import table
from cadc_jax.data.raw import TEXT
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
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32])
def test_columns_come_back_as_they_were_written(tmp_path, rows, kind):
    columns = {"x": np.arange(rows).astype(kind), "y": np.zeros((rows, 0), kind)}
    table.write_columns(tmp_path / "train", columns)
    read = table.read_columns(tmp_path / "train")
    assert read.keys() == columns.keys()
    for name, column in columns.items():
        assert read[name].dtype == column.dtype
        np.testing.assert_array_equal(read[name], column, strict=True)


@pytest.mark.parametrize("texts", [[], [""], ["Zürich", "", "x" * 100_000, "a\0b"]])
def test_text_comes_back_as_it_was_written(tmp_path, texts):
    table.write_text(tmp_path / "x", pa.array(texts, TEXT))
    assert table.read_text(tmp_path / "x").equals(pa.array(texts, TEXT))
    table.write_text(tmp_path / "y", pa.array(["before", *texts, "after"], TEXT)[1:-1])
    assert table.read_text(tmp_path / "y").equals(pa.array(texts, TEXT))


def test_numpy_alone_reads_text(tmp_path):
    table.write_text(tmp_path / "x", pa.array(["Zürich", "", "Bern"], TEXT))
    offsets, utf8 = (np.load(tmp_path / "x" / f"{name}.npy") for name in ("offsets", "utf8"))
    assert [bytes(utf8[offsets[i] : offsets[i + 1]]).decode() for i in (0, 1, 2)] == [
        *("Zürich", "", "Bern")
    ]


def test_a_long_text_does_not_widen_the_others(tmp_path):
    table.write_text(tmp_path / "x", pa.array(["x" * 1_000_000] + [""] * 1000, TEXT))
    assert sum(file.stat().st_size for file in (tmp_path / "x").iterdir()) < 1_020_000


@pytest.mark.parametrize(
    ("offsets", "utf8", "fault"),
    [
        (np.array([0, 1]), np.array([255], np.uint8), "not UTF-8"),
        (np.array([0, 2]), np.frombuffer(b"a", np.uint8), "do not ascend from 0 to 1"),
        (np.array([1, 1]), np.frombuffer(b"a", np.uint8), "do not ascend from 0 to 1"),
        (np.array([0, 2, 1]), np.frombuffer(b"a", np.uint8), "do not ascend from 0 to 1"),
        (np.zeros(0, np.int64), np.zeros(0, np.uint8), "do not ascend from 0 to 0"),
        (np.array([0, 1], np.int32), np.frombuffer(b"a", np.uint8), "where int64"),
        (np.array([0, 1]), np.array([97]), "where uint8"),
        (np.array([[0, 1]]), np.frombuffer(b"a", np.uint8), "where int64"),
    ],
)
def test_arrays_of_anything_else_are_no_text(tmp_path, offsets, utf8, fault):
    table.write_columns(tmp_path / "x", {"offsets": offsets, "utf8": utf8})
    with pytest.raises(ArtifactError, match=fault):
        table.read_text(tmp_path / "x")


def test_missing_text_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="offsets.npy: .*No such file"):
        table.read_text(tmp_path / "x")


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


@pytest.fixture
def written(tmp_path):
    """The folder of a small table of the ranking task."""
    schema = table.Schema("ranking", 3, 4, table.Features(), table.Features(), table.Features())
    rows = {
        "user": np.array([1, 1, 2], np.int32),
        "item": np.array([2, 3, 0], np.int32),
        "value": np.ones(3, np.float32),
        "dense": np.zeros((3, 0), np.float32),
        "categorical": np.zeros((3, 0), np.int32),
    }
    table.write_schema(tmp_path, schema)
    table.write_columns(tmp_path / "train", rows)
    for split in ("validation", "test"):
        table.write_columns(tmp_path / split, rows | {"negatives": np.ones((3, 2), np.int32)})
    for side, size in (("users", 3), ("items", 4)):
        content = {name: np.zeros((size, 0), rows[name].dtype) for name in ("dense", "categorical")}
        table.write_columns(tmp_path / side, content)
    table.write_columns(tmp_path / "items", {"count": np.array([1, 0, 1, 1])})
    known = {"offsets": np.array([0, 0, 2, 3]), "items": np.array([2, 3, 0], np.int32)}
    table.write_columns(tmp_path / "known", known)
    return tmp_path


def test_a_table_opens_with_its_schema_splits_and_content(written):
    opened = table.open_table(written, values=True)
    assert opened.schema == table.open_schema(written)
    for split in ("train", "validation", "test"):
        assert opened.splits[split]["item"].tolist() == [2, 3, 0]
    assert opened.users["dense"].shape == (3, 0)
    assert opened.items["count"].tolist() == [1, 0, 1, 1]
    assert opened.known["offsets"].tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize(
    ("place", "column", "fault"),
    [
        ("train/user", np.array([1, 1, 2]), "int64 of shape .* where int32"),
        ("train/user", np.array([1, 2], np.int32), "where int32 .3. belongs"),
        ("test/dense", np.zeros((3, 1), np.float32), "where float32 .3, 0. belongs"),
        ("users/dense", np.zeros((2, 0), np.float32), "where float32 .3, 0. belongs"),
        ("items/clicks", np.zeros(4, np.int64), "column 'clicks' that does not belong here"),
        ("known/offsets", np.array([0, 0, 2, 4]), "do not ascend from 0 to 3"),
        ("known/x", np.array([0]), "holds .'items', 'offsets', 'x'."),
    ],
)
def test_another_dtype_shape_or_name_is_refused(written, place, column, fault):
    np.save(written / f"{place}.npy", column)
    with pytest.raises(ArtifactError, match=fault):
        opened = table.open_table(written)
        _ = dict(opened.splits), dict(opened.known)


def test_rows_are_opened_when_they_are_asked_for(written):
    np.save(written / "train" / "user.npy", np.zeros(2))  # no such column of int32
    np.save(written / "known" / "x.npy", np.zeros(2))
    opened = table.open_table(written)
    assert opened.splits["test"]["item"].tolist() == [2, 3, 0]
    with pytest.raises(ArtifactError, match="train/user"):
        opened.splits["train"]
    with pytest.raises(ArtifactError, match="holds .'items', 'offsets', 'x'."):
        opened.known["items"]


def test_the_known_rows_of_held_out_users_are_a_split_if_they_are_there(written):
    assert "fold_in" not in table.open_table(written).splits
    (written / "fold_in").mkdir()
    for file in (written / "train").iterdir():
        np.save(written / "fold_in" / file.name, np.load(file))
    opened = table.open_table(written, values=True).splits
    np.testing.assert_array_equal(opened["fold_in"]["item"], opened["train"]["item"])
    np.save(written / "fold_in" / "negatives.npy", np.zeros((2, 1), np.int32))
    with pytest.raises(ArtifactError, match="negatives"):
        _ = table.open_table(written).splits["fold_in"]


def test_a_table_without_training_rows_has_the_other_splits(written):
    shutil.rmtree(written / "train")
    assert list(table.open_table(written, values=True).splits) == ["validation", "test"]


@pytest.mark.parametrize(
    ("place", "column", "fault"),
    [
        ("train/user", np.array([1, 1, 3], np.int32), "row 2: the value 3 is out of range"),
        ("test/item", np.array([-1, 1, 2], np.int32), "row 0: the value -1 is out of range"),
        ("test/negatives", np.full((3, 2), 4, np.int32), "row 0: the value 4 is out of range"),
        ("train/value", np.array([1, np.nan, 1], np.float32), "row 1: the value nan"),
        ("train/row", np.array([5, 5, 6]), "the row numbers do not ascend"),
        ("known/items", np.array([3, 2, 0], np.int32), "a user's items are not sorted"),
    ],
)
def test_values_are_checked_if_asked(written, place, column, fault):
    np.save(written / f"{place}.npy", column)
    table.open_table(written)
    with pytest.raises(ArtifactError, match=fault):
        table.open_table(written, values=True)


def test_titles_are_as_many_as_ids(written):
    table.write_text(written / "items" / table.TITLES, pa.array(["a", "b"], TEXT))
    with pytest.raises(ArtifactError, match="2 titles of 4"):
        table.open_table(written, values=True)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("num_items", "4", "schema.json.num_items is no count"),
        ("num_items", 1 << 40, "out of range"),
        ("task", "x", "task 'x'"),
        ("context", {}, "schema.json.context.dense is missing"),
        ("hashed", None, "schema.json.hashed is no JSON object"),
    ],
)
def test_a_schema_of_other_kinds_is_refused(written, field, value, fault):
    content = json.loads((written / "schema.json").read_text()) | {field: value}
    (written / "schema.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=f"not a prepared table .*{fault}"):
        table.open_table(written)


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


@pytest.mark.parametrize("sizes", [(0,), (3,), (2, 0, 5), (60_000, 60_000)])
def test_blocks_are_written_as_one_array(tmp_path, sizes):
    """The number of rows is known at the end alone, and may have more digits than 0."""
    rng = np.random.default_rng(0)
    blocks = [
        {
            "x": rng.random((size, 2)),
            "y": rng.integers(0, 9, size, np.int32),
            "z": np.ones((size, 0)),
        }
        for size in sizes
    ]
    assert table.write_blocks(tmp_path / "blocks", iter(blocks)) == sum(sizes)
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in "xyz"}
    table.write_columns(tmp_path / "whole", whole)
    for name in "xyz":
        found, expected = (tmp_path / kind / f"{name}.npy" for kind in ("blocks", "whole"))
        assert found.read_bytes() == expected.read_bytes()


def test_a_block_of_another_shape_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        table.write_blocks(tmp_path, [{"x": np.zeros(3)}, {"x": np.zeros((3, 1))}])


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
