"""The cost of a training step.

The step is traced with shapes instead of arrays, on devices that need not exist. Matrix products
and activations are counted in the trace; the rest follows from shapes and placement.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.cost.arithmetic import (
    CPU,
    GPU,
    TPU,
    all_reduce,
    doublings,
    f32,
    i32,
    sums_of_equal_ids,
    table_bytes,
    tree_bytes,
    up,
)
from cadc_jax.cost.model import Cost, Sizes
from cadc_jax.cost.trace import launches, product_flops
from cadc_jax.errors import ConfigError
from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Content
from cadc_jax.tables import packed
from cadc_jax.tables.packed import stored_width
from cadc_jax.training import feeds, placement, step
from cadc_jax.training.placement import DeviceConfig
from cadc_jax.training.step import TrainConfig, TrainState

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def training(
    name: str,
    model: nn.Module,
    config: TrainConfig,
    sizes: Sizes,
    tables: Shapes,
    frozen: frozenset[str] = frozenset(),
    devices: int = 1,
    limits: DeviceConfig | None = None,
    platform: str = GPU,
) -> Cost:
    """The cost of a training step.

    Args:
      name: name of the cost.
      model: DLRM, DCN or TwoTower.
      config: settings of training.
      sizes: sizes of the data; `rows` are the rows to train on.
      tables: shapes of the embedding tables, as `table_shapes` returns them.
      frozen: names of the tables that are not trained.
      devices: number of devices that a batch is split over.
      limits: how tables may be placed on the devices; None for the defaults.
      platform: what the devices are: 'cpu', 'gpu' or 'tpu'.

    Raises:
      ConfigError: if `devices` does not divide a batch, or the tables do not fit even when all of
        them are split.
    """
    if config.batch_rows % devices:
        raise ConfigError(
            f"train.batch_rows={config.batch_rows}: must be a multiple of the {devices} devices"
        )
    if platform != CPU:  # as `loop.fit` has it
        config = dataclasses.replace(config, microbatch_rows=0)
    limits = limits or DeviceConfig()
    traced = _trace(model, config, sizes, tables, frozen, devices, limits, platform)
    activations = _residual_bytes(traced) / devices
    weights = traced.network_bytes // 4  # float32
    traffic = sum(table.traffic for table in traced.tables)
    return Cost(
        name=name,
        memory=_memory(traced, sizes, activations),
        unit="step",
        flops=product_flops(traced.jaxpr) / devices,
        precision=config.compute_dtype,
        # Weights: read forward and backward, gradients written and read, Adam's two moments and
        # the weights read and written. Activations: written forward, read backward, and again for
        # their gradients.
        traffic=traffic + 10 * 4 * weights + 4 * activations + tree_bytes(traced.batch) / devices,
        received=_received(traced),
        launches=launches(traced.jaxpr, doublings(config.batch_rows), platform),
        units=up(sizes.rows, config.batch_rows),
        whole="epoch",
        notes=(_placement_note(traced),),
    )


def content_shapes(sizes: Sizes) -> Content:
    """Shapes of the content of users and items."""
    users, items = sizes.num_users, sizes.num_items
    shapes: dict[str, Any] = {
        "user_dense": f32(users, sizes.dense[0]),
        "user_categorical": i32(users, sizes.categorical[0]),
        "item_dense": f32(items, sizes.dense[2]),
        "item_categorical": i32(items, sizes.categorical[2]),
        "context_offsets": i32(sizes.categorical[1]),
    }
    return Content(**shapes)


def batch_shapes(sizes: Sizes, config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch of all devices."""
    rows, items = config.batch_rows, 1 + config.negatives
    batch = {
        "user": i32(rows),
        "item": i32(rows, items),
        "label": f32(rows, items),
        "weight": f32(rows),
        "dense": f32(rows, sizes.dense[1]),
        "categorical": i32(rows, sizes.categorical[1]),
    }
    return batch | ({"log_q": f32(rows)} if config.loss == "in_batch" else {})


