"""Samples in TensorFlow operations: the reference's rows, read where the columns are mapped."""

import gc
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from cadc_jax.data import pipeline, tf_data
from cadc_jax.data.table import read_columns, write_columns

SEEDS = (0, -5, 2**64 - 1)
RATES = (1e-12, 0.01, 0.1, 1 - 2**-53, 1)
ROWS = 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Columns whose files are large enough to be mapped."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("columns")
    columns = {
        "user": rng.integers(0, 9, ROWS, np.int32),
        "label": rng.integers(0, 2, ROWS).astype(np.float32),
        "dense": rng.random((ROWS, 13), np.float32),
        "categorical": rng.integers(0, 99, (ROWS, 26), np.int32),
        "negatives": rng.integers(0, 99, (ROWS, 0), np.int32),
        "wide": rng.integers(0, 2**60, (ROWS, 2, 3)),
    }
    write_columns(path, columns)
    return path


def assert_as_numpy(columns, rate=0.1, seed=0, block_rows=999):
    """Checks each block of a sample against NumPy's."""
    found = list(tf_data.sampled_rows(columns, rate, seed, block_rows))
    expected = list(pipeline._sampled_by_numpy(columns, rate, seed, block_rows))
    for a, b in zip(found, expected, strict=True):
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_array_equal(a[name], np.asarray(b[name]), strict=True)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", RATES)
def test_the_sample_is_that_of_numpy(folder, rate, seed):
    assert_as_numpy(read_columns(folder), rate, seed)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 31, 32, 33, 64, 95, 97])
def test_a_table_may_end_anywhere_in_a_block(folder, num_rows):
    columns = {name: column[:num_rows] for name, column in read_columns(folder).items()}
    for rate in (0.1, 1):
        assert_as_numpy(columns, rate, block_rows=32)


def test_a_mapped_table_is_read_without_python(folder, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a call of Python")

    monkeypatch.setattr(tf, "numpy_function", refuse)
    assert_as_numpy(read_columns(folder))


def test_reading_changes_no_column(folder):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert_as_numpy(read_columns(folder), 1)
    assert before == {file: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_a_column_may_begin_anywhere_in_memory(offset):
    """The operations of TensorFlow end the program if a tensor does not begin at 64 bytes."""
    memory = np.arange(4096, dtype=np.int32)
    column = memory[offset // 4 :][: 200 * 20].reshape(200, 20)
    assert_as_numpy({"user": column})


def test_columns_may_be_in_any_order_in_memory(folder):
    columns = {name: np.asfortranarray(x) for name, x in read_columns(folder).items()}
    assert_as_numpy(columns)
    assert_as_numpy({name: x[::3] for name, x in columns.items()})


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="tells no memory")
def test_a_table_is_not_copied_into_memory(tmp_path):
    """TensorFlow rewrites the graph of a data set, by default, and with oneDNN copies columns."""
    write_columns(tmp_path, {"user": np.zeros(1 << 25, np.int32)})  # 128 MiB
    program = f"""
import pathlib, re
from cadc_jax.data import tf_data
from cadc_jax.data.table import read_columns
def memory():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
columns = read_columns(pathlib.Path({str(tmp_path)!r}))
before = memory()
next(tf_data.sampled_rows(columns, 0.01, 0, 1 << 16))
print(memory() - before)
"""
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert not done.returncode, done.stderr
    assert float(done.stdout.split()[-1]) < 64


def test_the_mapping_of_a_table_ends_with_the_sample(tmp_path):
    write_columns(tmp_path, {"user": np.zeros(ROWS, np.int32)})
    list(tf_data.sampled_rows(read_columns(tmp_path), 0.1, 0, 999))
    gc.collect()
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell the mappings of a process")
    assert str(tmp_path) not in maps.read_text()
