"""Seconds that `cadc plan` predicts against seconds of one H200 (jax 0.11.2), within a factor of 2.

An earlier version of this package was timed. The predictions are of the sums of equal ids of today,
as if one id stood in every row, so that steps which train tables are predicted to take longer. The
settings of logistic SGD are taken to have been the defaults.
"""

import numpy as np
import pytest

from benchmarks import dlrm
from cadc_jax import cost
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.sgd import SGDConfig
from cadc_jax.models.dlrm import DLRM
from cadc_jax.training.step import TrainConfig

MOVIELENS_1M, MOVIELENS_20M = (6_040, 3_706, 1_000_000), (138_000, 27_000, 20_000_000)
KAGGLE = dlrm.Case(cap=2_000_000)  # 10 million rows of tables


def assert_within_twice(predicted, seconds):
    total = predicted.seconds(cost.HARDWARE[cost.MEASURED])["total"]
    assert seconds / 2 <= total <= seconds * 2


def pairs(users, items, entries):
    """Sizes of a log whose users' activity and items' popularity have long tails."""
    rng = np.random.default_rng(0)
    activity = rng.lognormal(sigma=1.1, size=users)
    popularity = 1 / (np.arange(items) + 30.0)
    counts = [rng.multinomial(entries, x / x.sum()) for x in (activity, popularity)]
    return cost.Sizes("ranking", entries, users, items, 0, (0,) * 3, (0,) * 3, entries, *counts)


@pytest.mark.parametrize(
    ("log", "factors", "seconds"),
    [(MOVIELENS_20M, 64, 0.0433), (MOVIELENS_20M, 128, 0.0627), (MOVIELENS_1M, 64, 0.0030)],
)
def test_an_als_iteration(log, factors, seconds):
    assert_within_twice(cost.als(pairs(*log), ALSConfig(factors=factors)), seconds)


@pytest.mark.parametrize(
    ("batch", "optimizer", "dtype", "samples_a_second"),
    [
        (8192, "adagrad", "float32", 13.1e6),
        (8192, "adagrad", "bfloat16", 19.0e6),
        (65536, "adagrad", "float32", 22.0e6),
        (65536, "adagrad", "bfloat16", 32.2e6),
        (65536, "frozen", "float32", 27.6e6),
        (65536, "frozen", "bfloat16", 46.6e6),
    ],
)
def test_a_dlrm_step_at_the_shape_of_criteo(batch, optimizer, dtype, samples_a_second):
    (bottom, top, width), (user, item, *others) = KAGGLE.layers, KAGGLE.vocabularies
    features = {"dense": (0, dlrm.DENSE, 0), "categorical": (0, len(others), 0)}
    sizes = cost.Sizes("click", 10**8, user, item, sum(others), **features)
    tables = cost.table_shapes(sizes, width, width)
    frozen = frozenset(tables) if optimizer == "frozen" else frozenset()
    config = TrainConfig(batch_rows=batch, table_optimizer="adagrad", compute_dtype=dtype)
    model = DLRM(width, bottom, top)
    predicted = cost.training("step", model, config, sizes, tables, frozen)
    assert_within_twice(predicted, batch / samples_a_second)


@pytest.mark.parametrize(("batch", "rows_a_second"), [(4096, 9.9e6), (65536, 30e6)])
def test_a_step_of_logistic_sgd_with_negatives(batch, rows_a_second):
    predicted = cost.sgd_factorization(pairs(*MOVIELENS_20M), SGDConfig(batch_rows=batch))
    assert_within_twice(predicted, batch / rows_a_second)
