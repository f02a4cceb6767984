"""The matrix of a log that is read in blocks. `tests/runtime` reads it in several processes."""

import numpy as np
import pytest

from cadc_jax.errors import DataError
from cadc_jax.factorization import log_matrix
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.factorization.log_matrix import Log
from tests.factorization import reference


def log_of(user, item, value, users, items):
    def read(start, stop):
        part = slice(start, stop)
        return user[part], item[part], None if value is None else value[part]

    return Log(len(user), users, items, read)


@pytest.fixture(params=["values", "repeats alone"])
def rows(request, monkeypatch):
    """A log with every special case, in blocks of few rows."""
    monkeypatch.setattr(log_matrix, "BLOCK_ROWS", 7)
    user, item, value = reference.sparse_data()
    return user, item, value if request.param == "values" else None


def assert_same(found, expected):
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.columns, expected.columns)
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_log_that_is_read_in_blocks_has_the_matrix_of_its_rows(rows):
    found = log_matrix.read(log_of(*rows, reference.U, reference.I))
    expected = Interactions.from_rows(*rows[:2], reference.U, reference.I, rows[2])
    assert (found.num_users, found.num_items) == (reference.U, reference.I)
    assert found.num_entries == expected.num_entries
    assert found.extent == expected.extent
    for side, same in ((found.by_user, expected.by_user), (found.by_item, expected.by_item)):
        np.testing.assert_array_equal(side.counts, same.counts)
        assert side.total == pytest.approx(same.total, rel=1e-12)
        assert side.all_ones == same.all_ones
        assert_same(side.take(np.arange(len(side.counts))), same)


def test_some_rows_are_those_of_the_whole_matrix(rows):
    found = log_matrix.read(log_of(*rows, reference.U, reference.I))
    expected = Interactions.from_rows(*rows[:2], reference.U, reference.I, rows[2])
    for side, same in ((found.by_user, expected.by_user), (found.by_item, expected.by_item)):
        chosen = np.arange(1, len(side.counts), 3)
        assert_same(side.take(chosen), same.take(chosen))


def test_rows_that_do_not_count_are_not_in_the_matrix():
    user, item, kept = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([1, 0, 0, 1], bool)

    def read(start, stop):
        part = slice(start, stop)
        return user[part][kept[part]], item[part][kept[part]], None

    found = log_matrix.read(Log(4, 2, 2, read))
    np.testing.assert_array_equal(found.by_user.counts, [1, 1])
    np.testing.assert_array_equal(found.by_item.take(np.arange(2)).columns, [0, 1])


def test_a_log_without_rows_has_an_empty_matrix():
    none = np.zeros(0, np.int32)
    found = log_matrix.read(log_of(none, none, None, 3, 2))
    assert (found.num_entries, found.num_users, found.num_items) == (0, 3, 2)


@pytest.mark.parametrize(
    ("user", "value", "message"),
    [([0, 3], None, "user ids run from 0 to 3"), ([0, 1], [1, np.inf], "1 values are not finite")],
)
def test_rows_that_cannot_be_right_are_rejected(user, value, message):
    value = None if value is None else np.array(value, np.float32)
    with pytest.raises(DataError, match=message):
        log_matrix.read(log_of(np.array(user), np.array([0, 1]), value, 3, 2))
