"""From raw rows to the prepared table: what is learnt, from which rows, and how it is written."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import encoding, prepare, vocabulary
from cadc_jax.data import raw as raw_rows
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.raw import TEST, TRAIN, EntityTable, RawTable, ReadReport
from cadc_jax.data.table import open_table
from cadc_jax.errors import CadcError, ConfigError, DataError
from cadc_jax.models import embeddings

CLICK = PrepareConfig(
    "click", "order", 0.2, 0.2, user_features=("who",), item_features=("what",), log_dense=True
)
RANKING = PrepareConfig("ranking", "leave_one_out", num_negatives=3)
GIVEN = dataclasses.replace(RANKING, split="given")


def clicks(rows=20, **columns):
    rng = np.random.default_rng(0)
    raw = RawTable(
        ReadReport(rows),
        label=rng.integers(0, 2, rows).astype(np.float32),
        dense={"count": np.r_[-3, np.nan, rng.integers(0, 9, rows - 2)].astype(np.float32)},
        categorical={
            "who": rng.integers(0, 3, rows),
            "what": rng.integers(0, 4, rows),
            "other": rng.integers(0, 5, rows),
        },
    )
    return dataclasses.replace(raw, **columns)


def interactions():
    """In order of time: users 10 and 20 with items 1..5, 30 with 6..9 and 1..5, 40 with 21..25."""
    user = np.repeat([10, 20, 30, 40], [5, 5, 9, 5])
    item = np.r_[1:6, 1:6, 6:10, 1:6, 21:26]
    return RawTable(ReadReport(len(user)), user=user, item=item, timestamp=np.arange(len(user)))


def with_a_test_file(**columns):
    """Two users with three training rows each, and then a test row each."""
    raw = RawTable(
        ReadReport(8),
        user=np.array([1, 1, 1, 2, 2, 2, 1, 2]),
        item=np.array([11, 12, 13, 14, 15, 16, 14, 11]),
        fold=np.array([TRAIN] * 6 + [TEST] * 2, np.int8),
    )
    return dataclasses.replace(raw, **columns)


def prepared(path, raw, config):
    facts = prepare.write_table(path, raw_rows.of_table(raw), config)
    return open_table(path), facts


def files(path, folders=("train", "users", "items", "vocabularies")):
    found = [file for folder in folders for file in (path / folder).glob("*.npy")]
    found += [path / "schema.json", path / "statistics.json"]
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


# Vocabularies.


def test_a_missing_value_that_trains_often_has_an_id_of_its_own(tmp_path):
    raw = clicks()
    raw.categorical["other"] = np.array([-1, 5] * 10)
    table, _ = prepared(tmp_path, raw, CLICK)
    assert table.splits["test"]["categorical"][:, 0].tolist() == [1, 2, 1, 2]


def test_rare_values_share_id_0(tmp_path):
    raw = clicks()
    raw.categorical["other"] = np.array([8, 8, 9, 8, 9, 7, 7, 7, 7, 7, 7, 7] + [9] * 8)
    table, _ = prepared(tmp_path, raw, dataclasses.replace(CLICK, min_count=3))
    assert table.schema.context.vocabulary_sizes == (3,)  # 7 and 8; of 9, two rows train
    assert table.splits["train"]["categorical"][:6, 0].tolist() == [2, 2, 0, 2, 0, 1]
    assert np.all(table.splits["test"]["categorical"] == 0)
    vocabulary = np.load(tmp_path / "vocabularies" / "row.other.npy")
    assert vocabulary.tolist() == [7, 8]


def test_rare_users_and_items_share_id_0(tmp_path):
    raw = clicks()
    raw.categorical["who"] = np.array([4] * 9 + [3, 2, 2] + [4] * 8)
    raw.categorical["what"] = np.array([6] * 11 + [5] * 9)
    table, facts = prepared(tmp_path, raw, dataclasses.replace(CLICK, min_count=3))
    assert table.splits["train"]["user"].tolist() == [1] * 9 + [0] * 3
    assert table.splits["train"]["item"].tolist() == [1] * 11 + [0]
    assert table.splits["test"]["item"].tolist() == [0] * 4
    assert (table.schema.num_users, table.schema.num_items) == (2, 2)  # id 0 counts
    assert (facts["num_users"], facts["num_items"]) == (1, 1)


def test_no_held_out_row_has_any_influence_on_what_is_learnt(tmp_path):
    """Whatever the held-out rows hold, everything but these rows themselves comes out the same."""
    raw = clicks()
    held_out = np.arange(20) >= 12
    other = dataclasses.replace(
        raw,
        label=np.where(held_out, 1 - raw.label, raw.label),
        dense={name: np.where(held_out, 1e6, x) for name, x in raw.dense.items()},
        categorical={name: np.where(held_out, 77, x) for name, x in raw.categorical.items()},
    )
    for name, table in (("a", raw), ("b", other)):
        prepare.write_table(tmp_path / name, raw_rows.of_table(table), CLICK)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert np.all(open_table(tmp_path / "b").splits["test"]["categorical"] == 0)


def test_no_held_out_interaction_has_any_influence_on_what_is_learnt(tmp_path):
    raw = interactions()
    raw = dataclasses.replace(
        raw,
        value=np.arange(24, dtype=np.float32),
        users=EntityTable(np.array([10, 20, 30, 40]), {"age": np.arange(4, dtype=np.float32)}),
        items=EntityTable(np.arange(30), {"year": np.arange(30, dtype=np.float32)}),
    )
    table, _ = prepared(tmp_path / "a", raw, RANKING)
    held_out = np.isin(np.arange(24), [3, 4, 8, 9, 17, 18, 22, 23])
    other = dataclasses.replace(
        raw,
        item=np.where(held_out, np.arange(24) + 1000, raw.item),
        value=np.where(held_out, np.float32(99), raw.value),
    )
    prepare.write_table(tmp_path / "b", raw_rows.of_table(other), RANKING)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(table.splits["train"]["item"]) == 24 - held_out.sum()


# Features of rows.


def dense_feature(path, train, held_out, **options):
    """The written feature of rows that train, and of as many that validate and test."""
    rows = len(train) + 2 * len(held_out)
    column = np.array([*train, *held_out, *held_out], np.float32)
    share = len(held_out) / rows
    raw = clicks(rows, dense={"x": column})
    config = dataclasses.replace(
        CLICK, validation=share, test=share, **{"log_dense": False, **options}
    )
    table, _ = prepared(path, raw, config)
    statistics = json.loads((path / "statistics.json").read_text())
    return table.splits["train"]["dense"][:, 0], table.splits["test"]["dense"][:, 0], statistics


def test_dense_features_are_standardised_by_training_rows(tmp_path):
    train, test, statistics = dense_feature(tmp_path, [1, 1, 5, 5], [3, 7])
    assert statistics == {"x": {"mean": 3.0, "std": 2.0}}
    assert train.tolist() == [-1, -1, 1, 1] and test.tolist() == [0, 2]
    assert train.dtype == np.float32


def test_missing_dense_values_count_nowhere_and_become_the_mean(tmp_path):
    train, test, statistics = dense_feature(tmp_path, [1, np.nan, 5, np.nan], [np.nan, 7])
    assert statistics == {"x": {"mean": 3.0, "std": 2.0}}
    assert train.tolist() == [-1, 0, 1, 0] and test.tolist() == [0, 2]


def test_flags_stay_as_they_are_and_missing_ones_are_0(tmp_path):
    train, test, _ = dense_feature(tmp_path, [1, 0, np.nan, 1, 1], [0, 1])
    assert train.tolist() == [1, 0, 0, 1, 1] and test.tolist() == [0, 1]


def test_a_constant_feature_becomes_0_and_one_that_is_never_there_too(tmp_path):
    train, test, _ = dense_feature(tmp_path / "a", [4, 4, 4], [4, 6])
    assert train.tolist() == [0, 0, 0] and test.tolist() == [0, 2]
    train, test, _ = dense_feature(tmp_path / "b", [np.nan] * 3, [np.nan] * 2)
    assert train.tolist() == [0, 0, 0] and test.tolist() == [0, 0]


def test_logs_of_counts_take_negative_ones_for_0(tmp_path):
    e = float(np.e)
    train, test, statistics = dense_feature(
        tmp_path, [-3, 0, e**2 - 1, np.nan], [-7, e - 1], log_dense=True
    )
    mean, std = 2 / 3, np.sqrt(8) / 3  # of 0, 0 and 2
    assert statistics["x"]["mean"] == pytest.approx(mean, rel=1e-6)
    assert statistics["x"]["std"] == pytest.approx(std, rel=1e-6)
    np.testing.assert_allclose(train, [-mean / std, -mean / std, (2 - mean) / std, 0], rtol=1e-5)
    np.testing.assert_allclose(test, [-mean / std, (1 - mean) / std], rtol=1e-5)


def test_flags_stay_as_they_are_among_logs_of_counts(tmp_path):
    train, test, _ = dense_feature(tmp_path, [1, 0, np.nan, 1], [0, 1], log_dense=True)
    assert train.tolist() == [1, 0, 0, 1] and test.tolist() == [0, 1]


def test_an_infinite_value_is_refused(tmp_path):
    with pytest.raises(DataError, match="dense feature 'x' holds an infinite value"):
        dense_feature(tmp_path, [1, np.inf, 2], [0, 1])


def test_a_table_may_have_no_features(tmp_path):
    table, _ = prepared(tmp_path, interactions(), RANKING)
    assert table.splits["train"]["dense"].shape == (16, 0)
    assert table.splits["test"]["categorical"].shape == (4, 0)
    assert table.users["dense"].shape == (5, 0)
    assert table.items["categorical"].shape == (table.schema.num_items, 0)


def test_a_column_that_is_the_user_or_the_item_is_not_a_feature_as_well(tmp_path):
    table, _ = prepared(tmp_path / "single", clicks(), CLICK)
    assert table.schema.context.categorical == ("other",)
    crossed = dataclasses.replace(CLICK, user_features=("who", "other"))
    table, _ = prepared(tmp_path / "crossed", clicks(), crossed)
    assert table.schema.context.categorical == ("who", "other")


def test_a_feature_may_be_called_user(tmp_path):
    """Its vocabulary must not take the place of the users'."""
    raw = clicks()
    raw.categorical["other"] = np.arange(20)
    plain, _ = prepared(tmp_path / "plain", raw, CLICK)
    renamed = {"user" if name == "other" else name: x for name, x in raw.categorical.items()}
    table, _ = prepared(tmp_path / "user", dataclasses.replace(raw, categorical=renamed), CLICK)
    assert table.schema.num_users == plain.schema.num_users
    assert table.users["dense"].shape == plain.users["dense"].shape
    assert table.schema.context.vocabulary_sizes == plain.schema.context.vocabulary_sizes


