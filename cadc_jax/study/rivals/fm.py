"""The factorisation machine of degree 2 (Rendle 2010, ICDM, eq. 1) for clicks, by Adagrad."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cadc_jax.study.rivals.one_hot import Encoded

BATCH_ROWS = 1024  # or fewer, for STEPS an epoch
STEPS = 50
EPOCHS = 50  # at most
PATIENCE = 3  # epochs without a better validation
_START = 0.05  # standard deviation of the first factors
_ACCUMULATED = 1e-7  # about the squared gradient of an id that one row of a batch has


class Params(NamedTuple):
    """The model.

    Attributes:
      bias: [].
      linear: [P].
      factors: [P, D].
    """

    bias: jax.Array
    linear: jax.Array
    factors: jax.Array


@dataclasses.dataclass(frozen=True)
class FMConfig:
    """How a factorisation machine is fitted.

    Attributes:
      factors: D.
      penalty: of squared weights and factors, against the sum of the rows' log losses.
      learning_rate: of Adagrad.
    """

    factors: int = 16
    penalty: float = 3.0
    learning_rate: float = 0.1


@jax.jit
def logits(params: Params, place: jax.Array, value: jax.Array) -> jax.Array:
    """Logits [N] of encoded rows: bias + sum_s w_s x_s + sum_(s < t) (v_s . v_t) x_s x_t.

    The sum over pairs is half of |sum_s v_s x_s|^2 - sum_s |v_s x_s|^2 (Rendle 2010, lemma 3.1).

    Args:
      params: the model.
      place: [N, S] int32; see `Encoded`.
      value: [N, S] float32.
    """
    parts = params.factors[place] * value[..., None]  # [N, S, D]
    pairs = jnp.square(parts.sum(1)).sum(-1) - jnp.square(parts).sum((1, 2))
    return params.bias + (params.linear[place] * value).sum(1) + pairs / 2


def fit(
    size: int,
    train: tuple[Encoded, np.ndarray],
    validation: tuple[Encoded, np.ndarray],
    config: FMConfig,
    key: jax.Array,
) -> Params:
    """Fits to labelled rows; the epoch with the least log loss of the validation rows counts.

    Args:
      size: P, of the vector that rows are encoded as.
      train: encoded rows and their labels [N].
      validation: the same.
      config: the settings.
      key: PRNG key of the first factors and of the order of rows.
    """
    start_key, order_key = jax.random.split(key)
    rate = float(np.clip(np.mean(train[1]), 1e-6, 1 - 1e-6))
    params = Params(
        jnp.asarray(np.log(rate / (1 - rate)), jnp.float32),
        jnp.zeros(size),
        _START * jax.random.normal(start_key, (size, config.factors)),
    )
    optimizer = optax.adagrad(config.learning_rate, _ACCUMULATED)
    state = optimizer.init(params)
    rows, held_out = (_on_device(*part) for part in (train, validation))
    best, least, since = params, float(_mean_loss(params, held_out)), 0
    for epoch in range(EPOCHS):
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), len(train[1]))
        params, state = _epoch(params, state, rows, order, config)
        loss = float(_mean_loss(params, held_out))
        if loss < least:
            best, least, since = params, loss, 0
        else:
            since += 1
        if since == PATIENCE or not np.isfinite(loss):
            break
    return best


class _Rows(NamedTuple):
    place: jax.Array
    value: jax.Array
    label: jax.Array


def _on_device(rows: Encoded, labels: np.ndarray) -> _Rows:
    return _Rows(*map(jnp.asarray, (*rows, np.asarray(labels, np.float32))))


@functools.partial(jax.jit, static_argnames="config")
def _epoch(
    params: Params, state: optax.OptState, rows: _Rows, order: jax.Array, config: FMConfig
) -> tuple[Params, optax.OptState]:
    """A pass over all rows in this order [N]; the last batch is filled up with weight 0."""
    number = len(order)
    size = max(1, min(BATCH_ROWS, number // STEPS))
    order = jnp.pad(order, (0, -number % size), constant_values=-1)
    optimizer = optax.adagrad(config.learning_rate, _ACCUMULATED)

    def loss(params: Params, batch: _Rows, real: jax.Array) -> jax.Array:
        losses = optax.sigmoid_binary_cross_entropy(
            logits(params, batch.place, batch.value), batch.label
        )
        squares = jnp.square(params.linear).sum() + jnp.square(params.factors).sum()
        return (losses * real).sum() / real.sum() + config.penalty / (2 * number) * squares

    def step(carry: tuple, chosen: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        batch = jax.tree.map(lambda column: column[chosen], rows)
        gradient = jax.grad(loss)(params, batch, (chosen >= 0).astype(jnp.float32))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), order.reshape(-1, size))
    return params, state


@jax.jit
def _mean_loss(params: Params, rows: _Rows) -> jax.Array:
    found = logits(params, rows.place, rows.value)
    return optax.sigmoid_binary_cross_entropy(found, rows.label).mean()
