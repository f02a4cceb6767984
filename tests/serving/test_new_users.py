"""Vectors of users who are not in the data, for every factorisation that can make them."""

import dataclasses

import numpy as np
import pytest

from cadc_jax import experiment
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.serving import new_users, trained
from tests.small_runs import finished, quiet, ranking_config

METHODS = ("als", "autoencoder", "autoencoder+als")


@pytest.fixture(scope="module", params=METHODS)
def folders(request, tmp_path_factory):
    """A work folder with factors, and a compressed data set of them."""
    path = tmp_path_factory.mktemp("folders")
    config = ranking_config(path / "raw")
    config.factorization, config.arms = request.param, ("cadc_frozen",)
    config.als.iterations = 30  # then the users belong to the items of the end
    config.autoencoder.update(factors=6, regularization=1.0)
    config.factor_bits = 16
    workdir = finished(config, path / "work")
    experiment.compress(experiment.Run(config, workdir, quiet), path / "small")
    return workdir, path / "small"


def items_of(model, user):
    known = model.table.known
    return known["items"][known["offsets"][user] : known["offsets"][user + 1]]


def vectors(model, users):
    own = [items_of(model, user) for user in users]
    padded = np.full((len(users), 40), -1, np.int32)
    for row, items in zip(padded, own, strict=True):
        row[: len(items)] = items
    return new_users.open_new_users(model, padded.shape[1]).vectors(padded)


def assert_near(found, expected, error):
    distance = np.linalg.norm(found - expected, axis=1)
    assert np.all(distance < error * np.linalg.norm(expected, axis=1))


@pytest.mark.parametrize("arm", ["mf_alone", "cadc_frozen"])
def test_who_has_the_items_of_a_known_user_has_their_vector(folders, arm):
    model = trained.open_trained(folders[0], arm=arm)
    assert_near(vectors(model, [3, 8, 9]), model.tables["user"][[3, 8, 9]], 0.02)


def test_the_factors_of_a_compressed_data_set_serve_new_users_too(folders, tmp_path):
    model = trained.open_trained(folders[1], tmp_path, arm="mf_alone")
    # The encoder of the autoencoder is not there: known users are combined, which is not exact.
    assert_near(vectors(model, [3, 8, 9]), model.tables["user"][[3, 8, 9]], 0.15)


def test_a_model_that_trained_its_users_takes_no_new_ones(ranking_run):
    model = trained.open_trained(ranking_run, arm="sample")
    with pytest.raises(ConfigError, match="choose --arm=cadc_frozen or --arm=mf_alone"):
        new_users.open_new_users(model, 4)


def test_logistic_factors_take_none_either(click_run):
    model = trained.open_trained(click_run)
    with pytest.raises(ConfigError, match="logistic SGD does not tell"):
        new_users.open_new_users(model, 4)


def test_factors_without_the_facts_that_it_takes_are_to_be_made_again(ranking_run):
    model = trained.open_trained(ranking_run, arm="mf_alone")
    facts = {name: x for name, x in model.factors.facts.items() if name != "extent"}
    old = dataclasses.replace(model, factors=dataclasses.replace(model.factors, facts=facts))
    with pytest.raises(ArtifactError, match="facts.extent .* an earlier version may have made it"):
        new_users.open_new_users(old, 4)
