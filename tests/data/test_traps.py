"""Splits that are not what their name promises are told."""

import dataclasses

import numpy as np
import pytest

from cadc_jax.data import traps
from cadc_jax.data.raw import RawTable, ReadReport
from tests.data.tables import CLICK, clicks, interactions, prepared
from tests.data.tables import RANKING as FEW_ITEMS

RANKING = dataclasses.replace(FEW_ITEMS, num_negatives=0)


def table(user, item, **columns):
    return RawTable(ReadReport(len(user)), user=np.array(user), item=np.array(item), **columns)


@pytest.mark.parametrize("split", ["time", "leave_one_out", "last_share"])
def test_one_time_for_most_rows_is_told(tmp_path, split):
    time = np.where(np.arange(24) < 4, np.arange(24), 1700000000)
    config = dataclasses.replace(RANKING, split=split, validation=0.2, test=0.2)
    _, facts = prepared(tmp_path, interactions(timestamp=time), config)
    told = f"data.split='{split}': 83% of the rows have the time 1700000000"
    assert told in facts["traps"][0]


def test_a_split_that_does_not_go_by_time_tells_nothing_of_it(tmp_path):
    config = dataclasses.replace(RANKING, split="random", validation=0.3, test=0.3)
    _, facts = prepared(tmp_path, interactions(timestamp=np.zeros(24, np.int64)), config)
    assert not any("have the time" in line for line in facts.get("traps", ()))


def test_users_with_too_few_rows_are_told(tmp_path):
    user = [1] * 5 + [2] * 5 + [3, 4, 5, 6, 7, 8]
    _, facts = prepared(tmp_path, table(user, [*range(5), *range(5), *range(6)]), RANKING)
    (line,) = facts["traps"]
    assert line.startswith("data.split='leave_one_out': 75% of the 8 users have too few rows")


def test_a_log_sorted_by_user_and_split_by_place_is_told(tmp_path):
    source = clicks()
    source.categorical["who"] = np.arange(20) // 2
    _, facts = prepared(tmp_path, source, CLICK)
    assert facts["traps"][0].startswith("100% of the test rows have a user without training rows")


def test_an_ordinary_split_tells_nothing(tmp_path):
    assert (
        "traps" not in prepared(tmp_path, interactions(item=np.tile(np.arange(4), 6)), RANKING)[1]
    )


def test_no_test_row_tells_nothing():
    nothing = np.zeros(0, np.int32)
    assert traps.of_test_rows({"user": nothing, "item": nothing}) == []
