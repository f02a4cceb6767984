"""Trained models: which one is chosen, and what cannot be chosen."""

import dataclasses
import shutil

import numpy as np
import pytest

from cadc_jax import experiment
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.models.embeddings import pair_batch
from cadc_jax.run import compressed
from cadc_jax.serving import trained
from tests.small_runs import quiet, ranking_config


@pytest.fixture(scope="module")
def shop(ranking_run):
    return trained.open_trained(ranking_run)


def test_the_model_that_validated_best_is_taken(ranking_run, shop):
    both = [trained.open_trained(ranking_run, arm=arm) for arm in ("sample", "cadc_frozen")]
    assert shop.validation == max(model.validation for model in both)
    assert {model.arm.name for model in both} == {"sample", "cadc_frozen"}


def test_a_compressed_data_set_goes_with_the_work_folder_of_its_training(click_run, tmp_path):
    small = click_run.parent / "compressed"
    given = compressed.open_compressed(small)
    experiment.train_from(experiment.Run(given.config, tmp_path, quiet), given)
    model = trained.open_trained(small, tmp_path)
    assert model.arm.name == "cadc_frozen"
    assert tmp_path in model.prepared.parents
    assert str(trained.open_trained(tmp_path)) == str(model)  # the work folder has all it takes
    alone = trained.open_trained(small, tmp_path / "none", arm="mf_alone")
    assert alone.tables["user"].shape[1] == 6 + 2


def test_plain_factors_and_the_ones_that_a_frozen_arm_predicts_with_are_told_apart(tmp_path):
    config = ranking_config(tmp_path / "raw")
    config.arms, config.factor_rows = ("cadc_frozen",), "unsampled"
    work, small = tmp_path / "work", tmp_path / "small"
    experiment.run(experiment.Run(config, work, quiet))
    experiment.compress(experiment.Run(config, work, quiet), small)
    plain, refreshed = (trained.open_trained(work, arm=f"mf_{x}") for x in ("alone", "refreshed"))
    assert (work / "plain") in plain.path.parents and (work / "factorize") == refreshed.path.parent
    assert not np.array_equal(plain.tables["user"], refreshed.tables["user"])
    unpacked = trained.open_trained(small, tmp_path / "none", arm="mf_refreshed")
    np.testing.assert_array_equal(unpacked.tables["user"], refreshed.tables["user"])
    with pytest.raises(ArtifactError, match="no finished stage.*; try --arm=mf_refreshed"):
        trained.open_trained(small, tmp_path / "none", arm="mf_alone")


def test_a_configuration_chooses_what_was_made_with_it(ranking_run, tmp_path):
    config = ranking_config(tmp_path / "raw")
    assert trained.open_trained(ranking_run, config=config).validation is not None
    config.rate = 0.5
    with pytest.raises(ArtifactError, match="nothing trained with these settings"):
        trained.open_trained(ranking_run, config=config, arm="sample")


def test_what_cannot_be_compared_is_not_chosen_from(ranking_run):
    index = trained._open(ranking_run, None)
    settings = {name: dict(made) for name, made in index.settings.items()}
    first, *_ = index.models
    settings[first]["k"] = 99
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "_open", lambda *_: dataclasses.replace(index, settings=settings))
        with pytest.raises(ConfigError, match="choose by --config"):
            trained.open_trained(ranking_run)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"arm": "cadc"}, "--arm='cadc': must be one of popularity, mf_alone"),
        ({"model": "bert"}, "--model='bert': must be one of dlrm"),
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
    with pytest.raises(ArtifactError, match="not a compressed data set, but of stage 'prepare'"):
        trained.open_trained(next((ranking_run / "prepare").iterdir()))


def test_a_damaged_model_or_factors_are_not_used(ranking_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ranking_run, copy)
    files = [file for stage in ("train", "factorize") for file in (copy / stage).rglob("*")]
    for file in files:
        if file.is_file() and file.name != "manifest.json" and file.stat().st_size > 200:
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
    for arm in (None, "mf_alone"):
        with pytest.raises(ArtifactError, match="the file is damaged"):
            trained.open_trained(copy, arm=arm)


def test_before_any_training_it_says_what_to_do(click_run, tmp_path):
    with pytest.raises(ArtifactError, match="no trained model yet.*--arm=mf_alone"):
        trained.open_trained(click_run.parent / "compressed", tmp_path)


def test_the_arm_and_the_network_are_read_from_the_manifest(ranking_run):
    index = trained._open(ranking_run, None)
    found = {(made.facts["model"], made.facts["arm"]) for made in index.models.values()}
    assert found == {("two_tower", "sample"), ("two_tower", "cadc_frozen")}


def test_factors_alone_score_by_their_dot_product(ranking_run):
    model = trained.open_trained(ranking_run, arm="mf_alone")
    users, items = np.array([1, 2], np.int32), np.array([[3, 4], [5, 6]], np.int32)
    scores = trained.make_scorer(model).score(pair_batch(users, items))
    user, item = model.tables["user"][users], model.tables["item"][items]
    np.testing.assert_allclose(scores, np.einsum("bd,bgd->bg", user, item), rtol=1e-5)
