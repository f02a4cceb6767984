"""Which cells a study has, their order, and the estimate of their time."""

import dataclasses

import pytest

from cadc_jax.study import grid
from cadc_jax.study.cells import SEARCHED, Cell
from cadc_jax.study.grid import Grid

CLICKS = Grid(
    data="synthetic",
    ranking=False,
    rates=[1.0, 0.1],
    arms=["full", "sample", "cadc_frozen"],
    models=["dlrm"],
    seeds=1,
    selections=[],
    selection_rates=[0.1],
)
OF_ITEMS = ("ease", "item_knn", "slim", "rp3beta", "mf_ease")
RANKING = dataclasses.replace(CLICKS, data="epinions", ranking=True, models=["two_tower"])


def test_the_cells_of_clicks_are_in_three_phases():
    """There is no 'sample' at rate 1, which is 'full', and nothing that needs a ranking."""
    assert grid.phases([CLICKS]) == [
        [Cell("synthetic", "popularity")],
        [Cell("synthetic", "mf_alone")],
        [
            *(Cell("synthetic", arm) for arm in ("logistic", "fm", "lightgbm")),
            Cell("synthetic", "full", "dlrm"),
            Cell("synthetic", "cadc_frozen", "dlrm", "uniform", 1.0),
            Cell("synthetic", "sample", "dlrm", "uniform", 0.1),
            Cell("synthetic", "cadc_frozen", "dlrm", "uniform", 0.1),
        ],
    ]


def test_rankings_also_have_rivals_and_folding_in():
    first, second, third = grid.phases([RANKING])
    assert first == [Cell("epinions", "popularity")]
    assert second == [Cell("epinions", "mf_alone")]
    assert third[: len(OF_ITEMS)] == [Cell("epinions", arm) for arm in OF_ITEMS]
    assert [cell for cell in third if cell.selection == "fold_in"] == [
        Cell("epinions", "mf_alone", selection="fold_in"),
        Cell("epinions", "cadc_frozen", "two_tower", "fold_in", 0.1),
    ]


def test_refreshed_factors_are_a_cell_of_each_rate_below_1():
    refreshed = dataclasses.replace(CLICKS, refreshed=True, rates=[1.0, 0.1, 0.01])
    *_, third = grid.phases([refreshed])
    found = [cell for cell in third if cell.arm == "mf_refreshed"]
    assert found == [
        Cell("synthetic", "mf_refreshed", "", "uniform", rate=rate) for rate in (0.1, 0.01)
    ]
    none = dataclasses.replace(refreshed, rivals=["mf_alone"])
    assert not [c for phase in grid.phases([none]) for c in phase if c.arm == "mf_refreshed"]


def test_other_rules_come_with_factors_and_without():
    of_rules = dataclasses.replace(
        CLICKS, arms=["sample", "cadc_trainable", "cadc_frozen"], selections=["recent"]
    )
    found = {
        cell for phase in grid.phases([of_rules]) for cell in phase if "recent" in cell.selection
    }
    assert found == {
        Cell("synthetic", arm, "dlrm", "recent", 0.1) for arm in ("sample", "cadc_frozen")
    }


def test_all_cells_of_a_seed_come_before_those_of_the_next():
    phases = grid.phases([dataclasses.replace(one, seeds=3) for one in (CLICKS, RANKING)])
    for phase in phases[1:]:
        of_seeds = [cell.seed for cell in phase if cell.arm not in SEARCHED]
        assert of_seeds == sorted(of_seeds) and set(of_seeds) == {0, 1, 2}
    cells = [cell for phase in phases for cell in phase]
    assert len(cells) == len(set(cells))


def test_a_sample_of_all_rows_is_the_arm_on_all_rows_once():
    for arms in (["sample"], ["full", "sample"]):
        one = dataclasses.replace(CLICKS, arms=arms, rates=[1.0], rivals=[])
        assert grid.phases([one]) == [[], [], [Cell("synthetic", "full", "dlrm")]]


def test_every_variant_of_a_sweep_has_all_cells():
    swept = dataclasses.replace(CLICKS, variants=["sgd.epochs=1", "sgd.epochs=2"])
    for phase, whole in zip(grid.phases([swept]), grid.phases([CLICKS]), strict=True):
        for variant in swept.variants:
            of_it = [dataclasses.replace(x, variant="") for x in phase if x.variant == variant]
            assert of_it == whole


def test_only_the_rivals_asked_for_are_there():
    few = dataclasses.replace(RANKING, arms=["cadc_frozen"], rates=[0.1], rivals=["mf_alone"])
    assert grid.phases([few]) == [
        [],
        [Cell("epinions", "mf_alone")],
        [Cell("epinions", "cadc_frozen", "two_tower", "uniform", 0.1)],
    ]


def finished(cell, seconds, status="ok"):
    return dataclasses.asdict(cell) | {"status": status, "cell_s": seconds}


def test_a_cell_is_expected_to_take_as_long_as_its_like_did():
    like = Cell("synthetic", "full", "dlrm", seed=1)
    pace = grid.Pace([finished(like, 400.0)], jobs=2)
    pace.add(finished(like, 600.0))
    assert pace.seconds_for([like]) == pytest.approx(500 / 2)


def test_a_cell_of_another_model_is_scaled_by_all_cells():
    """Failed cells say nothing."""
    like, other = Cell("synthetic", "full", "dlrm"), Cell("ml-1m", "full", "two_tower")
    pace = grid.Pace([finished(like, 300.0), finished(other, 9e9, "failed")], jobs=1)
    assert pace.seconds_for([other, other]) == pytest.approx(600)


def test_a_sample_is_expected_to_take_less_than_all_rows():
    full, tenth = (Cell("ml-1m", "full", "dlrm", rate=rate) for rate in (1.0, 0.1))
    pace = grid.Pace([finished(full, 100.0)], jobs=1)
    assert 10 < pace.seconds_for([tenth]) < 50


def test_nothing_is_known_before_the_first_cell_is_done():
    assert grid.Pace([], jobs=2).seconds_for([Cell("ml-1m", "ease")]) is None
    assert grid.duration(None) == "unknown time"


def test_a_duration_is_in_seconds_minutes_or_hours():
    assert grid.duration(90) == "90 s"
    assert grid.duration(150) == "2 min"
    assert grid.duration(99 * 60) == "99 min"
    assert grid.duration(150 * 60) == "2.5 h"