def table_shapes(sizes: Sizes, rank: int, embedding_dim: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the embedding tables.

    Args:
      sizes: of the data.
      rank: D, width of the user and item tables.
      embedding_dim: E, width of the stacked table of other features.
    """
    return {
        "user": f32(sizes.num_users, rank),
        "item": f32(sizes.num_items, rank),
        "features": f32(max(sizes.feature_rows, 1), embedding_dim),
    }


def place(
    tables: Mapping[str, jax.ShapeDtypeStruct],
    config: TrainConfig,
    frozen: frozenset[str],
    ids: Mapping[str, int],
    devices: int,
    limits: DeviceConfig,
) -> placement.Placement:
    """The placement of tables that training would choose on devices that need not exist.

    Args:
      tables: name -> shape, as `table_shapes` returns it.
      config: settings of training.
      frozen: names of the tables that are not trained.
      ids: name -> ids in a batch of all devices.
      devices: number of devices.
      limits: how tables may be placed.

    Raises:
      ConfigError: if the tables do not fit even when all of them are split.
    """
    mesh = AbstractMesh((devices,), (sharding.EVERYWHERE,))
    typed = {
        name: x if name in frozen else jax.ShapeDtypeStruct(x.shape, config.table_dtype)
        for name, x in tables.items()
    }
    return placement.plan_placement(
        mesh, typed, set(typed) - frozen, config.table_optimizer, ids, limits.room
    )


class _Trace(NamedTuple):
    """A training step on all devices, as shapes."""

    model: nn.Module
    config: TrainConfig
    content: Content
    batch: Shapes
    state: TrainState
    jaxpr: Any
    tables: tuple["_TableStep", ...]
    devices: int

    @property
    def network_bytes(self) -> int:
        """Bytes of the weights of the network."""
        return tree_bytes(self.state.params)

    @property
    def microbatches(self) -> int:
        """Parts of a batch that go through the network one after another."""
        return self.config.batch_rows // (self.config.microbatch_rows or self.config.batch_rows)


def _trace(
    model: nn.Module,
    config: TrainConfig,
    sizes: Sizes,
    tables: Shapes,
    frozen: frozenset[str],
    devices: int,
    limits: DeviceConfig,
    platform: str,
) -> _Trace:
    content, batch = content_shapes(sizes), batch_shapes(sizes, config)
    ids = {k: len(x) for k, x in jax.eval_shape(embeddings.lookup_ids, content, batch).items()}
    placed = place(tables, config, frozen, ids, devices, limits)
    whole = {k: placement.shape(placed, k, x) for k, x in tables.items()}  # split tables divide
    constant = {k: x for k, x in whole.items() if k in frozen}
    trained = {k: x for k, x in whole.items() if k not in frozen}
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = functools.partial(step.init_state, model, config)
    state = jax.eval_shape(init, trained, constant, content, batch, key)
    one = functools.partial(step.train_step, model, config, placed=placed)
    jaxpr = jax.make_jaxpr(one)(state, constant, content, batch, key).jaxpr
    steps = tuple(
        _TableStep(
            *(placed[k], _stored(x, k in trained, config), ids[k], k in trained),
            *(config, devices, platform),
        )
        for k, x in tables.items()
    )
    return _Trace(model, config, content, batch, state, jaxpr, steps, devices)


def _stored(table: jax.ShapeDtypeStruct, trained: bool, config: TrainConfig) -> Any:
    return jax.ShapeDtypeStruct(table.shape, config.table_dtype) if trained else table


@dataclasses.dataclass(frozen=True)
class _TableStep:
    """One table in a training step, on one device.

    Attributes:
      plan: its placement.
      shape: [V, D].
      ids: ids in a batch of all devices.
      trained: whether it is trained.
      config: settings of training.
      devices: number of devices.
      platform: what the devices are.
    """

    plan: placement.TablePlan
    shape: jax.ShapeDtypeStruct
    ids: int
    trained: bool
    config: TrainConfig
    devices: int
    platform: str

    @property
    def parts(self) -> int:
        """Number of devices that the table is split over."""
        return self.devices if self.plan.split else 1

    @property
    def exchanged(self) -> int:
        """Rows that it asks of others, and that are asked of it, in a step; room for them."""
        return self.devices * self.plan.capacity.pair

    @property
    def held(self) -> jax.ShapeDtypeStruct:
        """The part of the table that the device holds, without padding."""
        rows, *width = self.shape.shape
        return jax.ShapeDtypeStruct((up(rows, self.parts), *width), self.shape.dtype)

    @property
    def row(self) -> int:
        """Bytes that move for a row of float32."""
        return 4 * stored_width(self.shape.shape[1], self.platform)

    @property
    def table_bytes(self) -> int:
        """Bytes of the table itself."""
        return self._bytes(self.held)

    @property
    def slot_bytes(self) -> int:
        """Bytes of its optimizer's state."""
        if not self.trained:
            return 0
        init = functools.partial(sparse_optimizers.init, self.config.table_optimizer)
        return sum(map(self._bytes, jax.tree.leaves(jax.eval_shape(init, self.held))))

    def _bytes(self, x: jax.ShapeDtypeStruct) -> int:
        """Bytes of a table, which a TPU holds packed if it can, or of a vector."""
        packs = self.platform == TPU and packed.can_pack(self.held.shape, self.held.dtype)
        if packs or x.ndim != 2:
            return tree_bytes(x)
        rows, width = x.shape
        return table_bytes(rows, width, x.dtype.itemsize, self.platform)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of its gradients in an update: as they are sent, and summed by row.

        Of a split table also of the rows that are looked up for others, and returned.
        """
        if self.plan.split:
            own = 2 * self.ids // self.devices * self.row if self.trained else 0
            return own + 2 * self.exchanged * (4 + self.row)
        if not self.trained:
            return 0
        if self.plan.by_table:
            return 2 * self.plan.rows * (4 + self.row)
        return self.ids * (4 + self.row) + (self.ids * self.row if self.devices > 1 else 0)

    @property
    def traffic(self) -> float:
        """Bytes that the device reads and writes in its own memory."""
        row = self.row
        local = self.ids / self.devices
        traffic = 2 * local * row
        if self.plan.split:  # looked up for the others, and written as it is returned
            traffic += 3 * self.exchanged * row
        if not self.trained:
            return traffic
        slot = self.slot_bytes / self.held.shape[0]  # bytes a row
        if self.plan.by_table:  # zeros, sum, and an update of every row
            return traffic + self.plan.rows * (5 * row + 2 * slot)
        if self.plan.split:  # sums are made by the sender, sent, and added up by the owner
            sums = (local + self.exchanged) * self.sums + 2 * self.exchanged
            return traffic + sums * row + self.exchanged * (2 * row + 2 * slot)
        touched = self.ids  # gradients of all devices
        return traffic + self.ids * self.sums * row + touched * (2 * row + 2 * slot)

    @property
    def sums(self) -> int:
        """How often a gradient is written or read, sums of equal ids included."""
        if self.config.table_optimizer == "sgd" and self.shape.dtype == jnp.float32:
            return 2
        return 2 + sums_of_equal_ids(self.config.batch_rows, self.platform)


def _memory(traced: _Trace, sizes: Sizes, activations: float) -> dict[str, float]:
    """Purpose -> bytes on a device."""
    network, config = traced.network_bytes, traced.config
    batch = tree_bytes(traced.batch)
    features = 3 + sizes.dense[1] + sizes.categorical[1]  # and user, item, label
    return {
        "tables": sum(table.table_bytes for table in traced.tables),
        "their optimizer's state": sum(table.slot_bytes for table in traced.tables),
        "network and its optimizer's state": network + tree_bytes(traced.state.opt_state),
        "content of users and items": tree_bytes(traced.content),
        "training rows": 4 * features * sizes.rows / traced.devices,
        "batches": (config.steps_per_call or feeds.STEPS) * batch / traced.devices,
        "activations": activations / traced.microbatches,
        "rows of the batch and gradients": sum(x.gradient_bytes for x in traced.tables) + network,
    }


def _received(traced: _Trace) -> dict[str, float]:
    """Purpose -> bytes from other devices in a step."""
    plans = {table.plan.name: table.plan for table in traced.tables}
    received = {f"table '{name}'": float(plan.sent_bytes) for name, plan in plans.items()}
    weights = traced.network_bytes // 4
    gradients = traced.microbatches * all_reduce(4 * weights, traced.devices)
    received["gradients of the network"] = gradients
    if traced.config.loss == "in_batch":  # items' vectors and biases forward, gradients backward
        (rank,) = (x.shape.shape[1] for x in traced.tables if x.plan.name == "item")
        vectors = traced.config.batch_rows * 4 * (rank + 2)
        received["items of the batch"] = 1.5 * all_reduce(vectors, traced.devices)
    return received


def _placement_note(traced: _Trace) -> str:
    split = [f"'{x.plan.name}' split over {x.devices}" for x in traced.tables if x.plan.split]
    sizes = (f"'{x.plan.name}' {x.plan.rows:,} rows x {x.shape.shape[1]}" for x in traced.tables)
    return f"tables: {', '.join(split) or 'replicated'}; {', '.join(sizes)}"


def _residual_bytes(traced: _Trace) -> float:
    """Bytes that the forward pass of a whole batch keeps for the backward pass, except weights.

    An upper bound: XLA recomputes some of them instead.
    """
    model, config = traced.model, traced.config

    def residuals(params, tables, content, batch, key):
        ids = embeddings.lookup_ids(content, batch)
        inputs = embeddings.model_inputs(embeddings.take_rows(tables, ids), content, batch)
        cast = functools.partial(jax.tree.map, lambda x: x.astype(config.compute_dtype))

        def apply(params, inputs):
            return model.apply(params, inputs, train=True, rngs={"dropout": key})

        return jax.vjp(apply, cast(params), cast(inputs))[1]

    batch = {name: x for name, x in traced.batch.items() if name != "weight"}
    if config.loss == "in_batch":
        batch["item"] = i32(1, len(batch["user"]))
    tables = {table.plan.name: table.shape for table in traced.tables}
    params, key = traced.state.params, jax.eval_shape(lambda: jax.random.key(0))
    kept = jax.eval_shape(residuals, params, tables, traced.content, batch, key)
    weights = {x.shape for x in jax.tree.leaves(params)}
    return sum(tree_bytes(x) for x in jax.tree.leaves(kept) if x.shape not in weights)
