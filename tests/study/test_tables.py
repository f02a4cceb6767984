"""The tables of the report, on results written by hand."""

import json

import numpy as np
import pytest

from cadc_jax.study import cells, data_report, formats, selection, tables
from cadc_jax.study.bootstrap import Interval
from cadc_jax.study.cells import Cell


def table(make, made):
    """The lines of a table as mappings from the header."""
    header, *lines = make(data_report.gather(made.out, made.rows))
    return [dict(zip(header, line, strict=True)) for line in lines]


def line_of(lines, arm):
    (line,) = [line for line in lines if line["arm"] == cells.LABELS[arm]]
    return line


def test_the_main_table_shows_quality_and_differences(compared):
    """NDCG of CADC is 1 and 2/3 with the seeds, of MF alone 5/6, and of all rows 1/3."""
    lines = table(tables.main_table, compared)
    frozen = line_of(lines, "cadc_frozen")
    assert frozen["NDCG@10"] == f"{5 / 6:.4f} ± {(1 / 3) / 2**0.5:.4f}"
    assert (frozen["rows"], frozen["seeds"], frozen["rate"]) == ("10", "2", "0.1")
    assert frozen["validation ndcg@10"] == "0.5000 ± 0.0000"
    assert frozen["against MF alone"].startswith("+0.0000 [")
    assert frozen["against all rows"].startswith("+0.5000 [")
    assert frozen["against the sample alone"] == "-"
    assert (frozen["train s"], frozen["not converged"], frozen["start is best"]) == (
        "2.0",
        "1",
        "1",
    )
    mf = line_of(lines, "mf_alone")
    assert mf["against MF alone"] == "-" and mf["NDCG@10"] == f"{5 / 6:.4f}"
    assert (mf["train s"], mf["not converged"], mf["start is best"]) == ("-", "-", "-")
    assert line_of(lines, "full")["against MF alone"].startswith("-0.5000 [")


def test_the_verdict_of_a_difference_goes_with_its_text(rankings):
    """Every user gets better by nearly as much, so the interval does not contain 0."""
    rankings.add_ranks(Cell("ml-100k", "mf_alone"), [0, 0, -1, 0])
    worse = Cell("ml-100k", "cadc_frozen", "two_tower", "uniform", 0.1)
    rankings.add_ranks(worse, [8, 9, -1, 9])
    line = line_of(table(tables.main_table, rankings), "cadc_frozen")
    assert line["against MF alone"].verdict == "worse"
    assert getattr(line["against all rows"], "verdict", "") == ""


def test_clicks_have_differences_of_the_auc_and_of_the_log_loss(clicks):
    scores = np.array([-1.0, 1, -2, 2])
    quality = {"auc": 1.0, "logloss": 0.22, "calibration": 0.9}
    clicks.add(Cell("synthetic", "mf_alone"), {"scores": scores}, **quality)
    quality = {"auc": 0.0, "logloss": 1.7, "calibration": 1.1}
    clicks.add(Cell("synthetic", "full", "dlrm"), {"scores": -scores}, **quality)
    header = tables.main_table(data_report.gather(clicks.out, clicks.rows))[0]
    assert [name for name in header if "MF alone" in name] == [
        "AUC against MF alone",
        "log loss against MF alone",
    ]
    line = line_of(table(tables.main_table, clicks), "full")
    assert (line["AUC"], line["log loss"], line["calibration"]) == ("0.0000", "1.7000", "1.1000")
    assert line["AUC against MF alone"].startswith("-1.0000 [")
    assert line["log loss against MF alone"].startswith("+1.5000 [")


def test_more_log_loss_is_worse():
    found = Interval(0.2, 0.1, 0.3, 0.001, True)
    assert formats.interval(found).verdict == "better"
    assert formats.interval(found, low_is_good=True).verdict == "worse"
    assert formats.interval(Interval(0, -1, 1), low_is_good=True).verdict == ""
    assert formats.interval(Interval(float("nan"), 0, 0)) == formats.interval(None) == "-"


def test_the_ranking_among_few_counts_all_users(compared):
    lines = table(tables.sampled_table, compared)
    frozen = line_of(lines, "cadc_frozen")
    assert frozen["HR@10 (1+K) against MF alone"].startswith("+0.2500 [")  # 4 of 4, and 3 of 4
    assert frozen["NDCG@10 (1+K) against MF alone"].startswith("+0.2500 [")
    assert line_of(lines, "mf_alone")["HR@10 (1+K) against MF alone"] == "-"


