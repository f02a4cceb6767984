"""Items for users: the best unseen ones by the model that validated best, under their raw ids."""

import contextlib
import errno
import pathlib

import numpy as np
import pytest
from pyarrow import parquet

from cadc_jax.errors import ConfigError, DataError
from cadc_jax.models.embeddings import pair_batch
from cadc_jax.serving import recommend, trained
from cadc_jax.serving.raw_ids import of_table


@pytest.fixture(scope="module")
def shop(ranking_run):
    return trained.open_trained(ranking_run)


@pytest.fixture(scope="module")
def clicks(click_run):
    return trained.open_trained(click_run)


def best_unseen(model, scores, user, k):
    """Scores and ids of the k best items of a user, whose scores of all items are given."""
    scores = scores.copy()
    known_users, known_items = model.table.known_pairs()
    scores[known_items[known_users == user]] = -np.inf
    scores[0] = -np.inf
    ids = np.argsort(-scores, kind="stable")[:k]
    return scores[ids], ids


@pytest.mark.parametrize("arm", ["sample", "cadc_frozen", "mf_alone", "popularity"])
def test_every_user_gets_the_best_items_that_are_not_in_training(ranking_run, monkeypatch, arm):
    monkeypatch.setattr(recommend, "ITEM_BLOCK", 23)  # blocks do not divide anything
    monkeypatch.setattr(recommend, "USER_BLOCK", 7)
    model = trained.open_trained(ranking_run, arm=arm)
    users = np.arange(1, model.table.schema.num_users, dtype=np.int32)
    found = list(recommend.blocks(model, users, 5))
    assert len(found) == -(-len(users) // 7)
    assert np.concatenate([block for block, _, _ in found]).tolist() == users.tolist()
    scores, ids = (np.concatenate([part[i] for part in found]) for i in (1, 2))
    every = np.arange(model.table.schema.num_items, dtype=np.int32)[None]
    grid = np.asarray(trained.make_scorer(model).score(pair_batch(users, every)))
    for user in users:
        expected, best = best_unseen(model, grid[user - 1], user, 5)
        np.testing.assert_allclose(scores[user - 1], expected, rtol=1e-5, atol=1e-5)
        if len(np.unique(expected.round(4))) == 5:  # equal scores may come in any order
            assert ids[user - 1].tolist() == best.tolist()


def test_more_items_than_there_are_left_end_early(shop):
    ((_, scores, ids),) = recommend.blocks(shop, np.array([1], np.int32), 1000)
    seen = np.diff(shop.table.known["offsets"])[1]
    assert (ids > 0).sum() == shop.table.schema.num_items - 1 - seen
    assert np.isfinite(scores[ids > 0]).all()


def test_a_user_is_shown_raw_ids_and_titles(shop):
    text = recommend.show(shop, "ann07", 3)
    assert "user ann07" in text and "known items left out" in text
    rows = [line.split() for line in text.splitlines()[3:]]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(row[3:] == ["Product", row[1]] for row in rows)


def test_an_unknown_user_is_an_error_unless_popularity_is_asked_for(ranking_run, shop):
    with pytest.raises(
        ConfigError, match="user 'bob': not among the 40 users.*--items=.*--arm=popularity"
    ):
        recommend.show(shop, "bob", 3)
    text = recommend.show(trained.open_trained(ranking_run, arm="popularity"), "bob", 3)
    assert "an unknown user" in text and "popularity" in text and "Product" in text


def test_all_users_go_to_a_parquet_file(shop, tmp_path):
    out = tmp_path / "recs.parquet"
    assert "40 users" in recommend.write_recommendations(shop, "all", 4, out)
    rows = parquet.read_table(out)
    assert rows.column_names == ["user", "rank", "item", "score"]
    assert rows["rank"].to_pylist() == [1, 2, 3, 4] * 40
    assert len(set(rows["user"].to_pylist())) == 40
    shown = recommend.show(shop, rows["user"][0].as_py(), 1).splitlines()[-1].split()
    assert shown[1] == str(rows["item"][0])
    with pytest.raises(ConfigError, match="exists"):
        recommend.write_recommendations(shop, "all", 4, out)


def test_a_file_of_users_may_name_some_that_are_unknown(shop, tmp_path):
    file = tmp_path / "users.txt"
    file.write_text("ann03\nbob\n\nann01\n")
    text = recommend.write_recommendations(shop, str(file), 2, tmp_path / "recs.parquet")
    assert "1 unknown users left out, such as 'bob'" in text
    users = parquet.read_table(tmp_path / "recs.parquet")["user"].to_pylist()
    assert users == ["ann03", "ann03", "ann01", "ann01"]
    with pytest.raises(DataError, match="no such file"):
        recommend.write_recommendations(shop, "nothing.txt", 2, tmp_path / "x.parquet")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        recommend.write_recommendations(shop, str(file), 2, tmp_path / "x.parquet")


def test_users_of_clicks_are_scored_in_the_context_of_their_last_row(clicks):
    train = clicks.table.splits["train"]
    user = int(train["user"][-5])
    ((_, scores, ids),) = recommend.blocks(clicks, np.array([user], np.int32), 6)
    row = np.flatnonzero(train["user"] == user)[-1:]
    batch = {name: train[name][row] for name in ("user", "dense", "categorical")}
    expected = trained.make_scorer(clicks).score({**batch, "item": ids})
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_ids_of_criteo_are_spelt_as_in_its_logs(clicks):
    ids = of_table(clicks.prepared, clicks.source, "user")
    spelt = ids.of(np.array([1, 2]))
    assert [len(raw) for raw in spelt] == [8, 8]
    assert [ids.id_of(raw) for raw in spelt] == [1, 2]
    with pytest.raises(ConfigError, match="hexadecimal"):
        ids.id_of("xyz")


def test_a_full_disk_is_named_with_the_file(shop, small_disk):
    with contextlib.suppress(OSError):
        (small_disk / "fill").write_bytes(bytes(3 << 20))
    with pytest.raises(OSError) as caught:
        recommend.write_recommendations(shop, "all", 50, small_disk / "recs.parquet")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(small_disk / "recs.parquet")


@pytest.mark.parametrize("out", ["/proc/recs.parquet", "/dev/null/recs.parquet"])
def test_a_path_that_cannot_be_written_is_named(shop, out):
    with pytest.raises(ConfigError, match=f"--out={out}: .*; choose another path"):
        recommend.write_recommendations(shop, "all", 2, pathlib.Path(out))
