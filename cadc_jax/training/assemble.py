"""A fit put together from its parts: tables, content, batches and validation.

The program (`run.stages`) and the functions on plain arrays (`library`) both train through `train`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh

from cadc_jax import sharding
from cadc_jax.data import pipeline
from cadc_jax.data.likely import LikelyItems
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.data.table import Columns
from cadc_jax.errors import ConfigError
from cadc_jax.evaluation import scorers
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.models.embeddings import Content, HostBatch, Tables
from cadc_jax.resident import batches, likely, records
from cadc_jax.resident.likely import LikelyTables
from cadc_jax.runtime import distributed
from cadc_jax.training import feeds, loop, losses
from cadc_jax.training.feeds import Feed
from cadc_jax.training.loop import FitOptions, Fitted, StartTables
from cadc_jax.training.placement import RandomTable
from cadc_jax.training.step import MOST_PAIRS, TrainConfig

START_SCALE = 0.1  # standard deviation of random embeddings
_CONTEXT = ("user", "item", "dense", "categorical")  # columns of every batch

Pair = tuple[np.ndarray, np.ndarray]  # user [U, D] and item [I, D] factors


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The rows that a network is trained on, and what there is to know of users and items.

    Attributes:
      rows: columns of the training rows: `user`, `item`, `dense`, `categorical` and, of labelled
        rows, `label`.
      content: features of users and items.
      num_features: V, rows of the stacked table of categorical features.
      negatives: how negatives are drawn for rows without labels; None for labelled rows.
    """

    rows: Columns
    content: Content
    num_features: int
    negatives: NegativeSampling | None = None

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.content.user_dense)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.content.item_dense)


@dataclasses.dataclass(frozen=True)
class EmbeddingStart:
    """Where user and item embeddings start, and whether training changes them.

    Attributes:
      rank: D, width of random user and item tables.
      feature_width: E, width of the stacked table of other features.
      factors: user [U, D] and item [I, D] factors to start from; None for random tables.
      frozen: names of the tables that training does not change, among 'user' and 'item'.
      predict_with: factors that replace frozen ones in validation and in the result; None: the
        same ones. They are put on the scale of `factors`.
      logits: whether the dot products of `factors` are logits; see `divisors`.
    """

    rank: int
    feature_width: int
    factors: Pair | None = None
    frozen: frozenset[str] = frozenset()
    predict_with: Pair | None = None
    logits: bool = False


def train(
    network: nn.Module,
    config: TrainConfig,
    data: TrainingData,
    start: EmbeddingStart,
    quality: Callable[[Scorer], float],
    seed: int,
    options: FitOptions | None = None,
) -> Fitted:
    """Trains a network until its validation result stops improving.

    Args:
      network: DLRM, DCN or TwoTower.
      config: how to train.
      data: what it is trained on.
      start: where user and item embeddings start.
      quality: of a scorer on the validation split, higher is better.
      seed: of initialisation, order, negatives and dropout.
      options: devices, reports and checkpoints.

    Returns:
      The state with the best validation result; step 0 takes part.

    Raises:
      ConfigError, TrainingError, Stopped: as `loop.fit`.
    """
    tables_key, fit_key = jax.random.split(jax.random.key(seed))
    options = options or FitOptions()
    mesh = options.mesh or sharding.make_mesh()
    everywhere = sharding.named(mesh, sharding.REPLICATED)
    content = sharding.put(data.content, everywhere)
    tables = initial_tables(data.num_users, data.num_items, data.num_features, start, tables_key)
    predict_with: Mapping[str, np.ndarray] = {}
    if start.predict_with is not None:
        predict_with = scaled(start.predict_with, start.factors, start.logits)

    def validate(params: Any, tables: Tables) -> float:
        return quality(scorers.network(network, params, tables, content, mesh))

    return loop.fit(
        network,
        config,
        StartTables(tables, start.frozen, predict_with),
        content.replace(likely=sharding.put(_not_competing(config, data), everywhere)),
        _feed(data, config, seed, mesh, options.label),
        validate,
        fit_key,
        dataclasses.replace(options, mesh=mesh),
    )


def _not_competing(config: TrainConfig, data: TrainingData) -> LikelyTables | None:
    """The pairs that the loss over all items leaves out.

    Raises:
      ConfigError: if a batch has too many pairs.
    """
    if config.loss != "all_items" or data.negatives is None:
        return None
    pairs = config.batch_rows * data.num_items
    if pairs > MOST_PAIRS:
        raise ConfigError(
            f"train.loss='all_items': a batch of {config.batch_rows:,} rows has {pairs:,} pairs of "
            f"a user and an item; at most {MOST_PAIRS:,} are possible: lower train.batch_rows, or "
            "use the loss 'in_batch' or 'softmax'"
        )
    found = data.negatives.likely
    return None if found is None else likely.of(found)


