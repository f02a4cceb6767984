"""The placement of embedding tables on the devices of a mesh; lookups and updates of their rows.

A table is replicated, or its rows are split over the mesh axis `model` (and repeated over `data`).
Batches are split over all devices. Devices exchange the ids and rows of a batch, never a table:

  lookup, split table: each device collects the ids of its `model` group and reads the rows that it
    holds, with zeros for the others. A reduce-scatter adds the parts up and returns to each device
    the rows that it asked for. (A psum would send twice as much, also to devices that do not ask.)
  update, by rows: each device collects the ids and row gradients of all devices, and applies the
    ones of its own rows.
  update, by table: gradients are first summed in the shape of the table. This is cheaper for a
    replicated table with fewer rows than a batch has ids.

On TPUs narrow tables are packed (see `tables.packed`). Checkpoints and results have them as they
are elsewhere.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.errors import ConfigError, check_at_least
from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Tables
from cadc_jax.tables import packed
from cadc_jax.tables.packed import AnyTable


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """How tables are placed on devices.

    Attributes:
      model: devices that share a split table; a divisor of the number of devices.
      table_bytes: memory of a device for tables and their optimizer state; past it the largest
        tables are split. 0: no limit.
    """

    model: int = 1
    table_bytes: float = 0.0

    def __post_init__(self) -> None:
        check_at_least("devices.model", self.model, 1)
        check_at_least("devices.table_bytes", self.table_bytes, 0)

    @property
    def room(self) -> float:
        """`table_bytes`, or infinity if there is no limit."""
        return self.table_bytes or math.inf


@dataclasses.dataclass(frozen=True)
class RandomTable:
    """A table of normal numbers that `put` draws on its devices; the same on any devices.

    Attributes:
      shape: [V, D].
      key: key of the numbers.
      scale: their standard deviation.
      dtype: float32.
    """

    shape: tuple[int, int]
    key: jax.Array
    scale: float
    dtype: np.dtype = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class TablePlan:
    """How one table is placed.

    Attributes:
      name: of the table.
      rows: V.
      split: whether its rows are split over the devices of `model`.
      by_table: whether gradients are summed in the shape of the table instead of sent as rows.
      packed: whether its rows lie side by side.
      device_bytes: memory on each device, optimizer state included.
      sent_bytes: bytes that a device receives in a training step for lookups and updates.
    """

    name: str
    rows: int
    split: bool
    by_table: bool
    packed: bool
    device_bytes: int
    sent_bytes: int


@dataclasses.dataclass(frozen=True)
class Placement:
    """The placement of all tables of a model on `mesh`. Its string is a table for people."""

    mesh: Mesh | AbstractMesh
    tables: tuple[TablePlan, ...]

    def __getitem__(self, name: str) -> TablePlan:
        return next(table for table in self.tables if table.name == name)

    def __str__(self) -> str:
        lines = [f"{'table':10} {'rows':>12} {'placed':18} {'MB a device':>11} {'MB a step':>9}"]
        for table in self.tables:
            where = f"split over {self.mesh.shape[sharding.MODEL]}" if table.split else "replicated"
            numbers = f"{table.device_bytes / 2**20:11.1f} {table.sent_bytes / 2**20:9.2f}"
            lines.append(f"{table.name:10} {table.rows:12,} {where:18} {numbers}")
        return "\n".join(lines)


def plan_placement(
    mesh: Mesh | AbstractMesh,
    tables: Mapping[str, jax.Array | np.ndarray | jax.ShapeDtypeStruct],
    trained: Iterable[str],
    optimizer: str,
    batch_ids: Mapping[str, int],
    device_bytes: float = math.inf,
    pack: bool | None = None,
) -> Placement:
    """Replicates all tables; if they do not fit into a device, splits the largest ones.

    Args:
      mesh: with axes `data` and `model`; an abstract one will do if no array is placed on it.
      tables: name -> table [V, D], or its shape and dtype.
      trained: names of the trained tables, which have optimizer state and gradients.
      optimizer: their optimizer, one of `sparse_optimizers.OPTIMIZERS`.
      batch_ids: name -> ids in a batch of all devices.
      device_bytes: memory of a device for tables and their optimizer state.
      pack: whether to pack the tables that can be; None: on TPUs.

    Raises:
      ConfigError: if the tables do not fit into `device_bytes` even when all of them are split.
    """
    trained = frozenset(trained)
    shapes = {
        name: jax.ShapeDtypeStruct(table.shape, table.dtype) for name, table in tables.items()
    }
    size = functools.partial(_device_bytes, mesh, optimizer=optimizer)
    whole = {name: size(x, name in trained, split=False) for name, x in shapes.items()}
    parts = {name: size(x, name in trained, split=True) for name, x in shapes.items()}
    held = dict(whole)
    for name in sorted(shapes, key=whole.__getitem__, reverse=True):
        if sum(held.values()) <= device_bytes:
            break
        held[name] = parts[name]
    if sum(held.values()) > device_bytes:
        raise ConfigError(
            f"devices.table_bytes={device_bytes:,.0f}: tables take {sum(held.values()):,} bytes a "
            f"device, split over {mesh.shape[sharding.MODEL]}; use more devices on the axis "
            "'model', narrower or bfloat16 tables, or an optimizer with less state"
        )
    pack = sharding.is_tpu(mesh) if pack is None else pack
    entries = []
    for name, shape in shapes.items():
        split = held[name] < whole[name]
        sent, by_table = _sent_bytes(mesh, shape, name in trained, split, batch_ids[name])
        packs = pack and packed.can_pack(shape.shape, shape.dtype)
        entries.append(TablePlan(name, shape.shape[0], split, by_table, packs, held[name], sent))
    return Placement(mesh, tuple(entries))


def _device_bytes(
    mesh: Mesh | AbstractMesh,
    table: jax.ShapeDtypeStruct,
    trained: bool,
    optimizer: str,
    split: bool,
) -> int:
    rows = table.shape[0]
    if split:
        rows = -(-rows // mesh.shape[sharding.MODEL])
    held = [jax.ShapeDtypeStruct((rows, *table.shape[1:]), table.dtype)]
    if trained:
        held += jax.tree.leaves(
            jax.eval_shape(functools.partial(sparse_optimizers.init, optimizer), held[0])
        )
    return sum(x.size * x.dtype.itemsize for x in held)


def _sent_bytes(
    mesh: Mesh | AbstractMesh, table: jax.ShapeDtypeStruct, trained: bool, split: bool, ids: int
) -> tuple[int, bool]:
    """Bytes that a device receives in a step, and whether to sum gradients by table."""
    devices, group = mesh.size, mesh.shape[sharding.MODEL]
    row = 4 * math.prod(table.shape[1:])  # gradients are float32
    lookup = (group - 1) * ids // devices * (4 + row) if split else 0
    by_rows = (devices - 1) * ids // devices * (4 + row)
    by_table = 2 * (devices - 1) * table.shape[0] * (4 + row) // devices
    if not trained:
        return lookup, False
    if split or by_rows <= by_table:
        return lookup + by_rows, False
    return by_table, True


def spec(placement: Placement, name: str) -> P:
    """PartitionSpec of a table, and of optimizer state with a row for each of its rows."""
    return sharding.TABLE if placement[name].split else sharding.REPLICATED


def like(placement: Placement, name: str, tree: Any) -> Any:
    """Shapes, dtypes and shardings of a table or its slots."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape,
            x.dtype,
            sharding=sharding.named(placement.mesh, _slot_spec(placement, name, x)),
        ),
        tree,
    )


