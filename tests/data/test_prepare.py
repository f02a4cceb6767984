"""From raw rows to the prepared table: settings, splits, and everything that is written."""

import dataclasses
import json

import numpy as np
import pytest

from cadc_jax.data import encoding, prepare, raw, splits
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.raw import TEST, TRAIN, EntityTable, Negatives, RawTable, ReadReport
from cadc_jax.data.table import open_table, read_text
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.models import embeddings
from tests.data.tables import CLICK, GIVEN, RANKING, clicks, interactions, prepared

SPLIT_FOLDERS = ("train", "validation", "test")
FOLDERS = (*SPLIT_FOLDERS, "users", "items", "vocabularies")


def with_a_test_split(**columns):
    """Two users with three training rows each, and then a test row each."""
    table = RawTable(
        ReadReport(8),
        user=np.array([1, 1, 1, 2, 2, 2, 1, 2]),
        item=np.array([11, 12, 13, 14, 15, 16, 14, 11]),
        fold=np.array([TRAIN] * 6 + [TEST] * 2, np.int8),
    )
    return dataclasses.replace(table, **columns)


def files(path, folders):
    """The bytes of the files in these folders, and of those beside them."""
    found = [file for folder in folders for file in (path / folder).glob("*.npy")]
    found += [path / "schema.json", path / "statistics.json"]
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


# Settings.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "rank"}, "data.task='rank': must be one of click, ranking"),
        (
            {"split": "last"},
            "data.split='last': must be one of leave_one_out, last_share, order, time, random, "
            "users, given",
        ),
        ({"min_count": -1}, "data.min_count=-1: must be at least 0"),
        ({"num_negatives": -1}, "data.num_negatives=-1: must be at least 0"),
        ({"max_vocabulary": -1}, "data.max_vocabulary=-1: must be at least 0"),
        ({"max_vocabulary": 2**31}, "data.max_vocabulary=2147483648: must be below 2147418112"),
        ({"max_malformed": 5}, r"data.max_malformed=5: must be in \[0, 1\], a share of the rows"),
        ({"max_malformed": -0.1}, r"data.max_malformed=-0.1: must be in \[0, 1\]"),
        ({"max_malformed": float("nan")}, r"data.max_malformed=nan: must be in \[0, 1\]"),
        ({"validation": -0.1}, r"data.validation=-0.1: must be in \[0, 1\)"),
        ({"test": float("nan")}, r"data.test=nan: must be in \[0, 1\)"),
        ({"test": float("inf")}, r"data.test=inf: must be in \[0, 1\)"),
    ],
)
@pytest.mark.parametrize("config", [CLICK, RANKING])
def test_a_value_outside_its_range_is_refused(config, changed, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **changed)


@pytest.mark.parametrize("split", splits.BY_SHARE)
@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, 0.0), (0.5, 0.5)])
def test_a_split_by_shares_needs_rows_in_every_split(split, validation, test):
    with pytest.raises(ConfigError, match=f"positive shares .* not {validation} and {test}"):
        PrepareConfig("ranking", split, validation, test)


@pytest.mark.parametrize("split", ["leave_one_out", "given"])
def test_other_splits_need_no_shares(split):
    assert PrepareConfig("ranking", split, max_malformed=1.0).test == 0


# Vocabularies.


def test_missing_is_a_value_with_its_own_id(tmp_path):
    source = clicks()
    source.categorical["other"] = np.array([-1, 5] * 10)
    table, _ = prepared(tmp_path, source, CLICK)
    assert table.splits["test"]["categorical"][:, 0].tolist() == [1, 2, 1, 2]


def test_rare_values_share_id_0(tmp_path):
    source = clicks()
    source.categorical["other"] = np.array([8, 8, 9, 8, 9, 7, 7, 7, 7, 7, 7, 7] + [9] * 8)
    table, _ = prepared(tmp_path, source, dataclasses.replace(CLICK, min_count=3))
    assert table.schema.context.vocabulary_sizes == (3,)  # 7 and 8; of 9, two rows train
    assert table.splits["train"]["categorical"][:6, 0].tolist() == [2, 2, 0, 2, 0, 1]
    assert np.all(table.splits["test"]["categorical"] == 0)
    vocabulary = np.load(tmp_path / "vocabularies" / "row.other.npy")
    assert vocabulary.tolist() == [7, 8]


