"""Values that name users or items get numbers."""

import numpy as np
import pytest

from cadc_jax.data.id_map import IdMap
from cadc_jax.errors import DataError


@pytest.mark.parametrize(
    "values", [["b", "a", "b", "ça"], np.array(["b", "a", "b", "ça"], object), [30, 7, 30, 2**40]]
)
def test_ids_count_from_one_in_the_order_of_the_values(values):
    found = IdMap.of(values)
    assert len(found) == 4  # three values, and 0
    ids = found.ids(values)
    assert ids.dtype == np.int32
    assert found.values(ids) == list(values)
    assert sorted(set(ids.tolist())) == [1, 2, 3]


def test_what_is_not_known_is_0_and_0_is_nothing():
    found = IdMap.of(["x", "z"])
    assert found.ids(["y", "z", "a", "zz", ""]).tolist() == [0, 2, 0, 0, 0]
    assert found.ids([1, 2]).tolist() == [0, 0]  # numbers are no texts
    assert found.values([2, 0, -1, 3]) == ["z", None, None, None]
    assert IdMap.of([]).ids(["x"]).tolist() == [0]


def test_columns_of_data_frames_are_taken():
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(["u2", "u1", "u2"])
    assert IdMap.of(column).ids(column).tolist() == [2, 1, 2]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_values_are_refused(missing):
    with pytest.raises(DataError, match="1 values are missing: leave these rows out"):
        IdMap.of(np.array(["a", missing, "b"], object))


def test_values_of_several_types_are_refused():
    with pytest.raises(DataError, match="make them of one type"):
        IdMap.of(np.array(["a", 1], object))


def test_a_table_is_no_column():
    with pytest.raises(DataError, match=r"a column \[N\], not of shape \(2, 2\)"):
        IdMap.of([[1, 2], [3, 4]])


def test_it_is_shown_in_a_few_words():
    assert repr(IdMap.of(np.arange(5000))) == "IdMap(5,000 values)"
