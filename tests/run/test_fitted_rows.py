"""The rows of a prepared table that a factorisation is fitted to, at once and in blocks."""

import numpy as np
import pytest

from cadc_jax import configuration
from cadc_jax.data.columns import read_part
from cadc_jax.data.table import open_table
from cadc_jax.factorization import log_matrix
from cadc_jax.run import fitted_rows, stages
from cadc_jax.run.context import Run
from tests.small_runs import click_config, quiet, ranking_config


def prepared(config, workdir):
    run = Run(config, workdir, quiet)
    return open_table(stages.prepare_stage(run, stages.raw_data(run)).path)


def every_third_left_out(start, stop):
    return np.arange(start, stop) % 3 > 0


@pytest.mark.parametrize("choice", [None, every_third_left_out])
@pytest.mark.parametrize("task", ["clicks", "ranking"])
def test_a_table_that_is_read_in_blocks_has_the_same_matrix(tmp_path, monkeypatch, task, choice):
    monkeypatch.setattr(log_matrix, "BLOCK_ROWS", 100)
    config = click_config() if task == "clicks" else ranking_config(tmp_path / "raw")
    table, method = (
        prepared(config, tmp_path / "work"),
        configuration.factorization_config(config, "als"),
    )
    expected = fitted_rows.matrix_of(table, method, "log", choice)
    found = log_matrix.read(fitted_rows.log_of(table, method, "log", choice))
    assert found.num_entries == expected.num_entries > 0
    for side, same in ((found.by_user, expected.by_user), (found.by_item, expected.by_item)):
        part = side.take(np.arange(len(same.counts)))
        for name in ("offsets", "columns", "values"):
            np.testing.assert_array_equal(getattr(part, name), getattr(same, name))


def test_the_rows_of_a_choice_are_counted_in_the_whole_table(tmp_path, monkeypatch):
    monkeypatch.setattr(log_matrix, "BLOCK_ROWS", 100)
    table = prepared(ranking_config(tmp_path / "raw"), tmp_path / "work")
    rows = np.arange(len(table.splits["train"]["user"]))
    found = fitted_rows.ids_of(table, every_third_left_out)
    np.testing.assert_array_equal(found, rows[rows % 3 > 0])
    assert fitted_rows.ids_of(table, None) == slice(None)


def test_a_part_of_a_mapped_column_is_read(tmp_path):
    table = prepared(ranking_config(tmp_path / "raw"), tmp_path / "work")
    mapped = np.memmap(tmp_path / "x", np.int32, "w+", 8, (50, 3))
    mapped[:] = np.arange(150).reshape(50, 3)
    mapped.flush()
    for column in (mapped, mapped[5:], np.array(mapped), table.splits["train"]["user"]):
        for part in ((0, 7), (20, 41), (40, 10**6), (3, 3)):
            np.testing.assert_array_equal(read_part(column, *part), column[slice(*part)])
