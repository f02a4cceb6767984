import dataclasses

import numpy as np
import pytest

from cadc_jax.data import prepare
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.schema import EntityTable, RawTable, ReadReport
from cadc_jax.data.table import open_table
from cadc_jax.errors import ConfigError, DataError

CLICK = PrepareConfig(
    "click", "order", 0.2, 0.2, user_features=("who",), item_features=("what",), log_dense=True
)
RANKING = PrepareConfig("ranking", "leave_one_out", num_negatives=3)


def clicks(rows=20):
    rng = np.random.default_rng(0)
    return RawTable(
        ReadReport(rows),
        label=rng.integers(0, 2, rows).astype(np.float32),
        dense={"count": np.r_[-3, np.nan, rng.integers(0, 9, rows - 2)].astype(np.float32)},
        categorical={
            "who": rng.integers(0, 3, rows),
            "what": rng.integers(0, 4, rows),
            "other": rng.integers(0, 5, rows),
        },
    )


def interactions():
    """In order of time: users 10 and 20 with items 1..5, 30 with 6..9 and 1..5, 40 with 21..25."""
    user = np.repeat([10, 20, 30, 40], [5, 5, 9, 5])
    item = np.r_[1:6, 1:6, 6:10, 1:6, 21:26]
    return RawTable(ReadReport(len(user)), user=user, item=item, timestamp=np.arange(len(user)))


def prepared(path, raw, config):
    facts = prepare.write(path, raw, config)
    return open_table(path), facts


def files(path, folders=("train", "users", "items", "vocabularies")):
    found = [file for folder in folders for file in (path / folder).glob("*.npy")]
    return {
        str(file.relative_to(path)): file.read_bytes() for file in [*found, path / "schema.json"]
    }


def test_ids_are_places_in_the_vocabulary_and_0_is_everything_else():
    vocabulary = prepare.vocabulary(np.array([7, 3, 7, 9, 3]), min_count=2)
    assert vocabulary.tolist() == [3, 7]
    assert prepare.encode(np.array([7, 3, 9, 100, -1]), vocabulary).tolist() == [2, 1, 0, 0, 0]
    text = prepare.vocabulary(np.array(["b", "a", "b"]), 1)
    assert prepare.encode(np.array(["b", "zebra", "a"]), text).tolist() == [2, 0, 1]


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
        prepare.write(tmp_path / name, table, CLICK)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    statistics = "statistics.json"
    assert (tmp_path / "a" / statistics).read_text() == (tmp_path / "b" / statistics).read_text()
    assert np.all(open_table(tmp_path / "b").splits["test"]["categorical"] == 0)


def test_dense_features_are_logs_standardised_by_training_rows_with_missing_at_the_mean(tmp_path):
    table, _ = prepared(tmp_path, clicks(), CLICK)
    raw = np.log1p(np.maximum(clicks().dense["count"], 0))
    train = raw[:12][~np.isnan(raw[:12])]
    expected = (raw - train.mean()) / train.std()
    np.testing.assert_allclose(
        table.splits["test"]["dense"][:, 0], expected[16:], rtol=1e-5, atol=1e-6
    )
    assert table.splits["train"]["dense"][1, 0] == 0  # it is missing
    np.testing.assert_allclose(table.splits["train"]["dense"][0, 0], -train.mean() / train.std())


def test_a_column_that_is_the_user_or_the_item_is_not_a_feature_as_well(tmp_path):
    table, _ = prepared(tmp_path, clicks(), CLICK)
    assert table.schema.context.categorical == ("other",)
    crossed = dataclasses.replace(CLICK, user_features=("who", "other"))
    table, _ = prepared(tmp_path / "crossed", clicks(), crossed)
    assert table.schema.context.categorical == ("who", "other")


def test_crossed_columns_have_one_key_a_combination():
    a, b = np.array([1, 1, 2, 2, 1]), np.array(["x", "y", "x", "y", "x"])
    key = prepare.cross([a, b])
    assert len(np.unique(key)) == 4 and key[0] == key[4] and np.all(key >= 0)
    np.testing.assert_array_equal(prepare.cross([a, b.astype("U20")]), key)
    np.testing.assert_array_equal(prepare.cross([a]), a)


def test_rare_values_share_id_0(tmp_path):
    raw = clicks()
    raw.categorical["other"] = np.array([8, 8, 9, 8, 9, 7, 7, 7, 7, 7, 7, 7] + [9] * 8)
    table, _ = prepared(tmp_path, raw, dataclasses.replace(CLICK, min_count=3))
    assert table.schema.context.vocabulary_sizes == (3,)  # 7 and 8; of 9, two rows train
    assert table.splits["train"]["categorical"][:6, 0].tolist() == [2, 2, 0, 2, 0, 1]
    assert np.all(table.splits["test"]["categorical"] == 0)


def test_content_is_aligned_to_ids_and_may_be_missing(tmp_path):
    users = EntityTable(
        ids=np.array([30, 99, 10]),
        dense={"flag": np.array([1, 0, 0], np.float32), "age": np.array([40, 99, 20], np.float32)},
        categorical={"country": np.array(["no", "xx", "de"])},
        titles=np.array(["Kari", "-", "Hans"]),
    )
    table, _ = prepared(tmp_path, dataclasses.replace(interactions(), users=users), RANKING)
    np.testing.assert_allclose(table.users["dense"], [[0, 0], [0, -1], [0, 0], [1, 1], [0, 0]])
    assert table.users["categorical"][:, 0].tolist() == [0, 1, 0, 2, 0]  # of 'de', 'no'
    assert table.users["titles"].tolist() == ["", "Hans", "", "Kari", ""]
    assert table.schema.user_content.vocabulary_sizes == (3,)


def test_ranking_negatives_are_unseen_in_every_split(tmp_path):
    table, _ = prepared(tmp_path, interactions(), RANKING)
    assert table.schema.num_items - 1 == 10  # ids 1..10 of items 1, 2, 3, 6, 7, 8, 9, 21, 22, 23
    unseen = {1: {4, 5, 6, 7, 8, 9, 10}, 3: {8, 9, 10}, 4: {1, 2, 3, 4, 5, 6, 7}}
    for split in ("validation", "test"):
        rows = table.splits[split]
        assert rows["negatives"].shape == (4, 3)
        for user, allowed in unseen.items():
            drawn = rows["negatives"][rows["user"] == user][0]
            assert set(drawn) <= allowed and len(set(drawn)) == 3


def test_ranking_needs_unseen_items(tmp_path):
    with pytest.raises(ConfigError, match="data.num_negatives"):
        prepare.write(tmp_path, interactions(), dataclasses.replace(RANKING, num_negatives=50))


def test_facts_tell_the_rows_of_each_split(tmp_path):
    _, facts = prepared(tmp_path, interactions(), RANKING)
    assert facts["rows"] == {"train": 16, "validation": 4, "test": 4}


@pytest.mark.parametrize(
    ("raw", "config", "error", "message"),
    [
        (clicks(), dataclasses.replace(CLICK, user_features=("wo",)), ConfigError, "no .*'wo'"),
        (clicks(), dataclasses.replace(CLICK, user_features=()), ConfigError, "no user id"),
        (clicks(3), dataclasses.replace(CLICK, test=0.1), DataError, "split has no rows"),
        (
            dataclasses.replace(interactions(), users=EntityTable(np.array(["a"]))),
            RANKING,
            DataError,
            "different types",
        ),
    ],
)
def test_data_that_cannot_be_prepared_says_why(tmp_path, raw, config, error, message):
    with pytest.raises(error, match=message):
        prepare.write(tmp_path, raw, config)
