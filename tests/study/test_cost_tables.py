"""What CADC costs beside training on all rows: on artefacts and results written by hand."""

import dataclasses

import pytest

from cadc_jax.study import cost_tables, costs, data_report
from cadc_jax.study.cells import Cell

CADC = Cell("ml-100k", "cadc_frozen", "two_tower", "uniform", 0.1)
FULL = Cell("ml-100k", "full", "two_tower")


def table(make, made):
    """The lines of a table as mappings from the header."""
    header, *lines = make(data_report.gather(made.out, made.rows))
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_costs_say_after_how_many_trainings_the_factorisation_pays(compared):
    """6 s of factorising, and 3 s saved in each training."""
    (line,) = table(cost_tables.size_table, compared)
    sizes = [line[f"{name} MB"] for name in ("all rows", "kept rows", "factors", "model")]
    assert sizes == ["4.00", "0.40", "1.00", "2.00"]
    assert (line["train s"], line["all rows: train s"]) == ("2.0", "5.0")
    assert line["paid back after"] == "2.00 trainings"


def test_a_sample_that_saves_nothing_never_pays(compared):
    for row in compared.rows:
        if row["arm"] == "full":
            row["train_s"] = 2.0
    assert table(cost_tables.size_table, compared)[0]["paid back after"] == "never"


def add_training(made, cell, seconds, before, compiling, **facts):
    """Adds a cell whose training evaluated for 1 s, in batches of 10 rows."""
    settings = {"train": {"batch_rows": 10}, "cell": dataclasses.asdict(cell), **before}
    facts |= {"evaluation_seconds": 1.0, "compile_seconds": compiling}
    facts["history"] = [{"step": 0}, {"step": facts.pop("steps")}]
    trained = made.add_stage("train", seconds, settings, **facts)
    made.add_ranks(cell, [0, 1, -1, 0], scorer=trained)


@pytest.fixture
def trained(rankings):
    """Two seeds of CADC and one of all rows.

    Seed 0 of CADC: factors of 4 s and a sample of 1 s, then 10 steps of 0.2 s, of 4 an epoch, after
    1 s of compiling. All rows: 100 steps of 0.1 s, of 20 an epoch, after 3 s of compiling.
    """
    factors = rankings.add_stage("factorize", 5.0, {}, compile_seconds=1.0)
    sample = rankings.add_stage("sample", 1.0, {})
    before = {"factors": factors, "sample": sample}
    own = {"rows": 40, "steps": 10}
    add_training(rankings, CADC, 4.0, before, 1.0, best_step=5, **own)
    second = dataclasses.replace(CADC, seed=1)
    add_training(rankings, second, 3.0, before, 0.0, best_step=5, **own)
    none = {"factors": 32, "sample": None}
    add_training(rankings, FULL, 14.0, none, 3.0, rows=200, steps=100, best_step=80)
    return rankings


def test_seconds_are_those_of_the_artefacts_without_compiling(trained):
    cost = costs.of(trained.work, trained.rows[0]["evaluation"])
    assert (cost.factorize, cost.sample) == pytest.approx((4, 1), abs=0.1)
    assert (cost.train, cost.evaluating, cost.compiling) == pytest.approx((3, 1, 2), abs=0.1)
    assert (cost.steps, cost.best_step, cost.steps_per_epoch) == (10, 5, 4)
    assert cost.per_step == pytest.approx(0.2, abs=0.01)
    assert cost.total == pytest.approx(8, abs=0.1) and cost.to_best == pytest.approx(6, abs=0.1)
    assert cost.of_epochs(5) == pytest.approx(5 + 0.2 * 20, abs=0.2)


def test_seconds_are_compared_in_all_at_equal_epochs_and_to_the_best_step(trained):
    (line,) = table(cost_tables.cost_table, trained)
    assert line["epochs"] == "5"
    names = ("in all", "as many epochs", "to the best step", "ms a step")
    shown = {name: [float(x) for x in line[name].split(" (")[0].split(" / ")] for name in names}
    assert shown["in all"] == pytest.approx([8, 11], abs=0.2)
    assert shown["as many epochs"] == pytest.approx([9, 10], abs=0.3)
    assert shown["to the best step"] == pytest.approx([6, 8], abs=0.2)
    assert shown["ms a step"] == pytest.approx([200, 100], abs=10)


def test_compiling_is_cold_in_one_seed_and_warm_in_another(trained):
    (line,) = table(cost_tables.cost_table, trained)
    assert (line["compiling s, cold"], line["compiling s, warm"]) == ("2.0 / 3.0", "1.0 / -")


def test_factors_of_factors_count_their_compiling_too(rankings):
    """Refreshed ones start from others, whose seconds theirs include."""
    settings = {"prepared": "p", "unsampled_at": 0.1}
    rankings.add_stage("unsampled", 2.0, settings, compile_seconds=1.5)
    refreshed = rankings.add_stage("factorize", 5.0, settings | {"refresh": 5}, compile_seconds=0.5)
    both = rankings.add_stage("factorize", 6.0, {"parts": [refreshed]}, compile_seconds=0.25)
    before = {"factors": both, "sample": None}
    add_training(rankings, CADC, 2.0, before, 0.0, rows=40, steps=10, best_step=5)
    cost = costs.of(rankings.work, rankings.rows[0]["evaluation"])
    assert cost.compiling == pytest.approx(2.25) and cost.factorize == pytest.approx(3.75, abs=0.1)


def test_without_its_artefacts_a_cell_has_no_costs(compared):
    assert costs.of(compared.work, compared.rows[0]["evaluation"]) is None
    assert table(cost_tables.cost_table, compared) == []
