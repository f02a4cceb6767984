"""The network against its own factors, for items and users with few and with many rows."""

import numpy as np
import pytest

from cadc_jax.study import bins, data_report
from cadc_jax.study.cells import Cell


def table(make, made):
    """The lines of a table as mappings from the header."""
    header, *lines = make(data_report.gather(made.out, made.rows))
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_parts_are_of_at_most_5_and_at_most_50_rows():
    found = bins.bins(np.array([0, 5, 6, 50, 51]))
    assert [part.tolist() for part in found] == [
        [True, True, False, False, False],
        [False, False, True, True, False],
        [False, False, False, False, True],
    ]


@pytest.mark.parametrize("start", [0, 1000])
def test_if_one_is_empty_the_parts_are_thirds(start):
    found = bins.bins(start + np.arange(6))
    assert [part.nonzero()[0].tolist() for part in found] == [[0, 1], [2, 3], [4, 5]]


def test_each_test_row_is_in_one_part_even_if_all_sizes_are_equal():
    found = np.array(bins.bins(np.array([7, 7, 7])))
    assert found.sum(axis=0).tolist() == [1, 1, 1]


def test_each_arm_is_compared_with_its_factors_by_items_and_by_users(compared):
    """The items of the ranked users 1, 2 and 4 have 0, 4 and 2 rows; the users 1, 2 and 4."""
    gains = {"cadc": [1, 1, 0.5], "mf": [0.5, 1, 1]}
    user = [c - m for c, m in zip(gains["cadc"], gains["mf"], strict=True)]
    (items,), (users,) = (table(make, compared) for make in (bins.item_table, bins.user_table))
    assert items["against"] == "MF alone" and items["arm"] == "CADC, frozen"
    names = ["cold: 0 to 0 rows (1 tested)", "rare: 2 to 2 rows (1 tested)"]
    names += ["warm: 4 to 4 rows (1 tested)"]
    assert list(items)[4:] == names
    shown = [float(items[name].split()[0]) for name in names]
    assert shown == pytest.approx([user[0], user[2], user[1]])
    shown = [float(x.split()[0]) for x in list(users.values())[4:]]
    assert shown == pytest.approx(user)


def test_refreshed_factors_of_the_same_rate_are_a_line_of_their_own(compared):
    cell = Cell("ml-100k", "mf_refreshed", "", "uniform", 0.1)
    compared.add_ranks(cell, [0, 0, -1, 0])
    compared.add_ranks(Cell("ml-100k", "mf_refreshed", "", "uniform", 0.5), [9, 9, -1, 9])
    lines = table(bins.user_table, compared)
    assert [line["against"] for line in lines] == ["MF alone", "MF, refreshed"]
    assert [float(x.split()[0]) for x in list(lines[1].values())[4:]] == [0, 0, -0.5]


def test_a_part_has_an_interval_over_seeds_and_users(compared):
    compared.add_ranks(Cell("ml-100k", "mf_alone", seed=1), [2, 0, -1, 0])
    report = data_report.gather(compared.out, compared.rows)
    frozen, mf = report.sampled("cadc_frozen", "two_tower", 0.1), report.baseline("mf_alone")
    found = report.difference_within(frozen, mf, np.array([True, False, True]))
    assert found.seeds and found.low < found.mean < found.high
    assert found.mean == pytest.approx((0.5 - 0.5) / 2)


def test_clicks_are_compared_by_the_auc_within_a_part(clicks):
    cell = Cell("synthetic", "cadc_frozen", "dlrm", "uniform", 0.1)
    scores = np.array([0.0, 1, 2, 3])
    clicks.add(cell, {"scores": scores}, auc=0.75)
    clicks.add(Cell("synthetic", "mf_alone"), {"scores": -scores}, auc=0.25)
    report = data_report.gather(clicks.out, clicks.rows)
    sides = report.sampled("cadc_frozen", "dlrm", 0.1), report.baseline("mf_alone")
    found = report.difference_within(*sides, np.array([True, True, False, False]), by_row=True)
    assert found.mean == pytest.approx(1 - 0)
