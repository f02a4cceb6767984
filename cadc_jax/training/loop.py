"""Training with early stopping on the validation split."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadc_jax import sharding
from cadc_jax.errors import ConfigError, TrainingError
from cadc_jax.models.embeddings import Content, Tables
from cadc_jax.progress import Progress
from cadc_jax.training.step import Batch, TrainConfig, init_state, train_step

Validate = Callable[[Any, Tables], float]  # (params, all tables) -> quality, higher is better


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained model: the state that validated best.

    Attributes:
      params: the network's parameters.
      tables: all embedding tables, trained and frozen.
      history: one dict an evaluation: step, loss (mean since the last one), validation.
      best_step: step of `params`.
    """

    params: Any
    tables: Tables
    history: list[dict[str, float]]
    best_step: int


def initial_tables(
    num_users: int,
    num_items: int,
    num_features: int,
    rank: int,
    embedding_dim: int,
    factors: tuple[jax.Array, jax.Array] | None,
    key: jax.Array,
) -> Tables:
    """Tables before training.

    Args:
      num_users: U.
      num_items: I.
      num_features: V, rows of the stacked table of other categorical features.
      rank: D, width of random user and item tables.
      embedding_dim: E, width of the stacked table.
      factors: user [U, D'] and item [I, D'] factors, or None for random tables.
      key: of the random numbers.

    Returns:
      `user`, `item` and `features`, float32.
    """
    user_key, item_key, feature_key = jax.random.split(key, 3)
    # An empty table cannot be gathered from, so there is always one row.
    features = jax.random.normal(feature_key, (max(num_features, 1), embedding_dim))
    if factors is None:
        user = jax.random.normal(user_key, (num_users, rank)) * 0.1
        item = jax.random.normal(item_key, (num_items, rank)) * 0.1
    else:
        user, item = scaled(factors).values()
    return {"user": user, "item": item, "features": features * 0.1}


def scaled(factors: tuple[jax.Array, jax.Array]) -> Tables:
    """User and item tables of factors, each scaled to a root mean square of 1.

    The scale a factorisation leaves its factors at says nothing about a good start of the network.
    """
    return {
        name: table / jnp.sqrt(jnp.mean(jnp.square(table)))
        for name, table in zip(("user", "item"), factors, strict=True)
    }


def fit(
    model: nn.Module,
    config: TrainConfig,
    tables: Tables,
    frozen: frozenset[str],
    content: Content,
    batches: Iterator[Batch],
    steps_per_epoch: int,
    validate: Validate,
    key: jax.Array,
    label: str = "train",
) -> Fitted:
    """Trains until the validation result stops getting better.

    Args:
      model: DLRM or TwoTower.
      config: how to train.
      tables: all embedding tables, as `initial_tables` makes them.
      frozen: names of the tables that stay as they are.
      content: features of users and items.
      batches: endless stream of training batches.
      steps_per_epoch: batches that make an epoch.
      validate: quality on the validation split, higher is better.
      key: of initialisation and dropout.
      label: name shown with the progress.

    Returns:
      The state with the best validation result; step 0 takes part.

    Raises:
      ConfigError: if the rows of a batch do not split evenly over the devices.
      TrainingError: if the loss or the validation result is not a number.
    """
    mesh = sharding.make_mesh()
    if config.batch_rows % mesh.size:
        raise ConfigError(
            f"train.batch_rows={config.batch_rows} does not split evenly over {mesh.size} devices"
        )
    on_all = sharding.named(mesh, sharding.REPLICATED)
    split = sharding.named(mesh, sharding.BATCH)
    init_key, step_key = jax.random.split(key)
    content, tables = jax.device_put((content, dict(tables)), on_all)
    constant = {name: table for name, table in tables.items() if name in frozen}
    trained = {name: table for name, table in tables.items() if name not in frozen}
    batch = jax.device_put(next(batches), split)
    # A copy, since training donates its buffers and the caller keeps `tables`.
    trained = jax.tree.map(jnp.copy, trained)
    state = init_state(model, config, trained, constant, content, batch, init_key)

    best, best_value, best_step = _copy(state), validate(state.params, tables), 0
    history = [{"step": 0, "validation": best_value}]
    interval = max(steps_per_epoch, config.evaluation_steps)
    progress = Progress(label, interval * config.max_evaluations, "steps")
    for evaluation in range(1, config.max_evaluations + 1):
        loss_sum = jnp.zeros(())
        for i in range(interval):
            state, loss = train_step(model, config, state, constant, content, batch, step_key)
            loss_sum += loss
            batch = jax.device_put(next(batches), split)
            progress.update((evaluation - 1) * interval + i, f"best validation {best_value:.4f}")
        step, loss = evaluation * interval, float(loss_sum) / interval
        value = validate(state.params, {**constant, **state.tables})
        if not (math.isfinite(loss) and math.isfinite(value)):
            raise TrainingError(
                f"{label}: the loss is {loss} and the validation result {value} at step {step} "
                f"(best so far at step {best_step}): lower the learning rate"
            )
        history.append({"step": step, "loss": loss, "validation": value})
        if value > best_value:
            best, best_value, best_step = _copy(state), value, step
        elif step - best_step >= config.patience * interval:
            break
    progress.close()
    params, trained = best
    return Fitted(params, {**constant, **trained}, history, best_step)


def _copy(state) -> tuple[Any, Tables]:
    """What a result needs of the state, out of reach of donation."""
    return jax.tree.map(jnp.copy, (state.params, state.tables))
