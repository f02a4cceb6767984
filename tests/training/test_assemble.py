"""Fits put together: start of embeddings, scale of factors, and what training is given."""

import jax
import numpy as np
import pytest

from cadc_jax.data import negatives
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.evaluation import evaluate
from cadc_jax.models.embeddings import pair_batch
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.training import assemble, step
from cadc_jax.training.assemble import EmbeddingStart, TrainingData
from cadc_jax.training.placement import RandomTable
from cadc_jax.training.step import TrainConfig
from tests.training.examples import ITEMS, USERS, content

KEY = jax.random.key(0)
FACTORS = np.full((USERS, 3), 5.0, np.float32), np.full((ITEMS, 3), -0.1, np.float32)
BOTH = frozenset({"user", "item"})
CONFIG = TrainConfig(batch_rows=8, negatives=2, max_evaluations=2, table_learning_rate=0.1)


def test_factors_are_scaled_to_a_root_mean_square_of_one():
    start = EmbeddingStart(3, 16, FACTORS)
    made = assemble.initial_tables(USERS, ITEMS, 7, start, KEY)
    np.testing.assert_allclose(made["user"], 1, rtol=1e-6)
    np.testing.assert_allclose(made["item"], -1, rtol=1e-6)
    assert made["features"].shape == (7, 16)


def test_logistic_factors_start_a_two_tower_network_at_their_own_logits():
    rng = np.random.default_rng(0)
    user = rng.normal(0, 0.2, (USERS, 4)).astype(np.float32)
    item = rng.normal(0, 0.6, (ITEMS, 4)).astype(np.float32)
    start = EmbeddingStart(4, 4, (user, item), BOTH, logits=True)
    found = []

    def quality(scorer):
        users = pair_batch(np.arange(USERS), np.tile(np.arange(ITEMS), (USERS, 1)))
        found.append(np.asarray(scorer.score(users)))
        return 0.0

    fitted = assemble.train(TwoTower(()), CONFIG, data(), start, quality, seed=0)
    np.testing.assert_allclose(found[0], user @ item.T, atol=1e-5)
    square = {name: np.mean(np.square(fitted.tables[name])) for name in ("user", "item")}
    np.testing.assert_allclose(square["user"], square["item"], rtol=1e-5)


def test_without_factors_all_tables_are_random_and_independent():
    made = assemble.initial_tables(USERS, ITEMS, 0, EmbeddingStart(3, 16), KEY)
    assert all(isinstance(table, RandomTable) for table in made.values())
    assert [made[name].shape for name in ("user", "item", "features")] == [
        (USERS, 3),
        (ITEMS, 3),
        (1, 16),  # an empty table cannot be gathered from
    ]
    keys = {tuple(jax.random.key_data(table.key).tolist()) for table in made.values()}
    assert len(keys) == 3


def test_factors_that_are_all_zero_stay():
    made = assemble.scaled((0 * FACTORS[0], FACTORS[1]))
    assert not made["user"].any()
    made = assemble.scaled(FACTORS, like=(0 * FACTORS[0], FACTORS[1]))
    np.testing.assert_array_equal(made["user"], FACTORS[0])


def test_factors_can_be_scaled_as_others_are():
    """A model that was trained on `like` knows its scale, and no other."""
    made = assemble.scaled((2 * FACTORS[0], FACTORS[1]), like=FACTORS)
    np.testing.assert_allclose(made["user"], 2, rtol=1e-6)
    np.testing.assert_allclose(made["item"], -1, rtol=1e-6)


def data(labelled=False):
    rng = np.random.default_rng(0)
    rows = {
        "user": rng.integers(0, USERS, 24).astype(np.int32),
        "item": rng.integers(1, ITEMS, 24).astype(np.int32),
        "dense": np.zeros((24, 0), np.float32),
        "categorical": np.zeros((24, 0), np.int32),
    }
    if labelled:
        rows["label"] = rng.integers(0, 2, 24).astype(np.float32)
        return TrainingData(rows, content(), 5)
    keys = np.unique(negatives.pair_keys(rows["user"][:4], rows["item"][:4], ITEMS))
    return TrainingData(rows, content(), 5, NegativeSampling(2, keys, ITEMS))