def test_a_feature_of_rows_and_one_of_users_keep_a_vocabulary_each(tmp_path):
    users = EntityTable(np.array([10, 20]), categorical={"age": np.array(["old", "young"])})
    raw = dataclasses.replace(
        interactions(), users=users, categorical={"user_age": np.arange(24) % 3}
    )
    prepare.write_table(tmp_path, raw_rows.of_table(raw), RANKING)
    written = [np.load(file).tolist() for file in (tmp_path / "vocabularies").glob("*.npy")]
    assert [0, 1, 2] in written and ["old", "young"] in written


# Crossed columns.


def test_crossed_columns_have_one_key_a_combination():
    a, b = np.array([1, 1, 2, 2, 1]), np.array(["x", "y", "x", "y", "x"])
    key = vocabulary.cross([a, b])
    assert len(np.unique(key)) == 4 and key[0] == key[4] and np.all(key >= 0)
    assert key.dtype == np.int64


def test_a_single_column_is_not_crossed():
    column = np.array(["b", "a"])
    assert vocabulary.cross([column]) is column


pairs = st.lists(
    st.tuples(st.integers(-1, 5), st.text(min_size=0, max_size=6)), min_size=2, max_size=30
)


@given(pairs, st.integers(6, 20))
def test_the_key_of_a_row_depends_on_its_own_values_alone(rows, width):
    """Not on the width that the longest text of the column asks for, nor on other rows."""
    rows = [(number, text.replace("\0", "")) for number, text in rows]
    numbers, texts = (np.array(column) for column in zip(*rows, strict=True))
    key = vocabulary.cross([numbers, texts])
    assert (key[:, None] == key).tolist() == [[a == b for b in rows] for a in rows]
    np.testing.assert_array_equal(vocabulary.cross([numbers, texts.astype(f"U{width}")]), key)
    np.testing.assert_array_equal(vocabulary.cross([numbers[1:], texts[1:]]), key[1:])


