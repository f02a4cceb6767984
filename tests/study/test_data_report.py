"""The results that are gathered for the report, on results written by hand."""

import numpy as np
import pytest

from cadc_jax.data.table import Features, Schema
from cadc_jax.evaluation import evaluate
from cadc_jax.study import data_report, results, tables
from cadc_jax.study.cells import Cell
from tests.study.conftest import HandMade


def gather(made):
    return data_report.gather(made.out, made.rows)


def test_ndcg_and_hits_are_those_of_the_evaluation():
    ranks = np.array([0, 1, 9, 10, 500])
    expected = evaluate.sampled_quality(ranks, (10,), 999)
    found = {"hr": data_report.hit(ranks, 10).mean(), "ndcg": data_report.ndcg(ranks, 10).mean()}
    assert expected == pytest.approx({f"{name}@10/1+999": value for name, value in found.items()})


def test_a_user_with_several_test_items_has_one_value_and_a_gain_for_each(tmp_path):
    train = {"user": np.array([1, 2, 2], np.int32), "item": np.array([1, 1, 2], np.int32)}
    test = {"user": np.array([2, 1, 2], np.int32), "item": np.array([5, 4, 3], np.int32)}
    schema = Schema("ranking", 3, 20, Features(), Features(), Features())
    splits = {"train": train, "validation": test, "test": test}
    study = HandMade(tmp_path, "ml-100k", schema, splits, {"count": np.zeros(20, np.int64)})
    study.add_ranks(Cell("ml-100k", "mf_alone"), [1, 0, 1])  # the second user's: places 1 and 2
    report = gather(study)
    (group,) = report.groups.values()
    ideal = 1 + 1 / np.log2(3)
    assert group.values.tolist() == [[1, pytest.approx((1 / np.log2(3) + 1 / 2) / ideal)]]
    assert report.users.tolist() == [1, 2] and report.places.tolist() == [0, 1, 2]
    assert sorted(group.gains[0]) == pytest.approx([1 / 2, 1 / np.log2(3), 1])
    assert group.gains[0][1] == 1
    assert len(tables.activity_table(report)) == len(tables.popularity_table(report)) + 1


def test_seeds_of_a_cell_are_a_group_in_order_and_unranked_rows_are_left_out(compared):
    report = gather(compared)
    assert report.places.tolist() == [0, 1, 3]
    group = report.sampled("cadc_frozen", "two_tower", 0.1)
    assert [row["seed"] for row in group.rows] == [0, 1]
    assert group.values.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert group.few.shape == (2, 4)
    assert report.baseline("mf_alone").values.tolist() == [[0.5, 1, 1]]


def test_a_column_has_the_values_of_the_seeds_that_have_it(compared):
    group = gather(compared).sampled("cadc_frozen", "two_tower", 0.1)
    assert group.column("best_step").tolist() == [8, 0] and group.mean("best_step") == 4
    assert len(group.column("auc")) == 0 and np.isnan(group.mean("auc"))


def test_a_difference_is_the_mean_over_ranked_users(compared):
    report = gather(compared)
    frozen, mf = report.sampled("cadc_frozen", "two_tower", 0.1), report.baseline("mf_alone")
    assert report.difference(frozen, mf).mean == pytest.approx((0.5 + 0 - 0.5) / 3)
    assert report.difference(mf, frozen).mean == pytest.approx((-0.5 + 0 + 0.5) / 3)
    assert report.difference(mf, mf) is None and report.difference(None, mf) is None


def test_quality_on_some_rows_is_the_mean_over_them_and_over_seeds(compared):
    report = gather(compared)
    frozen = report.sampled("cadc_frozen", "two_tower", 0.1)
    assert report.quality(frozen, np.array([True, False, True])) == pytest.approx(3 / 4)


def test_arms_are_in_the_order_of_the_tables_and_rates_from_high_to_low(rankings):
    uniform = [("cadc_frozen", 0.1), ("sample", 0.1), ("cadc_frozen", 0.5)]
    for arm, rate in uniform:
        rankings.add_ranks(Cell("ml-100k", arm, "two_tower", "uniform", rate), [0, 0, -1, 0])
    rankings.add_ranks(Cell("ml-100k", "cadc_frozen", "two_tower", "recent", 0.1), [0, 0, -1, 0])
    rankings.add_ranks(Cell("ml-100k", "full", "two_tower"), [0, 0, -1, 0])
    for arm in ("ease", "popularity"):
        rankings.add_ranks(Cell("ml-100k", arm), [0, 0, -1, 0])
    report = gather(rankings)
    assert [(arm, rate) for (arm, _, _, rate), _ in report.compared] == [
        ("popularity", 1.0),
        ("ease", 1.0),
        ("full", 1.0),
        ("cadc_frozen", 0.5),
        ("sample", 0.1),
        ("cadc_frozen", 0.1),
    ]
    assert report.rates == [0.5, 0.1] and report.headline == 0.1
    assert report.models == ["two_tower"]


def test_all_rows_are_the_sample_of_rate_1_without_factors(compared):
    report = gather(compared)
    assert report.sampled("sample", "two_tower", 1.0) is report.baseline("full", "two_tower")
    assert report.sampled("cadc_frozen", "two_tower", 1.0) is None


def test_clicks_are_judged_by_auc_and_know_the_truth_of_the_test_rows(clicks):
    clicks.add(Cell("synthetic", "popularity"), {"scores": np.array([0.0, 1, 1, 1])}, auc=0.75)
    clicks.add(Cell("synthetic", "mf_alone"), {"scores": np.array([0.0, 1, 2, 3])}, auc=0.75)
    report = gather(clicks)
    assert report.metric == "auc" and report.labels.tolist() == [0, 1, 0, 1]
    assert report.truth.tolist() == [0.1, 0.9, 0.4, 0.3]
    popularity, mf = report.baseline("popularity"), report.baseline("mf_alone")
    assert report.quality(popularity, np.ones(4, bool)) == pytest.approx(0.75)
    assert report.quality(mf, np.array([True, True, True, False])) == pytest.approx(0.5)
    assert report.difference(popularity, mf).mean == pytest.approx(0)


def test_the_truth_of_another_log_is_not_used(clicks):
    (clicks.work / "synthetic" / "own" / "truth.npy").unlink()
    clicks.add(Cell("synthetic", "popularity"), {"scores": np.zeros(4)}, auc=0.5)
    assert gather(clicks).truth is None


def test_a_data_set_without_a_result_has_no_report(rankings):
    rankings.rows.append(results.failure(Cell("ml-100k", "ease"), "s1", "why"))
    assert gather(rankings) is None
