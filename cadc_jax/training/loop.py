"""Training with early stopping on the validation split."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh

from cadc_jax import sharding
from cadc_jax.errors import ConfigError, TrainingError
from cadc_jax.models.embeddings import Batch, Content, Tables, lookup_ids
from cadc_jax.progress import Progress
from cadc_jax.training import placement, prefetch
from cadc_jax.training.step import TrainConfig, TrainState, init_state, train_steps

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


def scaled(
    factors: tuple[jax.Array, jax.Array], like: tuple[jax.Array, jax.Array] | None = None
) -> Tables:
    """User and item tables of factors, each scaled to a root mean square of 1.

    The scale a factorisation leaves its factors at says nothing about a good start of the network.

    Args:
      factors: user [U, D] and item [I, D] factors.
      like: other factors of these users and items, whose scaling they get instead of their own, so
        that a model trained on `like` can be given `factors`.
    """
    return {
        name: table / jnp.sqrt(jnp.mean(jnp.square(measured)))
        for name, table, measured in zip(("user", "item"), factors, like or factors, strict=True)
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
    mesh: Mesh | None = None,
    device_bytes: float = math.inf,
    record: Callable[[Mapping[str, float]], None] | None = None,
    trace: str | None = None,
    predict_with: Tables | None = None,
) -> Fitted:
    """Trains until the validation result stops getting better.

    The host hands over `config.steps_per_call` batches at a time, and loads the next ones while
    the devices are at work; it waits for no step.

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
      mesh: devices to train on; None for all of them, tables replicated.
      device_bytes: memory of a device for tables; past it they are split over the axis `model`.
      record: given every entry of the history as it is made.
      trace: folder for a `jax.profiler` trace of the steps between the first two evaluations
        (compilation is before them), or None.
      predict_with: tables that stand in for frozen ones of the same name and shape outside of the
        steps: in validation, and in the result.

    Returns:
      The state with the best validation result; step 0 takes part.

    Raises:
      ConfigError: if a batch does not divide over the devices, or into microbatches.
      TrainingError: if the loss or the validation result is not finite.
    """
    mesh = mesh or sharding.make_mesh()
    if config.batch_rows % mesh.size:
        raise ConfigError(
            f"train.batch_rows={config.batch_rows}: must be a multiple of the {mesh.size} devices"
        )
    micro = config.microbatch_rows or config.batch_rows
    if config.batch_rows % micro or micro % mesh.size:
        raise ConfigError(
            f"train.microbatch_rows={micro}: must divide train.batch_rows={config.batch_rows} and "
            f"be a multiple of the {mesh.size} devices"
        )
    interval = max(steps_per_epoch, config.evaluation_steps)
    everywhere = sharding.named(mesh, sharding.REPLICATED)
    init_key, step_key = jax.random.split(jax.device_put(key, everywhere))
    content = jax.device_put(content, everywhere)
    first = next(batches)
    batches = itertools.chain([first], batches)
    types = {n: x.dtype if n in frozen else config.table_dtype for n, x in tables.items()}
    placed = placement.plan(
        mesh,
        {n: jax.ShapeDtypeStruct(x.shape, types[n]) for n, x in tables.items()},
        set(tables) - frozen,
        config.table_optimizer,
        {name: len(ids) for name, ids in lookup_ids(content, first).items()},
        device_bytes,
    )
    logging.info("%s: embedding tables on %d devices\n%s", label, mesh.size, placed)
    tables = placement.put(placed, tables)
    constant = {name: table for name, table in tables.items() if name in frozen}
    predicting = constant | placement.put(placed, predict_with or {})
    # A copy, since training donates its buffers and the caller keeps `tables`.
    trained = {name: jnp.copy(table) for name, table in tables.items() if name not in frozen}
    state = init_state(model, config, trained, constant, content, first, init_key, placed)
    # The network goes where a step leaves it: the second call must not compile anew.
    network = jax.device_put((state.step, state.params, state.opt_state), everywhere)
    state = TrainState(*network, state.tables, state.slots)

    best, best_value, best_step = _copy(state), validate(state.params, {**tables, **predicting}), 0
    history = [{"step": 0, "validation": best_value}]
    progress = Progress(label, interval * config.max_evaluations, "steps")
    size = min(config.steps_per_call, interval)
    stacks = prefetch.device_batches(
        _stacks(batches, interval, size), sharding.named(mesh, sharding.BATCHES), depth=1
    )
    for evaluation in range(1, config.max_evaluations + 1):
        loss_sum, before = jnp.zeros(()), jnp.zeros(())
        traced = trace is not None and evaluation == 2
        with jax.profiler.trace(trace) if traced else contextlib.nullcontext():
            for done in range(0, interval, size):
                stack, count = next(stacks), min(size, interval - done)
                state, loss = train_steps(
                    model, config, state, constant, content, stack, count, step_key, placed
                )
                before.block_until_ready()  # the host runs no further ahead
                loss_sum, before = loss_sum + loss, loss
                at = (evaluation - 1) * interval + done
                progress.update(at, f"best validation {best_value:.4f}")
            step, loss = evaluation * interval, float(loss_sum) / interval
        value = validate(state.params, {**predicting, **state.tables})
        if not (math.isfinite(loss) and math.isfinite(value)):
            raise TrainingError(
                f"{label}: the loss is {loss} and the validation result {value} at step {step} "
                f"(best so far at step {best_step}): lower the learning rate"
            )
        history.append({"step": step, "loss": loss, "validation": value})
        if record is not None:
            record(history[-1])
        if value > best_value:
            best, best_value, best_step = _copy(state), value, step
        elif step - best_step >= config.patience * interval:
            break
    progress.close()
    params, trained = best
    return Fitted(params, placement.take(placed, {**predicting, **trained}), history, best_step)


def _stacks(batches: Iterator[Batch], interval: int, size: int) -> Iterator[Batch]:
    """Stacks of `size` batches, in order.

    The last stack of an interval may hold fewer: its last batch then stands in the remaining
    places, so that all stacks have one shape.
    """
    while True:
        for done in range(0, interval, size):
            part = list(itertools.islice(batches, min(size, interval - done)))
            padded = part + part[-1:] * (size - len(part))
            yield {name: np.stack([batch[name] for batch in padded]) for name in part[0]}


def _copy(state: TrainState) -> tuple[Any, Tables]:
    """What a result needs of the state, out of reach of donation."""
    return jax.tree.map(jnp.copy, (state.params, state.tables))
