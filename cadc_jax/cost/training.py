"""The cost of a training step."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh

from cadc_jax import sharding
from cadc_jax.cost.arithmetic import all_reduce, f32, i32, tree_bytes
from cadc_jax.cost.model import Cost, Sizes
from cadc_jax.errors import ConfigError
from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Content
from cadc_jax.training import placement, step
from cadc_jax.training.step import TrainConfig

_STACKS = 3  # of batches on a device: in use, waiting, and on the way


def training(
    name: str,
    model: nn.Module,
    config: TrainConfig,
    sizes: Sizes,
    rank: int,
    embedding_dim: int,
    frozen: frozenset[str] = frozenset(),
    devices: int = 1,
    group: int = 1,
    table_bytes: float = math.inf,
) -> Cost:
    """A step of training.

    Args:
      name: of the cost.
      model: DLRM, DCN or TwoTower.
      config: how it is trained.
      sizes: of the data; `rows` are those trained on.
      rank: D, width of the user and item tables.
      embedding_dim: E, width of the stacked table of other features.
      frozen: names of the tables that stay as they are.
      devices: over which a batch is split.
      group: how many of them a split table is spread over.
      table_bytes: memory of a device for tables; past it they are split.

    Raises:
      ConfigError: if `group` does not divide `devices`, `devices` do not divide a batch, or the
        tables do not fit even if split.
    """
    if config.batch_rows % devices:
        raise ConfigError(
            f"train.batch_rows={config.batch_rows}: must be a multiple of the {devices} devices"
        )
    content, batch = content_shapes(sizes), batch_shapes(sizes, config)
    tables = table_shapes(sizes, rank, embedding_dim)
    ids = {k: len(x) for k, x in jax.eval_shape(embeddings.lookup_ids, content, batch).items()}
    placed = place(tables, config, frozen, ids, devices, group, table_bytes)
    constant = {k: x for k, x in tables.items() if k in frozen}
    trained = {k: x for k, x in tables.items() if k not in frozen}
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = functools.partial(step.init_state, model, config)
    state = jax.eval_shape(init, trained, constant, content, batch, key)
    one = functools.partial(step.train_step, model, config, placed=placed)
    traced = jax.make_jaxpr(one)(state, constant, content, batch, key)
    parts = config.batch_rows // (config.microbatch_rows or config.batch_rows)
    activations = _residual_bytes(model, config, tables, state.params, content, batch) / devices
    network = tree_bytes(state.params)
    weights = network // 4  # float32
    held = {k: placed[k].device_bytes for k in tables}
    only_tables = {
        k: -(-x.shape[0] // (group if placed[k].split else 1)) * x.shape[1] * x.dtype.itemsize
        for k, x in tables.items()
    }
    of_rows = sum(_row_gradient_bytes(placed[k], x, ids[k], devices) for k, x in trained.items())
    traffic = sum(
        _table_traffic(placed[k], x, ids[k], k in trained, held[k] - only_tables[k], devices, group)
        for k, x in tables.items()
    )
    memory = {
        "tables": sum(only_tables.values()),
        "their optimizer's state": sum(held.values()) - sum(only_tables.values()),
        "network and its optimizer's state": network + tree_bytes(state.opt_state),
        "copy of the best state": sum(only_tables[k] for k in trained) + network,
        "content of users and items": tree_bytes(content),
        "batches": _STACKS * config.steps_per_call * tree_bytes(batch) / devices,
        "activations": activations / parts,
        "rows of the batch and gradients": of_rows + network,
    }
    received = {f"table '{k}'": float(placed[k].sent_bytes) for k in tables}
    received["gradients of the network"] = parts * all_reduce(4 * weights, devices)
    if config.loss == "in_batch":  # all items' vectors and biases forward, their gradients back
        vectors = config.batch_rows * 4 * (rank + 2)
        received["items of the batch"] = 1.5 * all_reduce(vectors, devices)
    split = [f"'{t.name}' split over {group}" for t in placed.tables if t.split]
    notes = f"tables: {', '.join(split) or 'replicated'}; " + ", ".join(
        f"'{t.name}' {t.rows:,} rows x {tables[t.name].shape[1]}" for t in placed.tables
    )
    return Cost(
        name=name,
        memory=memory,
        unit="step",
        flops=product_flops(traced.jaxpr) / devices,
        precision=config.compute_dtype,
        # Weights: read forward and backward, gradients written and read, Adam's two moments and
        # the weights read and written. Activations: written forward, read backward, and again for
        # their gradients.
        traffic=traffic + 10 * 4 * weights + 4 * activations + tree_bytes(batch) / devices,
        received=received,
        units=-(-sizes.rows // config.batch_rows),
        whole="epoch",
        notes=(notes,),
    )


def content_shapes(sizes: Sizes) -> Content:
    """The content of users and items, as shapes."""
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
    """A training batch of all devices, as shapes."""
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
    """The embedding tables, as `loop.initial_tables` makes them."""
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
    group: int,
    table_bytes: float,
) -> placement.Placement:
    """Where training would put the tables on so many devices, which need not be there.

    Raises:
      ConfigError: as `training`.
    """
    sharding.check_division(group, devices)
    mesh = AbstractMesh((devices // group, group), (sharding.DATA, sharding.MODEL))
    typed = {
        name: x if name in frozen else jax.ShapeDtypeStruct(x.shape, config.table_dtype)
        for name, x in tables.items()
    }
    try:
        return placement.plan_placement(
            mesh, typed, set(typed) - frozen, config.table_optimizer, ids, table_bytes
        )
    except ValueError as error:
        raise ConfigError(f"devices.table_bytes: {error}") from None


def product_flops(jaxpr: Any) -> float:
    """FLOPs of all matrix products of a jaxpr: two for each multiplication and addition."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2 * inner * equation.outvars[0].aval.size
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(product_flops(inner) for inner in _inner_jaxprs(equation.params))
    return total


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)  # a closed one
            if hasattr(one, "eqns"):
                yield one


