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
from cadc_jax.models.embeddings import Content, HostBatch, Tables, lookup_ids
from cadc_jax.runtime import checkpoints, distributed
from cadc_jax.runtime.checkpoints import Checkpoints, Facts
from cadc_jax.runtime.progress import Progress
from cadc_jax.training import placement, prefetch
from cadc_jax.training.placement import Placement, RandomTable
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
    factors: tuple[np.ndarray, np.ndarray] | None,
    key: jax.Array,
) -> dict[str, np.ndarray | RandomTable]:
    """Tables before training, for `placement.put`.

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
    features = RandomTable((max(num_features, 1), embedding_dim), feature_key, 0.1)
    if factors is not None:
        return {**scaled(factors), "features": features}
    user = RandomTable((num_users, rank), user_key, 0.1)
    item = RandomTable((num_items, rank), item_key, 0.1)
    return {"user": user, "item": item, "features": features}


def scaled(
    factors: tuple[np.ndarray, np.ndarray], like: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """User and item tables of factors, each scaled to a root mean square of 1.

    The scale a factorisation leaves its factors at says nothing about a good start of the network.

    Args:
      factors: user [U, D] and item [I, D] factors.
      like: other factors of these users and items, whose scaling they get instead of their own, so
        that a model trained on `like` can be given `factors`.
    """
    return {
        name: table / np.sqrt(np.mean(np.square(measured)))
        for name, table, measured in zip(("user", "item"), factors, like or factors, strict=True)
    }


def fit(
    model: nn.Module,
    config: TrainConfig,
    tables: Mapping[str, jax.Array | np.ndarray | RandomTable],
    frozen: frozenset[str],
    content: Content,
    batches: Callable[[int], Iterator[HostBatch]],
    steps_per_epoch: int,
    validate: Validate,
    key: jax.Array,
    label: str = "train",
    mesh: Mesh | None = None,
    device_bytes: float = math.inf,
    record: Callable[[Mapping[str, float]], None] | None = None,
    trace: str | None = None,
    predict_with: Mapping[str, jax.Array | np.ndarray] | None = None,
    saved: Checkpoints | None = None,
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
      batches: the endless stream of training batches from a given step on; of several processes,
        each has its own part.
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
      saved: checkpoints to go on from, and to save to between calls and before evaluations. The
        result is bit for bit that of a fit without a break, on the same machine and devices.

    Returns:
      The state with the best validation result; step 0 takes part.

    Raises:
      ConfigError: if a batch does not divide over the devices, or into microbatches.
      TrainingError: if the loss or the validation result is not finite. No checkpoint holds a
        state with such numbers.
      Stopped: by `saved`, once it is asked to end.
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

    init_key, step_key = jax.random.split(sharding.put(key, everywhere))
    content = sharding.put(content, everywhere)
    stream = batches(0)
    first = next(stream)
    shapes = {
        name: jax.ShapeDtypeStruct((config.batch_rows, *x.shape[1:]), x.dtype)
        for name, x in first.items()
    }
    types = {n: x.dtype if n in frozen else config.table_dtype for n, x in tables.items()}
    placed = placement.plan_placement(
        mesh,
        {n: jax.ShapeDtypeStruct(x.shape, types[n]) for n, x in tables.items()},
        set(tables) - frozen,
        config.table_optimizer,
        {n: ids.size for n, ids in jax.eval_shape(lookup_ids, content, shapes).items()},
        device_bytes,
    )
    logging.info("%s: embedding tables on %d devices\n%s", label, mesh.size, placed)
    constant = placement.put(placed, {n: table for n, table in tables.items() if n in frozen})
    predicting = constant | placement.put(placed, predict_with or {})

    def quality(state: TrainState) -> float:
        # All processes must come to the same decision, whatever their hardware rounds to.
        return distributed.of_first(validate(state.params, {**predicting, **state.tables}))

    given = {name: table for name, table in tables.items() if name not in frozen}

    def start(trained: Tables) -> TrainState:
        return init_state(model, config, trained, constant, content, shapes, init_key, placed)

    found = None
    if saved is not None:
        like = {name: placement.shape(placed, name, table) for name, table in given.items()}
        found = saved.restore(_like(jax.eval_shape(start, like), placed))
    zero = sharding.put(jnp.zeros(()), everywhere)
    if found is None:
        # Training donates its buffers, and the caller keeps those that are not made here.
        trained = {
            name: table if isinstance(given[name], RandomTable) else jnp.copy(table)
            for name, table in placement.put(placed, given).items()
        }
        state, loss_sum, at = start(trained), zero, 0
        best, best_value, best_step = _copy(state), quality(state), 0
        history = [{"step": 0, "validation": best_value}]
        stream = itertools.chain([first], stream)
    else:
        (state, best, loss_sum), facts = found
        at, history = facts["step"], facts["history"]
        best_value, best_step = facts["best_value"], facts["best_step"]
        stream = batches(at)

    def snapshot() -> tuple[Any, Facts]:
        if not _finite((state.params, state.tables, loss_sum)):
            raise failure("the loss or a weight is not finite")
        facts = {"best_value": best_value, "best_step": best_step, "history": history, "step": at}
        return (state, best, loss_sum), facts

    def failure(what: str) -> TrainingError:
        good = f"best so far at step {best_step}"
        if saved is not None and saved.newest is not None:
            good += f", last good checkpoint at step {saved.newest}"
        return TrainingError(f"{label}: {what} at step {at} ({good}): lower the learning rate")

    progress = Progress(label, interval * config.max_evaluations, "steps")
    size = min(config.steps_per_call, interval)
    stacks = prefetch.device_batches(
        _stacks(stream, interval, size, at - int(history[-1]["step"])),
        sharding.named(mesh, sharding.BATCHES),
        depth=1,
    )
    for evaluation in range(len(history), config.max_evaluations + 1):
        end, before = evaluation * interval, zero
        traced = trace if evaluation == 2 else None
        with jax.profiler.trace(traced) if traced else contextlib.nullcontext():
            while at < end:
                if saved is not None:
                    saved.maybe_save(at, snapshot)
                stack, count = next(stacks), min(size, end - at)
                state, loss = train_steps(
                    model, config, state, constant, content, stack, count, step_key, placed
                )
                before.block_until_ready()  # the host runs no further ahead
                loss_sum, before = loss_sum + loss, loss
                progress.update(at, f"best validation {best_value:.4f}")
                at += count
            if saved is not None:
                saved.maybe_save(at, snapshot)
            loss = float(loss_sum) / interval
        value = quality(state)
        if not (math.isfinite(loss) and math.isfinite(value)):
            raise failure(f"the loss is {loss} and the validation result {value}")
        history.append({"step": at, "loss": loss, "validation": value})
        loss_sum = zero
        if record is not None:
            record(history[-1])
        if value > best_value:
            del best  # its memory is the new one's
            best, best_value, best_step = _copy(state), value, at
        elif at - best_step >= config.patience * interval:
            break
    progress.close()
    params, best_tables = best
    return Fitted(params, placement.take(placed, {**predicting, **best_tables}), history, best_step)


def _stacks(
    batches: Iterator[HostBatch], interval: int, size: int, done: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Stacks of `size` batches, in order, the first being `done` batches into an interval.

    The last stack of an interval may hold fewer: its last batch then stands in the remaining
    places, so that all stacks have one shape.
    """
    while True:
        for first in range(done, interval, size):
            part = list(itertools.islice(batches, min(size, interval - first)))
            padded = part + part[-1:] * (size - len(part))
            yield {name: np.stack([batch[name] for batch in padded]) for name in part[0]}
        done = 0


def _like(state: TrainState, placed: Placement) -> tuple[TrainState, tuple[Any, Tables], Any]:
    """What a checkpoint holds, by the shapes of a state: it, the best one, and the sum of losses.

    Every array gets the sharding that a step leaves it in.
    """
    everywhere = sharding.named(placed.mesh, sharding.REPLICATED)
    step, params, opt_state, zero = checkpoints.like(
        (state.step, state.params, state.opt_state, jax.ShapeDtypeStruct((), jnp.float32)),
        everywhere,
    )
    tables = {n: placement.like(placed, n, x) for n, x in state.tables.items()}
    slots = {n: placement.like(placed, n, x) for n, x in state.slots.items()}
    return TrainState(step, params, opt_state, tables, slots), (params, tables), zero


@jax.jit
def _finite(tree: Any) -> jax.Array:
    """[] bool: whether every number in the tree is finite."""
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def _copy(state: TrainState) -> tuple[Any, Tables]:
    """What a result needs of the state, out of reach of donation."""
    return jax.tree.map(jnp.copy, (state.params, state.tables))