def test_columns_cross_in_their_order():
    a, b = np.array([1, 2]), np.array([2, 1])
    key = vocabulary.cross([a, b])
    assert key[0] != key[1] and key[0] != vocabulary.cross([b, a])[0]


def test_crossed_columns_name_the_user(tmp_path):
    crossed = dataclasses.replace(CLICK, user_features=("who", "other"))
    raw = clicks()
    table, _ = prepared(tmp_path, raw, crossed)
    pairs = list(zip(raw.categorical["who"][:12], raw.categorical["other"][:12], strict=True))
    assert table.schema.num_users == len(set(pairs)) + 1
    ids = table.splits["train"]["user"].tolist()
    assert len(set(zip(ids, pairs, strict=True))) == len(set(pairs))


# Content of users and items.


def test_content_is_aligned_to_ids_and_may_be_missing(tmp_path):
    users = EntityTable(
        ids=np.array([30, 99, 10]),
        dense={"flag": np.array([1, 0, 0], np.float32), "age": np.array([40, 99, 20], np.float32)},
        categorical={"country": np.array(["no", "xx", "de"])},
        titles=np.array(["Kari", "-", "Hans"]),
    )
    table, _ = prepared(tmp_path, dataclasses.replace(interactions(), users=users), RANKING)
    # Users 10, 20, 30 and 40 are ids 1 to 4; 99 has no rows, so its age counts nowhere.
    np.testing.assert_allclose(table.users["dense"], [[0, 0], [0, -1], [0, 0], [1, 1], [0, 0]])
    assert table.users["categorical"][:, 0].tolist() == [0, 1, 0, 2, 0]  # of 'de', 'no'
    assert table.users["titles"].tolist() == ["", "Hans", "", "Kari", ""]
    assert table.schema.user_content.dense == ("flag", "age")
    assert table.schema.user_content.categorical == ("country",)
    assert table.schema.user_content.vocabulary_sizes == (3,)


