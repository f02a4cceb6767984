"""One training step, and scoring, as pure jitted functions over explicit state."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from cadc_jax import sparse
from cadc_jax.models.embeddings import (
    Batch,
    Content,
    Tables,
    gather,
    lookup_ids,
    model_inputs,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
      batch_rows: rows of the table in a batch (positives, where negatives are sampled).
      negatives: sampled negatives a positive; only for positive-only data.
      loss: 'bce', or 'softmax' over each positive and its negatives.
      learning_rate: of the network (Adam).
      table_optimizer: 'adam' (lazy), 'adagrad' (row-wise) or 'sgd', for embedding rows.
      table_learning_rate: of embedding rows.
      l2: penalty on the squared norms of the embedding rows of a batch that are trained.
      max_evaluations: evaluations on the validation split before training ends.
      evaluation_steps: steps between evaluations, or one epoch if that is longer.
      patience: evaluations without a better validation result before training ends.
    """

    batch_rows: int = 2048
    negatives: int = 0
    loss: str = "bce"
    learning_rate: float = 1e-3
    table_optimizer: str = "adam"
    table_learning_rate: float = 1e-3
    l2: float = 0.0
    max_evaluations: int = 20
    evaluation_steps: int = 1
    patience: int = 3


@struct.dataclass
class TrainState:
    """All that training changes. Frozen tables are not here.

    Attributes:
      step: [] int32.
      params: the network's parameters.
      opt_state: its optimizer's.
      tables: trained embedding tables.
      slots: name of the table -> its optimizer's state.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    tables: Tables
    slots: Mapping[str, sparse.Slots]


def init_state(
    model: nn.Module,
    config: TrainConfig,
    tables: Tables,
    frozen: Tables,
    content: Content,
    batch: Batch,
    key: jax.Array,
) -> TrainState:
    """The state before the first step; `batch` only shows shapes."""
    rows = gather({**tables, **frozen}, lookup_ids(content, batch))
    params = model.init(key, model_inputs(rows, content, batch))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=_optimizer(config).init(params),
        tables=tables,
        slots={name: sparse.init(config.table_optimizer, t) for name, t in tables.items()},
    )


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames=("state",))
def train_step(
    model: nn.Module,
    config: TrainConfig,
    state: TrainState,
    frozen: Tables,
    content: Content,
    batch: Batch,
    key: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One step on a batch. Returns the new state and the loss [].

    Gradients are taken with respect to the network and to the embedding rows gathered for the
    batch, never to a table; frozen rows are constants.
    """
    ids = lookup_ids(content, batch)
    frozen_rows = gather(frozen, ids)
    dropout_key = jax.random.fold_in(key, state.step)

    def loss_of(params, rows):
        inputs = model_inputs({**rows, **frozen_rows}, content, batch)
        logits = model.apply(params, inputs, train=True, rngs={"dropout": dropout_key})
        loss = _loss(config, logits, batch)
        if config.l2:
            loss += config.l2 / len(batch["user"]) * sum(jnp.sum(x**2) for x in rows.values())
        return loss

    rows = gather(state.tables, ids)
    loss, (grads, row_grads) = jax.value_and_grad(loss_of, argnums=(0, 1))(state.params, rows)
    updates, opt_state = _optimizer(config).update(grads, state.opt_state, state.params)
    tables, slots = {}, {}
    for name, table in state.tables.items():
        tables[name], slots[name] = sparse.update(
            config.table_optimizer,
            table,
            state.slots[name],
            ids[name],
            row_grads[name],
            config.table_learning_rate,
        )
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        tables=tables,
        slots=slots,
    )
    return state, loss


@functools.partial(jax.jit, static_argnames=("model",))
def predict(
    model: nn.Module, params: Any, tables: Tables, content: Content, batch: Batch
) -> jax.Array:
    """Logits [B, G] of a batch; `tables` are all of them, trained and frozen."""
    rows = gather(tables, lookup_ids(content, batch))
    return model.apply(params, model_inputs(rows, content, batch))


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


def _loss(config: TrainConfig, logits: jax.Array, batch: Batch) -> jax.Array:
    """Mean loss of the rows by weight; in 'softmax' a row's first item competes with the others."""
    if config.loss == "softmax":
        losses = -jax.nn.log_softmax(logits)[:, 0]
    else:
        losses = optax.sigmoid_binary_cross_entropy(logits, batch["label"]).mean(axis=1)
    return jnp.sum(losses * batch["weight"]) / jnp.maximum(jnp.sum(batch["weight"]), 1)
