"""The synthetic click log: its format, its repeatability, and the effects planted in it."""

import numpy as np
import pytest

from cadc_jax.data.readers import criteo, synthetic

ROWS = 20_000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log as the Criteo reader reads it, and its truth."""
    path = tmp_path_factory.mktemp("synthetic") / "train.txt"
    truth = synthetic.write_criteo(path, ROWS, seed=0)
    return criteo.read_logs([path]), truth


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    rank = np.empty(len(scores))
    rank[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    positives = labels.sum()
    pairs = positives * (len(labels) - positives)
    return (rank[labels == 1].sum() - positives * (positives + 1) / 2) / pairs


def test_the_criteo_reader_reads_every_row_whole(log):
    table, truth = log
    assert (table.report.rows, table.report.padded, table.report.malformed) == (ROWS, 0, 0)
    assert all(part.shape == (ROWS,) and part.dtype == np.float32 for part in truth)


def test_the_same_rows_and_seed_give_the_same_bytes(tmp_path):
    truths = [synthetic.write_criteo(tmp_path / name, 500, seed=1) for name in "ab"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(truths[0].probability, truths[1].probability)
    synthetic.write_criteo(tmp_path / "c", 500, seed=2)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_truth_is_known_without_writing(log):
    for written, drawn in zip(log[1], synthetic.criteo_truth(ROWS, seed=0), strict=True):
        np.testing.assert_array_equal(written, drawn)


def test_a_quarter_of_the_rows_are_clicks_drawn_with_their_probability(log):
    table, truth = log
    np.testing.assert_allclose(truth.probability.mean(), synthetic.CLICK_RATE, atol=1e-5)
    error = 4 * np.sqrt((truth.probability * (1 - truth.probability)).sum()) / ROWS
    assert abs(table.label.mean() - truth.probability.mean()) < error
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1)):  # calibrated in every range
        some = (truth.probability >= low) & (truth.probability < high)
        gap = table.label[some].mean() - truth.probability[some].mean()
        assert abs(gap) < 4 * np.sqrt(0.25 / some.sum())


def test_content_and_taste_make_up_the_logit(log):
    _, truth = log
    probability = truth.probability.astype(np.float64)
    intercept = np.log(probability / (1 - probability)) - truth.content - truth.taste
    np.testing.assert_allclose(intercept, intercept[0], atol=1e-3)


def test_a_perfect_model_needs_the_taste(log):
    table, truth = log
    assert 0.80 < auc(table.label, truth.probability) < 0.87
    assert 0.65 < auc(table.label, truth.content) < 0.73
    assert auc(table.label, truth.taste) > auc(table.label, truth.content)


def test_taste_is_a_function_of_the_user_and_the_item_alone(log):
    table, truth = log
    pairs = np.stack([table.categorical[synthetic.USER], table.categorical[synthetic.ITEM]])
    distinct, pair = np.unique(pairs, axis=1, return_inverse=True)
    assert distinct.shape[1] < ROWS  # some pairs repeat
    taste = np.empty(distinct.shape[1], np.float32)
    taste[pair] = truth.taste
    np.testing.assert_array_equal(taste[pair], truth.taste)


def test_users_and_items_are_never_missing_and_have_long_tails(log):
    table, _ = log
    for name, mean in (
        (synthetic.USER, synthetic.ROWS_PER_USER),
        (synthetic.ITEM, synthetic.ROWS_PER_ITEM),
    ):
        values, counts = np.unique(table.categorical[name], return_counts=True)
        assert -1 not in values
        assert 0.95 * mean < counts.mean() < 1.05 * mean
        assert counts.max() > 5 * counts.mean() and np.median(counts) < counts.mean()


def test_columns_share_no_values(log):
    table, _ = log
    values = [np.setdiff1d(column, [-1]) for column in table.categorical.values()]
    assert len(np.unique(np.concatenate(values))) == sum(map(len, values))


def test_fields_are_missing_as_often_as_in_the_real_logs(log):
    table, _ = log
    missing = [np.isnan(column).mean() for column in table.dense.values()]
    np.testing.assert_allclose(missing, synthetic._MISSING_INTEGERS, atol=0.02)
    missing = [(column == -1).mean() for column in table.categorical.values()]
    np.testing.assert_allclose(missing, synthetic._MISSING_CATEGORICALS, atol=0.02)


def test_nothing_changes_with_time(log):
    table, truth = log
    first, second = np.split(truth.probability, 2)
    assert abs(first.mean() - second.mean()) < 4 * truth.probability.std() * np.sqrt(4 / ROWS)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_small_logs_can_be_written(tmp_path, rows):
    truth = synthetic.write_criteo(tmp_path / "train.txt", rows, seed=0)
    assert criteo.read_logs([tmp_path / "train.txt"]).report.rows == rows
    assert np.isfinite(truth.probability).all()
