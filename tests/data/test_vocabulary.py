"""Values to ids: which values have an id, which share id 0, and which are hashed."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import raw, vocabulary
from cadc_jax.data.vocabulary import MOST_IDS, Counter, Vocabulary
from cadc_jax.errors import DataError
from tests.data.tables import peak_growth

# Vocabularies.


def test_ids_are_places_in_the_vocabulary_and_0_is_every_other_value():
    numbers = vocabulary.of(np.array([7, 3, 7, 9, 3]), min_count=2)
    assert numbers.values.tolist() == [3, 7] and numbers.size == 3
    assert numbers.ids(np.array([7, 3, 9, 100, -1])).tolist() == [2, 1, 0, 0, 0]
    text = vocabulary.of(np.array(["b", "a", "b"]))
    assert text.ids(np.array(["b", "zebra", "a"])).tolist() == [2, 0, 1]


def test_more_ids_than_tables_have_rows_are_refused():
    assert Vocabulary(np.zeros(0, np.int64), MOST_IDS - 1).size == MOST_IDS
    with pytest.raises(DataError, match="2,147,418,113 ids: at most .* by data.max_vocabulary"):
        Vocabulary(np.zeros(0, np.int64), MOST_IDS)


def test_hashed_ids_are_in_range_up_to_the_most():
    most = Vocabulary(np.zeros(0, np.int64), MOST_IDS - 1)
    ids = most.ids(np.arange(1000))
    assert ids.min() > 0 and ids.max() > 2**30


def two_columns(values):
    return st.tuples(st.lists(values, min_size=1), st.lists(values))


@given(two_columns(st.integers(-3, 6)) | two_columns(st.text("ab", max_size=3)), st.integers(1, 3))
def test_ids_are_what_a_dictionary_of_counts_gives(columns, min_count):
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


def test_a_long_value_does_not_widen_the_others():
    growth = peak_growth(
        "import pyarrow as pa; from cadc_jax.data import vocabulary",
        """
        values = pa.array([f"user{i}" for i in range(100_000)] + ["x" * 10_000])
        assert vocabulary.of(values).ids(values).min() == 1
        """,
    )
    assert growth < 100  # 4 GB if all were as wide as the longest one


words = st.text(st.sampled_from("aé\0\U0001f600z"), max_size=3)


@given(st.lists(words, min_size=1), st.lists(words))
def test_text_of_any_letters_has_the_ids_of_its_order_by_code_points(train, other):
    """Texts that differ in NUL characters alone have the same hash, and are told apart."""
    known = sorted(set(train))
    found = vocabulary.of(pa.array(train))
    assert found.values.to_pylist() == known
    expected = [known.index(text) + 1 if text in known else 0 for text in other]
    assert found.ids(pa.array(other, raw.TEXT)).tolist() == expected


def test_part_of_a_longer_column_is_found():
    column = pa.array(["x", "b", "é", "a", "y"], raw.TEXT)[1:4]
    assert vocabulary.of(column).ids(column).tolist() == [2, 3, 1]


def test_an_empty_vocabulary_gives_every_value_id_0():
    empty = Vocabulary(np.zeros(0, np.int64))
    assert empty.size == 1 and empty.ids(np.array([3, 4])).tolist() == [0, 0]


# Counting.


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


def test_a_column_of_plain_integers_in_text_becomes_integers():
    def values(*texts):
        counter = Counter(0)
        counter.add(pa.array(texts), np.ones(len(texts), int))
        return counter.vocabulary(1).values

    assert values("10", "9", "").tolist() == [-1, 9, 10]
    assert values("10", "9", "x").tolist() == ["10", "9", "x"]
    assert values("10", "09").tolist() == ["09", "10"]
    assert values("-1", "").tolist() == ["", "-1"]  # -1 would be a missing integer


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


def test_a_column_of_just_as_many_values_is_not_hashed():
    counter = Counter(3)
    for _ in range(2):
        counter.add(pa.array([4, 5, 6]), np.ones(3, int))
    assert counter.vocabulary(1).values.tolist() == [4, 5, 6]


# Chunks and hashes.


def test_a_number_and_its_text_have_the_same_hash():
    numbers, texts = np.array([7, -3, -1, 0]), np.array(["7", "-3", "", "0"])
    np.testing.assert_array_equal(vocabulary.hash_of(numbers), vocabulary.hash_of(texts))


def test_hashes_of_text_stay_what_they_were():
    """The ids of hashed vocabularies on disk depend on them."""
    texts = pa.array(["a", "ab", "Zürich", "\U0001f600", "7", "", "a\0b", "x" * 1000])
    assert [f"{value:016x}" for value in vocabulary.hash_of(texts).tolist()] == [
        "ee8c2baf6343e5c3",
        "fc91df12c3a69802",
        "871cbf4fae7727d1",
        "c10f434c5e204569",
        "0000000000000007",
        "ffffffffffffffff",
        "fc91df12c3a69802",
        "f75c787d72d87c36",
    ]


@pytest.mark.parametrize("texts", [["7", "-3", "", "0"], ["ab", "a", ""]])
def test_hashed_ids_do_not_depend_on_the_width_of_a_column(texts):
    hashed = Vocabulary(np.zeros(0, np.int64), 1000)
    ids = hashed.ids(np.array(texts))
    np.testing.assert_array_equal(hashed.ids(np.array(texts, "U20")), ids)
    assert len(set(ids.tolist())) == len(texts)


def test_ids_of_a_chunk_are_those_of_its_values():
    column = raw.coded(np.array(["b", "a", "b", "zebra"]))
    assert vocabulary.of(np.array(["a", "b"])).coded_ids(column).tolist() == [2, 1, 2, 0]


def test_the_raw_values_of_a_chunk_are_those_it_was_made_of():
    rows = raw.table_of({"user": np.array(["b", "a", "b"]), "label": [1, 0, 1]})
    assert vocabulary.values_of(rows["user"]).tolist() == ["b", "a", "b"]
    assert vocabulary.values_of(rows["label"]).tolist() == [1, 0, 1]


# Crosses.


def test_a_cross_has_one_key_for_each_combination():
    a, b = np.array([1, 1, 2, 2, 1]), np.array(["x", "y", "x", "y", "x"])
    key = vocabulary.cross([a, b])
    assert len(np.unique(key)) == 4 and key[0] == key[4] and np.all(key >= 0)
    assert key.dtype == np.int64


def test_a_single_column_is_not_crossed():
    column = np.array(["b", "a"])
    assert vocabulary.cross([column]) is column
    coded = raw.coded(column)
    assert vocabulary.cross_coded([coded]) is coded


def test_columns_cross_in_their_order():
    a, b = np.array([1, 2]), np.array([2, 1])
    key = vocabulary.cross([a, b])
    assert key[0] != key[1] and key[0] != vocabulary.cross([b, a])[0]


pairs = st.lists(
    st.tuples(st.integers(-1, 5), st.text(min_size=0, max_size=6)), min_size=2, max_size=30
)


@given(pairs, st.integers(6, 20))
def test_the_key_of_a_row_depends_on_its_own_values_only(rows, width):
    """It depends neither on the width of the text column nor on other rows."""
    rows = [(number, text.replace("\0", "")) for number, text in rows]
    numbers, texts = (np.array(column) for column in zip(*rows, strict=True))
    key = vocabulary.cross([numbers, texts])
    assert (key[:, None] == key).tolist() == [[a == b for b in rows] for a in rows]
    np.testing.assert_array_equal(vocabulary.cross([numbers, texts.astype(f"U{width}")]), key)
    np.testing.assert_array_equal(vocabulary.cross([numbers[1:], texts[1:]]), key[1:])


@given(st.lists(st.tuples(st.integers(-1, 5), st.sampled_from(["", "a", "7"])), min_size=1))
def test_columns_of_a_chunk_cross_like_columns_in_memory(rows):
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    crossed = vocabulary.cross_coded([raw.coded(column) for column in columns])
    expected = vocabulary.cross(columns)
    np.testing.assert_array_equal(
        raw.as_values(crossed.dictionary)[crossed.indices.to_numpy()], expected
    )


# Values that are met later.


def test_new_values_follow_at_the_end_and_no_id_changes():
    known = vocabulary.of(np.array([5, 9, 7]))
    grown = vocabulary.grown(known, np.array([8, 7, 2]))
    np.testing.assert_array_equal(grown.values, [5, 7, 9, 2, 8])
    np.testing.assert_array_equal(grown.ids(np.array([9, 2, 8, 5, 6])), [3, 4, 5, 1, 0])


def test_integers_become_text_if_a_new_value_is_text():
    grown = vocabulary.grown(vocabulary.of(np.array([5, 9])), np.array(["9", "x", "10"]))
    assert grown.values.to_pylist() == ["5", "9", "10", "x"]
    np.testing.assert_array_equal(grown.ids(np.array([9, 10])), [2, 3])


def test_hashed_ids_do_not_grow():
    known = Vocabulary(np.zeros(0, np.int64), hashed=4)
    assert vocabulary.grown(known, np.array([1, 2])) is known