def test_content_is_not_logged_and_its_missing_values_are_the_mean(tmp_path):
    items = EntityTable(
        np.array([7, 5, 2, 3, 6]), {"length": np.array([5, 1e6, 0, np.nan, 1], np.float32)}
    )
    config = dataclasses.replace(RANKING, log_dense=True)
    table, _ = prepared(tmp_path, dataclasses.replace(interactions(), items=items), config)
    vocabulary = np.load(tmp_path / "vocabularies" / "item.npy").tolist()
    assert vocabulary == [1, 2, 3, 6, 7, 8, 9, 21, 22, 23]  # 5 is only held out
    expected = np.array([0, 0, 0 - 2, 0, 1 - 2, 5 - 2, 0, 0, 0, 0, 0]) / np.sqrt(14 / 3)
    np.testing.assert_allclose(table.items["dense"][:, 0], expected, rtol=1e-6)


def test_content_under_a_text_id_is_found_whatever_its_width(tmp_path):
    raw = interactions()
    users = EntityTable(np.array(["40", "a much longer name"]), {"flag": np.ones(2, np.float32)})
    raw = dataclasses.replace(raw, user=raw.user.astype(str), users=users)
    table, _ = prepared(tmp_path, raw, RANKING)
    assert table.users["dense"][:, 0].tolist() == [0, 0, 0, 0, 1]


def test_sets_of_values_become_ids_of_the_values_of_training_items(tmp_path):
    items = EntityTable(
        np.array([7, 5, 2, 3]), bags={"genres": np.array(["War|Drama", "Only held out", "", "War"])}
    )
    table, _ = prepared(tmp_path, dataclasses.replace(interactions(), items=items), RANKING)
    places = dict(
        zip(np.load(tmp_path / "vocabularies" / "item.npy").tolist(), range(1, 11), strict=True)
    )
    bags = table.items["bags"]
    assert table.schema.item_content.bags == ("genres",)
    assert table.schema.item_content.bag_sizes == (3,)  # 'Drama', 'War' and what is neither
    assert bags.shape == (table.schema.num_items, 1, 2)
    assert bags[places[7], 0].tolist() == [2, 1]
    assert bags[places[3], 0].tolist() == [2, -1]
    assert bags[places[2], 0].tolist() == bags[0, 0].tolist() == [-1, -1]