def test_rules_are_compared_with_the_uniform_rule_at_their_rates(rankings):
    for rule, ranks in (("recent", [0, 20, -1, 20]), ("uniform", [0, 0, -1, 20])):
        rankings.add_ranks(Cell("ml-100k", "cadc_frozen", "two_tower", rule, 0.1), ranks)
    rankings.add_ranks(
        Cell("ml-100k", "cadc_trainable", "two_tower", "uniform", 0.1), [0, 0, -1, 0]
    )
    rankings.add_ranks(Cell("ml-100k", "cadc_frozen", "two_tower", "uniform", 0.5), [0, 0, -1, 0])
    uniform, recent = table(tables.selection_table, rankings)
    assert [line["rows kept"] for line in (uniform, recent)] == ["uniform (CADC)", "most recent"]
    assert uniform["uniform, less this"] == "-"
    assert recent["uniform, less this"].startswith("+0.3333 [")
    assert recent["NDCG@10"] == "0.3333"


def test_without_other_rules_their_table_is_empty(compared):
    assert table(tables.selection_table, compared) == []


def test_what_was_searched_is_shown(rankings):
    chosen = json.dumps({"settings": {"l1": 1, "l2": 0.5}, "trials": 12, "seconds": 2.04})
    rankings.add_ranks(Cell("ml-100k", "slim"), [0, 0, -1, 0], chosen=chosen)
    (line,) = table(tables.settings_table, rankings)
    assert list(line.values()) == ["SLIM", "-", "1", "12", "l1 1, l2 0.5"]


def test_what_was_searched_is_shown_of_clicks(clicks):
    chosen = json.dumps({"settings": {"factors": 8}, "trials": 3, "seconds": 1})
    scores = np.array([0.1, 0.9, 0.2, 0.8], np.float32)
    clicks.add(Cell("synthetic", "fm"), {"scores": scores}, auc=1.0, chosen=chosen)
    (line,) = table(tables.settings_table, clicks)
    assert list(line.values()) == ["factorisation machine", "-", "1", "3", "factors 8"]


def test_activity_groups_users_by_their_training_rows(compared):
    """The ranked users have 1, 2 and 4 rows; the user of one row has no second line."""
    lines = table(tables.activity_table, compared)
    assert [line["training rows"] for line in lines] == ["1", "2", "4"]
    assert [line["tested"] for line in lines] == ["1", "1", "1"]
    assert [line["MF alone"] for line in lines] == ["0.5000", "1.0000", "1.0000"]
    cadc = "CADC, frozen, two_tower, 0.1"
    assert [line[cadc] for line in lines] == ["1.0000", "1.0000", "0.5000"]


def test_popularity_groups_items_by_their_training_rows(compared):
    """The test items of the ranked users are 5, 1 and 3, with 0, 4 and 2 training rows."""
    lines = table(tables.popularity_table, compared)
    assert [line["training rows"] for line in lines] == ["none", "2", "4"]
    assert [line["MF alone"] for line in lines] == ["0.5000", "1.0000", "1.0000"]


def test_users_folded_in_are_compared_with_themselves(rankings, monkeypatch):
    """Seed 0 hides user 1 and seed 1 user 4; seed 2 was not run with all users seen."""
    hidden = {0: [1], 1: [4], 2: [1]}
    monkeypatch.setattr(
        selection, "hidden_users", lambda count, seed: np.isin(np.arange(count), hidden[seed])
    )
    for seed, folded, seen in (
        (0, [1, 9, -1, 9], [0, 2, -1, 2]),
        (1, [9, 9, -1, 2], [2, 2, -1, 0]),
    ):
        rankings.add_ranks(Cell("ml-100k", "mf_alone", "", "fold_in", 1.0, seed), folded)
        rankings.add_ranks(Cell("ml-100k", "mf_alone", seed=seed), seen)
    rankings.add_ranks(Cell("ml-100k", "mf_alone", "", "fold_in", 1.0, 2), [9, 9, -1, 9])
    (line,) = table(tables.fold_in_table, rankings)
    assert line["hidden users"] == "2" and line["folded in, less popularity"] == "-"
    ndcg = data_report.ndcg(np.array([1, 2]), 10).mean()
    assert line["NDCG@10, folded in"] == f"{ndcg:.4f}" and line["NDCG@10, seen"] == "1.0000"
    assert line["folded in, less seen"].startswith(f"{ndcg - 1:+.4f} [")

    rankings.add_ranks(Cell("ml-100k", "popularity"), [2, 0, -1, 2])
    (line,) = table(tables.fold_in_table, rankings)
    assert line["folded in, less popularity"].startswith(f"{ndcg - 0.5:+.4f} [")


def test_the_auc_is_shown_as_a_share_of_that_of_the_truth(clicks):
    """The truth orders three of four pairs of a click and another row, and the arm all four."""
    clicks.add(Cell("synthetic", "mf_alone"), {"scores": np.array([0.0, 3, 1, 2])}, auc=1.0)
    expected, reached, mf = table(tables.truth_table, clicks)
    assert expected["scorer"] == "true probabilities, expected"
    assert float(expected["AUC"]) == pytest.approx(0.8, abs=0.1)
    assert reached["AUC"] == "0.7500" and mf["share of (AUC - 0.5)"] == "200.0%"


def test_without_a_known_truth_its_table_is_empty(compared):
    assert table(tables.truth_table, compared) == []