def test_rare_users_and_items_share_id_0(tmp_path):
    source = clicks()
    source.categorical["who"] = np.array([4] * 9 + [3, 2, 2] + [4] * 8)
    source.categorical["what"] = np.array([6] * 11 + [5] * 9)
    table, facts = prepared(tmp_path, source, dataclasses.replace(CLICK, min_count=3))
    assert table.splits["train"]["user"].tolist() == [1] * 9 + [0] * 3
    assert table.splits["train"]["item"].tolist() == [1] * 11 + [0]
    assert table.splits["test"]["item"].tolist() == [0] * 4
    assert (table.schema.num_users, table.schema.num_items) == (2, 2)  # id 0 counts
    assert (facts["num_users"], facts["num_items"]) == (1, 1)


def test_nothing_is_learnt_from_held_out_clicks(tmp_path):
    """With other held-out rows, everything but these rows comes out the same."""
    source = clicks()
    held_out = np.arange(20) >= 12
    other = dataclasses.replace(
        source,
        label=np.where(held_out, 1 - source.label, source.label),
        dense={name: np.where(held_out, 1e6, x) for name, x in source.dense.items()},
        categorical={name: np.where(held_out, 77, x) for name, x in source.categorical.items()},
    )
    for name, table in (("a", source), ("b", other)):
        prepare.write_table(tmp_path / name, raw.of_table(table), CLICK)
    folders = ("train", "users", "items", "vocabularies")
    assert files(tmp_path / "a", folders) == files(tmp_path / "b", folders)
    assert np.all(open_table(tmp_path / "b").splits["test"]["categorical"] == 0)


def test_nothing_is_learnt_from_held_out_interactions(tmp_path):
    source = interactions(
        value=np.arange(24, dtype=np.float32),
        users=EntityTable(np.array([10, 20, 30, 40]), {"age": np.arange(4, dtype=np.float32)}),
        items=EntityTable(np.arange(30), {"year": np.arange(30, dtype=np.float32)}),
    )
    table, _ = prepared(tmp_path / "a", source, RANKING)
    held_out = np.isin(np.arange(24), [3, 4, 8, 9, 17, 18, 22, 23])
    other = dataclasses.replace(
        source,
        item=np.where(held_out, np.arange(24) + 1000, source.item),
        value=np.where(held_out, np.float32(99), source.value),
    )
    prepare.write_table(tmp_path / "b", raw.of_table(other), RANKING)
    folders = ("train", "users", "items", "vocabularies")
    assert files(tmp_path / "a", folders) == files(tmp_path / "b", folders)
    assert len(table.splits["train"]["item"]) == 24 - held_out.sum()


# Features of rows.


def dense_feature(path, train, held_out, **options):
    """A written feature in training and test rows; as many rows validate as test."""
    rows = len(train) + 2 * len(held_out)
    column = np.array([*train, *held_out, *held_out], np.float32)
    share = len(held_out) / rows
    label = (np.arange(rows) % 2).astype(np.float32)
    source = clicks(rows, label=label, dense={"x": column})
    config = dataclasses.replace(
        CLICK, validation=share, test=share, **{"log_dense": False, **options}
    )
    table, _ = prepared(path, source, config)
    statistics = json.loads((path / "statistics.json").read_text())
    return table.splits["train"]["dense"][:, 0], table.splits["test"]["dense"][:, 0], statistics


def test_dense_features_are_standardised_by_training_rows(tmp_path):
    train, test, statistics = dense_feature(tmp_path, [1, 1, 5, 5], [3, 7])
    assert statistics == {"x": {"mean": 3.0, "std": 2.0}}
    assert train.tolist() == [-1, -1, 1, 1] and test.tolist() == [0, 2]
    assert train.dtype == np.float32