def test_the_model_is_given_the_mean_of_a_set_of_values(tmp_path):
    items = EntityTable(
        np.array([7, 3]),
        categorical={"brand": np.array(["a", "b"])},
        bags={"genres": np.array(["War|Drama", "War"]), "moods": np.array(["", "dark"])},
    )
    table, _ = prepared(tmp_path, dataclasses.replace(interactions(), items=items), RANKING)
    content = embeddings.content_of(table)
    places = dict(
        zip(np.load(tmp_path / "vocabularies" / "item.npy").tolist(), range(1, 11), strict=True)
    )
    assert embeddings.num_feature_rows(table) == 3 + 3 + 2  # of brand, genres and moods
    assert content.item_bags[places[7]].tolist() == [[3 + 2, 3 + 1], [-1, -1]]
    assert content.item_bags[places[3]].tolist() == [[3 + 2, -1], [6 + 1, -1]]
    np.testing.assert_array_equal(content.bag_weights[places[7]], [[0.5, 0.5], [0, 0]])
    np.testing.assert_array_equal(content.bag_weights[places[3]], [[1, 0], [1, 0]])


def test_users_have_no_sets_of_values(tmp_path):
    users = EntityTable(np.array([10]), bags={"hobbies": np.array(["chess|go"])})
    with pytest.raises(ConfigError, match="bags of users"):
        prepared(tmp_path, dataclasses.replace(interactions(), users=users), RANKING)


# Ranking.


def test_repeats_are_merged_and_counted(tmp_path):
    raw = with_a_test_file(item=np.array([11, 12, 12, 14, 15, 16, 14, 11]))
    table, facts = prepared(tmp_path, raw, dataclasses.replace(GIVEN, num_negatives=1))
    assert facts["merged_repeats"] == 1
    assert facts["rows"] == {"train": 3, "validation": 2, "test": 2}
    train = table.splits["train"]
    assert all(len(column) == 3 for column in train.values())


def test_interactions_without_a_value_count_1(tmp_path):
    table, _ = prepared(tmp_path / "a", interactions(), RANKING)
    assert table.splits["train"]["value"].tolist() == [1] * 16
    rated = dataclasses.replace(interactions(), value=np.arange(24, dtype=np.float32))
    table, _ = prepared(tmp_path / "b", rated, RANKING)
    assert table.splits["test"]["value"].tolist() == [4, 9, 18, 23]


def test_rows_of_a_split_keep_the_order_of_the_source(tmp_path):
    raw = interactions()
    raw = dataclasses.replace(raw, timestamp=raw.timestamp[::-1].copy())
    table, _ = prepared(tmp_path, raw, RANKING)
    assert table.splits["test"]["user"].tolist() == [1, 2, 3, 4]  # though 4 came first in time


def test_drawn_negatives_are_distinct_and_no_positive_of_any_split(tmp_path):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 30, 600), rng.integers(100, 150, 600)
    raw = RawTable(ReadReport(600), user=user, item=item, timestamp=rng.integers(0, 99, 600))
    table, _ = prepared(tmp_path / "a", raw, dataclasses.replace(RANKING, num_negatives=20))
    vocabulary = np.load(tmp_path / "a" / "vocabularies" / "item.npy")
    positives = set(zip(user.tolist(), item.tolist(), strict=True))
    for split in ("validation", "test"):
        rows = table.splits[split]
        assert rows["negatives"].shape == (30, 20) and rows["negatives"].min() > 0
        for who, drawn in zip(rows["user"] - 1, vocabulary[rows["negatives"] - 1], strict=True):
            assert len(set(drawn)) == 20
            assert not positives & {(int(who), int(what)) for what in drawn}


