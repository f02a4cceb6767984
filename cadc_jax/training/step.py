"""One training step, and scoring, as pure jitted functions over explicit state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.errors import ConfigError, check_at_least, check_below_one, check_choice
from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Batch, Content, HostBatch, Tables, lookup_ids, model_inputs
from cadc_jax.models.scoring import as_float32, shares_items
from cadc_jax.resident.batches import ResidentRows, maker
from cadc_jax.training import losses, placement
from cadc_jax.training.placement import Placement


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
      batch_rows: rows of the table in a batch; positives, if negatives are sampled.
      negatives: sampled negatives a positive; for data with positives only.
      negatives_from: items they are drawn from, other than the user's own in the rows that are
        trained on: 'all', or 'unlikely', which leaves out those that the factors score as high as
        items of the user (see `data.likely`). Both are the same for all rows, or without factors.
        The loss 'all_items' leaves the same pairs out.
      loss: 'bce'; 'softmax' over each positive and its negatives; 'in_batch', a softmax over the
        items of all rows of the batch, corrected for their frequency; 'all_items', a softmax over
        all items. The last two take no drawn negatives, and two towers only.
      learning_rate: learning rate of the network (Adam).
      table_optimizer: optimizer of embedding rows: 'adam' (lazy), 'adagrad' (row-wise) or 'sgd'.
      table_learning_rate: learning rate of embedding rows.
      l2: penalty on the squared norms of the trained embedding rows of a batch, for each use.
      label_smoothing: share of each label that 'bce' replaces by 1/2.
      clip_norm: largest global norm of the network's gradients; 0 leaves them as they are.
      warmup_steps: steps over which both learning rates rise linearly; 0 for none.
      decay_steps: steps over which both then fall to 0 as half a cosine; 0 for none.
      compute_dtype: dtype of activations and matrix products; parameters stay float32.
      matmul_precision: precision of float32 products in training, a value of JAX's option
        `default_matmul_precision`. 'default' is what a backend is fastest with: float32 on a CPU,
        TF32 on a GPU, one bfloat16 pass on a TPU. Scores are always computed in full float32.
      table_dtype: dtype of trained tables, 'float32' or 'bfloat16'; optimizer state is float32.
      stochastic_rounding: round bfloat16 tables at random, which keeps small steps.
      microbatch_rows: on a CPU, rows of a batch that go through the network at a time, 0 for all;
        gradients are added up. The result is the same, except for other masks of dropout, and
        activations fit into the cache (about 1,024 rows of the Criteo network).
      steps_per_call: steps in one program; the host acts between calls. 0: 8 on a CPU, else 64.
      input: 'resident': the rows go to the devices once, and batches are made there; 'stream': the
        host makes and sends every batch; 'auto': resident, if the rows take at most a quarter of
        the memory of a device. The batches are the same.
      max_evaluations: evaluations on the validation split before training ends.
      evaluation_steps: steps between evaluations, or one epoch if that is longer.
      patience: evaluations without a better validation result before training ends.
    """

    batch_rows: int = 2048
    negatives: int = 0
    negatives_from: str = "unlikely"
    loss: str = "bce"
    learning_rate: float = 1e-3
    table_optimizer: str = "adam"
    table_learning_rate: float = 1e-3
    l2: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    compute_dtype: str = "float32"
    matmul_precision: str = "default"
    table_dtype: str = "float32"
    stochastic_rounding: bool = False
    microbatch_rows: int = 0
    steps_per_call: int = 0
    input: str = "auto"
    max_evaluations: int = 20
    evaluation_steps: int = 1
    patience: int = 3

    def __post_init__(self) -> None:
        check_choice("train.loss", self.loss, LOSSES)
        check_choice("train.input", self.input, INPUTS)
        check_choice("train.negatives_from", self.negatives_from, ("all", "unlikely"))
        check_choice("train.table_optimizer", self.table_optimizer, sparse_optimizers.OPTIMIZERS)
        for name in ("compute_dtype", "table_dtype"):
            check_choice(f"train.{name}", getattr(self, name), ("float32", "bfloat16"))
        check_choice("train.matmul_precision", self.matmul_precision, PRECISIONS)
        for name, least in _LEAST.items():
            check_at_least(f"train.{name}", getattr(self, name), least)
        check_below_one("train.label_smoothing", self.label_smoothing)
        pairs = self.batch_rows * (1 + self.negatives)
        if pairs > MOST_PAIRS:
            raise ConfigError(
                f"train.negatives={self.negatives}: a batch of {self.batch_rows:,} rows would have "
                f"{pairs:,} pairs; at most {MOST_PAIRS:,} are possible: lower one of the two"
            )


