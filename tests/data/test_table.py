import numpy as np
import pytest

from cadc_jax.data import table
from cadc_jax.data.table import Features, Schema
from cadc_jax.errors import ArtifactError


def test_what_is_written_is_read_back_and_mapped(tmp_path):
    columns = {"user": np.arange(5000, dtype=np.int32), "dense": np.zeros((5000, 0), np.float32)}
    table.write_columns(tmp_path / "train", columns)
    read = table.read_columns(tmp_path / "train")
    assert read.keys() == columns.keys()
    np.testing.assert_array_equal(read["user"], columns["user"])
    assert isinstance(read["user"], np.memmap)
    assert read["dense"].shape == (5000, 0)


def test_a_schema_round_trips(tmp_path):
    schema = Schema("click", 3, 4, Features(("a",), ("b", "c"), (2, 9)), Features(), Features())
    table.write_schema(tmp_path, schema)
    assert table.open_table(tmp_path).schema == schema


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a prepared table"):
        table.open_table(tmp_path)
