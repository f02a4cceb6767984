"""Rivals that rank items by what the training items of a user say about them."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse

from cadc_jax.data.table import Table
from cadc_jax.evaluation import scorers
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.study.rivals import item_weights
from cadc_jax.study.rivals.given import Fit, Given, Settings

_SCALED_BY = 1000  # users by whose scores two models are brought to one scale

Weights: TypeAlias = np.ndarray | Any  # [I, I], dense or sparse


def matrix_of(table: Table) -> scipy.sparse.csr_matrix:
    """The training pairs as a matrix [U, I] float32 of 0 and 1."""
    train, schema = table.splits["train"], table.schema
    ones = np.ones(len(train["user"]), np.float32)
    matrix = scipy.sparse.csr_matrix(
        (ones, (train["user"], train["item"])), shape=(schema.num_users, schema.num_items)
    )
    matrix.data[:] = 1  # repeated pairs were added up
    return matrix


def scorer(matrix: scipy.sparse.csr_matrix, weights: Weights) -> Scorer:
    """Scores items by what the training items of a user say: rows of X B.

    Args:
      matrix: X [U, I].
      weights: B [I, I], dense or sparse.
    """

    def score(batch):
        scores = matrix[np.asarray(batch["user"])] @ weights
        scores = scores.toarray() if scipy.sparse.issparse(scores) else scores
        item = np.asarray(batch["item"])
        return scores[:, item[0]] if len(item) == 1 else np.take_along_axis(scores, item, axis=1)

    return Scorer(score, calibrated=False)


def by_weights(weigh: Callable[..., Weights]) -> Callable[[Given], Fit]:
    """The rival whose weights a function of X and of its settings makes; see `item_weights`."""

    def of_given(given: Given) -> Fit:
        matrix = matrix_of(given.table)
        return lambda settings: scorer(matrix, weigh(matrix, **settings))

    return of_given


def factors_and_ease(given: Given) -> Fit:
    """Scores of the factors plus `weight` times those of EASE, each divided by their deviation.

    Of either model it is the standard deviation over all items and up to _SCALED_BY users: one
    number, so that a model's ranking is what it was.
    """
    assert given.factors is not None, "the registry asks for factors"
    matrix = matrix_of(given.table)
    factors = scorers.factors(*given.factors, calibrated=False)
    scale = _deviation(factors, *matrix.shape)

    @functools.lru_cache(maxsize=1)
    def ease(regularization: float) -> tuple[Scorer, float]:
        made = scorer(matrix, item_weights.ease(matrix, regularization))
        return made, _deviation(made, *matrix.shape)

    def fit(settings: Settings) -> Scorer:
        other, other_scale = ease(settings["regularization"])
        share = settings["weight"] / other_scale

        def score(batch):
            return np.asarray(factors.score(batch)) / scale + share * other.score(batch)

        return Scorer(score, calibrated=False)

    return fit


def _deviation(scorer: Scorer, num_users: int, num_items: int) -> float:
    """Standard deviation of scores; 1 for scores that are all the same."""
    step = max(1, scorer.pairs // num_items)
    users = np.unique(np.linspace(0, num_users - 1, _SCALED_BY).astype(np.int32))
    items = np.arange(num_items, dtype=np.int32)[None]
    blocks = (users[start : start + step] for start in range(0, len(users), step))
    found = [np.asarray(scorer.score({"user": block, "item": items})) for block in blocks]
    return float(np.std(np.concatenate(found), dtype=np.float64)) or 1.0
