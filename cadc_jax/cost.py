"""What a run needs, on paper: memory, bytes between devices, arithmetic and time. A model.

Nothing is computed on a device. Shapes of parameters, optimizer state and tables are those that the
training step itself would make (`jax.eval_shape`), placed by the planner that training uses; matrix
products are counted in the traced step, and residuals in its traced gradient. What is left is
arithmetic on shapes, said beside each formula. All figures are of one device, the fullest one.

`docs/scale.md` tells how to read the result, and how near compiled programs come to it.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh

from cadc_jax import sharding, sparse
from cadc_jax.data.table import Table
from cadc_jax.errors import ConfigError
from cadc_jax.factorization import interactions, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.sgd import SGDConfig
from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Content
from cadc_jax.training import placement, step
from cadc_jax.training.step import TrainConfig

EFFICIENCY = 0.4  # assumed share of each peak that a step reaches; nothing here measures it
_STACKS = 3  # of batches on a device: in use, waiting, and on the way


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Published peaks of one device.

    Attributes:
      memory: bytes.
      bandwidth: of its memory, bytes a second.
      link: what it can receive from the others, bytes a second over all its links.
      products: 'bfloat16', 'float32' (JAX's default precision) and 'highest' (float32 throughout)
        -> FLOPs a second.
    """

    memory: float
    bandwidth: float
    link: float
    products: Mapping[str, float]


def _tpu(memory: float, bandwidth: float, link: float, peak: float) -> Hardware:
    # By default a TPU multiplies float32 as bfloat16, in one pass; 'highest' takes six.
    products = {"bfloat16": peak, "float32": peak, "highest": peak / 6}
    return Hardware(memory, bandwidth, link, products)


# TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, 'key specifications'. Links are stated for
# both directions together; half of that is received. H100 (SXM): NVIDIA's data sheet, dense; by
# default JAX multiplies float32 as TF32 there. 'cpu' is nominal: one core of a server, and its
# share of the memory's bandwidth.
HARDWARE = {
    "v5e": _tpu(16e9, 819e9, 400e9 / 2, 197e12),
    "v5p": _tpu(95e9, 2765e9, 1200e9 / 2, 459e12),
    "v6e": _tpu(32e9, 1638e9, 800e9 / 2, 918e12),
    "h100": Hardware(
        80e9, 3350e9, 900e9 / 2, {"bfloat16": 989e12, "float32": 494e12, "highest": 67e12}
    ),
    "cpu": Hardware(math.inf, 10e9, 5e9, {"bfloat16": 50e9, "float32": 50e9, "highest": 50e9}),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the cost of a run depends on of its data.

    Attributes:
      task: 'click' or 'ranking'.
      rows: training rows.
      num_users: U.
      num_items: I.
      feature_rows: V, of the stacked table of other categorical features.
      dense: numbers of dense features of (users, rows, items).
      categorical: likewise of categorical ones.
      entries: of the interaction matrix.
      user_counts: [U] entries of each user, or None: all alike.
      item_counts: [I] likewise.
    """

    task: str
    rows: int
    num_users: int
    num_items: int
    feature_rows: int = 0
    dense: tuple[int, int, int] = (0, 0, 0)
    categorical: tuple[int, int, int] = (0, 0, 0)
    entries: int = 0
    user_counts: np.ndarray | None = None
    item_counts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device is asked for.

    Attributes:
      name: what this is the cost of.
      memory: what for -> bytes.
      unit: what the work below is that of, such as 'step'.
      flops: of matrix products.
      precision: of these, a key of `Hardware.products`.
      traffic: bytes read from and written to the device's memory.
      received: what for -> bytes from other devices.
      units: how many there are in `whole`.
      whole: such as 'epoch'.
      notes: lines for the reader.
    """

    name: str
    memory: Mapping[str, float]
    unit: str
    flops: float
    precision: str
    traffic: float
    received: Mapping[str, float]
    units: int
    whole: str
    notes: tuple[str, ...] = ()

    def seconds(self, hardware: Hardware) -> dict[str, float]:
        """Time of a unit: for products, for memory, for receiving, and in all at two bounds.

        'least' is the slowest of the three at its peak, as if all went on at once. 'expected' is
        their sum at EFFICIENCY of the peaks, as if nothing did.
        """
        parts = {
            "products": self.flops / hardware.products[self.precision],
            "memory": self.traffic / hardware.bandwidth,
            "receiving": sum(self.received.values()) / hardware.link,
        }
        bounds = {"least": max(parts.values()), "expected": sum(parts.values()) / EFFICIENCY}
        return parts | bounds


def hardware(name: str) -> Hardware:
    """The device of that name.

    Raises:
      ConfigError: if it is not known.
    """
    if name not in HARDWARE:
        raise ConfigError(f"hardware={name!r}: must be one of {', '.join(HARDWARE)}")
    return HARDWARE[name]


def sizes_of(table: Table) -> Sizes:
    """The sizes of a prepared table."""
    schema = table.schema
    user, row, item = schema.user_content, schema.context, schema.item_content
    rows = len(table.splits["train"]["user"])
    if schema.task == "click":  # its matrix holds clicks; how they spread over users is not stored
        user_counts, item_counts = None, np.asarray(table.items["clicks"])
    else:
        user_counts, item_counts = np.diff(table.known["offsets"]), np.asarray(table.items["count"])
    return Sizes(
        task=schema.task,
        rows=rows,
        num_users=schema.num_users,
        num_items=schema.num_items,
        feature_rows=embeddings.num_feature_rows(table),
        dense=(len(user.dense), len(row.dense), len(item.dense)),
        categorical=(len(user.categorical), len(row.categorical), len(item.categorical)),
        entries=int(item_counts.sum()),
        user_counts=user_counts,
        item_counts=item_counts,
    )


def text(costs: Iterable[Cost], device: Hardware) -> str:
    """Costs as tables for people to read."""
    blocks = []
    for cost in costs:
        total = sum(cost.memory.values())
        fits = "fits" if total <= device.memory else "DOES NOT FIT"
        room = "" if math.isinf(device.memory) else f" of {_bytes(device.memory)}: {fits}"
        lines = [cost.name, "  memory of a device"]
        lines += [f"    {what:36} {_bytes(size):>10}" for what, size in cost.memory.items() if size]
        lines.append(f"    {'in all':36} {_bytes(total):>10}{room}")
        time = cost.seconds(device)
        lines.append(f"  {'for each ' + cost.unit:47} {'at peak':>10}")
        received = sum(cost.received.values())
        for what, amount, part in (
            ("matrix products", f"{cost.flops / 1e9:,.2f} GFLOP", "products"),
            ("memory read and written", _bytes(cost.traffic), "memory"),
            ("received from other devices", _bytes(received), "receiving"),
        ):
            lines.append(f"    {what:30} {amount:>14} {_time(time[part]):>10}")
        if received:
            lines += [
                f"      {what:28} {_bytes(size):>14}"
                for what, size in cost.received.items()
                if size
            ]
        lines.append(
            f"  {cost.unit}: at least {_time(time['least'])}, "
            f"{_time(time['expected'])} at {EFFICIENCY:.0%} of the peaks; "
            f"{cost.whole} of {cost.units:,}: {_time(time['least'] * cost.units)} to "
            f"{_time(time['expected'] * cost.units)}"
        )
        lines += [f"  {note}" for note in cost.notes]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


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
    network = _size(state.params)
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
        "network and its optimizer's state": network + _size(state.opt_state),
        "copy of the best state": sum(only_tables[k] for k in trained) + network,
        "content of users and items": _size(content),
        "batches": _STACKS * config.steps_per_call * _size(batch) / devices,
        "activations": activations / parts,
        "rows of the batch and gradients": of_rows + network,
    }
    received = {f"table '{k}'": float(placed[k].sent_bytes) for k in tables}
    received["gradients of the network"] = parts * _all_reduce(4 * weights, devices)
    if config.loss == "in_batch":  # all items' vectors and biases forward, their gradients back
        vectors = config.batch_rows * 4 * (rank + 2)
        received["items of the batch"] = 1.5 * _all_reduce(vectors, devices)
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
        traffic=traffic + 10 * 4 * weights + 4 * activations + _size(batch) / devices,
        received=received,
        units=-(-sizes.rows // config.batch_rows),
        whole="epoch",
        notes=(notes,),
    )


def content_shapes(sizes: Sizes) -> Content:
    """The content of users and items, as shapes."""
    users, items = sizes.num_users, sizes.num_items
    shapes: dict[str, Any] = {
        "user_dense": _f32(users, sizes.dense[0]),
        "user_categorical": _i32(users, sizes.categorical[0]),
        "item_dense": _f32(items, sizes.dense[2]),
        "item_categorical": _i32(items, sizes.categorical[2]),
        "context_offsets": _i32(sizes.categorical[1]),
    }
    return Content(**shapes)