LOSSES = ("bce", "softmax", "in_batch", "all_items")
DRAWN = ("bce", "softmax")  # losses of rankings that take drawn negatives
INPUTS = ("auto", "resident", "stream")
PRECISIONS = ("default", "bfloat16", "tensorfloat32", "float32")
MOST_PAIRS = 1 << 28  # of users and items in a batch
_LEAST = {
    "batch_rows": 1,
    "negatives": 0,
    "learning_rate": 0,
    "table_learning_rate": 0,
    "l2": 0,
    "clip_norm": 0,
    "warmup_steps": 0,
    "decay_steps": 0,
    "microbatch_rows": 0,
    "steps_per_call": 0,
    "max_evaluations": 1,
    "evaluation_steps": 1,
    "patience": 1,
}


def program_config(config: TrainConfig) -> TrainConfig:
    """The configuration with what a step's program does not depend on at fixed values.

    The programs take it as a static argument: trainings that differ in these settings share them.
    `TrainState.rates` has the numbers.
    """
    return dataclasses.replace(
        config,
        input="auto",
        max_evaluations=1,
        evaluation_steps=1,
        patience=1,
        steps_per_call=0,
        learning_rate=1.0,
        table_learning_rate=1.0,
        l2=float(config.l2 > 0),
    )


@struct.dataclass
class Rates:
    """Settings of the same name in `TrainConfig`, as arguments of the programs, [] float32 each."""

    learning_rate: jax.Array
    table_learning_rate: jax.Array
    l2: jax.Array