@pytest.mark.parametrize(
    ("changes", "avoids"),
    [
        ({}, True),
        ({"factors": None}, False),
        ({"rate": 1.0}, False),  # all rows: their pairs are all there are
        ({"config": TrainConfig(negatives=2, negatives_from="all")}, False),
        ({"config": TrainConfig(loss="in_batch")}, False),  # draws none
        ({"config": TrainConfig(loss="all_items")}, True),  # leaves them out
    ],
)
def test_likely_items_are_avoided_by_arms_with_factors_and_a_sample(changes, avoids):
    factors = np.ones((USERS, 3)), np.ones((ITEMS, 3))
    rows = data().rows
    given = {"config": CONFIG, "rows": rows, "num_items": ITEMS, "rate": 0.5, "factors": factors}
    found = assemble.negatives_of(**(given | changes))
    assert (found.likely is not None) == avoids
    pairs = negatives.pair_keys(rows["user"], rows["item"], ITEMS)
    np.testing.assert_array_equal(found.known, np.unique(pairs))


def spread(scorer):
    """A quality that any change of a table changes."""
    rows = data(labelled=True).rows
    batch = {name: rows[name] for name in ("user", "dense", "categorical")}
    return float(np.std(np.asarray(scorer.score({**batch, "item": rows["item"][:, None]}))))


def train(config=CONFIG, start=None, given=None):
    start = start or EmbeddingStart(3, 4)
    return assemble.train(TwoTower((8,)), config, given or data(), start, spread, seed=0)


def test_frozen_factors_stay_and_random_tables_train():
    frozen = train(start=EmbeddingStart(3, 4, FACTORS, BOTH))
    for name, table in assemble.scaled(FACTORS).items():
        np.testing.assert_array_equal(frozen.tables[name], table)
    trainable = train(start=EmbeddingStart(3, 4, FACTORS))
    assert trainable.best_step == 0 or not np.allclose(trainable.tables["user"], 1)


def test_factors_to_predict_with_are_returned_on_the_scale_of_the_trained_ones():
    others = 3 * FACTORS[0], 2 * FACTORS[1]
    fitted = train(start=EmbeddingStart(3, 4, FACTORS, BOTH, predict_with=others))
    np.testing.assert_allclose(fitted.tables["user"], 3, rtol=1e-6)
    np.testing.assert_allclose(fitted.tables["item"], -2, rtol=1e-6)


def test_the_seed_decides_everything():
    first, second = train(), train()
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    other = assemble.train(TwoTower((8,)), CONFIG, data(), EmbeddingStart(3, 4), spread, seed=1)
    assert other.history != first.history


def test_labelled_rows_train_on_their_own_labels():
    config = TrainConfig(batch_rows=8, max_evaluations=3, learning_rate=0.05)
    given = data(labelled=True)

    def quality(scorer):
        return -evaluate.evaluate_clicks(scorer, given.rows)["logloss"]

    fitted = assemble.train(TwoTower((8,)), config, given, EmbeddingStart(3, 4), quality, seed=0)
    assert fitted.history[-1]["loss"] < fitted.history[1]["loss"]


@pytest.mark.parametrize("loss", step.LOSSES)
def test_every_loss_can_be_assembled(loss):
    given, count = data(), 2 if loss in step.DRAWN else 0
    sampler = NegativeSampling(count, given.negatives.known, ITEMS)
    config = TrainConfig(batch_rows=8, negatives=count, loss=loss, max_evaluations=1)
    fitted = train(config, given=TrainingData(given.rows, given.content, 5, sampler))
    assert np.isfinite(fitted.history[1]["loss"])