def batch_shapes(sizes: Sizes, config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch of all devices, as shapes."""
    rows, items = config.batch_rows, 1 + config.negatives
    batch = {
        "user": _i32(rows),
        "item": _i32(rows, items),
        "label": _f32(rows, items),
        "weight": _f32(rows),
        "dense": _f32(rows, sizes.dense[1]),
        "categorical": _i32(rows, sizes.categorical[1]),
    }
    return batch | ({"log_q": _f32(rows)} if config.loss == "in_batch" else {})


def table_shapes(sizes: Sizes, rank: int, embedding_dim: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The embedding tables, as `loop.initial_tables` makes them."""
    return {
        "user": _f32(sizes.num_users, rank),
        "item": _f32(sizes.num_items, rank),
        "features": _f32(max(sizes.feature_rows, 1), embedding_dim),
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
    if group < 1 or devices < 1 or devices % group:
        raise ConfigError(
            f"devices.model={group}: must be a divisor of the number of devices, {devices}"
        )
    mesh = AbstractMesh((devices // group, group), (sharding.DATA, sharding.MODEL))
    typed = {
        name: x if name in frozen else jax.ShapeDtypeStruct(x.shape, config.table_dtype)
        for name, x in tables.items()
    }
    try:
        return placement.plan(
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
        inputs = embeddings.model_inputs(embeddings.gather(tables, ids), content, batch)
        cast = functools.partial(jax.tree.map, lambda x: x.astype(config.compute_dtype))

        def apply(params, inputs):
            return model.apply(params, inputs, train=True, rngs={"dropout": key})

        return jax.vjp(apply, cast(params), cast(inputs))[1]

    batch = {name: x for name, x in batch.items() if name != "weight"}
    if config.loss == "in_batch":
        batch["item"] = _i32(1, len(batch["user"]))
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


def als(sizes: Sizes, config: ALSConfig, devices: int = 1) -> Cost:
    """An ALS iteration, both half-steps, over so many devices."""
    width = config.factors + (config.feedback == "explicit")
    both = ((sizes.num_users, sizes.user_counts), (sizes.num_items, sizes.item_counts))
    chunk = config.chunk or max(256, 2**17 // config.factors)
    sides = [_side(rows, counts, sizes.entries, chunk, devices) for rows, counts in both]
    itemsize = jnp.dtype(config.dtype).itemsize
    halves = [
        _half_step(solved, fixed, config, width, itemsize, devices)
        for solved, fixed in (sides, sides[::-1])
    ]
    held = sum(side.table_rows for side in sides) / devices
    cell = 8  # an index and a value; the program leaves values out if every one of them is 1
    entries = sum(
        (side.chunks + side.long_chunks) * side.segments * (side.segment * cell + 8)
        for side in sides
    )
    return Cost(
        name=f"factorize, als: {config.factors} factors, fixed side {config.fixed_side}",
        memory={
            "tables of users and items": held * width * itemsize,
            "regularization of their rows": held * 4,
            "entries, by user and by item": entries / devices,
            "copy of the fixed side": max(half.copied for half in halves),
            "solved rows, a chunk and its exchange": max(half.working for half in halves),
        },
        unit="iteration",
        flops=sum(half.flops for half in halves),
        precision="highest",
        traffic=sum(half.traffic for half in halves),
        received={kind: sum(half.received[kind] for half in halves) for kind in halves[0].received},
        units=config.iterations,
        whole="factorisation",
    )


class _Side(NamedTuple):
    """What `interactions.Layout` and `pack` make of users or items, in numbers."""

    rows: int
    table_rows: int
    chunks: int
    chunk_rows: int
    segments: int
    segment: int
    long_rows: int
    long_chunks: int


def _side(rows: int, counts: np.ndarray | None, entries: int, chunk: int, devices: int) -> _Side:
    if counts is None:
        return _even_side(rows, entries, chunk, devices)
    layout = interactions.make_layout(counts, chunk, devices)
    need = -(-counts // layout.segment)
    of_long = int(need[layout.chunk == layout.chunks].sum())
    return _Side(
        rows=rows,
        table_rows=layout.table_rows,
        chunks=layout.chunks,
        chunk_rows=layout.chunk_rows,
        segments=layout.segments,
        segment=layout.segment,
        long_rows=layout.long_rows,
        long_chunks=_up(of_long, layout.segments * devices) * devices,
    )


def _even_side(rows: int, entries: int, chunk: int, devices: int) -> _Side:
    """As `make_layout` would deal rows that all have as many entries; it holds none of them."""
    count = max(1, _up(entries, rows))
    few = interactions.make_layout(np.array([count]), chunk, 1)  # chooses the segment for us
    segment, is_long = few.segment, few.long_rows > 0
    need, target = _up(count, segment), max(1, chunk // few.segment)
    if is_long:
        long_rows = _up(rows, devices) * devices
        chunks = _up(rows * need, devices) * devices  # of one segment: no short row sets it
        return _Side(rows, long_rows, devices, 0, 1, segment, long_rows, chunks)
    chunks = _up(max(_up(rows * need, target), _up(rows, target)), devices) * devices
    chunk_rows = _up(rows, chunks)
    segments = chunk_rows * need
    return _Side(rows, chunks * chunk_rows, chunks, chunk_rows, segments, segment, 0, 0)


class _HalfStep(NamedTuple):
    copied: float
    working: float
    flops: float
    traffic: float
    received: dict[str, float]


def _half_step(
    solved: _Side, fixed: _Side, config: ALSConfig, width: int, itemsize: int, devices: int
) -> _HalfStep:
    """Solving one side, for one device; K is the width of a row."""
    implicit, cg = config.feedback == "implicit", config.solver == "cg"
    gathered = config.fixed_side == "gathered"
    passes = 1 + config.cg_steps if cg else 1  # over the entries
    short, long = solved.chunks / devices, solved.long_chunks / devices
    places = solved.segments * solved.segment  # of a chunk, padding included
    entries = (short + long) * places
    rows = solved.table_rows / devices
    # A pass of conjugate gradients: a score and a sum for each entry, and the shared K x K matrix
    # for each row. Cholesky: an outer product for each entry, and elimination in blocks of 8 rows.
    square = width * width
    if cg:
        flops = passes * (4 * entries * width + 2 * rows * square)
    else:
        padded = _up(width, 8) * 8
        flops = 2 * entries * (square + width) + 2 * rows * padded * (padded + 1) * (padded + 8)
    flops += 2 * fixed.table_rows / devices * square if implicit else 0
    chunk_rows = places * width * 4
    matrices = 0 if cg else 3 * max(solved.chunk_rows, 1) * width * (width + 1) * 4
    fetches = short + long * passes
    index, found = places * 4, places * width * itemsize
    received = {
        "fixed side": (devices - 1) / devices * fixed.table_rows * width * itemsize,
        "K x K matrix": _all_reduce(4 * square, devices) if implicit else 0,
        # The solution goes round, and the parts of the sums come back.
        "rows of many entries": passes
        * (devices - 1)
        / devices
        * solved.long_rows
        * width
        * 4
        * (2 if cg else width + 1),
    }
    exchange = 0
    if not gathered:
        received["fixed side"] = (devices - 1) * fetches * (index + found)
        exchange = devices * (index + found)
    return _HalfStep(
        copied=fixed.table_rows * width * itemsize if gathered else 0,
        working=rows * width * 4 + 2 * chunk_rows + matrices + exchange,
        flops=flops,
        # Rows of the fixed side read and written once a fetch, then read in each pass.
        traffic=fetches * places * width * (itemsize + 4)
        + passes * entries * width * 4
        + entries * 4
        + rows * width * (4 * passes * 4 + 2 * itemsize),
        received=received if devices > 1 else dict.fromkeys(received, 0.0),
    )


def sgd_factorization(sizes: Sizes, config: SGDConfig) -> Cost:
    """An epoch of `factorization.sgd`, which runs on one device."""
    width = config.factors + 1
    labelled = sizes.task == "click"
    items = 1 if labelled else 1 + config.negatives
    tables = [_f32(rows, width) for rows in (sizes.num_users, sizes.num_items)]
    slots = [jax.eval_shape(functools.partial(sparse.init, config.optimizer), x) for x in tables]
    block = min(sizes.rows, sgd.BLOCK_ROWS) if labelled else sizes.rows
    batch = min(config.batch_rows, block)
    known = 0 if labelled else 4 * (sizes.entries + sizes.num_users)
    touched = batch * (1 + items)
    return Cost(
        name=f"factorize, sgd: {config.factors} factors, on one device whatever their number",
        memory={
            "tables of users and items": _size(tables),
            "their optimizer's state": _size(slots),
            "rows on the device": block * (12 if labelled else 8) * 2 + known + 4 * block,
            "rows of the batch and gradients": 4 * touched * width * 4,
        },
        unit="step",
        flops=3 * 2 * batch * items * width,
        precision="float32",
        traffic=touched * (9 * width * 4 + 2 * 8),
        received={},
        units=-(-sizes.rows // batch) * config.epochs,
        whole=f"{config.epochs} epochs",
    )


def _all_reduce(size: float, devices: int) -> float:
    """Bytes that a device receives in a ring: a reduce-scatter, then an all-gather."""
    return 2 * (devices - 1) / devices * size


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _bytes(size: float) -> str:
    if size >= 1e9:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:,.2f} MB" if size >= 1e4 else f"{size:,.0f} B"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:,.2f} {unit}"
    return f"{seconds / 1e-6:,.2f} us"
