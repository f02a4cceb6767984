"""Scores of a network: items that are computed once, and rows of bfloat16 tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax.models import embeddings, scoring
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.two_tower import TwoTower
from tests.training.examples import ITEMS, RANK, batch, content, tables

NETWORKS = {"towers": TwoTower((8,), gate=3), "dlrm": DLRM(RANK, (4,), (4,))}


def asked():
    """A batch without what only training needs."""
    return {name: x for name, x in batch().items() if name not in ("label", "weight")}


def parameters(model):
    rows = embeddings.take_rows(tables(), embeddings.lookup_ids(content(), asked()))
    inputs = embeddings.model_inputs(rows, content(), asked())
    return jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0), inputs))


@pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS.keys())
def test_scores_are_those_of_the_network_on_the_gathered_rows(model):
    params = parameters(model)
    rows = embeddings.take_rows(tables(), embeddings.lookup_ids(content(), asked()))
    expected = model.apply(params, embeddings.model_inputs(rows, content(), asked()))
    found = scoring.predict(model, params, tables(), content(), asked())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_items_that_are_computed_once_score_as_if_computed_for_each_row():
    model = NETWORKS["towers"]
    params = parameters(model)
    scores = [
        scoring.predict(model, params, tables(), content(), asked(), devices=devices)
        for devices in (1, 8)
    ]
    assert scoring.shares_items(model, 8 * 3, ITEMS)
    assert not scoring.shares_items(model, 8 * 3, ITEMS, devices=8)
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_only_two_tower_networks_compute_an_item_without_its_user():
    assert not scoring.shares_items(NETWORKS["dlrm"], 8 * 3, ITEMS)


def test_rows_of_a_bfloat16_table_are_scored_in_float32():
    narrow = {name: x.astype(jnp.bfloat16) for name, x in tables().items()}
    wide = {name: x.astype(jnp.float32) for name, x in narrow.items()}
    model = NETWORKS["towers"]
    params = parameters(model)
    found, expected = (
        scoring.predict(model, params, given, content(), asked()) for given in (narrow, wide)
    )
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
