"""Items for users: the best unseen ones by the model that validated best, under their raw ids."""

import contextlib
import dataclasses
import errno
import shutil

import numpy as np
import pytest
from pyarrow import parquet

from cadc_jax.errors import ArtifactError, ConfigError, DataError
from cadc_jax.models.embeddings import pair_batch
from cadc_jax.serving import recommend, trained
from tests.conftest import ranking_config


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


def test_the_model_that_validated_best_is_taken(ranking_run, shop):
    both = [trained.open_trained(ranking_run, arm=arm) for arm in ("sample", "cadc_frozen")]
    assert shop.validation == max(model.validation for model in both)
    assert {model.arm for model in both} == {"sample", "cadc_frozen"}


@pytest.mark.parametrize("arm", ["sample", "cadc_frozen", "mf_alone", "popularity"])
def test_every_user_gets_the_best_items_that_are_not_in_training(ranking_run, monkeypatch, arm):
    monkeypatch.setattr(recommend, "ITEM_BLOCK", 23)  # so that blocks do not divide anything
    monkeypatch.setattr(recommend, "USER_BLOCK", 7)
    model = trained.open_trained(ranking_run, arm=arm)
    users = np.arange(1, model.table.schema.num_users, dtype=np.int32)
    found = list(recommend.blocks(model, users, 5))
    assert len(found) == -(-len(users) // 7)
    assert np.concatenate([block for block, _, _ in found]).tolist() == users.tolist()
    scores, ids = (np.concatenate([part[i] for part in found]) for i in (1, 2))
    every = np.arange(model.table.schema.num_items, dtype=np.int32)[None]
    grid = np.asarray(trained.scorer(model)(pair_batch(users, every)))
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
    assert "user ann07" in text and "training items left out" in text
    rows = [line.split() for line in text.splitlines()[3:]]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(row[3:] == ["Product", row[1]] for row in rows)


def test_an_unknown_user_is_an_error_unless_popularity_is_asked_for(ranking_run, shop):
    with pytest.raises(ConfigError, match="--user=bob: not among the 40 users.*--arm=popularity"):
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
    with pytest.raises(DataError, match="no text"):
        recommend.write_recommendations(shop, str(file), 2, tmp_path / "x.parquet")


def test_users_of_clicks_are_scored_in_the_context_of_their_last_row(clicks):
    train = clicks.table.splits["train"]
    user = int(train["user"][-5])
    ((_, scores, ids),) = recommend.blocks(clicks, np.array([user], np.int32), 6)
    row = np.flatnonzero(train["user"] == user)[-1:]
    batch = {name: train[name][row] for name in ("user", "dense", "categorical")}
    expected = trained.scorer(clicks)({**batch, "item": ids})
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_ids_of_criteo_are_spelt_as_in_its_logs(clicks):
    ids = recommend.RawIds(clicks, "user")
    spelt = ids.of(np.array([1, 2]))
    assert [len(raw) for raw in spelt] == [8, 8]
    assert [ids.id_of(raw) for raw in spelt] == [1, 2]
    with pytest.raises(ConfigError, match="hexadecimal"):
        ids.id_of("xyz")


def test_a_compressed_data_set_goes_with_the_work_folder_of_its_training(click_run):
    compressed = click_run.parent / "compressed"
    model = trained.open_trained(compressed, click_run)
    assert model.arm == "cadc_frozen"
    assert compressed in model.prepared.parents
    alone = trained.open_trained(compressed, click_run / "none", arm="mf_alone")
    assert alone.tables["user"].shape[1] == 6 + 2


def test_a_configuration_chooses_what_was_made_with_it(ranking_run, tmp_path):
    config = ranking_config(tmp_path / "raw")
    assert trained.open_trained(ranking_run, config=config).validation is not None
    config.rate = 0.5
    with pytest.raises(ArtifactError, match="nothing trained with these settings"):
        trained.open_trained(ranking_run, config=config, arm="sample")


def test_what_cannot_be_compared_is_not_chosen_from(ranking_run):
    shelf = trained._open(ranking_run, None)
    settings = {name: dict(made) for name, made in shelf.settings.items()}
    first, *_ = shelf.models
    settings[first]["k"] = 99
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "_open", lambda *_: dataclasses.replace(shelf, settings=settings))
        with pytest.raises(ConfigError, match="choose by --config"):
            trained.open_trained(ranking_run)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"arm": "cadc"}, "--arm=cadc: must be one of popularity, mf_alone"),
        ({"model": "bert"}, "--model=bert: must be one of dlrm"),
        ({"model": "dcn"}, "there are two_tower, cadc_frozen; two_tower, sample"),
        ({"arm": "full"}, "nothing trained with these settings"),
    ],
)
def test_a_choice_that_is_not_there_says_what_is(ranking_run, choice, message):
    with pytest.raises((ArtifactError, ConfigError), match=message):
        trained.open_trained(ranking_run, **choice)


def test_a_wrong_folder_says_what_is_wanted(ranking_run, tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        trained.open_trained(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="neither a work folder"):
        trained.open_trained(tmp_path)
    with pytest.raises(ArtifactError, match="not a compressed data set, but of stage prepare"):
        trained.open_trained(next((ranking_run / "prepare").iterdir()))


def test_a_damaged_model_or_factors_are_not_used(ranking_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ranking_run, copy)
    files = [file for stage in ("train", "factorize") for file in (copy / stage).rglob("*")]
    for file in files:
        if file.is_file() and file.name != "manifest.json" and file.stat().st_size > 1000:
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
    for arm in (None, "mf_alone"):
        with pytest.raises(ArtifactError, match="the file is damaged"):
            trained.open_trained(copy, arm=arm)


def test_a_full_disk_is_named_with_the_file(shop, small_disk):
    with contextlib.suppress(OSError):
        (small_disk / "fill").write_bytes(bytes(3 << 20))
    with pytest.raises(OSError) as caught:
        recommend.write_recommendations(shop, "all", 50, small_disk / "recs.parquet")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(small_disk / "recs.parquet")


def test_before_any_training_it_says_what_to_do(click_run, tmp_path):
    with pytest.raises(ArtifactError, match="no trained model yet.*--arm=mf_alone"):
        trained.open_trained(click_run.parent / "compressed", tmp_path)
