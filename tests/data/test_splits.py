"""The split of each row, and how repeated pairs are merged."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import splits
from cadc_jax.data.raw import FOLD_IN, TEST, TRAIN, VALIDATION, Negatives, RawTable, ReadReport
from cadc_jax.errors import ConfigError


def raw(user, item=None, **columns):
    user = np.array(user)
    item = np.arange(len(user)) if item is None else np.array(item)
    return RawTable(ReadReport(len(user)), user=user, item=item, **columns)


def split(table, rule, seed=0):
    return splits.assign(table, rule, 0.1, 0.1, seed)


# Leave one out.


def test_the_last_interaction_tests_and_the_one_before_validates():
    table = raw([1, 1, 1, 2, 2, 2, 2], timestamp=np.array([30, 10, 20, 1, 2, 3, 4]))
    fold = split(table, "leave_one_out")
    assert fold.tolist() == [TEST, TRAIN, VALIDATION, TRAIN, TRAIN, VALIDATION, TEST]
    assert fold.dtype == np.int8


def test_equal_times_keep_the_order_of_rows():
    table = raw([1, 2, 1, 2, 1, 2], timestamp=np.array([5, 7, 5, 7, 5, 6]))
    fold = split(table, "leave_one_out")
    assert fold.tolist() == [TRAIN, VALIDATION, VALIDATION, TEST, TEST, TRAIN]


def test_users_with_fewer_than_three_interactions_only_train():
    table = raw([1, 1, 2], timestamp=np.array([1, 2, 3]))
    assert split(table, "leave_one_out").tolist() == [TRAIN] * 3


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=40))
def test_leave_one_out_takes_the_last_rows_of_each_user_in_sorted_order(rows):
    expected = [TRAIN] * len(rows)
    for user in {user for user, _ in rows}:
        own = sorted((when, row) for row, (u, when) in enumerate(rows) if u == user)
        if len(own) >= 3:
            expected[own[-1][1]], expected[own[-2][1]] = TEST, VALIDATION
    names = np.array([f"u{user}" for user, _ in rows])
    table = raw(names, timestamp=np.array([when for _, when in rows]))
    assert split(table, "leave_one_out").tolist() == expected


def test_without_timestamps_a_seeded_order_replaces_time():
    table = raw(np.repeat(np.arange(50), 10))
    first, again, other = (split(table, "leave_one_out", s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    for rows in first.reshape(50, 10):
        assert np.bincount(rows).tolist() == [8, 1, 1]
    assert len(set(np.flatnonzero(first == TEST) % 10)) == 10  # not always the same place


# A share of each user's rows.


def test_the_last_rows_of_each_user_test_and_the_ones_before_validate():
    user = np.repeat([7, 8], [10, 5])
    table = raw(user, timestamp=np.r_[np.arange(10)[::-1], 1, 2, 2, 2, 0])
    fold = splits.assign(table, "last_share", 0.2, 0.3, 0)
    assert fold.tolist() == [
        *[TEST] * 3,
        *[VALIDATION] * 2,
        *[TRAIN] * 5,
        *[TRAIN, VALIDATION, TEST, TEST, TRAIN],  # of 5, 0.3 are 1.5, which is 2
    ]
    assert fold.dtype == np.int8


def test_the_first_row_of_a_user_trains_whatever_the_shares():
    for rows in range(1, 6):
        fold = splits.assign(raw(np.zeros(rows, int)), "last_share", 0.1, 0.89, 0)
        assert np.sum(fold == TRAIN) == 1 and np.sum(fold == TEST) == rows - 1


def test_without_timestamps_a_seeded_order_chooses_the_share():
    table = raw(np.repeat(np.arange(50), 10))
    first, again, other = (splits.assign(table, "last_share", 0.2, 0.3, s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    for rows in first.reshape(50, 10):
        assert np.bincount(rows).tolist() == [5, 2, 3]


# Users.


def users_and_items(rng, users=40, rows=600):
    """Distinct pairs, in a random order."""
    pairs = np.unique(rng.integers(0, [users, 60], (rows, 2)), axis=0)
    return rng.permutation(pairs).T


def test_a_user_trains_or_is_held_out_whole():
    user, item = users_and_items(np.random.default_rng(0))
    fold = splits.assign(raw(user, item), "users", 0.1, 0.2, 0)
    assert fold.dtype == np.int8
    of_user = [np.bincount(fold[user == u], minlength=4) for u in range(40)]
    held_out = [counts for counts in of_user if not counts[TRAIN]]
    assert sum(counts[VALIDATION] > 0 for counts in held_out) == 4  # of 40 users
    assert sum(counts[TEST] > 0 for counts in held_out) == 8
    for counts in held_out:
        assert (counts[VALIDATION] == 0) != (counts[TEST] == 0)
        assert counts[FOLD_IN] == round(0.8 * counts.sum()) > 0
    assert all(counts[TRAIN] in (0, counts.sum()) for counts in of_user)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(-4, 9)), min_size=1, max_size=60, unique=True
    ),
    st.randoms(),
    st.integers(0, 3),
)
def test_the_draw_of_users_and_of_their_items_does_not_depend_on_the_order_of_rows(
    rows, random, seed
):
    def folds(rows, user=lambda x: x, item=lambda x: x):
        users, items = (np.array(column) for column in zip(*rows, strict=True))
        table = raw(user(users), item(items), timestamp=random.getrandbits(20) + users)
        return dict(zip(rows, splits.assign(table, "users", 0.3, 0.3, seed).tolist(), strict=True))

    first = folds(rows)
    assert folds(random.sample(rows, len(rows))) == first


def test_users_and_items_of_text_are_drawn_in_any_order_alike():
    user, item = users_and_items(np.random.default_rng(1))

    def folds(order):
        names = pa.array([f"n{x}" for x in user[order]]), pa.array([f"i{x}" for x in item[order]])
        table = RawTable(ReadReport(len(order)), *names)
        return splits.assign(table, "users", 0.2, 0.2, 5)

    order = np.arange(len(user))
    np.testing.assert_array_equal(folds(order)[::-1], folds(order[::-1]))


def test_the_seed_draws_users_and_their_items():
    user, item = users_and_items(np.random.default_rng(0))
    first, again, other = (splits.assign(raw(user, item), "users", 0.3, 0.3, s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    tested = [set(user[fold == TEST]) for fold in (first, other)]
    assert tested[0] != tested[1] and tested[0] & tested[1]
    both = np.isin(user, list(tested[0] & tested[1]))
    assert np.any(first[both] != other[both])


@pytest.mark.parametrize(("least", "size"), [(0, 2), (1, 2), (2, 3), (3, 4)])
def test_users_with_too_few_rows_train(least, size):
    """Of each held-out user one row is held out and `least` at least are known."""
    user = np.repeat(np.arange(60), np.tile([1, 2, 3, 4], 15))
    fold = splits.assign(raw(user), "users", 0.4, 0.5, 0, least)
    count = np.bincount(user)[user]
    assert np.all(fold[count < size] == TRAIN)
    assert np.any(fold[count == size] == TEST) and np.any(fold[count == size] == VALIDATION)


# Shares of all rows.


@pytest.mark.parametrize("rule", ["order", "time"])
def test_shares_of_rows(rule):
    table = raw(np.zeros(100, int), timestamp=np.arange(100)[::-1])
    fold = splits.assign(table, rule, 0.1, 0.2, 0)
    assert np.bincount(fold).tolist() == [70, 10, 20]


def test_by_order_the_last_rows_test():
    fold = splits.assign(raw(np.zeros(10, int)), "order", 0.2, 0.1, 0)
    assert fold.tolist() == [TRAIN] * 7 + [VALIDATION] * 2 + [TEST]


def test_by_time_the_latest_rows_test_and_equal_times_keep_the_order_of_rows():
    table = raw(np.zeros(10, int), timestamp=np.array([9, 8, 5, 5, 5, 5, 1, 1, 1, 1]))
    fold = splits.assign(table, "time", 0.3, 0.3, 0)
    train, validation, test = (np.flatnonzero(fold == number).tolist() for number in range(3))
    assert (train, validation, test) == ([6, 7, 8, 9], [2, 3, 4], [0, 1, 5])


def test_random_rows_depend_on_the_seed_only():
    table = raw(np.zeros(1000, int))
    first, again, other = (split(table, "random", s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert 5 <= np.sum((first == TEST) & (other == TEST)) <= 25  # 10 by chance
    assert np.all(np.bincount(np.flatnonzero(first == TEST) // 200, minlength=5) > 5)  # of 20
    assert 70 <= np.sum(first == TEST) <= 130 and 70 <= np.sum(first == VALIDATION) <= 130


@pytest.mark.parametrize("rule", splits.BY_PLACE)
def test_a_split_by_place_is_the_same_chunk_by_chunk(rule):
    table = raw(np.zeros(1000, int))
    whole = splits.assign(table, rule, 0.1, 0.2, 3)
    pieces = [
        splits.by_place(np.arange(start, start + 100), 1000, rule, 0.1, 0.2, 3)
        for start in range(0, 1000, 100)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


# The data's own split.


def test_a_given_split_without_validation_takes_one_training_row_of_each_test_user():
    user = [1, 1, 1, 2, 2, 3, 1, 3]
    fold = np.array([TRAIN] * 6 + [TEST] * 2, np.int8)
    given = split(raw(user, fold=fold), "given")
    assert np.bincount(given[:3]).tolist() == [2, 1]  # one of user 1's
    assert given[3:6].tolist() == [TRAIN] * 3  # 2 is not tested; 3 has only one row to train on
    assert given[6:].tolist() == [TEST] * 2
    assert fold.tolist() == [TRAIN] * 6 + [TEST] * 2  # the data's own stays as it was


def test_the_seed_chooses_the_training_rows_of_a_given_split_that_validate():
    user = np.r_[np.repeat(np.arange(30), 5), np.arange(30)]
    table = raw(user, fold=np.repeat([TRAIN, TEST], [150, 30]).astype(np.int8))
    first, again, other = (split(table, "given", s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.all(np.sum(first[:150].reshape(30, 5) == VALIDATION, axis=1) == 1)
    assert len(set(np.flatnonzero(first == VALIDATION) % 5)) == 5  # not always the same place


def test_a_given_split_with_validation_stays_as_it_is():
    fold = np.array([TRAIN, TRAIN, VALIDATION, TEST], np.int8)
    given = split(raw([1, 1, 1, 1], fold=fold), "given")
    np.testing.assert_array_equal(given, fold)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("time", "data.split='time' needs timestamps, which this data does not have"),
        ("given", "data.split='given' needs data with a split of its own .a test file."),
    ],
)
def test_rules_that_need_more_columns_say_so(rule, message):
    with pytest.raises(ConfigError, match=message):
        split(raw([1, 2, 3]), rule)


@pytest.mark.parametrize("rule", ["leave_one_out", "last_share", "users", "given"])
def test_rules_by_user_refuse_data_without_users(rule):
    clicks = RawTable(ReadReport(3), fold=np.array([TRAIN, TRAIN, TEST], np.int8))
    with pytest.raises(ConfigError, match="the data names no user, which this split needs"):
        split(clicks, rule)


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="'last' is not a rule of order, random"):
        split(raw([1, 2, 3]), "last")


# Repeats.


def test_repeats_become_the_latest_row_with_the_sum_of_values():
    table = raw(
        [1, 2, 1],
        [7, 7, 7],
        value=np.array([1, 5, 2], np.float32),
        timestamp=np.array([9, 1, 3]),
        dense={"x": np.array([0.1, 0.2, 0.3])},
        categorical={"c": np.array(["a", "b", "c"])},
    )
    merged = splits.merge_repeats(table)
    assert merged.timestamp.tolist() == [9, 1]
    assert merged.value.tolist() == [3, 5] and merged.value.dtype == np.float32
    assert merged.dense["x"].tolist() == [0.1, 0.2]
    assert merged.categorical["c"].tolist() == ["a", "b"]


def test_without_timestamps_the_last_row_is_the_latest_and_each_row_counts_1():
    merged = splits.merge_repeats(raw(["a", "b", "a", "a"], [7, 7, 7, 8], fold=np.arange(4)))
    assert merged.user.tolist() == ["b", "a", "a"] and merged.item.tolist() == [7, 7, 8]
    assert merged.value.tolist() == [1, 2, 1]
    assert merged.fold.tolist() == [1, 2, 3]


def test_the_last_of_repeats_at_the_same_time_is_kept():
    table = raw([1, 1, 1], [7, 7, 7], timestamp=np.array([5, 5, 4]), fold=np.arange(3))
    assert splits.merge_repeats(table).fold.tolist() == [1]


@pytest.mark.parametrize("rule", splits.BY_SHARE)
def test_merged_rows_can_be_split_by_shares(rule):
    user, item = np.repeat(np.arange(20), 10), np.tile(np.arange(5), 40)
    merged = splits.merge_repeats(raw(user, item, timestamp=np.arange(200)))
    assert merged.report.rows == 100
    fold = splits.assign(merged, rule, 0.1, 0.2, 0)
    assert len(fold) == 100
    rows = {  # of each user 5
        "order": [70, 10, 20],
        "time": [70, 10, 20],
        "last_share": [60, 20, 20],
        "users": [70, 2, 4, 24],
    }
    if rule != "random":
        assert np.bincount(fold).tolist() == rows[rule]


def test_a_table_without_repeats_stays_as_it_is():
    table = raw([1, 1, 2], [7, 8, 7])
    assert splits.merge_repeats(table) is table


@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 4), st.integers(1, 5)),
        min_size=1,
        max_size=40,
    )
)
def test_merging_keeps_what_a_dictionary_of_pairs_keeps(rows):
    latest, total = {}, {}
    for row, (user, item, when, value) in enumerate(rows):
        latest[user, item] = max(latest.get((user, item), (-1, -1)), (when, row))
        total[user, item] = total.get((user, item), 0) + value
    expected = [
        (rows[row][0], rows[row][1], when, total[rows[row][:2]])
        for when, row in sorted(latest.values(), key=lambda place: place[1])
    ]
    user, item, when, value = (np.array(column) for column in zip(*rows, strict=True))
    merged = splits.merge_repeats(raw(user, item, timestamp=when, value=value.astype(np.float32)))
    columns = (merged.user, merged.item, merged.timestamp, merged.value)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_negatives_stay_with_their_test_rows_when_repeats_merge():
    table = raw(
        [1, 1, 1, 2],
        [5, 7, 7, 9],
        fold=np.array([TRAIN, TEST, TEST, TEST], np.int8),
        negatives=Negatives(np.array([10, 20, 30]), np.array([[0], [1], [2]])),
    )
    merged = splits.merge_repeats(table)
    assert merged.item.tolist() == [5, 7, 9]
    assert merged.negatives.places.tolist() == [[1], [2]]
    assert merged.negatives.items is table.negatives.items


def test_the_negatives_of_a_test_row_that_was_merged_away_are_dropped():
    table = raw(
        [1, 1, 2],
        [7, 7, 9],
        fold=np.array([TRAIN, TEST, TEST], np.int8),
        timestamp=np.array([2, 1, 3]),
        negatives=Negatives(np.array([20, 30]), np.array([[0], [1]])),
    )
    merged = splits.merge_repeats(table)
    assert merged.fold.tolist() == [TRAIN, TEST]
    assert merged.negatives.places.tolist() == [[1]]


@pytest.mark.parametrize("rule", ["leave_one_out", "last_share", "given"])
def test_users_and_items_may_be_text(rule):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 9, 100), rng.integers(0, 30, 100)
    more = {"timestamp": rng.permutation(100), "value": np.ones(100, np.float32)}
    more["fold"] = np.where(np.arange(100) < 80, TRAIN, TEST).astype(np.int8)
    numbers = splits.merge_repeats(raw(user, item, **more))
    names = (pa.array([f"n{x}" for x in column]) for column in (user, item))
    texts = splits.merge_repeats(RawTable(ReadReport(100), *names, **more))
    assert texts.user.to_pylist() == [f"n{x}" for x in numbers.user]
    expected = splits.assign(numbers, rule, 0.2, 0.2, seed=1)
    np.testing.assert_array_equal(splits.assign(texts, rule, 0.2, 0.2, seed=1), expected)
