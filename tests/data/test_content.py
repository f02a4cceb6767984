"""The content of users and items, by id."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import vocabulary
from cadc_jax.data.content import encode_content
from cadc_jax.data.raw import EntityTable
from cadc_jax.data.table import Features
from cadc_jax.data.vocabulary import Vocabulary
from cadc_jax.errors import ConfigError, DataError
from tests.data.tables import peak_growth

KNOWN = vocabulary.of(np.array([10, 20, 30, 40]))  # ids 1 to 4


def test_without_content_there_are_no_features():
    found = encode_content("user", None, KNOWN)
    assert {name: x.shape for name, x in found.columns.items()} == {
        "dense": (5, 0),
        "categorical": (5, 0),
    }
    assert found.features == Features() and found.vocabularies == {}


def test_without_content_ids_may_be_hashed():
    found = encode_content("user", None, Vocabulary(np.zeros(0, np.int64), 7))
    assert found.columns["dense"].shape == (8, 0)


def test_content_is_aligned_to_ids_and_may_be_missing():
    users = EntityTable(
        ids=np.array([30, 99, 10]),
        dense={"flag": np.array([1, 0, 0], np.float32), "age": np.array([40, 99, 20], np.float32)},
        categorical={"country": np.array(["no", "xx", "de"])},
        titles=np.array(["Kari", "-", "Hans"]),
    )
    found = encode_content("user", users, KNOWN)
    # User 99 has no id, so its age and country count nowhere.
    np.testing.assert_array_equal(found.columns["dense"], [[0, 0], [0, -1], [0, 0], [1, 1], [0, 0]])
    assert found.columns["categorical"].tolist() == [[0], [1], [0], [2], [0]]  # of 'de', 'no'
    assert found.titles.tolist() == ["", "Hans", "", "Kari", ""]
    assert found.features == Features(("flag", "age"), ("country",), (3,))
    assert {name: x.values.tolist() for name, x in found.vocabularies.items()} == {
        "user.country": ["de", "no"]
    }


def test_missing_dense_values_become_the_mean():
    items = EntityTable(np.array([10, 20, 30]), {"length": np.array([5, np.nan, 1], np.float32)})
    found = encode_content("item", items, KNOWN)
    assert found.columns["dense"][:, 0].tolist() == [0, 1, 0, -1, 0]


def test_text_ids_of_any_width_are_found():
    users = EntityTable(np.array(["40", "a much longer name"]), {"flag": np.ones(2, np.float32)})
    found = encode_content("user", users, vocabulary.of(np.array(["10", "40"])))
    assert found.columns["dense"][:, 0].tolist() == [0, 0, 1]


def test_sets_of_values_become_ids_in_their_order():
    items = EntityTable(
        np.array([30, 99, 10, 20]),
        categorical={"brand": np.array(["a", "b", "a", "a"])},
        bags={"genres": np.array(["War|Drama", "Unknown", "", "War"])},
    )
    found = encode_content("item", items, KNOWN)
    assert found.columns["bags"].dtype == np.int32
    assert found.columns["bags"].tolist() == [
        [[-1, -1]],
        [[-1, -1]],
        [[2, -1]],
        [[2, 1]],
        [[-1, -1]],
    ]
    assert found.features == Features((), ("brand",), (2,), ("genres",), (3,))
    assert found.vocabularies["item.genres"].values.tolist() == ["Drama", "War"]


words = st.text("abc ", min_size=1, max_size=3)


@given(st.lists(st.lists(words, max_size=4), min_size=1, max_size=4))
def test_bags_hold_exactly_the_values_of_each_set(sets):
    items = EntityTable(
        np.arange(10, 10 * len(sets) + 1, 10), bags={"x": np.array(["|".join(x) for x in sets])}
    )
    found = encode_content("item", items, KNOWN)
    values = found.vocabularies["item.x"].values
    for ids, expected in zip(found.columns["bags"][1 : len(sets) + 1, 0], sets, strict=True):
        assert values.take(pa.array(ids[ids >= 0] - 1)).tolist() == expected
        assert np.all(ids[len(expected) :] == -1)


def test_a_long_title_does_not_widen_the_others():
    growth = peak_growth(
        """
        import numpy as np, pyarrow as pa
        from cadc_jax.data import vocabulary
        from cadc_jax.data.content import encode_content
        from cadc_jax.data.raw import EntityTable
        """,
        """
        ids = np.arange(10_000)
        titles = pa.array(["x" * 1_000_000] + ["Film"] * 9_999)
        found = encode_content("item", EntityTable(ids, titles=titles), vocabulary.of(ids))
        assert found.titles[1].as_py() == "x" * 1_000_000
        """,
    )
    assert growth < 100  # 40 GB if all were as wide as the longest one


def test_a_set_of_too_many_values_is_refused():
    items = EntityTable(np.array([10]), bags={"x": np.array(["|".join(map(str, range(1001)))])})
    with pytest.raises(DataError, match="a set of x has 1,001 values: at most 1,000"):
        encode_content("item", items, KNOWN)


def test_users_have_no_sets_of_values():
    users = EntityTable(np.array([10]), bags={"hobbies": np.array(["chess|go"])})
    with pytest.raises(ConfigError, match="bags of users"):
        encode_content("user", users, KNOWN)


def test_hashed_ids_have_no_content():
    hashed = Vocabulary(np.zeros(0, np.int64), 3)
    with pytest.raises(ConfigError, match="more of them than data.max_vocabulary"):
        encode_content("item", EntityTable(np.array([10])), hashed)


def test_content_of_unknown_ids_is_refused():
    with pytest.raises(
        DataError, match="none of the 1 ids of the user content .* like .10, 20, 30.; .* like .'a'."
    ):
        encode_content("user", EntityTable(np.array(["a"])), KNOWN)