def test_missing_dense_values_become_the_mean_of_the_others(tmp_path):
    train, test, statistics = dense_feature(tmp_path, [1, np.nan, 5, np.nan], [np.nan, 7])
    assert statistics == {"x": {"mean": 3.0, "std": 2.0}}
    assert train.tolist() == [-1, 0, 1, 0] and test.tolist() == [0, 2]


@pytest.mark.parametrize("log_dense", [False, True])
def test_flags_stay_as_they_are(tmp_path, log_dense):
    train, test, _ = dense_feature(tmp_path, [1, 0, np.nan, 1], [0, 1], log_dense=log_dense)
    assert train.tolist() == [1, 0, 0, 1] and test.tolist() == [0, 1]


def test_logarithms_of_counts_are_standardised(tmp_path):
    train, test, statistics = dense_feature(
        tmp_path, [-3, 0, np.e**2 - 1], [np.e - 1], log_dense=True
    )
    mean, std = 2 / 3, np.sqrt(8) / 3  # of 0, 0 and 2
    assert statistics["x"] == pytest.approx({"mean": mean, "std": std}, rel=1e-6)
    np.testing.assert_allclose(train, [-mean / std, -mean / std, (2 - mean) / std], rtol=1e-5)
    np.testing.assert_allclose(test, [(1 - mean) / std], rtol=1e-5)


def test_an_infinite_value_is_refused(tmp_path):
    with pytest.raises(DataError, match="dense feature 'x' holds an infinite value"):
        dense_feature(tmp_path, [1, np.inf, 2], [0, 1])


def test_a_table_may_have_no_features(tmp_path):
    table, _ = prepared(tmp_path, interactions(), RANKING)
    assert table.splits["train"]["dense"].shape == (16, 0)
    assert table.splits["test"]["categorical"].shape == (4, 0)
    assert table.users["dense"].shape == (5, 0)
    assert table.items["categorical"].shape == (table.schema.num_items, 0)


def test_a_feature_may_be_called_user(tmp_path):
    """Its vocabulary must not replace the vocabulary of users."""
    source = clicks()
    source.categorical["other"] = np.arange(20)
    plain, _ = prepared(tmp_path / "plain", source, CLICK)
    renamed = {"user" if name == "other" else name: x for name, x in source.categorical.items()}
    table, _ = prepared(tmp_path / "user", dataclasses.replace(source, categorical=renamed), CLICK)
    assert table.schema.num_users == plain.schema.num_users
    assert table.users["dense"].shape == plain.users["dense"].shape
    assert table.schema.context.vocabulary_sizes == plain.schema.context.vocabulary_sizes


def test_features_of_rows_and_of_users_have_separate_vocabularies(tmp_path):
    users = EntityTable(np.array([10, 20]), categorical={"age": np.array(["old", "young"])})
    source = interactions(users=users, categorical={"user_age": np.arange(24) % 3})
    prepare.write_table(tmp_path, raw.of_table(source), RANKING)
    written = {
        name: encoding.read_vocabulary(tmp_path, name).values.tolist()
        for name in ("row.user_age", "user.age")
    }
    assert written == {"row.user_age": [0, 1, 2], "user.age": ["old", "young"]}


def test_crossed_features_name_the_user(tmp_path):
    crossed = dataclasses.replace(CLICK, user_features=("who", "other"))
    source = clicks()
    table, _ = prepared(tmp_path, source, crossed)
    pairs = list(zip(source.categorical["who"][:12], source.categorical["other"][:12], strict=True))
    assert table.schema.num_users == len(set(pairs)) + 1
    ids = table.splits["train"]["user"].tolist()
    assert len(set(zip(ids, pairs, strict=True))) == len(set(pairs))


# Content of users and items.


