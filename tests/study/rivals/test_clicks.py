"""Rivals that predict clicks: their columns and their scores."""

import numpy as np
import pytest

from cadc_jax.evaluation import evaluate
from cadc_jax.study.rivals import clicks, registry
from cadc_jax.study.rivals.clicks import ClickRates, TreeColumns
from cadc_jax.study.rivals.given import Given, without_test
from cadc_jax.study.rivals.one_hot import OneHot
from tests.study.rivals import small


def test_a_row_is_encoded_as_its_ids_its_content_and_its_context():
    """12 users, 10 items, 2 values of users, 3 tags and a year of items, an hour of rows."""
    table = small.clicks()
    encode = OneHot(table)
    assert (encode.ids, encode.size) == (22, 29)
    row = {"user": np.array([5]), "item": np.array([7]), "dense": np.array([[0.25]])}
    found = encode(row | {"categorical": np.zeros((1, 0), np.int32)}).matrix(29).toarray()[0]
    expected = np.zeros(29)
    expected[[5, 12 + 7, 22 + 1]] = 1  # user, item, user % 2
    expected[[24 + 1, 24 + 2]] = 1  # item % 3, and the tag of odd items
    expected[27], expected[28] = 0.7, 0.25
    np.testing.assert_allclose(found, expected)


def test_the_click_rate_of_a_training_row_is_of_the_other_folds():
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 3, 200), rng.integers(0, 2, 200).astype(np.float32)
    rates = ClickRates(ids, labels, 4)
    found, counts = rates.of_other_folds()
    for row in range(200):
        others = (ids == ids[row]) & (rates._fold != rates._fold[row])
        expected = (labels[others].sum() + 10 * labels.mean()) / (others.sum() + 10)
        assert found[row] == pytest.approx(expected)
        assert counts[row] == pytest.approx(others.sum() * 5 / 4)


def test_the_click_rate_of_a_training_row_does_not_depend_on_its_label():
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 3, 200), rng.integers(0, 2, 200).astype(np.float32)
    first, second = np.flatnonzero(labels == 1)[0], np.flatnonzero(labels == 0)[0]
    swapped = labels.copy()
    swapped[[first, second]] = swapped[[second, first]]  # the mean stays
    found = [ClickRates(ids, x, 4).of_other_folds()[0][first] for x in (labels, swapped)]
    fold = ClickRates(ids, labels, 4)._fold
    assert fold[first] == fold[second] or ids[first] != ids[second]
    assert found[0] == pytest.approx(found[1])


def test_an_id_without_training_rows_has_the_mean_click_rate():
    labels = np.array([1, 0, 0, 0], np.float32)
    rate, count = ClickRates(np.array([0, 0, 1, 1]), labels, 3).of_all(np.array([0, 2]))
    np.testing.assert_allclose(rate, [(1 + 2.5) / 12, 0.25])
    assert count.tolist() == [2, 0]


def test_trees_know_which_columns_are_ids():
    table = small.clicks()
    columns = TreeColumns(table)
    found = columns(table.splits["validation"])
    assert columns.categorical == [0, 1, 6]  # user, item, sex
    assert found.shape == (200, 2 + 4 + 1 + 1 + 3 + 1)  # ..., sex, year, tags, hour
    np.testing.assert_array_equal(found[:, 0], table.splits["validation"]["user"])
    np.testing.assert_array_equal(found[:, 6], table.splits["validation"]["user"] % 2)


@pytest.mark.parametrize("name", ["logistic", "fm", "lightgbm"])
def test_a_rival_predicts_clicks_that_it_has_not_seen_and_is_calibrated(name):
    rival = registry.RIVALS[name]
    if rival.library:
        pytest.importorskip(rival.library)
    table = small.clicks()
    fit = rival.open(Given(without_test(table)))
    middle = tuple(axis.grid[0] for axis in rival.axes)
    quality = evaluate.evaluate_clicks(fit(rival.settings(middle)), table.splits["test"])
    assert quality["auc"] > 0.65 and 0.8 < quality["calibration"] < 1.25
    label = table.splits["test"]["label"]
    entropy = -np.mean(np.log(np.where(label, label.mean(), 1 - label.mean())))
    assert quality["logloss"] < entropy


def test_logistic_regression_is_the_least_of_its_loss():
    pytest.importorskip("sklearn")
    table = small.clicks()
    scorer = clicks.logistic(Given(table))({"id_penalty": 2.0, "penalty": 0.5})
    encode, train = OneHot(table), table.splits["train"]
    x, y = encode(train).matrix(encode.size).toarray(), train["label"]
    penalty = np.where(np.arange(encode.size) < encode.ids, 2.0, 0.5)
    w, b = np.zeros(encode.size), 0.0
    for _ in range(100):  # Newton's method
        p = 1 / (1 + np.exp(-x @ w - b))
        design = np.column_stack([x, np.ones(len(x))])
        gradient = design.T @ (p - y) + np.append(penalty * w, 0)
        hessian = (design.T * (p * (1 - p))) @ design + np.diag(np.append(penalty, 0))
        step = np.linalg.solve(hessian, gradient)
        w, b = w - step[:-1], b - step[-1]
    batch = {name: train[name] for name in ("user", "dense", "categorical")}
    found = scorer.score(batch | {"item": train["item"][:, None]})
    np.testing.assert_allclose(np.asarray(found)[:, 0], x @ w + b, atol=0.02)


def test_a_scorer_of_rows_scores_several_items_of_a_user():
    scorer = clicks.scorer_of_rows(lambda rows: 10 * rows["user"] + rows["item"])
    user, own, shared = np.array([1, 2]), np.array([[3, 4], [5, 6]]), np.array([[3, 4]])
    found = scorer.score({"user": user, "item": own})
    np.testing.assert_array_equal(found, [[13, 14], [25, 26]])
    found = scorer.score({"user": user, "item": shared})
    np.testing.assert_array_equal(found, [[13, 14], [23, 24]])
