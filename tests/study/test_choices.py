"""Which variant of a sweep is chosen: by the validation split alone."""

import dataclasses

from cadc_jax.study import results, tables
from cadc_jax.study.cells import Cell
from cadc_jax.study.choices import choices

FROZEN = Cell("shop", "cadc_frozen", "dlrm", "uniform", 0.1)


def row(validation, test, cell=FROZEN, metric="logloss", **changes):
    made = results.failure(dataclasses.replace(cell, **changes), "s1", "", "ok")
    tested = {"auc" if metric == "logloss" else "ndcg": test}
    return made | tested | {"validation_metric": metric, "validation": validation}


def test_the_lowest_log_loss_is_best_whatever_the_test_says():
    rows = [row(0.5, 0.9, variant="a"), row(0.4, 0.6, variant="b")]
    assert [(x.variant, x.best, x.best_of_all) for x in choices(rows)] == [
        ("a", False, False),
        ("b", True, True),
    ]


def test_the_highest_ndcg_is_best():
    rows = [row(0.5, 0.1, metric="ndcg@10", variant=name) for name in "ab"]
    rows[0] |= {"validation": 0.6}
    assert [x.best for x in choices(rows)] == [True, False]


def test_figures_are_means_over_seeds():
    rows = [row(0.5, 0.6, variant="a"), row(0.4, 0.6, variant="b"), row(0.3, 0.5, variant="b")]
    rows[2]["seed"] = 1
    _, found = choices(rows)
    assert (found.seeds, found.validation, found.test) == (2, 0.35, 0.55)


def test_each_arm_has_a_best_variant_and_one_is_the_best_of_all():
    full = Cell("shop", "full", "dlrm")
    rows = [row(0.5, 0.6, variant="a"), row(0.4, 0.6, variant="b")]
    rows += [row(0.3, 0.6, full, variant="a"), row(0.35, 0.6, full, variant="b")]
    found = {(x.arm, x.variant): (x.best, x.best_of_all) for x in choices(rows)}
    assert found["cadc_frozen", "b"] == (True, False) and found["full", "a"] == (True, True)
    header, *lines = tables.choice_table(choices(rows))
    chosen = {(line[0], line[3]): line[-1] for line in lines}
    assert header[-3:] == ["validation", "test", "chosen"]
    assert chosen == {
        ("full data", "a"): "best of all",
        ("full data", "b"): "",
        ("CADC, frozen", "a"): "",
        ("CADC, frozen", "b"): "best of these",
    }


def test_arms_that_the_sweep_does_not_change_are_left_out():
    popularity = Cell("shop", "popularity")
    rows = [row(0.7, 0.5, popularity, variant=name) for name in "ab"]
    assert choices(rows) == []


def test_failed_cells_and_other_metrics_are_not_compared():
    failed = results.failure(dataclasses.replace(FROZEN, variant="c"), "s1", "why")
    rows = [row(0.5, 0.6, variant="a"), failed, row(0.9, 0.6, metric="ndcg@10", variant="b")]
    assert choices(rows) == []
