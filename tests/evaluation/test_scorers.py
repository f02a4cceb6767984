"""Scorers: popularity, factors and networks, each checked against NumPy."""

import jax
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.data.table import Features, Schema, Table
from cadc_jax.evaluation import scorers
from cadc_jax.models import scoring
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.embeddings import pair_batch
from cadc_jax.models.two_tower import TwoTower
from tests.training.examples import ITEMS, RANK, USERS, content, tables


def table_of(task, **items):
    schema = Schema(task, 2, 4, Features(), Features(), Features())
    return Table(schema, {}, {}, {name: np.array(x) for name, x in items.items()}, {})


PAIRS = pair_batch(np.array([0, 1], np.int32), np.array([[1, 2, 3], [3, 3, 0]], np.int32))
SHARED = pair_batch(np.array([0, 1], np.int32), np.array([[1, 2, 3]], np.int32))


def test_popularity_of_a_ranking_is_the_number_of_training_rows():
    scorer = scorers.popularity(table_of("ranking", count=[9, 4, 0, 7]))
    assert scorer.score(PAIRS).tolist() == [[4, 0, 7], [7, 7, 9]]
    assert scorer.score(SHARED).tolist() == [[4, 0, 7]] * 2


def test_popularity_of_clicks_is_the_click_rate_smoothed_by_ten_rows_of_the_mean():
    scorer = scorers.popularity(table_of("click", count=[0, 10, 30, 60], clicks=[0, 10, 0, 10]))
    rates = (np.array([0, 10, 0, 10]) + 10 * 0.2) / (np.array([0, 10, 30, 60]) + 10)
    expected = np.log(rates / (1 - rates))[PAIRS["item"]]
    np.testing.assert_allclose(scorer.score(PAIRS), expected, rtol=1e-5)
    assert scorer.calibrated


@pytest.mark.parametrize("batch", [PAIRS, SHARED])
@pytest.mark.parametrize("calibrated", [True, False])
def test_factors_score_by_their_dot_product(batch, calibrated):
    rng = np.random.default_rng(0)
    user, item = (rng.normal(size=(n, 3)).astype(np.float32) for n in (2, 4))
    scorer = scorers.factors(user, item, calibrated)
    expected = (user[batch["user"]][:, None] * item[batch["item"]]).sum(axis=-1)
    np.testing.assert_allclose(scorer.score(batch), expected, rtol=1e-5, atol=1e-6)
    assert scorer.calibrated == calibrated


def trained(model):
    from cadc_jax.models import embeddings

    rows = embeddings.take_rows(tables(), embeddings.lookup_ids(content(), PAIRS))
    return model.init(jax.random.key(0), embeddings.model_inputs(rows, content(), PAIRS))


@pytest.mark.parametrize("devices", [None, 1, 8])
def test_a_network_scores_alike_on_any_devices(devices):
    model = DLRM(RANK, (4,), (4,))
    params = trained(model)
    rng = np.random.default_rng(0)
    users = rng.integers(0, USERS, 16).astype(np.int32)
    batch = pair_batch(users, rng.integers(0, ITEMS, (16, 2)).astype(np.int32))
    mesh = None if devices is None else sharding.make_mesh(devices=jax.devices()[:devices])
    scorer = scorers.network(model, params, tables(), content(), mesh)
    expected = scoring.predict(model, params, tables(), content(), batch)
    np.testing.assert_allclose(scorer.score(batch), expected, rtol=1e-5, atol=1e-6)


def test_users_that_do_not_divide_over_the_devices_are_scored_too():
    model = DLRM(RANK, (4,), (4,))
    params = trained(model)
    scorer = scorers.network(model, params, tables(), content(), sharding.make_mesh())
    expected = scoring.predict(model, params, tables(), content(), PAIRS)
    np.testing.assert_allclose(scorer.score(PAIRS), expected, rtol=1e-5, atol=1e-6)


def test_networks_that_take_pairs_through_their_layers_score_fewer_at_a_time():
    towers, dlrm = TwoTower((8,)), DLRM(RANK, (4,), (4,))
    pairs = [scorers.network(m, {}, tables(), content()).pairs for m in (towers, dlrm)]
    assert pairs == [scorers.DOT_PAIRS, scorers.NETWORK_PAIRS]
    assert scorers.NETWORK_PAIRS < scorers.DOT_PAIRS