def test_drawn_negatives_depend_on_the_seed_alone(tmp_path):
    tables = [
        prepared(tmp_path / str(i), interactions(), dataclasses.replace(RANKING, seed=seed))[0]
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (table.splits["test"]["negatives"] for table in tables)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.any(first != tables[0].splits["validation"]["negatives"])


def test_given_negatives_are_encoded_for_the_test_rows_they_belong_to(tmp_path):
    raw = with_a_test_file(negatives=np.array([[15, 99], [12, 16]]))
    config = dataclasses.replace(GIVEN, num_negatives=1)
    table, _ = prepared(tmp_path, raw, config)
    vocabulary = np.load(tmp_path / "vocabularies" / "item.npy").tolist()
    expected = [
        [vocabulary.index(i) + 1 if i in vocabulary else 0 for i in row]
        for row in raw.negatives.tolist()
    ]
    assert table.splits["test"]["negatives"].tolist() == expected
    assert expected[0][1] == 0  # nobody trains on 99
    assert table.splits["test"]["negatives"].dtype == np.int32
    assert table.splits["validation"]["negatives"].shape == (2, 1)  # drawn


def test_given_negatives_need_the_split_they_were_given_for(tmp_path):
    """Under another split they would stand beside other users' rows."""
    raw = with_a_test_file(negatives=np.array([[15], [12]]))
    with pytest.raises(ConfigError, match="negatives"):
        prepare.write_table(
            tmp_path, raw_rows.of_table(raw), dataclasses.replace(RANKING, num_negatives=1)
        )


def test_known_items_are_those_of_each_users_training_rows(tmp_path):
    table, _ = prepared(tmp_path, interactions(), RANKING)
    train, known = table.splits["train"], table.known
    expected = sorted(zip(train["user"].tolist(), train["item"].tolist(), strict=True))
    users = np.repeat(np.arange(table.schema.num_users), np.diff(known["offsets"]))
    assert list(zip(users.tolist(), known["items"].tolist(), strict=True)) == expected
    assert len(known["offsets"]) == table.schema.num_users + 1


# Chunks.


@pytest.mark.parametrize("config", [CLICK, dataclasses.replace(CLICK, split="random")])
def test_the_size_of_chunks_does_not_matter(tmp_path, monkeypatch, config):
    raw = clicks(500)
    prepared(tmp_path / "one", raw, config)
    monkeypatch.setattr(raw_rows, "CHUNK_ROWS", 7)
    table, _ = prepared(tmp_path / "many", raw, config)
    folders = ("train", "validation", "test", "users", "items", "vocabularies")
    one, many = files(tmp_path / "one", folders), files(tmp_path / "many", folders)
    statistics = [json.loads(found.pop("statistics.json")) for found in (one, many)]
    dense = [
        [np.load(tmp_path / name / split / "dense.npy") for split in folders[:3]]
        for name in ("one", "many")
    ]
    for found in (one, many):
        for split in folders[:3]:
            del found[f"{split}/dense.npy"]
    assert one == many
    for name, scale in statistics[0].items():  # sums of floats depend on their order
        assert statistics[1][name] == pytest.approx(scale, rel=1e-12)
    for a, b in zip(*dense, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not (tmp_path / "many" / "spool").exists()
    assert len(table.splits["train"]["user"]) > 250


def test_the_size_of_chunks_does_not_matter_to_interactions(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 9, 300).astype(str), rng.integers(0, 40, 300)
    raw = RawTable(ReadReport(300), user=user, item=item, timestamp=rng.integers(0, 50, 300))
    config = dataclasses.replace(RANKING, num_negatives=1)
    prepared(tmp_path / "one", raw, config)
    monkeypatch.setattr(raw_rows, "CHUNK_ROWS", 11)
    prepared(tmp_path / "many", raw, config)
    folders = ("train", "validation", "test", "users", "items", "vocabularies", "known")
    assert files(tmp_path / "one", folders) == files(tmp_path / "many", folders)


def test_click_logs_may_bring_their_split_or_be_split_by_time(tmp_path):
    rng = np.random.default_rng(0)
    raw = clicks(fold=np.repeat([0, 1, 2], [14, 3, 3]).astype(np.int8))
    table, _ = prepared(tmp_path / "given", raw, dataclasses.replace(CLICK, split="given"))
    np.testing.assert_array_equal(table.splits["test"]["label"], raw.label[17:])
    when = rng.permutation(20)
    raw = clicks(timestamp=when)
    table, _ = prepared(tmp_path / "time", raw, dataclasses.replace(CLICK, split="time"))
    np.testing.assert_array_equal(table.splits["test"]["label"], raw.label[when >= 16])


def test_items_are_counted_over_training_rows(tmp_path):
    raw = clicks(200)
    table, _ = prepared(tmp_path, raw, CLICK)
    train = table.splits["train"]
    expected = np.bincount(train["item"], minlength=table.schema.num_items)
    np.testing.assert_array_equal(table.items["count"], expected)
    clicked = np.bincount(train["item"], train["label"], minlength=table.schema.num_items)
    np.testing.assert_array_equal(table.items["clicks"], clicked)


# Columns of too many values, and new data.


def test_columns_of_too_many_values_are_hashed(tmp_path):
    rng = np.random.default_rng(0)
    raw = clicks(1000)
    raw.categorical["other"] = rng.integers(0, 10**9, 1000)
    raw.categorical["what"] = np.arange(1000)
    table, facts = prepared(tmp_path, raw, dataclasses.replace(CLICK, max_vocabulary=50))
    assert table.schema.hashed == {"item": 50, "row.other": 50}
    assert facts["hashed"] == ["item", "row.other"]
    assert table.schema.num_items == 51 and table.schema.context.vocabulary_sizes == (51,)
    assert table.schema.num_users == 4  # these are few enough
    for split in ("train", "test"):
        ids = table.splits[split]["categorical"]
        assert ids.min() >= 1 and ids.max() <= 50 and len(np.unique(ids)) > 40


@pytest.mark.parametrize("most", [0, 3])
def test_new_data_is_encoded_as_the_table_was(tmp_path, most):
    raw = clicks(100)
    crossed = dataclasses.replace(CLICK, user_features=("who", "other"), max_vocabulary=most)
    table, _ = prepared(tmp_path, raw, crossed)
    (task,) = raw_rows.of_table(raw).parts[0]()
    encoder = encoding.open_encoder(tmp_path)
    rows = encoding.named(task.decode().rows, encoder.user_features, encoder.item_features)
    encoded = encoder.encode(rows)
    for name in ("user", "item", "label", "dense", "categorical"):
        whole = np.concatenate([table.splits[split][name] for split in table.splits])
        np.testing.assert_array_equal(encoded[name], whole, strict=True)


# Facts and errors.


def test_facts_tell_the_rows_of_each_split_and_what_the_reader_met(tmp_path):
    report = ReadReport(24, padded=2, malformed=1, examples=("a:1: bad",))
    raw = dataclasses.replace(interactions(), report=report)
    _, facts = prepared(tmp_path, raw, dataclasses.replace(RANKING, max_malformed=0.05))
    assert facts["rows"] == {"train": 16, "validation": 4, "test": 4}
    assert (facts["num_users"], facts["num_items"], facts["merged_repeats"]) == (4, 10, 0)
    assert facts["reader"] == dataclasses.asdict(report)
    json.dumps(facts)  # they go into a manifest


def test_equal_data_gives_equal_files(tmp_path):
    for name in ("a", "b"):
        prepare.write_table(tmp_path / name, raw_rows.of_table(interactions()), RANKING)
    folders = ("train", "validation", "test", "users", "items", "vocabularies")
    assert files(tmp_path / "a", folders) == files(tmp_path / "b", folders)


@pytest.mark.parametrize(
    ("raw", "config", "error", "message"),
    [
        (
            clicks(),
            dataclasses.replace(CLICK, user_features=("wo",)),
            ConfigError,
            "data.user_features: no categorical column 'wo'; there are: who, what, other",
        ),
        (
            clicks(),
            dataclasses.replace(CLICK, item_features=()),
            ConfigError,
            "no item id: set data.item_features",
        ),
        (clicks(3), dataclasses.replace(CLICK, test=0.1), DataError, "the test split has no rows"),
        (
            clicks(3),
            dataclasses.replace(CLICK, validation=0.1),
            DataError,
            "the validation split has no rows",
        ),
        (
            clicks(2),
            dataclasses.replace(CLICK, validation=0.49, test=0.5),
            DataError,
            "the train split has no rows",
        ),
        (
            dataclasses.replace(interactions(), users=EntityTable(np.array(["a"]))),
            RANKING,
            DataError,
            "none of the 1 ids of the user content .* like .10, 20, 30.; .* like .'a'.",
        ),
        (
            dataclasses.replace(interactions(), items=EntityTable(np.array(["a"]))),
            RANKING,
            DataError,
            "none of the 1 ids of the item content",
        ),
        (
            interactions(),
            dataclasses.replace(RANKING, num_negatives=50),
            ConfigError,
            "data.num_negatives",
        ),
        (
            with_a_test_file(fold=np.full(8, TEST, np.int8)),
            GIVEN,
            DataError,
            "the train split has no rows",
        ),
        (with_a_test_file(fold=None), GIVEN, ConfigError, "a split of its own"),
    ],
)
def test_data_that_cannot_be_prepared_says_why(tmp_path, raw, config, error, message):
    with pytest.raises(error, match=message) as caught:
        prepare.write_table(tmp_path, raw_rows.of_table(raw), config)
    assert "\n" not in str(caught.value)


def test_the_click_task_says_that_it_needs_labels(tmp_path):
    with pytest.raises(CadcError, match="label"):
        prepare.write_table(tmp_path, raw_rows.of_table(clicks(label=None)), CLICK)
