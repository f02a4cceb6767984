import numpy as np
import pytest

from cadc_jax.data import splits
from cadc_jax.data.schema import TEST, TRAIN, VALIDATION, RawTable, ReadReport
from cadc_jax.errors import ConfigError


def raw(user, item=None, **columns):
    user = np.array(user)
    item = np.arange(len(user)) if item is None else np.array(item)
    return RawTable(ReadReport(len(user)), user=user, item=item, **columns)


def test_the_last_interaction_tests_and_the_one_before_validates():
    table = raw([1, 1, 1, 2, 2, 2, 2], timestamp=np.array([30, 10, 20, 1, 2, 3, 4]))
    fold = splits.assign(table, "leave_one_out", 0, 0, 0)
    assert fold.tolist() == [TEST, TRAIN, VALIDATION, TRAIN, TRAIN, VALIDATION, TEST]


def test_equal_times_keep_the_order_of_rows():
    table = raw([1, 1, 1], timestamp=np.array([5, 5, 5]))
    assert splits.assign(table, "leave_one_out", 0, 0, 0).tolist() == [TRAIN, VALIDATION, TEST]


def test_users_of_fewer_than_three_interactions_only_train():
    table = raw([1, 1, 2], timestamp=np.array([1, 2, 3]))
    assert splits.assign(table, "leave_one_out", 0, 0, 0).tolist() == [TRAIN] * 3


def test_without_times_a_seeded_order_stands_in():
    table = raw(np.repeat(np.arange(50), 10))
    first, again, other = (splits.assign(table, "leave_one_out", 0, 0, s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.bincount(first).tolist() == [400, 50, 50]


@pytest.mark.parametrize("rule", ["order", "time", "random"])
def test_shares_of_rows(rule):
    table = raw(np.zeros(100, int), timestamp=np.arange(100)[::-1])
    fold = splits.assign(table, rule, 0.1, 0.2, 0)
    assert np.bincount(fold).tolist() == [70, 10, 20]
    if rule == "order":
        assert np.all(fold[80:] == TEST) and np.all(fold[70:80] == VALIDATION)
    if rule == "time":  # times run backwards
        assert np.all(fold[:20] == TEST) and np.all(fold[20:30] == VALIDATION)


def test_a_given_split_without_validation_takes_one_training_row_of_each_test_user():
    user = [1, 1, 1, 2, 2, 3, 1, 3]
    fold = np.array([TRAIN] * 6 + [TEST] * 2, np.int8)
    given = splits.assign(raw(user, fold=fold), "given", 0, 0, 0)
    assert np.bincount(given[:3]).tolist() == [2, 1]  # one of user 1's
    assert given[3:6].tolist() == [TRAIN] * 3  # 2 is not tested; 3 has only one row to train on
    assert given[6:].tolist() == [TEST] * 2


def test_a_given_split_with_validation_stays_as_it_is():
    fold = np.array([TRAIN, VALIDATION, TEST], np.int8)
    np.testing.assert_array_equal(splits.assign(raw([1, 1, 1], fold=fold), "given", 0, 0, 0), fold)


@pytest.mark.parametrize(
    ("rule", "validation", "test", "message"),
    [
        ("time", 0.1, 0.1, "needs timestamps"),
        ("given", 0.1, 0.1, "a test file"),
        ("order", 0.0, 0.1, "positive shares"),
        ("order", 0.5, 0.5, "leave rows to train"),
        ("last", 0.1, 0.1, "must be one of"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(rule, validation, test, message):
    with pytest.raises(ConfigError, match=message):
        splits.assign(raw([1, 2, 3]), rule, validation, test, 0)


def test_repeats_become_their_latest_row_with_the_sum_of_values():
    table = raw(
        [1, 2, 1],
        [7, 7, 7],
        value=np.array([1, 5, 2], np.float32),
        timestamp=np.array([9, 1, 3]),
    )
    merged = splits.merge_repeats(table)
    assert merged.timestamp.tolist() == [9, 1]
    assert merged.value.tolist() == [3, 5]


def test_negatives_stay_with_their_test_rows_when_repeats_merge():
    table = raw(
        [1, 1, 1, 2],
        [5, 7, 7, 9],
        fold=np.array([TRAIN, TEST, TEST, TEST], np.int8),
        negatives=np.array([[10], [20], [30]]),
    )
    merged = splits.merge_repeats(table)
    assert merged.item.tolist() == [5, 7, 9]
    assert merged.negatives.tolist() == [[20], [30]]