def shape(placement: Placement, name: str, table: Any) -> Any:
    """Shape of a table after `put`, which pads split and packed tables to divide evenly."""
    entry, (rows, *width) = placement[name], table.shape
    unit = placement.mesh.shape[sharding.MODEL] if entry.split else 1
    if entry.packed:
        unit *= packed.rows_together(*width)
    rows += -rows % unit
    whole = jax.ShapeDtypeStruct((rows, *width), table.dtype)
    return jax.eval_shape(packed.pack, whole) if entry.packed else whole


def put(
    placement: Placement, tables: Mapping[str, jax.Array | np.ndarray | RandomTable]
) -> dict[str, AnyTable]:
    """The tables on the devices of the plan; some get rows of zeros to divide evenly.

    No split table needs to fit into one device: it is sent from the host, or drawn in parts if it
    is random.
    """
    placed = {}
    for name, table in tables.items():
        where = sharding.named(placement.mesh, spec(placement, name))
        missing = shape(placement, name, table).shape[0] - table.shape[0]
        if isinstance(table, RandomTable):
            key = sharding.put(table.key, sharding.named(placement.mesh, sharding.REPLICATED))
            lanes = placement[name].packed
            placed[name] = _draw(key, table.shape, missing, table.scale, lanes, where)
            continue
        if missing:
            table = np.pad(table, ((0, missing),) + ((0, 0),) * (np.ndim(table) - 1))
        form = packed.pack(table) if placement[name].packed else table
        placed[name] = sharding.put(form, where)
    return placed


