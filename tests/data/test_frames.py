"""Logs in data frames: their numbers, their names, and frames of recommendations."""

import numpy as np
import pyarrow as pa
import pytest

import cadc_jax as cadc
from cadc_jax.errors import ConfigError, DataError

COLUMNS = {
    "customer": ["bob", "ann", "bob", "cid"],
    "product": [7, 9, 9, 7],
    "times": [1, 5, 2, 1],
    "click": [True, False, True, True],
}


def of_pandas(columns):
    return pytest.importorskip("pandas").DataFrame(columns)


def of_polars(columns):
    return pytest.importorskip("polars").DataFrame(columns)


def of_lazy_polars(columns):
    return of_polars(columns).lazy()


FRAMES = [pa.table, of_pandas, of_polars, of_lazy_polars]


@pytest.mark.parametrize("make", FRAMES)
def test_a_log_numbers_users_and_items_and_keeps_their_names(make):
    log = cadc.Log.of(make(COLUMNS), "customer", "product", value="times", label="click")
    assert log.user.tolist() == [2, 1, 2, 3] and log.item.tolist() == [1, 2, 2, 1]
    assert log.users.values([1, 2, 3]) == ["ann", "bob", "cid"]
    assert log.value.tolist() == [1, 5, 2, 1] and log.label.tolist() == [1, 0, 1, 1]
    assert repr(log) == "Log(4 rows, IdMap(3 values), IdMap(2 values))"


@pytest.mark.parametrize("make", FRAMES)
def test_recommendations_are_a_frame_of_the_same_kind(make):
    frame = make(COLUMNS)
    log = cadc.Log.of(frame, "customer", "product")
    found = log.recommended(["cid", "ann"], np.array([[2, -1], [1, 2]]), np.ones((2, 2)))
    assert type(found) is type(frame.collect() if hasattr(frame, "collect") else frame)
    columns = {name: list(np.asarray(found[name])) for name in ("customer", "rank", "product")}
    assert columns == {"customer": ["cid", "ann", "ann"], "rank": [1, 1, 2], "product": [9, 7, 9]}


def test_a_log_is_factorised_as_its_numbers_are():
    log = cadc.Log.of(pa.table(COLUMNS), "customer", "product", value="times")
    config = cadc.ALSConfig(factors=2)
    found = cadc.factorize(log, config=config)
    want = cadc.factorize(log.user, log.item, 4, 3, config, value=log.value)
    np.testing.assert_array_equal(found.user, want.user)
    plain = cadc.factorize(log.user, log.item, 4, 3, config)
    assert np.abs(np.asarray(found.user @ found.item.T - plain.user @ plain.item.T)).max() > 0.01
    with pytest.raises(ConfigError, match="a log has the items, values and labels"):
        cadc.factorize(log, value=log.value)


def test_labels_of_a_log_are_those_of_its_rows():
    log = cadc.Log.of(pa.table(COLUMNS), "customer", "product", label="click")
    assert list(log.rows) == ["user", "item", "label"]
    found = cadc.factorize(log, config=cadc.SGDConfig(factors=2, epochs=1))
    assert found.user.shape[0] == 4


def test_categories_are_their_texts():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(COLUMNS).astype({"customer": "category"})
    assert cadc.Log.of(frame, "customer", "product").users.values([1]) == ["ann"]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ([1, 2], "list: no data frame; give one of pandas"),
        (pa.table({"customer": ["a"]}), "no column 'product'; there are customer"),
        (
            pa.table({"customer": ["a", None], "product": [1, 2]}),
            "column 'customer': 1 values are missing",
        ),
        (
            pa.table({"customer": ["a"], "product": [1], "times": ["x"]}),
            "column 'times': holds String, not numbers",
        ),
        (
            pa.table({"customer": ["a"], "product": [1], "times": pa.array([None], pa.int64())}),
            "column 'times': 1 numbers are missing",
        ),
    ],
)
def test_what_cannot_be_a_log_is_named(frame, message):
    with pytest.raises(DataError, match=message):
        value = "times" if "times" in getattr(frame, "column_names", ()) else None
        cadc.Log.of(frame, "customer", "product", value=value)