def _residual_bytes(
    model: nn.Module,
    config: TrainConfig,
    tables: Mapping[str, jax.ShapeDtypeStruct],
    params: Any,
    content: Content,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> float:
    """What the forward pass of a whole batch keeps for the backward pass, weights left out.

    An upper bound: XLA computes some of it again rather than keep it.
    """

    def residuals(params, tables, content, batch, key):
        ids = embeddings.lookup_ids(content, batch)
        inputs = embeddings.model_inputs(embeddings.take_rows(tables, ids), content, batch)
        cast = functools.partial(jax.tree.map, lambda x: x.astype(config.compute_dtype))

        def apply(params, inputs):
            return model.apply(params, inputs, train=True, rngs={"dropout": key})

        return jax.vjp(apply, cast(params), cast(inputs))[1]

    batch = {name: x for name, x in batch.items() if name != "weight"}
    if config.loss == "in_batch":
        batch["item"] = i32(1, len(batch["user"]))
    key = jax.eval_shape(lambda: jax.random.key(0))
    kept = jax.tree.leaves(jax.eval_shape(residuals, params, tables, content, batch, key))
    weights = {x.shape for x in jax.tree.leaves(params)}
    return sum(x.size * x.dtype.itemsize for x in kept if x.shape not in weights)


def _row_gradient_bytes(
    plan: placement.TablePlan, table: jax.ShapeDtypeStruct, ids: int, devices: int
) -> int:
    """Gradients of a table as an update holds them: as sent, and summed up by row."""
    if plan.by_table:
        return 2 * plan.rows * (4 + 4 * table.shape[1])
    return ids * (4 + 4 * table.shape[1]) + (ids * 4 * table.shape[1] if devices > 1 else 0)


def _table_traffic(
    plan: placement.TablePlan,
    table: jax.ShapeDtypeStruct,
    ids: int,
    trained: bool,
    slots: int,
    devices: int,
    group: int,
) -> float:
    """Bytes a device reads and writes in its memory for one table in a step."""
    row = 4 * table.shape[1]
    local = ids / devices
    looked_up = local * (group if plan.split else 1)  # for the others of its group too
    traffic = 2 * looked_up * row + (2 * local * row if plan.split else 0)
    if not trained:
        return traffic
    slot = slots / max(1, plan.rows / (group if plan.split else 1))  # bytes a row
    if plan.by_table:  # zeros, sum, and an update of every row
        return traffic + plan.rows * (5 * row + 2 * slot)
    # Gradients of all devices: written, read, summed up by row (written, added to, read). Rows of a
    # split table that others hold are left out of the table itself.
    touched = ids / (group if plan.split else 1)
    return traffic + ids * 5 * row + touched * (2 * row + 2 * slot)