def test_content_is_written_by_id_and_never_logged(tmp_path):
    items = EntityTable(
        np.array([7, 5, 2, 3, 6]),
        {"length": np.array([5, 1e6, 0, np.nan, 1], np.float32)},
        titles=np.array(["seven", "five", "two", "three", "six"]),
    )
    config = dataclasses.replace(RANKING, log_dense=True)
    table, _ = prepared(tmp_path, interactions(items=items), config)
    vocabulary = np.load(tmp_path / "vocabularies" / "item.npy").tolist()
    assert vocabulary == [1, 2, 3, 6, 7, 8, 9, 21, 22, 23]  # 5 is only held out
    expected = np.array([0, 0, 0 - 2, 0, 1 - 2, 5 - 2, 0, 0, 0, 0, 0]) / np.sqrt(14 / 3)
    np.testing.assert_allclose(table.items["dense"][:, 0], expected, rtol=1e-6)
    titles = read_text(tmp_path / "items" / "titles")
    assert titles.tolist()[:6] == ["", "", "two", "three", "six", "seven"]
    assert table.schema.item_content.dense == ("length",)


def test_a_model_gets_the_mean_of_a_set_of_values(tmp_path):
    items = EntityTable(
        np.array([7, 3]),
        categorical={"brand": np.array(["a", "b"])},
        bags={"genres": np.array(["War|Drama", "War"]), "moods": np.array(["", "dark"])},
    )
    table, _ = prepared(tmp_path, interactions(items=items), RANKING)
    content = embeddings.content_of(table)
    places = dict(
        zip(np.load(tmp_path / "vocabularies" / "item.npy").tolist(), range(1, 11), strict=True)
    )
    assert embeddings.num_feature_rows(table) == 3 + 3 + 2  # of brand, genres and moods
    assert content.item_bags[places[7]].tolist() == [[3 + 2, 3 + 1], [-1, -1]]
    assert content.item_bags[places[3]].tolist() == [[3 + 2, -1], [6 + 1, -1]]
    np.testing.assert_array_equal(content.bag_weights[places[7]], [[0.5, 0.5], [0, 0]])
    np.testing.assert_array_equal(content.bag_weights[places[3]], [[1, 0], [1, 0]])


# Ranking.


@pytest.mark.parametrize("split", splits.BY_SHARE)
def test_repeats_are_merged_before_a_split_by_shares(tmp_path, split):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 9, 300), rng.integers(0, 20, 300)
    table = RawTable(ReadReport(300), user=user, item=item, timestamp=np.arange(300))
    config = PrepareConfig("ranking", split, 0.2, 0.2, num_negatives=1)
    _, facts = prepared(tmp_path, table, config)
    pairs = len(set(zip(user.tolist(), item.tolist(), strict=True)))
    assert facts["merged_repeats"] == 300 - pairs
    assert sum(facts["rows"].values()) == pairs


def test_repeats_are_merged_and_counted(tmp_path):
    source = with_a_test_split(item=np.array([11, 12, 12, 14, 15, 16, 14, 11]))
    table, facts = prepared(tmp_path, source, dataclasses.replace(GIVEN, num_negatives=1))
    assert facts["merged_repeats"] == 1
    assert facts["rows"] == {"train": 3, "validation": 2, "test": 2, "fold_in": 0}
    train = table.splits["train"]
    assert all(len(column) == 3 for column in train.values())


def test_interactions_without_a_value_have_value_1(tmp_path):
    table, _ = prepared(tmp_path / "a", interactions(), RANKING)
    assert table.splits["train"]["value"].tolist() == [1] * 16
    rated = interactions(value=np.arange(24, dtype=np.float32))
    table, _ = prepared(tmp_path / "b", rated, RANKING)
    assert table.splits["test"]["value"].tolist() == [4, 9, 18, 23]


def test_rows_of_a_split_keep_the_order_of_the_source(tmp_path):
    table, _ = prepared(tmp_path, interactions(timestamp=np.arange(24)[::-1].copy()), RANKING)
    assert table.splits["test"]["user"].tolist() == [1, 2, 3, 4]  # though user 4 is the earliest


