"""The comparisons of a study, and Holm's correction by hand."""

import dataclasses

import numpy as np
import pytest

from cadc_jax.study import comparisons, data_report
from cadc_jax.study.bootstrap import Interval
from cadc_jax.study.cells import Cell
from cadc_jax.study.comparisons import Comparison


def gather(made):
    return data_report.gather(made.out, made.rows)


def test_holm_multiplies_the_smallest_p_value_by_their_number_and_so_on():
    """4 x 0.01; 3 x 0.02; 2 x 0.03, which is not below the one before; 0.5."""
    found = comparisons.holm(np.array([0.5, 0.02, 0.01, 0.03]))
    assert found == pytest.approx([0.5, 0.06, 0.04, 0.06])


def test_no_adjusted_p_value_is_above_1_and_missing_ones_do_not_count():
    found = comparisons.holm(np.array([0.9, np.nan, 0.7, 0.02]))
    assert found == pytest.approx([1, np.nan, 1, 0.06], nan_ok=True)
    assert comparisons.holm(np.zeros(0)).size == 0


def made(metric, mean, holm):
    place = ("x", "cadc_frozen", "dlrm", 0.1, "full", metric, 10)
    return Comparison(*place, Interval(mean, mean - 1, mean + 1, holm, True), holm)


@pytest.mark.parametrize(
    ("metric", "mean", "holm", "verdict"),
    [
        ("ndcg", 0.1, 0.04, "better"),
        ("ndcg", -0.1, 0.04, "worse"),
        ("logloss", -0.1, 0.04, "better"),  # less of it is better
        ("auc", 0.1, 0.06, "not told apart"),
        ("auc", 0.1, np.nan, "not told apart"),
    ],
)
def test_the_verdict_is_that_of_the_adjusted_p_value(metric, mean, holm, verdict):
    assert made(metric, mean, holm).verdict == verdict
    header, line = comparisons.table([made(metric, mean, holm)])
    shown = dict(zip(header, line, strict=True))
    assert shown["verdict"] == verdict and shown["over"] == "seeds and users"
    assert shown["verdict"].verdict == ("" if verdict == comparisons.UNCLEAR else verdict)


def test_the_list_holds_the_arms_of_cadc_and_is_the_same_for_every_study():
    assert {arm for arm, _ in comparisons.COMPARISONS} == {"cadc_frozen", "cadc_trainable"}
    peers = [peer for arm, peer in comparisons.COMPARISONS if arm == "cadc_frozen"]
    assert peers == ["full", "mf_alone", "mf_ease", "ease", "sample"]


def test_what_has_a_result_is_compared_and_holm_is_over_all_reports(compared):
    one = gather(compared)
    found = comparisons.compare([one])
    assert [(x.arm, x.peer, x.rate) for x in found] == [
        ("cadc_frozen", "full", 0.1),
        ("cadc_frozen", "mf_alone", 0.1),
    ]
    group = one.sampled("cadc_frozen", "two_tower", 0.1)
    assert found[0].difference == one.difference(group, one.baseline("full", "two_tower"))
    p = [x.difference.p for x in found]
    assert [x.holm for x in found] == pytest.approx(comparisons.holm(np.array(p)))
    twice = comparisons.compare([one, dataclasses.replace(one, variant="als.alpha=5")])
    assert [x.holm for x in twice] == pytest.approx(comparisons.holm(np.array(2 * p)))


def test_at_rate_1_the_sample_is_all_rows_and_is_compared_once(compared):
    cell = Cell("ml-100k", "cadc_frozen", "two_tower", "uniform", 1.0)
    compared.add_ranks(cell, [0, 1, -1, 0])
    found = [x.peer for x in comparisons.compare([gather(compared)]) if x.rate == 1]
    assert found == ["full", "mf_alone"]


def test_clicks_are_compared_by_auc_and_by_log_loss(clicks):
    """An arm whose scores are not logits has no log loss."""
    cell = Cell("synthetic", "cadc_frozen", "dlrm", "uniform", 0.1)
    scores = np.array([-1.0, 1, -2, 2])
    clicks.add(cell, {"scores": scores}, auc=1.0, logloss=0.2)
    clicks.add(Cell("synthetic", "full", "dlrm"), {"scores": -scores}, auc=0.0, logloss=1.7)
    clicks.add(Cell("synthetic", "mf_alone"), {"scores": -scores}, auc=0.0)
    found = comparisons.compare([gather(clicks)])
    assert [(x.peer, x.metric) for x in found] == [
        ("full", "auc"),
        ("full", "logloss"),
        ("mf_alone", "auc"),
    ]
    losses = [np.log1p(np.exp(sign * np.array([1, 1, 2, 2]))).mean() for sign in (-1, 1)]
    assert found[1].difference.mean == pytest.approx(losses[0] - losses[1])
    assert found[0].difference.mean == 1
