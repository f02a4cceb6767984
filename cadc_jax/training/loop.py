"""Training with early stopping on the validation split."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh

from cadc_jax import sharding
from cadc_jax.errors import ConfigError, TrainingError
from cadc_jax.models.embeddings import Batch, Content, Tables, lookup_ids
from cadc_jax.resident.batches import ResidentRows
from cadc_jax.runtime import checkpoints, compilation, distributed
from cadc_jax.runtime.checkpoints import Checkpoints, Facts
from cadc_jax.runtime.progress import Progress
from cadc_jax.training import feeds, placement
from cadc_jax.training.feeds import Feed, Shapes
from cadc_jax.training.placement import Placement, RandomTable
from cadc_jax.training.step import (
    TrainConfig,
    TrainState,
    batches_of,
    init_state,
    program_config,
    train_steps,
    train_steps_of,
)

_HOST = "pinned_host"  # memory of the host that devices copy to and from

Validate = Callable[[Any, Tables], float]  # (params, all tables) -> quality, higher is better


@dataclasses.dataclass(frozen=True)
class StartTables:
    """Embedding tables before training.

    Attributes:
      tables: `user` [U, D], `item` [I, D] and `features` [V, E].
      frozen: names of the tables that training does not change.
      predict_with: tables that replace frozen ones of the same name and shape in validation and in
        the result; training does not see them.
    """

    tables: Mapping[str, jax.Array | np.ndarray | RandomTable]
    frozen: frozenset[str] = frozenset()
    predict_with: Mapping[str, jax.Array | np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """Where a fit runs, what it reports, and where it saves.

    Attributes:
      mesh: devices to train on; None for all of them, tables replicated.
      device_bytes: memory of a device for tables; past it they are split over all devices.
      label: name shown with the progress.
      record: called with every entry of the history as it is made.
      trace: folder for a `jax.profiler` trace of the steps between the first two evaluations
        (compilation is before them), or None.
      saved: checkpoints to resume from, and to save to between calls and before evaluations. The
        result is bit for bit the one of an uninterrupted fit, on the same machine and devices.
    """

    mesh: Mesh | None = None
    device_bytes: float = math.inf
    label: str = "train"
    record: Callable[[Mapping[str, float]], None] | None = None
    trace: str | None = None
    saved: Checkpoints | None = None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained model: the state with the best validation result.

    Attributes:
      params: the network's parameters.
      tables: all embedding tables, trained and frozen.
      history: one dict an evaluation: step, loss (mean since the last one), validation.
      best_step: step of `params`.
      evaluation_seconds: wall time of the evaluations of this process, without compiling.
    """

    params: Any
    tables: Tables
    history: list[dict[str, float]]
    best_step: int
    evaluation_seconds: float


def fit(
    model: nn.Module,
    config: TrainConfig,
    start: StartTables,
    content: Content,
    feed: Feed,
    validate: Validate,
    key: jax.Array,
    options: FitOptions | None = None,
) -> Fitted:
    """Trains until the validation result stops improving.

    Many steps run in one program. The host starts it, and is at most one program ahead.

    Args:
      model: DLRM, DCN or TwoTower.
      config: how to train.
      start: all embedding tables.
      content: features of users and items.
      feed: the training batches.
      validate: quality on the validation split, higher is better.
      key: of initialisation and dropout.
      options: devices, reports and checkpoints.

    Returns:
      The state with the best validation result; step 0 takes part.

    Raises:
      ConfigError: if a batch does not divide over the devices, or into microbatches.
      TrainingError: if the loss or the validation result is not finite. No checkpoint holds a
        state with such numbers.
      Stopped: by `options.saved`, after saving, once the run is asked to end.
    """
    options = options or FitOptions()
    mesh = options.mesh or sharding.make_mesh()
    _check_batch(config, mesh)
    if not sharding.is_cpu(mesh):  # where a whole batch is faster than its parts
        config = dataclasses.replace(config, microbatch_rows=0)
    job = _set_up(model, config, start, content, feed, key, mesh, options)
    interval = max(feed.steps_per_epoch, config.evaluation_steps)
    size = feeds.steps_of_call(config, interval, mesh)

    seconds: list[float] = []

    def quality(state: TrainState) -> float:
        before = time.perf_counter() - compilation.seconds()
        value = validate(state.params, {**job.predicting, **state.tables})
        seconds.append(time.perf_counter() - compilation.seconds() - before)
        # All processes must come to the same decision, whatever their hardware rounds to.
        return distributed.of_first(value)

    at = _restored(job, start) or _first(job, start, quality)
    progress = Progress(options.label, interval * config.max_evaluations, "steps")
    calls = feed.calls(at.step, at.step - int(at.history[-1]["step"]), interval, size, mesh)
    for evaluation in range(len(at.history), config.max_evaluations + 1):
        trace = options.trace if evaluation == 2 else None
        with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
            at = _train_until(job, at, evaluation * interval, size, calls, progress)
            loss = float(at.loss_sum) / interval
        value = quality(at.state)
        if not (math.isfinite(loss) and math.isfinite(value)):
            raise _failure(job, at, f"the loss is {loss} and the validation result {value}")
        at.history.append({"step": at.step, "loss": loss, "validation": value})
        at = at._replace(loss_sum=job.zero)
        if options.record is not None:
            options.record(at.history[-1])
        if value > at.best_value:
            at = at._replace(best=None)  # its memory is the new one's
            at = at._replace(best=_kept(at.state), best_value=value, best_step=at.step)
        elif at.step - at.best_step >= config.patience * interval:
            break
    progress.close()
    best, history, best_step = at.best, at.history, at.best_step
    del at  # the last state gives its memory to the best one
    params, tables = _moved(best)
    tables = placement.take(job.placed, {**job.predicting, **tables})
    return Fitted(params, tables, history, best_step, max(0.0, sum(seconds)))