def test_drawn_negatives_are_distinct_and_unseen_in_every_split(tmp_path):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 30, 600), rng.integers(100, 150, 600)
    source = RawTable(ReadReport(600), user=user, item=item, timestamp=rng.integers(0, 99, 600))
    table, _ = prepared(tmp_path / "a", source, dataclasses.replace(RANKING, num_negatives=20))
    vocabulary = np.load(tmp_path / "a" / "vocabularies" / "item.npy")
    positives = set(zip(user.tolist(), item.tolist(), strict=True))
    for split in ("validation", "test"):
        rows = table.splits[split]
        assert rows["negatives"].shape == (30, 20) and rows["negatives"].min() > 0
        for who, drawn in zip(rows["user"] - 1, vocabulary[rows["negatives"] - 1], strict=True):
            assert len(set(drawn)) == 20
            assert not positives & {(int(who), int(what)) for what in drawn}


def test_drawn_negatives_depend_on_the_seed_only(tmp_path):
    tables = [
        prepared(tmp_path / str(i), interactions(), dataclasses.replace(RANKING, seed=seed))[0]
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (table.splits["test"]["negatives"] for table in tables)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.any(first != tables[0].splits["validation"]["negatives"])


NEGATIVES = Negatives(np.array([12, 15, 16, 99]), np.array([[1, 3], [0, 2]]))


def test_given_negatives_are_encoded_for_their_test_rows(tmp_path):
    source = with_a_test_split(negatives=NEGATIVES)
    config = dataclasses.replace(GIVEN, num_negatives=1)
    table, _ = prepared(tmp_path, source, config)
    vocabulary = np.load(tmp_path / "vocabularies" / "item.npy").tolist()
    expected = [
        [vocabulary.index(i) + 1 if i in vocabulary else 0 for i in row]
        for row in ([15, 99], [12, 16])
    ]
    assert table.splits["test"]["negatives"].tolist() == expected
    assert expected[0][1] == 0  # no training row has item 99
    assert table.splits["test"]["negatives"].dtype == np.int32
    assert table.splits["validation"]["negatives"].shape == (2, 1)  # drawn


def test_given_negatives_need_the_given_split(tmp_path):
    """Another split would put them beside rows of other users."""
    source = with_a_test_split(negatives=NEGATIVES)
    with pytest.raises(ConfigError, match="negatives"):
        prepare.write_table(
            tmp_path, raw.of_table(source), dataclasses.replace(RANKING, num_negatives=1)
        )


def test_known_items_are_the_items_of_each_users_training_rows(tmp_path):
    table, _ = prepared(tmp_path, interactions(), RANKING)
    train, known = table.splits["train"], table.known
    expected = sorted(zip(train["user"].tolist(), train["item"].tolist(), strict=True))
    users = np.repeat(np.arange(table.schema.num_users), np.diff(known["offsets"]))
    assert list(zip(users.tolist(), known["items"].tolist(), strict=True)) == expected
    assert len(known["offsets"]) == table.schema.num_users + 1


# Users held out whole.

BY_USERS = PrepareConfig("ranking", "users", 0.2, 0.2, num_negatives=3)


def many_interactions(**columns):
    """Distinct pairs of 30 users, of one to twelve rows each, with 40 items."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(40)[: 1 + u % 12] for u in range(30)]
    user = np.repeat([f"u{u:02}" for u in range(30)], [len(items) for items in rows])
    order = rng.permutation(len(user))
    table = RawTable(ReadReport(len(user)), user=user[order], item=np.concatenate(rows)[order])
    return dataclasses.replace(table, **columns)


def pairs_of(rows):
    return set(zip(rows["user"].tolist(), rows["item"].tolist(), strict=True))


def test_known_rows_of_held_out_users_are_a_part_of_their_own(tmp_path):
    source = many_interactions(value=np.arange(len(many_interactions().user), dtype=np.float32))
    table, facts = prepared(tmp_path, source, BY_USERS)
    parts = {name: set(table.splits[name]["user"].tolist()) for name in raw.PARTS}
    assert not parts["train"] & parts["fold_in"] and not parts["validation"] & parts["test"]
    assert parts["fold_in"] == parts["validation"] | parts["test"]
    assert 0 not in parts["fold_in"]
    assert facts["num_users"] == 30 and facts["rows"] == {
        name: len(table.splits[name]["user"]) for name in raw.PARTS
    }
    assert sum(facts["rows"].values()) == len(source.user)
    vocabulary = encoding.read_vocabulary(tmp_path, "user").values.to_pylist()
    assert vocabulary == sorted(set(source.user.tolist()))
    rows = table.splits["fold_in"]
    by_value = {v: u for v, u in zip(source.value.tolist(), source.user.tolist(), strict=True)}
    assert [vocabulary[u - 1] for u in rows["user"]] == [
        by_value[v] for v in rows["value"].tolist()
    ]


def test_of_held_out_users_nothing_is_learnt_but_their_ids(tmp_path):
    """Without any of their rows all that is learnt from rows is the same."""
    source = many_interactions()
    table, _ = prepared(tmp_path, source, BY_USERS)
    names = np.array(encoding.read_vocabulary(tmp_path, "user").values.to_pylist())
    trains = ~np.isin(source.user, names[np.unique(table.splits["fold_in"]["user"]) - 1])
    vocabulary = np.load(tmp_path / "vocabularies" / "item.npy")
    items, count = np.unique(source.item[trains], return_counts=True)
    assert vocabulary.tolist() == items.tolist()
    assert table.items["count"].tolist() == [0, *count]
    assert len(table.splits["train"]["user"]) == trains.sum()


def test_known_items_of_a_held_out_user_are_its_fold_in_rows(tmp_path):
    table, _ = prepared(tmp_path, many_interactions(), BY_USERS)
    known = pairs_of(dict(zip(("user", "item"), table.known_pairs(), strict=True)))
    assert known == pairs_of(table.splits["train"]) | pairs_of(table.splits["fold_in"])


def test_fold_in_items_are_no_negatives(tmp_path):
    table, _ = prepared(
        tmp_path, many_interactions(), dataclasses.replace(BY_USERS, num_negatives=25)
    )
    taken = set().union(*(pairs_of(table.splits[name]) for name in raw.PARTS))
    for split in ("validation", "test"):
        rows = table.splits[split]
        drawn = zip(
            np.repeat(rows["user"], 25).tolist(), rows["negatives"].ravel().tolist(), strict=True
        )
        assert not taken & set(drawn)


def test_a_held_out_user_has_an_id_whatever_the_least_count(tmp_path):
    table, _ = prepared(tmp_path, many_interactions(), dataclasses.replace(BY_USERS, min_count=5))
    rows = table.splits["fold_in"]
    assert rows["user"].min() > 0 and np.unique(rows["user"], return_counts=True)[1].min() >= 5


def test_the_rows_of_other_splits_have_no_fold_in_folder(tmp_path):
    _, facts = prepared(tmp_path, interactions(), RANKING)
    assert not (tmp_path / "fold_in").exists() and facts["rows"]["fold_in"] == 0


def test_users_that_would_share_ids_cannot_be_held_out(tmp_path):
    config = dataclasses.replace(BY_USERS, max_vocabulary=20)
    with pytest.raises(ConfigError, match="data.max_vocabulary=20: there are more users"):
        prepared(tmp_path, many_interactions(), config)


def test_users_of_clicks_cannot_be_held_out():
    with pytest.raises(ConfigError, match="data.split='users' needs data.task='ranking'"):
        dataclasses.replace(BY_USERS, task="click")


# Chunks.


@pytest.mark.parametrize("config", [CLICK, dataclasses.replace(CLICK, split="random")])
def test_clicks_do_not_depend_on_the_size_of_chunks(tmp_path, monkeypatch, config):
    source = clicks(500)
    prepared(tmp_path / "one", source, config)
    monkeypatch.setattr(raw, "CHUNK_ROWS", 7)
    table, _ = prepared(tmp_path / "many", source, config)
    one, many = files(tmp_path / "one", FOLDERS), files(tmp_path / "many", FOLDERS)
    statistics = [json.loads(found.pop("statistics.json")) for found in (one, many)]
    dense = [
        [np.load(tmp_path / name / split / "dense.npy") for split in SPLIT_FOLDERS]
        for name in ("one", "many")
    ]
    for found in (one, many):
        for split in SPLIT_FOLDERS:
            del found[f"{split}/dense.npy"]
    assert one == many
    for name, scale in statistics[0].items():  # a sum of floats depends on the order of its terms
        assert statistics[1][name] == pytest.approx(scale, rel=1e-12)
    for a, b in zip(*dense, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not (tmp_path / "many" / "staging").exists()
    assert len(table.splits["train"]["user"]) > 250


@pytest.mark.parametrize("split", ["leave_one_out", "users"])
def test_interactions_do_not_depend_on_the_size_of_chunks(tmp_path, monkeypatch, split):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 9, 300).astype(str), rng.integers(0, 40, 300)
    source = RawTable(ReadReport(300), user=user, item=item, timestamp=rng.integers(0, 50, 300))
    config = PrepareConfig("ranking", split, 0.3, 0.3, num_negatives=1)
    prepared(tmp_path / "one", source, config)
    monkeypatch.setattr(raw, "CHUNK_ROWS", 11)
    prepared(tmp_path / "many", source, config)
    folders = (*FOLDERS, "known", "fold_in")
    assert files(tmp_path / "one", folders) == files(tmp_path / "many", folders)


def test_clicks_may_have_their_own_split_or_be_split_by_time(tmp_path):
    rng = np.random.default_rng(0)
    source = clicks(fold=np.repeat([0, 1, 2], [14, 3, 3]).astype(np.int8))
    table, _ = prepared(tmp_path / "given", source, dataclasses.replace(CLICK, split="given"))
    np.testing.assert_array_equal(table.splits["test"]["label"], source.label[17:])
    when = rng.permutation(20)
    source = clicks(timestamp=when)
    table, _ = prepared(tmp_path / "time", source, dataclasses.replace(CLICK, split="time"))
    np.testing.assert_array_equal(table.splits["test"]["label"], source.label[when >= 16])


def test_items_are_counted_over_training_rows(tmp_path):
    source = clicks(200)
    table, _ = prepared(tmp_path, source, CLICK)
    train = table.splits["train"]
    expected = np.bincount(train["item"], minlength=table.schema.num_items)
    np.testing.assert_array_equal(table.items["count"], expected)
    clicked = np.bincount(train["item"], train["label"], minlength=table.schema.num_items)
    np.testing.assert_array_equal(table.items["clicks"], clicked)


def test_a_column_of_too_many_values_is_hashed(tmp_path):
    rng = np.random.default_rng(0)
    source = clicks(1000)
    source.categorical["other"] = rng.integers(0, 10**9, 1000)
    source.categorical["what"] = np.arange(1000)
    table, facts = prepared(tmp_path, source, dataclasses.replace(CLICK, max_vocabulary=50))
    assert table.schema.hashed == {"item": 50, "row.other": 50}
    assert facts["hashed"] == ["item", "row.other"]
    assert table.schema.num_items == 51 and table.schema.context.vocabulary_sizes == (51,)
    assert table.schema.num_users == 4  # these are few enough
    for split in ("train", "test"):
        ids = table.splits[split]["categorical"]
        assert ids.min() >= 1 and ids.max() <= 50 and len(np.unique(ids)) > 40


# Facts and errors.


def test_facts_hold_the_rows_of_each_split_and_the_report(tmp_path):
    report = ReadReport(24, padded=2, malformed=1, examples=("a:1: bad",))
    _, facts = prepared(
        tmp_path, interactions(report=report), dataclasses.replace(RANKING, max_malformed=0.05)
    )
    assert facts["rows"] == {"train": 16, "validation": 4, "test": 4, "fold_in": 0}
    assert (facts["num_users"], facts["num_items"], facts["merged_repeats"]) == (4, 10, 0)
    assert facts["reader"] == dataclasses.asdict(report)
    json.dumps(facts)  # the manifest needs this


@pytest.mark.parametrize(
    ("source", "config", "error", "message"),
    [
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
            clicks(),
            dataclasses.replace(CLICK, min_count=20),
            DataError,
            "no user has 20 training rows or more: lower data.min_count",
        ),
        (
            interactions(items=EntityTable(np.array(["a"]))),
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
            with_a_test_split(fold=np.full(8, TEST, np.int8)),
            GIVEN,
            DataError,
            "the train split has no rows",
        ),
        (with_a_test_split(fold=None), GIVEN, ConfigError, "a split of its own"),
        (
            clicks(label=None),
            CLICK,
            ConfigError,
            r"data.task='click' needs a label \(0 or 1\) in each row: name its column",
        ),
    ],
)
def test_data_that_cannot_be_prepared_says_why(tmp_path, source, config, error, message):
    with pytest.raises(error, match=message) as caught:
        prepare.write_table(tmp_path, raw.of_table(source), config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [0, 1])
def test_training_rows_of_one_label_are_an_error(tmp_path, label):
    source = raw.of_table(clicks(label=np.full(20, label, np.float32)))
    with pytest.raises(DataError, match=f"all .* training rows have label {label}"):
        prepare.write_table(tmp_path, source, CLICK)


# Positives by value.


def rated(**columns):
    """The rows of `interactions`, rated 1 to 5 in turn."""
    return interactions(value=np.resize([1, 2, 3, 4, 5], 24).astype(np.float32), **columns)


def test_rows_below_the_least_value_are_left_out_of_all_splits(tmp_path):
    table, facts = prepared(
        tmp_path, rated(), dataclasses.replace(RANKING, min_value=3, num_negatives=0)
    )
    values = np.concatenate([rows["value"] for rows in table.splits.values()])
    assert sorted(values) == [3] * 5 + [4] * 5 + [5] * 4
    assert (facts["reader"]["rows"], facts["reader"]["below"]) == (14, 10)


def test_a_table_of_positives_is_that_of_a_log_of_positives(tmp_path):
    source = rated()
    places = np.flatnonzero(source.value >= 2)
    alone = dataclasses.replace(
        source,
        report=ReadReport(len(places)),
        **{name: getattr(source, name)[places] for name in ("user", "item", "value", "timestamp")},
    )
    for name, table, config in (
        ("all", source, dataclasses.replace(RANKING, min_value=2)),
        ("positives", alone, RANKING),
    ):
        prepared(tmp_path / name, table, config)
    assert files(tmp_path / "all", FOLDERS) == files(tmp_path / "positives", FOLDERS)


def test_of_clicks_the_values_make_the_labels(tmp_path):
    source = dataclasses.replace(clicks(), label=None, value=np.arange(20, dtype=np.float32) % 5)
    table, facts = prepared(tmp_path, source, dataclasses.replace(CLICK, min_value=3))
    labels = np.concatenate([rows["label"] for rows in table.splits.values()])
    assert labels.tolist() == [0, 0, 0, 1, 1] * 4
    assert facts["reader"]["below"] == 0


@pytest.mark.parametrize(
    ("table", "config", "message"),
    [
        (interactions(), RANKING, "data.min_value=3 needs a value in each row"),
        (clicks(), CLICK, "data.min_value=3 needs a value in each row"),
        (clicks(value=np.ones(20, np.float32)), CLICK, "but the rows have some: leave out"),
    ],
)
def test_a_least_value_needs_values_and_no_labels(tmp_path, table, config, message):
    with pytest.raises(ConfigError, match=message):
        prepared(tmp_path, table, dataclasses.replace(config, min_value=3))


def test_a_least_value_above_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="the values of all 24 rows are below data.min_value"):
        prepared(tmp_path, rated(), dataclasses.replace(RANKING, min_value=6))


@pytest.mark.parametrize("change", [{"min_value": 1}, {"min_user_rows": 2}])
def test_own_negatives_go_with_all_test_rows(tmp_path, change):
    negatives = Negatives(np.array([11]), np.zeros((2, 1), int))
    source = with_a_test_split(negatives=negatives, value=np.ones(8, np.float32))
    with pytest.raises(ConfigError, match="data.negatives_file goes with all rows"):
        prepared(tmp_path, source, dataclasses.replace(GIVEN, **change))