def negatives_of(
    config: TrainConfig, rows: Columns, num_items: int, rate: float, factors: Pair | None
) -> NegativeSampling:
    """How negatives are drawn for rows without labels; only these rows and factors are read.

    Args:
      config: how to train.
      rows: `user` [N] and `item` [N] of the rows that are trained on.
      num_items: I.
      rate: share of all training rows that they are, in (0, 1].
      factors: user [U, D] and item [I, D] factors of all training rows; None for none.
    """
    found = None
    draws = config.negatives > 0 or config.loss == "all_items"
    if draws and config.negatives_from == "unlikely" and factors and rate < 1:
        found = LikelyItems.of(factors, rows["user"], rate)
    return NegativeSampling.of(rows, config.negatives, num_items, found)


def initial_tables(
    num_users: int, num_items: int, num_features: int, start: EmbeddingStart, key: jax.Array
) -> dict[str, np.ndarray | RandomTable]:
    """Embedding tables before training, for `placement.put`.

    Args:
      num_users: U.
      num_items: I.
      num_features: V.
      start: factors to start from, or the width of random tables.
      key: of the random numbers.

    Returns:
      `user` [U, D], `item` [I, D] and `features` [max(V, 1), E], float32.
    """
    user_key, item_key, feature_key = jax.random.split(key, 3)
    # An empty table cannot be gathered from: there is always one row.
    shape = max(num_features, 1), start.feature_width
    features = RandomTable(shape, feature_key, START_SCALE)
    if start.factors is not None:
        own = scaled(start.factors, logits=start.logits)
        return {**own, "features": features}
    user = RandomTable((num_users, start.rank), user_key, START_SCALE)
    item = RandomTable((num_items, start.rank), item_key, START_SCALE)
    return {"user": user, "item": item, "features": features}


def scaled(factors: Pair, like: Pair | None = None, logits: bool = False) -> dict[str, np.ndarray]:
    """User and item tables of factors, on a scale that a network can start from.

    Args:
      factors: user [U, D] and item [I, D] factors.
      like: other factors of the same users and items, whose scale is used instead. A model that was
        trained on `like` can then take `factors`.
      logits: whether dot products of the factors are logits.
    """
    names = "user", "item"
    by = divisors(like or factors, logits)
    return {name: table / each for name, table, each in zip(names, factors, by, strict=True)}


def divisors(factors: Pair, logits: bool = False) -> tuple[float, float]:
    """What `scaled` divides the user and the item table of factors by.

    The scale of most factorisations says nothing about a good start of a network: both tables get a
    root mean square of 1. Factors that are all 0 (the autoencoder's, if no user has two items) have
    none, and stay.

    That of logistic factors does: the dot product over sqrt(D), with which `TwoTower` starts, is
    then their own logit. Both tables get the same root mean square.
    """
    user, item = (float(np.sqrt(np.mean(np.square(x)))) or 1.0 for x in factors)
    if not logits:
        return user, item
    both = (user * item * factors[0].shape[1] ** 0.5) ** 0.5
    return user / both, item / both


def _feed(data: TrainingData, config: TrainConfig, seed: int, mesh: Mesh, label: str) -> Feed:
    """The batches of the rows."""
    names = (*_CONTEXT, "label") if data.negatives is None else _CONTEXT
    rows = {name: column for name, column in data.rows.items() if name in names}
    if not len(rows["user"]):
        raise ConfigError("there are no rows to train on: raise the rate")
    if config.loss == "in_batch":  # frequencies in the rows that are trained on
        rows["log_q"] = losses.log_frequency(rows["item"], data.num_items)[rows["item"]]
    layout = records.plan(rows, config.compute_dtype == "bfloat16", sharding.is_tpu(mesh))
    chosen = feeds.choose(config.input, layout, len(rows["user"]), mesh)
    logging.info("%s: %s", label, chosen.why)
    if chosen.resident:
        return feeds.ResidentFeed(
            batches.put(
                *(rows, layout, data.negatives, data.num_users, seed, config.batch_rows),
                *(mesh, chosen.split),
            )
        )

    def starting_at(step: int) -> Iterator[HostBatch]:
        return pipeline.training_batches(
            rows,
            config.batch_rows,
            seed,
            step,
            sampler=data.negatives,
            host_index=distributed.index(),
            host_count=distributed.count(),
        )

    return feeds.HostFeed(
        starting_at, pipeline.steps_per_epoch(len(rows["user"]), config.batch_rows)
    )