def _check_batch(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ConfigError if a batch does not divide."""
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


@dataclasses.dataclass(frozen=True)
class _Job:
    """What does not change during a fit.

    `constant` are the frozen tables that training sees, `predicting` the ones that validation
    sees; `shapes` describe a batch of all processes; `zero` is 0 on all devices.
    """

    model: nn.Module
    config: TrainConfig
    content: Content
    shapes: Shapes
    placed: Placement
    constant: Tables
    predicting: Tables
    init_key: jax.Array
    step_key: jax.Array
    zero: jax.Array
    options: FitOptions


def _set_up(
    model: nn.Module,
    config: TrainConfig,
    start: StartTables,
    content: Content,
    feed: Feed,
    key: jax.Array,
    mesh: Mesh,
    options: FitOptions,
) -> _Job:
    """Places content and frozen tables on the devices."""
    shapes = feed.shapes(config)
    everywhere = sharding.named(mesh, sharding.REPLICATED)
    init_key, step_key = jax.random.split(sharding.put(key, everywhere))
    content = sharding.put(content, everywhere)
    types = {
        name: x.dtype if name in start.frozen else config.table_dtype
        for name, x in start.tables.items()
    }
    plan = functools.partial(
        placement.plan_placement,
        mesh,
        {name: jax.ShapeDtypeStruct(x.shape, types[name]) for name, x in start.tables.items()},
        set(start.tables) - start.frozen,
        config.table_optimizer,
        {name: ids.size for name, ids in jax.eval_shape(lookup_ids, content, shapes).items()},
        options.device_bytes,
    )
    placed = plan()
    if any(table.split for table in placed.tables):
        first = _first_batch(next(feed.calls(0, 0, 1, 1, mesh)))
        found = placement.distinct_ids(mesh, content, first)
        placed = plan(distinct={name: float(x) for name, x in found.items()})
    logging.info("%s: embedding tables on %d devices\n%s", options.label, mesh.size, placed)
    frozen = {name: table for name, table in start.tables.items() if name in start.frozen}
    constant = placement.put(placed, frozen)
    return _Job(
        model=model,
        config=config,
        content=content,
        shapes=shapes,
        placed=placed,
        constant=constant,
        predicting=constant | placement.put(placed, start.predict_with),
        init_key=init_key,
        step_key=step_key,
        zero=sharding.put(jnp.zeros(()), everywhere),
        options=options,
    )


@jax.jit
def _first_batch(source: Batch | ResidentRows) -> Batch:
    zero = jnp.zeros((), jnp.int32)
    return batches_of(source, zero)(zero)


class _Position(NamedTuple):
    """How far a fit is.

    `best` are the parameters and trained tables with the best validation result so far, in the
    memory of the host; `loss_sum` the losses since the last evaluation.
    """

    state: TrainState
    best: Any
    loss_sum: jax.Array
    step: int
    history: list[dict[str, float]]
    best_value: float
    best_step: int


def _first(job: _Job, start: StartTables, quality: Callable[[TrainState], float]) -> _Position:
    """The position before the first step."""
    given = _trained(start)
    # Training donates its buffers, and the caller keeps the ones that are not made here.
    tables = {
        name: table if isinstance(given[name], RandomTable) else jax.tree.map(jnp.copy, table)
        for name, table in placement.put(job.placed, given).items()
    }
    state = _state(job, tables)
    best, value = _kept(state), quality(state)
    return _Position(state, best, job.zero, 0, [{"step": 0, "validation": value}], value, 0)


def _restored(job: _Job, start: StartTables) -> _Position | None:
    """The position in the newest good checkpoint, if there is one."""
    if job.options.saved is None:
        return None
    like = {
        name: placement.plain_shape(job.placed, name, table)
        for name, table in _trained(start).items()
    }
    shapes = jax.eval_shape(functools.partial(_state, job), like)
    found = job.options.saved.restore(_like(shapes, job.placed))
    if found is None:
        return None
    (state, (params, tables), loss_sum), facts = found
    form = functools.partial(placement.placed_tree, job.placed)
    best = _moved((params, form(_moved(tables))), _HOST)
    state = state.replace(tables=form(state.tables), slots=form(state.slots))
    return _Position(state, best, loss_sum, **facts)


def _trained(start: StartTables) -> dict[str, jax.Array | np.ndarray | RandomTable]:
    return {name: table for name, table in start.tables.items() if name not in start.frozen}


def _state(job: _Job, tables: Tables) -> TrainState:
    return init_state(
        *(job.model, job.config, tables, job.constant, job.content, job.shapes, job.init_key),
        job.placed,
    )


def _train_until(
    job: _Job,
    at: _Position,
    end: int,
    size: int,
    calls: Iterator[Batch | ResidentRows],
    progress: Progress,
) -> _Position:
    """Trains up to step `end`, at most `size` steps a call, and saves in between when it is time.

    Raises:
      TrainingError: if a number of the state is not finite when it is to be saved.
      Stopped: after saving, once the run is asked to end.
    """
    before, config = job.zero, program_config(job.config)
    run = train_steps if sharding.is_cpu(job.placed.mesh) else train_steps_of
    while at.step < end:
        _maybe_save(job, at)
        source, count = next(calls), min(size, end - at.step)
        state, loss = run(
            *(job.model, config, at.state, job.constant, job.content, source, count),
            job.step_key,
            job.placed,
        )
        before.block_until_ready()  # the host runs no further ahead
        before = loss
        progress.update(at.step, f"best validation {at.best_value:.4f}")
        at = at._replace(state=state, loss_sum=at.loss_sum + loss, step=at.step + count)
    _maybe_save(job, at)
    return at


def _maybe_save(job: _Job, at: _Position) -> None:
    def snapshot() -> tuple[Any, Facts]:
        if not _finite((at.state.params, at.state.tables, at.loss_sum)):
            raise _failure(job, at, "the loss or a weight is not finite")
        facts = at._asdict()
        state, (params, tables), loss_sum = (facts.pop(x) for x in ("state", "best", "loss_sum"))
        plain = functools.partial(placement.plain_tree, job.placed)
        state = state.replace(tables=plain(state.tables), slots=plain(state.slots))
        return (state, (params, _plain_on_host(job, tables)), loss_sum), facts

    if job.options.saved is not None:
        job.options.saved.maybe_save(at.step, snapshot)


def _failure(job: _Job, at: _Position, what: str) -> TrainingError:
    good = f"best so far at step {at.best_step}"
    saved = job.options.saved
    if saved is not None and saved.newest is not None:
        good += f", last good checkpoint at step {saved.newest}"
    label = job.options.label
    return TrainingError(f"{label}: {what} at step {at.step} ({good}): lower the learning rate")


def _like(state: TrainState, placed: Placement) -> tuple[TrainState, tuple[Any, Tables], Any]:
    """Shapes of what a checkpoint holds: a state, the best one, and the sum of losses.

    Every array gets the sharding that a step leaves it in.
    """
    everywhere = sharding.named(placed.mesh, sharding.REPLICATED)
    zero = jax.ShapeDtypeStruct((), jnp.float32)
    step, params, opt_state, rates, zero = checkpoints.like(
        (state.step, state.params, state.opt_state, state.rates, zero), everywhere
    )
    tables = {n: placement.like(placed, n, x) for n, x in state.tables.items()}
    slots = {n: placement.like(placed, n, x) for n, x in state.slots.items()}
    best = jax.tree.map(
        lambda x: x.update(sharding=x.sharding.with_memory_kind(_HOST)), (params, tables)
    )
    return TrainState(step, params, opt_state, tables, slots, rates), best, zero


@jax.jit
def _finite(tree: Any) -> jax.Array:
    """[] bool: whether every number in the tree is finite."""
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def _kept(state: TrainState) -> tuple[Any, Tables]:
    """Parameters and trained tables, copied to the host: a step reuses the memory of its state."""
    return _moved((state.params, state.tables), _HOST)


def _moved(tree: Any, kind: str = "device") -> Any:
    """The tree in another kind of memory, the devices' own or the host's."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)), tree)


def _plain_on_host(job: _Job, tables: Tables) -> Tables:
    """Tables on the host as plain arrays there; one at a time is changed on the devices."""
    return {
        name: _moved(placement.plain_tree(job.placed, {name: _moved(table)})[name], _HOST)
        if job.placed[name].packed or job.placed[name].split
        else table
        for name, table in tables.items()
    }