@struct.dataclass
class TrainState:
    """Everything that training changes, and its rates. Frozen tables are not here.

    Attributes:
      step: [] int32.
      params: the network's parameters.
      opt_state: state of the network's optimizer.
      tables: trained embedding tables.
      slots: name of the table -> state of its optimizer.
      rates: learning rates and penalty; they do not change.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    tables: Tables
    slots: Mapping[str, sparse_optimizers.Slots]
    rates: Rates


def init_state(
    model: nn.Module,
    config: TrainConfig,
    tables: Tables,
    frozen: Tables,
    content: Content,
    batch: HostBatch | Mapping[str, jax.ShapeDtypeStruct],
    key: jax.Array,
    placed: Placement | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      model: the network.
      config: how to train it.
      tables: trained tables. If they have the config's dtype they are used as they are: the first
        step reuses their memory.
      frozen: tables that do not change.
      content: features of users and items.
      batch: gives shapes and dtypes only; `ShapeDtypeStruct`s will do.
      key: key of the parameters.
      placed: where the tables lie; None for one device.
    """

    def inputs(tables, content, batch):
        rows = embeddings.take_rows(tables, lookup_ids(content, batch))
        return model_inputs(as_float32(rows), content, batch)

    shapes = jax.eval_shape(inputs, {**tables, **frozen}, content, batch)

    rates = Rates(*(jnp.float32(getattr(config, x.name)) for x in dataclasses.fields(Rates)))

    def network(key, rates):
        params = model.init(key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        optimizer = _optimizer(config, rates)
        return jnp.zeros((), jnp.int32), params, optimizer.init(params), rates

    # On the devices where a step leaves it: the second call must not compile again.
    where = None if placed is None else sharding.named(placed.mesh, sharding.REPLICATED)
    step, params, opt_state, rates = jax.jit(network, out_shardings=where)(key, rates)
    tables = jax.tree.map(lambda x: x.astype(config.table_dtype), dict(tables))
    return TrainState(
        step=step,
        params=params,
        opt_state=opt_state,
        tables=tables,
        slots={
            name: placement.init_slots(placed, config.table_optimizer, name, table)
            for name, table in tables.items()
        },
        rates=rates,
    )


def _train_steps(
    model: nn.Module,
    config: TrainConfig,
    state: TrainState,
    frozen: Tables,
    content: Content,
    source: Batch | ResidentRows,
    count: int | jax.Array,
    key: jax.Array,
    placed: Placement | None = None,
) -> tuple[TrainState, jax.Array]:
    """One step on each of the first `count` of K batches.

    Args:
      model: the network.
      config: how to train it.
      state: from `init_state` or the last steps; its memory is reused.
      frozen: tables that do not change.
      content: features of users and items.
      source: batches with a leading axis [K], or rows that the batches from step `state.step` on
        are made of.
      count: steps, at most K.
      key: as for `train_step`.
      placed: where the tables lie; None for one device.

    Returns:
      The new state and the sum [] of the steps' losses.
    """
    batch = batches_of(source, state.step)

    def one(i, carry):
        state, total = carry
        state, loss = _step(model, config, state, frozen, content, batch(i), key, placed)
        return state, total + loss

    return jax.lax.fori_loop(0, count, one, (state, jnp.zeros(())))


def batches_of(source: Batch | ResidentRows, step: jax.Array) -> Callable[[jax.Array], Batch]:
    """A function that gives batch 0 <= i < K of a source whose first step is `step` [] int32."""
    if isinstance(source, ResidentRows):
        return maker(source, step)
    return functools.partial(_of_stack, source)


def _of_stack(stack: Batch, i: jax.Array) -> Batch:
    return {name: x[i] for name, x in stack.items()}


# All counts share a program.
train_steps = jax.jit(
    _train_steps, static_argnames=("model", "config", "placed"), donate_argnames=("state",)
)
# A program for each count. On a GPU a loop whose length is known does not wait for the host.
train_steps_of = jax.jit(
    _train_steps, static_argnames=("model", "config", "placed", "count"), donate_argnames=("state",)
)


@functools.partial(
    jax.jit, static_argnames=("model", "config", "placed"), donate_argnames=("state",)
)
def train_step(
    model: nn.Module,
    config: TrainConfig,
    state: TrainState,
    frozen: Tables,
    content: Content,
    batch: Batch,
    key: jax.Array,
    placed: Placement | None = None,
) -> tuple[TrainState, jax.Array]:
    """One step on a batch. Returns the new state and the loss [].

    Args:
      model: the network.
      config: how to train it.
      state: from `init_state` or the last step; its memory is reused.
      frozen: tables that do not change.
      content: features of users and items.
      batch: `user`, `item`, `label`, `weight`, `dense` and `categorical` of B rows.
      key: of dropout and stochastic rounding, the same for all steps.
      placed: where the tables lie; None for one device.
    """
    return _step(model, config, state, frozen, content, batch, key, placed)


def _step(
    model: nn.Module,
    config: TrainConfig,
    state: TrainState,
    frozen: Tables,
    content: Content,
    batch: Batch,
    key: jax.Array,
    placed: Placement | None,
) -> tuple[TrainState, jax.Array]:
    dropout_key, rounding_key = jax.random.split(jax.random.fold_in(key, state.step))
    rows = len(batch["user"])
    whole = _Whole(model, config, placed, frozen, content, rows, jnp.sum(batch["weight"]))
    gradients = functools.partial(_gradients, whole, state)
    parts = rows // (config.microbatch_rows or rows)
    if parts == 1:
        loss, grads, ids, row_grads = gradients(batch, dropout_key)
    else:
        # Rows at even distances: each part of a batch that is split over devices is split over all
        # of them, too.
        split = {
            name: x.reshape(rows // parts, parts, *x.shape[1:]).swapaxes(0, 1)
            for name, x in batch.items()
        }

        def add(total, part):
            loss, grads, ids, row_grads = gradients(*part)
            return jax.tree.map(jnp.add, total, (loss, grads)), (ids, row_grads)

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), state.params))
        keys = jax.random.split(dropout_key, parts)
        (loss, grads), found = jax.lax.scan(add, zeros, (split, keys))
        ids, row_grads = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

    optimizer = _optimizer(config, state.rates)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    tables, slots = {}, {}
    rate = state.rates.table_learning_rate * _schedule(config, state.step)
    for number, (name, table) in enumerate(state.tables.items()):
        tables[name], slots[name] = placement.update(
            placed,
            config.table_optimizer,
            name,
            table,
            state.slots[name],
            ids[name],
            row_grads[name],
            rate,
            jax.random.fold_in(rounding_key, number) if config.stochastic_rounding else None,
        )
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        tables=tables,
        slots=slots,
        rates=state.rates,
    )
    return state, loss


