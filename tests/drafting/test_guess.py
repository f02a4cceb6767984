"""What columns are, from their names and their first values."""

import pathlib

import pytest

from cadc_jax.drafting import guess
from cadc_jax.drafting.heads import Head
from cadc_jax.errors import DataError


def head(whole=False, header=(), **columns):
    return Head(
        pathlib.Path("log.csv"),
        {name: [str(x) for x in values] for name, values in columns.items()},
        header=header,
        whole=whole,
    )


IDS = {"user": [1, 1, 1, 1, 2, 2, 2, 2] * 3, "item": range(24)}


@pytest.mark.parametrize(
    ("user", "item"),
    [
        ("user_id", "item_id"),
        ("UserID", "MovieID"),
        ("reviewerID", "parent_asin"),
        ("visitorid", "itemid"),
        ("customer", "product"),
        ("user_id", "business_id"),
        ("the_user_id", "the_item_id"),
    ],
)
def test_users_and_items_are_known_by_their_names(user, item):
    found = guess.guess(head(**{"n": range(24), item: IDS["item"], user: IDS["user"]}))
    assert (found.roles["user"], found.roles["item"]) == (user, item)


def test_columns_with_most_repeated_values_stand_for_what_no_name_tells():
    found = guess.guess(head(a=[1, 2] * 12, b=[*range(12)] * 2, c=[*range(8)] * 3, d=range(24)))
    assert found.roles == {"user": "b", "item": "c"}
    assert any(line.startswith("b: stands for the user") for line in found.why)


def test_no_column_of_repeated_values_is_an_error():
    with pytest.raises(DataError, match=r"no column that may be the user \(a, b\): give the file"):
        guess.guess(head(a=range(24), b=range(24)))


@pytest.mark.parametrize(
    ("name", "values", "min_value", "scale"),
    [
        ("rating", [1, 2, 3, 4, 5], 4, "none"),
        ("stars", [0.5, 2.5, 5], 4, "none"),
        ("score", [1, 4, 7, 10], 8, "none"),
        ("rating", [0, 50, 100], 0, "none"),  # no clear scale
        ("rating", [-9.9, 0.0, 9.9], 0, "none"),
        ("plays", [1, 2, 300], 0, "log"),
        ("quantity", [1, 2, 4], 0, "linear"),
    ],
)
def test_values_are_ratings_or_counts(name, values, min_value, scale):
    found = guess.guess(head(**IDS, **{name: (values * 24)[:24]}))
    assert (found.roles["value"], found.min_value, found.value_scale) == (name, min_value, scale)


def test_labels_of_both_kinds_make_clicks():
    found = guess.guess(head(**IDS, click=[0, 1] * 12, price=[0.5, 1.5] * 12, hour=[1, 2, 3] * 8))
    assert (found.task, found.split) == ("click", "random")
    assert (found.dense, found.categorical) == (["price"], ["hour"])


@pytest.mark.parametrize("values", [[1], [0, 1, 2]])
def test_other_labels_make_none(values):
    found = guess.guess(head(**IDS, click=(values * 24)[:24]))
    assert found.task == "ranking"
    assert any(line.startswith("click: no label") for line in found.why)


def test_clicks_without_users_get_the_columns_of_most_values():
    columns = {"a": [1, 2] * 12, "b": [*range(12)] * 2, "c": [*range(8)] * 3}
    found = guess.guess(head(label=[0, 1, 1] * 8, **columns))
    assert (found.user_features, found.item_features) == (("b",), ("c",))


@pytest.mark.parametrize(
    ("times", "split"),
    [(range(24), "leave_one_out"), ([7] * 24, "leave_one_out"), (None, "leave_one_out")],
)
def test_rankings_hold_out_the_last_rows(times, split):
    columns = IDS if times is None else IDS | {"timestamp": times}
    found = guess.guess(head(**columns))
    assert found.split == split
    assert ("timestamp" in found.roles) == (times == range(24))


def test_users_of_few_rows_are_not_left_out_one_by_one():
    found = guess.guess(head(whole=True, user=range(24), item=[1, 2] * 12, time=range(24)))
    assert found.split == "time"
    assert guess.guess(head(whole=True, user=range(24), item=[1, 2] * 12)).split == "random"


def test_times_that_are_not_read_are_told():
    found = guess.guess(head(**IDS, date=["3 May"] * 24))
    assert any(line.startswith("date: no time that is read") for line in found.why)


def test_columns_without_names_are_known_by_their_place_and_values():
    columns = {"a": [1, 2] * 12, "b": range(24), "c": [1, 3, 5] * 8, "d": range(10**9, 10**9 + 24)}
    found = guess.guess(head(header=tuple(columns), **columns))
    assert found.roles == {"user": "a", "item": "b", "value": "c", "timestamp": "d"}


@pytest.mark.parametrize(
    ("items", "whole", "count"), [(24, True, 4), (24, False, 4), (3000, True, 99)]
)
def test_no_more_negatives_than_there_are_for_each_user(items, whole, count):
    """Each of three users has two thirds of the items."""
    user = [n // (2 * items // 3) for n in range(2 * items)]
    item = [n % items for n in range(2 * items)]
    assert guess.guess(head(whole=whole, user=user, item=item)).num_negatives == count
