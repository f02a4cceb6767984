"""Packed columns: what is unpacked is what was packed, and nothing else is unpacked."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cadc_jax.data import packed
from cadc_jax.data.columns import ColumnKind
from cadc_jax.data.raw import TEXT
from cadc_jax.data.table import Features, read_columns, read_text
from cadc_jax.errors import ArtifactError

FEATURES = Features(dense=("price", "a.b"), categorical=("shop",), vocabulary_sizes=(9,))
KINDS = {
    "user": ColumnKind(np.int32),
    "label": ColumnKind(np.float32),
    "row": ColumnKind(np.int64),
    "dense": ColumnKind(np.float32, (2,)),
    "categorical": ColumnKind(np.int32, (1,)),
    "bags": ColumnKind(np.int32, (3, None)),
    "levels": ColumnKind(np.int8, (None,)),
    "half": ColumnKind(np.float16, (4,)),
}


def columns(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, 1000, rows).astype(np.int32),
        "label": rng.random(rows).astype(np.float32),
        "row": np.sort(rng.integers(0, 1 << 60, rows)),
        "dense": rng.normal(size=(rows, 2)).astype(np.float32),
        "categorical": rng.integers(0, 9, (rows, 1)).astype(np.int32),
        "bags": rng.integers(-1, 5, (rows, 3, 2)).astype(np.int32),
        "levels": rng.integers(-127, 127, (rows, 16)).astype(np.int8),
        "half": rng.normal(size=(rows, 4)).astype(np.float16),
    }


@pytest.mark.parametrize("rows", [0, 1, 1000, 70_000])
def test_columns_come_back(tmp_path, rows):
    given = columns(rows)
    packed.pack(tmp_path / "x.parquet", given, FEATURES)
    assert packed.unpack(tmp_path / "x.parquet", tmp_path / "out", KINDS, FEATURES) == rows
    found = read_columns(tmp_path / "out")
    assert found.keys() == given.keys()
    for name, column in given.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)


def test_several_row_groups_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_ROWS", 300)
    given = columns(1000)
    packed.pack(tmp_path / "x.parquet", given, FEATURES)
    assert parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups == 4
    packed.unpack(tmp_path / "x.parquet", tmp_path / "out", KINDS, FEATURES)
    for name, column in read_columns(tmp_path / "out").items():
        np.testing.assert_array_equal(column, given[name])


def test_columns_of_width_0_take_no_space_and_come_back(tmp_path):
    kinds = {"dense": ColumnKind(np.float32, (0,)), "bags": ColumnKind(np.int32, (None,))}
    given = {"dense": np.zeros((5, 0), np.float32), "bags": np.zeros((5, 0), np.int32)}
    packed.pack(tmp_path / "x.parquet", given)
    assert parquet.read_table(tmp_path / "x.parquet").column_names == []
    assert packed.unpack(tmp_path / "x.parquet", tmp_path / "out", kinds, rows=5) == 5
    assert {x.shape for x in read_columns(tmp_path / "out").values()} == {(5, 0)}


def test_a_feature_is_a_column_that_people_can_read(tmp_path):
    packed.pack(tmp_path / "x.parquet", columns(10), FEATURES)
    table = parquet.read_table(tmp_path / "x.parquet")
    assert {"user", "dense.price", "dense.a.b", "categorical.shop"} < set(table.column_names)
    assert table["dense.price"].to_numpy().tolist() == columns(10)["dense"][:, 0].tolist()


def test_ids_take_the_bits_that_they_need(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1 << 12, 100_000).astype(np.int32)
    packed.pack(tmp_path / "x.parquet", {"user": ids})
    assert (tmp_path / "x.parquet").stat().st_size < 1.1 * len(ids) * 12 / 8


@pytest.mark.parametrize(
    "values",
    [np.array([3, 5, 1 << 40]), np.zeros(0, np.int64), pa.array(["a", "Ä", "c" * 1000], TEXT)],
)
def test_vocabularies_come_back(tmp_path, values):
    packed.pack_values(tmp_path / "x.parquet", values)
    assert packed.unpack_values(tmp_path / "x.parquet", tmp_path, "known") == len(values)
    if isinstance(values, np.ndarray):
        np.testing.assert_array_equal(np.load(tmp_path / "known.npy"), values)
    else:
        assert read_text(tmp_path / "known").equals(values)


def changed(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x: x.drop_columns(["user"]), "column 'user' is not there where int32 belongs"),
        (lambda x: x.append_column("x", x["user"]), "column 'x' is int32 where none belongs"),
        (lambda x: x.append_column("user", x["user"]), "column 'twice'|Duplicate|twice"),
        (lambda x: changed(x, "user", x["row"]), "column 'user' is int64 where int32 belongs"),
        (lambda x: changed(x, "user", pa.array([None] * 9, pa.int32())), "a value is missing"),
        (lambda x: changed(x, "half", pa.array([b"abc"] * 9, pa.binary(3))), "column 'half' is"),
        (lambda x: x.slice(1), "8 rows of 9"),
    ],
)
def test_a_file_of_other_columns_is_refused(tmp_path, change, fault):
    file = tmp_path / "x.parquet"
    packed.pack(file, columns(9), FEATURES)
    parquet.write_table(change(parquet.read_table(file)), file, store_schema=False)
    with pytest.raises(ArtifactError, match=fault):
        packed.unpack(file, tmp_path / "out", KINDS, FEATURES, rows=9)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100, b"x" * 1000])
def test_what_is_no_parquet_file_is_refused(tmp_path, content):
    file = tmp_path / "x.parquet"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="x.parquet: not a Parquet file"):
        packed.unpack(file, tmp_path / "out", KINDS, FEATURES)
    with pytest.raises(ArtifactError, match="x.parquet: not a Parquet file"):
        packed.unpack_values(file, tmp_path, "known")


def test_damage_inside_is_refused(tmp_path):
    file = tmp_path / "x.parquet"
    packed.pack(file, columns(5000), FEATURES)
    content, wrong = bytearray(file.read_bytes()), 0
    for place in range(100, len(content) // 2, 997):
        damaged = content.copy()
        damaged[place] ^= 255
        file.write_bytes(damaged)
        try:
            packed.unpack(file, tmp_path / "out", KINDS, FEATURES)
        except ArtifactError as error:
            assert "\n" not in str(error)
            wrong += 1
    assert wrong  # not every byte matters to Parquet; checksums find those that do not
