"""Values to ids: which ones have an id, which share one, and what too many of them come to."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import raw, vocabulary
from cadc_jax.data.vocabulary import Counter, Vocabulary


def test_ids_are_places_in_the_vocabulary_and_0_is_everything_else():
    numbers = vocabulary.of(np.array([7, 3, 7, 9, 3]), min_count=2)
    assert numbers.values.tolist() == [3, 7] and numbers.size == 3
    assert numbers.ids(np.array([7, 3, 9, 100, -1])).tolist() == [2, 1, 0, 0, 0]
    text = vocabulary.of(np.array(["b", "a", "b"]))
    assert text.ids(np.array(["b", "zebra", "a"])).tolist() == [2, 0, 1]


def two_columns(values):
    return st.tuples(st.lists(values, min_size=1), st.lists(values))


@given(two_columns(st.integers(-3, 6)) | two_columns(st.text("ab", max_size=3)), st.integers(1, 3))
def test_encoding_is_what_a_dictionary_of_counts_gives(columns, min_count):
    train, other = columns
    kind = np.array(train).dtype.kind
    known = sorted(value for value in set(train) if train.count(value) >= min_count)
    found = vocabulary.of(np.array(train), min_count)
    assert found.values.tolist() == known
    expected = [known.index(value) + 1 if value in known else 0 for value in other]
    ids = found.ids(np.array(other, kind))
    assert ids.tolist() == expected and ids.dtype == np.int32


def test_a_number_is_found_as_text_and_text_as_a_number():
    numbers = Vocabulary(np.array([-1, 7, 30]))
    assert numbers.ids(np.array(["30", "7", "07", "7.0", "", "x"])).tolist() == [3, 2, 0, 0, 1, 0]
    text = Vocabulary(np.array(["30", "7", "x"]))
    assert text.ids(np.array([7, 30, 5])).tolist() == [2, 1, 0]


def test_values_of_chunks_are_counted_together():
    counter = Counter(0)
    counter.add(pa.array([5, 9]), np.array([1, 3]))
    counter.add(pa.array([9, 7, 5]), np.array([1, 1, 0]))
    assert counter.vocabulary(1).values.tolist() == [5, 7, 9]
    assert counter.vocabulary(2).values.tolist() == [9]


@pytest.mark.parametrize("most", [0, 5, 6])
def test_counters_merged_are_the_counter_of_all(most):
    parts = [([5, 9], [1, 3]), ([9, 7], [1, 1]), ([], []), ([1, 2, 3, 5], [2, 1, 1, 1])]
    together, alone = Counter(most), Counter(most)
    for values, counts in parts:
        values, counts = pa.array(values, pa.int64()), np.array(counts, int)
        own = Counter(most)
        own.add(values, counts)
        together.merge(own)
        alone.add(values, counts)
    for min_count in (1, 2, 4):
        found, expected = together.vocabulary(min_count), alone.vocabulary(min_count)
        assert found.values.tolist() == expected.values.tolist()
        assert found.hashed == expected.hashed == (5 if most == 5 else 0)


def test_text_that_is_all_plain_integers_becomes_integers():
    def values(*texts):
        counter = Counter(0)
        counter.add(pa.array(texts), np.ones(len(texts), int))
        return counter.vocabulary(1).values

    assert values("10", "9", "").tolist() == [-1, 9, 10]
    assert values("10", "9", "x").tolist() == ["10", "9", "x"]
    assert values("10", "09").tolist() == ["09", "10"]
    assert values("-1", "").tolist() == ["", "-1"]  # as a number, missing would be the same


def test_a_column_of_too_many_values_is_hashed(monkeypatch):
    monkeypatch.setattr(vocabulary, "_LEAST_PENDING", 10)
    counter = Counter(100)
    for start in range(0, 200, 20):
        counter.add(pa.array(np.arange(start, start + 20)), np.ones(20, int))
    hashed = counter.vocabulary(1)
    assert hashed.hashed == 100 and hashed.size == 101 and not len(hashed.values)
    assert counter.merged is None and not counter.pending  # nothing is kept
    ids = hashed.ids(np.arange(10_000))
    assert ids.min() == 1 and ids.max() == 100
    counts = np.bincount(ids, minlength=101)[1:]
    assert np.sum((counts - 100) ** 2 / 100) < 149  # chi-square of 99 degrees, p = 0.001


def test_as_many_values_as_allowed_are_kept():
    counter = Counter(3)
    for _ in range(2):
        counter.add(pa.array([4, 5, 6]), np.ones(3, int))
    assert counter.vocabulary(1).values.tolist() == [4, 5, 6]


@pytest.mark.parametrize("texts", [["7", "-3", "", "0"], ["ab", "a", ""]])
def test_hashed_ids_do_not_depend_on_how_a_value_is_held(texts):
    hashed = Vocabulary(np.zeros(0, np.int64), 1000)
    ids = hashed.ids(np.array(texts))
    np.testing.assert_array_equal(hashed.ids(np.array(texts, "U20")), ids)
    if "7" in texts:
        np.testing.assert_array_equal(hashed.ids(np.array([7, -3, -1, 0])), ids)
    assert len(set(ids.tolist())) == len(texts)


def test_ids_of_a_chunk_are_those_of_its_values():
    column = raw.coded(np.array(["b", "a", "b", "zebra"]))
    assert vocabulary.of(np.array(["a", "b"])).coded_ids(column).tolist() == [2, 1, 2, 0]


def test_a_column_of_a_chunk_comes_back_as_raw_values():
    rows = raw.table_of({"user": np.array(["b", "a", "b"]), "label": [1, 0, 1]})
    assert vocabulary.values_of(rows["user"]).tolist() == ["b", "a", "b"]
    assert vocabulary.values_of(rows["label"]).tolist() == [1, 0, 1]


@given(st.lists(st.tuples(st.integers(-1, 5), st.sampled_from(["", "a", "7"])), min_size=1))
def test_columns_of_a_chunk_cross_like_those_in_memory(rows):
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    crossed = vocabulary.cross_coded([raw.coded(column) for column in columns])
    expected = vocabulary.cross(columns)
    np.testing.assert_array_equal(
        vocabulary.raw_of(crossed.dictionary)[crossed.indices.to_numpy()], expected
    )