@functools.partial(jax.jit, static_argnames=("shape", "missing", "scale", "pack", "where"))
def _draw(
    key: jax.Array,
    shape: tuple[int, int],
    missing: int,
    scale: float,
    pack: bool,
    where: NamedSharding,
) -> AnyTable:
    """`RandomTable` and `missing` rows of zeros.

    The bits of a number are a hash of its place, counted row by row. Each device draws its own
    rows, and further rows at the end do not change earlier ones.
    """
    rows, width = shape
    table = scale * jax.random.normal(key, (rows + missing, width))
    table = jnp.where(jnp.arange(rows + missing)[:, None] < rows, table, 0)
    form = packed.pack(table) if pack else table
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), form)


def packed_tree(placement: Placement, trees: Mapping[str, Any]) -> dict[str, Any]:
    """Plain tables or slots, name -> tree, in the form of the plan. Their memory is given up."""
    return _in_form(placement, trees, _pack)


def plain_tree(placement: Placement, trees: Mapping[str, Any]) -> dict[str, Any]:
    """Tables or slots, name -> tree, as plain arrays with a row for each id."""
    return _in_form(placement, trees, _unpack)


def _in_form(
    placement: Placement, trees: Mapping[str, Any], change: Callable[[Any, NamedSharding], Any]
) -> dict[str, Any]:
    """The trees, with those of packed tables changed."""
    return {
        name: change(tree, sharding.named(placement.mesh, spec(placement, name)))
        if placement[name].packed
        else tree
        for name, tree in trees.items()
    }


@functools.partial(jax.jit, static_argnames="where", donate_argnames="tree")
def _pack(tree: Any, where: NamedSharding) -> Any:
    def form(x: jax.Array) -> AnyTable:
        if x.ndim != 2:
            return x
        made = packed.pack(x)
        wide = jax.lax.with_sharding_constraint(made.wide, where)
        return dataclasses.replace(made, wide=wide)

    return jax.tree.map(form, tree)


@functools.partial(jax.jit, static_argnames="where")
def _unpack(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, where) if x.ndim == 2 else x,
        packed.plain(tree),
    )


def init_slots(
    placement: Placement | None, optimizer: str, name: str, table: AnyTable
) -> sparse_optimizers.Slots:
    """The optimizer state of the table `name`, made where the table's rows lie."""
    init = functools.partial(sparse_optimizers.init, optimizer)
    if placement is None:
        return init(table)
    shapes = jax.eval_shape(init, table)
    where = jax.tree.map(
        lambda slot: sharding.named(placement.mesh, _slot_spec(placement, name, slot)), shapes
    )
    return jax.jit(init, out_shardings=where)(table)


def take(placement: Placement, tables: Tables) -> Tables:
    """The tables as plain arrays, without the rows that `put` added."""
    tables = plain_tree(placement, tables)
    return {
        name: table if len(table) == placement[name].rows else table[: placement[name].rows]
        for name, table in tables.items()
    }


