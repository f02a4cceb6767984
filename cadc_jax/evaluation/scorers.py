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

Apply = Callable[[Any, HostBatch], jax.Array]  # a state and such a batch -> scores [B, G]

DOT_PAIRS = 1 << 24  # (user, item) pairs scored at a time, where a score is a dot product
NETWORK_PAIRS = 1 << 15  # the same where a pair takes all its embeddings through a network
_WIDER = 4  # times as many on each accelerator, which has more cores to keep busy than a CPU


def at_a_time(size: int, mesh: Mesh) -> int:
    """How much to score at a time on all devices of a mesh, where one CPU takes `size`."""
    return size if sharding.is_cpu(mesh) else _WIDER * size * mesh.size


@dataclasses.dataclass(frozen=True)
class Program:
    """Scores as a pure function, which a larger program can contain.

    Scorers with equal `apply` and with states of the same shapes share a compiled program.

    Attributes:
      apply: the function; hashable, and equal to others that compute the same.
      state: a tree of arrays: all numbers that it needs.
    """

    apply: Apply
    state: Any


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores items for users.

    Attributes:
      score: users [B] and items [B, G] (or [1, G], shared by all users), with features of the row,
        -> scores [B, G] float32; higher is better.
      pairs: (user, item) pairs to score at a time when users rank all items; bounds memory.
      calibrated: whether scores are logits, for which log loss and calibration mean something.
      program: the same scores for programs; None if `score` is no pure function.
    """

    score: Score
    pairs: int = DOT_PAIRS
    calibrated: bool = True
    program: Program | None = None


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
    return Scorer(functools.partial(_item_scores, scores), program=Program(_item_scores, scores))


@jax.jit
def _item_scores(scores: jax.Array, batch: HostBatch) -> jax.Array:
    """Scores [B, G] of a batch by `scores` [I] of the items, whoever the user is."""
    shape = len(batch["user"]), batch["item"].shape[1]
    return jnp.broadcast_to(scores[batch["item"]], shape)


def factors(user: np.ndarray | jax.Array, item: np.ndarray | jax.Array, calibrated: bool) -> Scorer:
    """Scores by the dot product of user [U, D] and item [I, D] factors, biases included.

    ALS predicts preferences, which are not logits: `calibrated` is True for logistic factors only.
    """
    tables = {"user": jnp.asarray(user), "item": jnp.asarray(item)}
    score = functools.partial(dot_products, tables)
    return Scorer(score, calibrated=calibrated, program=Program(dot_products, tables))


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

    program = Program(
        NetworkScores(model, 1 if mesh is None else mesh.size), (params, tables, content)
    )

    def score(batch: HostBatch) -> jax.Array:
        return program.apply(program.state, batch if mesh is None else _spread(batch, mesh))

    pairs = DOT_PAIRS if isinstance(model, TwoTower) else NETWORK_PAIRS
    return Scorer(score, pairs, program=program)


@dataclasses.dataclass(frozen=True)
class NetworkScores:
    """Logits of a network as an `Apply`; its state is (params, tables, content).

    Attributes:
      model: the network.
      devices: number of devices that a batch is split over.
    """

    model: nn.Module
    devices: int

    def __call__(self, state: Any, batch: HostBatch) -> jax.Array:
        """Logits [B, G] float32."""
        return scoring.predict(self.model, *state, batch, self.devices)


def _spread(batch: HostBatch, mesh: Mesh) -> Mapping[str, jax.Array]:
    """The batch with its users split over all devices, where they divide evenly."""
    rows = len(batch["user"])

    def put(x: jax.Array | np.ndarray) -> jax.Array:
        split = len(x) == rows and rows % mesh.size == 0
        return sharding.put(
            x, sharding.named(mesh, sharding.BATCH if split else sharding.REPLICATED)
        )

    return {name: put(x) for name, x in batch.items()}
