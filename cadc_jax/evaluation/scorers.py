"""Everything that scores rows: popularity, factors and networks.

A scorer maps a batch of users and items to scores; evaluation and recommendation need no more.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cadc_jax import sharding
from cadc_jax.data.table import Table
from cadc_jax.models import scoring
from cadc_jax.models.embeddings import Content, HostBatch, Tables
from cadc_jax.models.two_tower import TwoTower

Score = Callable[[HostBatch], jax.Array]  # users [B] and items [B, G] or [1, G] -> scores [B, G]

DOT_PAIRS = 1 << 24  # (user, item) pairs scored at a time, where a score is a dot product
NETWORK_PAIRS = 1 << 18  # the same where a pair takes all its embeddings through a network


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores items for users.

    Attributes:
      score: users [B] and items [B, G] (or [1, G], shared by all users), with features of the row,
        -> scores [B, G] float32; higher is better.
      pairs: (user, item) pairs to score at a time when users rank all items; bounds memory.
      calibrated: whether scores are logits, for which log loss and calibration mean something.
    """

    score: Score
    pairs: int = DOT_PAIRS
    calibrated: bool = True


def popularity(table: Table) -> Scorer:
    """Scores an item by its number of training rows; of clicks, by its smoothed click rate.

    The click rate is smoothed by ten rows of the mean rate, and given as a logit.
    """
    counts = table.items["count"]
    if table.schema.task == "ranking":
        scores = jnp.asarray(counts, jnp.float32)
    else:
        clicks = table.items["clicks"]
        mean = clicks.sum() / counts.sum()
        rate = (clicks + 10 * mean) / (counts + 10)
        scores = jnp.asarray(np.log(rate / (1 - rate)), jnp.float32)
    return Scorer(
        lambda batch: jnp.broadcast_to(
            scores[batch["item"]], (len(batch["user"]), batch["item"].shape[1])
        )
    )


def factors(user: np.ndarray | jax.Array, item: np.ndarray | jax.Array, calibrated: bool) -> Scorer:
    """Scores by the dot product of user [U, D] and item [I, D] factors, biases included.

    ALS predicts preferences, which are not logits: `calibrated` is True for logistic factors only.
    """
    tables = {"user": jnp.asarray(user), "item": jnp.asarray(item)}
    return Scorer(functools.partial(dot_products, tables), calibrated=calibrated)


@jax.jit
def dot_products(tables: Tables, batch: HostBatch) -> jax.Array:
    """Scores [B, G] of a batch by `user` [U, D] and `item` [I, D] factors, in full float32."""
    user, item = tables["user"][batch["user"]], tables["item"][batch["item"]]
    with jax.default_matmul_precision("float32"):
        return user @ item[0].T if len(item) == 1 else jnp.einsum("bd,bgd->bg", user, item)


def network(
    model: nn.Module, params: Any, tables: Tables, content: Content, mesh: Mesh | None = None
) -> Scorer:
    """Scores by the logits of a network.

    Args:
      model: the network.
      params: its parameters.
      tables: all embedding tables.
      content: features of users and items.
      mesh: devices that share the users of a batch, which every process has whole; None for one
        device.
    """

    def score(batch: HostBatch) -> jax.Array:
        if mesh is None:
            return scoring.predict(model, params, tables, content, batch)
        batch = _spread(batch, mesh)
        return scoring.predict(model, params, tables, content, batch, mesh.size)

    return Scorer(score, DOT_PAIRS if isinstance(model, TwoTower) else NETWORK_PAIRS)


def _spread(batch: HostBatch, mesh: Mesh) -> Mapping[str, jax.Array]:
    """The batch with its users split over all devices, where they divide evenly."""
    rows = len(batch["user"])

    def put(x: jax.Array | np.ndarray) -> jax.Array:
        split = len(x) == rows and rows % mesh.size == 0
        return sharding.put(
            x, sharding.named(mesh, sharding.BATCH if split else sharding.REPLICATED)
        )

    return {name: put(x) for name, x in batch.items()}