def lookup(
    placement: Placement | None, tables: Tables, ids: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The rows of each table: name -> [n, D], split over the devices as the ids [n] are.

    Ids outside a table, as padding has, read some finite row.
    """
    if placement is None:
        return embeddings.take_rows(tables, ids)

    def rows_of(name: str, table: AnyTable) -> jax.Array:
        own_rows = jax.shard_map(
            _split_lookup,
            mesh=placement.mesh,
            in_specs=(sharding.TABLE, sharding.BATCH),
            out_specs=sharding.BATCH,
            check_vma=False,
        )
        return own_rows(table, ids[name])

    split = {name for name in tables if placement[name].split and len(ids[name])}
    whole = {name: table for name, table in tables.items() if name not in split}
    return embeddings.take_rows(whole, ids) | {name: rows_of(name, tables[name]) for name in split}


def _split_lookup(part: AnyTable, ids: jax.Array) -> jax.Array:
    """Rows [n, D] of a device's own ids [n]; `part` [V / d, D] is its part of the table."""
    own = lax.all_gather(ids, sharding.MODEL, tiled=True) - _first_row(part)
    held = (own >= 0) & (own < len(part))
    rows = packed.read(part, own)
    rows = jnp.where(held.reshape((-1,) + (1,) * (rows.ndim - 1)), rows, 0)
    return lax.psum_scatter(rows, sharding.MODEL, tiled=True)


def update(
    placement: Placement | None,
    optimizer: str,
    name: str,
    table: AnyTable,
    slots: sparse_optimizers.Slots,
    ids: jax.Array,
    grads: jax.Array,
    learning_rate: float | jax.Array,
    key: jax.Array | None = None,
) -> tuple[AnyTable, sparse_optimizers.Slots]:
    """Updates the table `name` with the ids and row gradients of all devices."""
    if not len(ids):  # a model without such features
        return table, slots
    if placement is None or placement.mesh.size == 1:
        return sparse_optimizers.update(optimizer, table, slots, ids, grads, learning_rate, key=key)
    entry, rows = placement[name], spec(placement, name)

    def local(table, slots, ids, grads, learning_rate, key):
        mask = None
        if entry.by_table:
            touched = jnp.zeros(len(table)).at[_inside(ids, table)].add(1.0, mode="drop")
            grads = jnp.zeros(table.shape).at[_inside(ids, table)].add(grads, mode="drop")
            touched, grads = lax.psum((touched, grads), sharding.EVERYWHERE)
            ids, mask = jnp.arange(len(table), dtype=jnp.int32), touched > 0
        else:
            ids = lax.all_gather(ids, sharding.EVERYWHERE, tiled=True)
            grads = lax.all_gather(grads, sharding.EVERYWHERE, tiled=True)
        if entry.split:
            ids -= _first_row(table)
            if key is not None:  # parts need different random numbers, copies of a part the same
                key = jax.random.fold_in(key, lax.axis_index(sharding.MODEL))
        return sparse_optimizers.update(
            optimizer, table, slots, ids, grads, learning_rate, mask=mask, key=key
        )

    slot_specs = jax.tree.map(functools.partial(_slot_spec, placement, name), slots)
    return jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(rows, slot_specs, sharding.BATCH, sharding.BATCH, P(), P()),
        out_specs=(rows, slot_specs),
        check_vma=False,
    )(table, slots, ids, grads, learning_rate, key)


def _slot_spec(placement: Placement, name: str, slot: jax.Array | jax.ShapeDtypeStruct) -> P:
    return spec(placement, name) if slot.ndim else sharding.REPLICATED


def _inside(ids: jax.Array, table: AnyTable) -> jax.Array:
    """Ids, with ones below 0 moved past the end: they would count from the end."""
    return jnp.where(ids < 0, len(table), ids)


def _first_row(part: AnyTable) -> jax.Array:
    return len(part) * lax.axis_index(sharding.MODEL)
