import numpy as np
import pytest

from cadc_jax.data.table import open_table
from cadc_jax.run import stages
from cadc_jax.run.context import Run
from cadc_jax.tuning import subset
from tests.small_runs import quiet, ranking_config


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("subset")
    run = Run(ranking_config(path / "raw"), path / "work", quiet)
    return open_table(stages.prepare_stage(run, stages.raw_data(run)).path)


def test_a_short_log_stays_as_it_is(table):
    assert subset.of_users(table, len(table.splits["train"]["user"])) is table


def test_users_are_there_with_all_their_rows_or_not_at_all(table):
    train = table.splits["train"]
    part = subset.of_users(table, len(train["user"]) // 3)
    kept = np.unique(part.splits["train"]["user"])
    assert 0 < len(part.splits["train"]["user"]) <= len(train["user"]) // 3
    assert len(part.splits["train"]["user"]) > len(train["user"]) // 3 - 60
    for split in ("train", "validation"):
        there = np.isin(table.splits[split]["user"], kept)
        for name, column in part.splits[split].items():
            np.testing.assert_array_equal(column, table.splits[split][name][there])
    assert "test" not in part.splits
    assert part.schema == table.schema


def test_a_part_in_which_nobody_validates_is_no_part(table):
    assert subset.of_users(table, 1) is table