class _Whole(NamedTuple):
    """Arguments that the parts of a batch share; `rows` and `weight` count the whole batch."""

    model: nn.Module
    config: TrainConfig
    placed: Placement | None
    frozen: Tables
    content: Content
    rows: int
    weight: jax.Array


def _gradients(
    whole: _Whole, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Any, dict[str, jax.Array], dict[str, jax.Array]]:
    """Loss and gradients of some rows of a batch, as parts of the mean over the whole batch.

    Gradients are taken with respect to the network and to the embedding rows gathered for the
    batch, never to a table; frozen rows are constants.

    Returns:
      The loss [], gradients of `params`, and by table the ids [n] and row gradients [n, D] float32.
    """
    model, config, placed, frozen, content, batch_rows, batch_weight = whole
    devices = 1 if placed is None else placed.mesh.size
    num_items = len(content.item_categorical)
    if config.loss == "all_items":
        batch = embeddings.among_all_items(content, batch, devices)
    elif config.loss != "in_batch" and devices == 1:
        # Items shared by devices would have to be gathered and updated as such.
        if shares_items(model, batch["item"].size, num_items):
            batch = embeddings.with_all_items(content, batch)
    ids = lookup_ids(content, batch)
    uses = embeddings.uses_of_rows(content, batch, ids) if config.l2 else {}
    share = jnp.maximum(jnp.sum(batch["weight"]), 1) / jnp.maximum(batch_weight, 1)
    frozen_rows = as_float32(placement.lookup(placed, frozen, ids))
    dtype = config.compute_dtype

    def loss_of(params, rows):
        inputs = model_inputs({**rows, **frozen_rows}, content, batch)
        if config.loss == "in_batch":
            inputs = embeddings.with_shared_items(inputs)
        params, inputs = jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            (params, inputs),
        )
        logits: Any = model.apply(params, inputs, train=True, rngs={"dropout": key})
        loss = _loss(config, logits, batch) * share
        if config.l2:
            squares = {name: jnp.sum(jnp.square(x), axis=1) for name, x in rows.items()}
            penalty = sum(uses[name] @ square for name, square in squares.items())
            loss += state.rates.l2 / batch_rows * penalty
        return loss

    rows = as_float32(placement.lookup(placed, state.tables, ids))
    with jax.default_matmul_precision(config.matmul_precision):
        loss, (grads, row_grads) = jax.value_and_grad(loss_of, argnums=(0, 1))(state.params, rows)
    return loss, grads, {name: ids[name] for name in state.tables}, row_grads


def _schedule(config: TrainConfig, step: jax.Array) -> jax.Array:
    """Factor [] of the learning rates at `step`: linear warm-up, then cosine decay."""
    share = jnp.ones(())
    if config.warmup_steps:
        share = jnp.minimum(share, (step + 1) / config.warmup_steps)
    if config.decay_steps:
        done = jnp.clip((step - config.warmup_steps) / config.decay_steps, 0, 1)
        share *= (1 + jnp.cos(jnp.pi * done)) / 2
    return share


def _optimizer(config: TrainConfig, rates: Rates) -> optax.GradientTransformation:
    adam = optax.adam(lambda step: rates.learning_rate * _schedule(config, jnp.asarray(step)))
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
    return adam


def _loss(config: TrainConfig, logits: jax.Array, batch: Batch) -> jax.Array:
    """Mean loss of the rows by weight; see `losses`."""
    weight = batch["weight"]
    if config.loss == "in_batch":
        return losses.in_batch_softmax(
            logits, batch["user"], batch["item"][:, 0], batch["log_q"], weight
        )
    if config.loss == "all_items":
        return losses.all_items_softmax(logits, batch["positive"], batch["competes"], weight)
    if config.loss == "softmax":
        return losses.sampled_softmax(logits, weight)
    return losses.binary_cross_entropy(logits, batch["label"], weight, config.label_smoothing)
