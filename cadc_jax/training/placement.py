"""The placement of embedding tables on the devices of a mesh; lookups and updates of their rows.

A table is replicated, or its rows are dealt out to all devices (see `tables.dealt`). Batches are
split over the devices. Devices exchange the ids and rows of a batch, never a table:

  split table: each device asks the owners for the rows of its own ids, and sends them the
    gradients (see `tables.exchange` and `tables.owners`).
  replicated table, by rows: each device collects the ids and row gradients of all devices.
  replicated table, by table: gradients are first summed in the shape of the table. This is cheaper
    for a table with fewer rows than a batch has ids.

On TPUs narrow tables are packed (see `tables.packed`). Checkpoints and results have them as they
are elsewhere, and all tables in the order of ids.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.errors import ConfigError, check_at_least
from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Batch, Content, Tables
from cadc_jax.tables import dealt, exchange, owners, packed, rounds, trips
from cadc_jax.tables.packed import AnyTable
from cadc_jax.tables.rounds import Capacity


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """How tables are placed on devices.

    Attributes:
      table_bytes: memory of a device for tables and their optimizer state; past it the largest
        tables are split over all devices. Trained tables with far more rows than a batch has ids
        are split in any case, if there are more than two devices. 0: no limit.
    """

    table_bytes: float = 0.0

    def __post_init__(self) -> None:
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
      stored_rows: rows that are kept, with those that make it divide evenly.
      split: whether its rows are dealt out to the devices.
      by_table: whether gradients are summed in the shape of the table instead of sent as rows.
      packed: whether its rows lie side by side.
      capacity: of a split table, room for the rows of a round of an exchange; else none.
      device_bytes: memory on each device, optimizer state included.
      sent_bytes: bytes that a device receives in a training step for lookups and updates, at most.
    """

    name: str
    rows: int
    stored_rows: int
    split: bool
    by_table: bool
    packed: bool
    capacity: Capacity
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
            where = f"split over {self.mesh.size}" if table.split else "replicated"
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
    distinct: Mapping[str, float] | None = None,
) -> Placement:
    """Splits the tables for which a device then receives less, and replicates the others.

    If they do not fit into a device, the largest ones are split as well.

    Args:
      mesh: the devices; an abstract one will do if no array is placed on it.
      tables: name -> table [V, D], or its shape and dtype.
      trained: names of the trained tables, which have optimizer state and gradients.
      optimizer: their optimizer, one of `sparse_optimizers.OPTIMIZERS`.
      batch_ids: name -> ids in a batch of all devices.
      device_bytes: memory of a device for tables and their optimizer state.
      pack: whether to pack the tables that can be; None: on TPUs.
      distinct: name -> distinct ids in the part of a batch of a device; None: as many as there can
        be. More than these are exchanged as well, but take longer.

    Raises:
      ConfigError: if the tables do not fit into `device_bytes` even when all of them are split.
    """
    trained = frozenset(trained)
    shapes = {
        name: jax.ShapeDtypeStruct(table.shape, table.dtype) for name, table in tables.items()
    }
    pack = sharding.is_tpu(mesh) if pack is None else pack
    make_room = functools.partial(rounds.capacity, ragged=trips.can_be_ragged(mesh))

    def entry(name: str, split: bool) -> TablePlan:
        shape, ids, parts = shapes[name], batch_ids[name], mesh.size if split else 1
        (rows, *width), is_trained = shape.shape, name in trained
        packs = pack and packed.can_pack(shape.shape, shape.dtype)
        stored = _stored_rows(shape, parts, packs)
        held = jax.ShapeDtypeStruct((stored // parts, *width), shape.dtype)
        asked = min(ids / mesh.size, rows) if distinct is None else distinct[name]
        room = make_room(asked, mesh.size, rows) if split else rounds.NO_ROOM
        sent, by_table = _sent_bytes(mesh, shape, is_trained, room, ids)
        size = _device_bytes(held, optimizer if is_trained else None)
        return TablePlan(name, rows, stored, split, by_table, packs, room, size, sent)

    whole = {name: entry(name, split=False) for name in shapes}
    parts = {name: entry(name, split=True) for name in shapes}
    can_split = {name for name in shapes if parts[name].device_bytes < whole[name].device_bytes}
    chosen = whole | {n: parts[n] for n in can_split if parts[n].sent_bytes < whole[n].sent_bytes}
    for name in sorted(can_split, key=lambda name: whole[name].device_bytes, reverse=True):
        if _total(chosen) > device_bytes:
            chosen[name] = parts[name]
    if _total(chosen) > device_bytes:
        raise ConfigError(
            f"devices.table_bytes={device_bytes:,.0f}: tables take {_total(chosen):,} bytes a "
            f"device, split over {mesh.size}; use more devices, narrower or bfloat16 tables, or an "
            "optimizer with less state"
        )
    return Placement(mesh, tuple(chosen[name] for name in shapes))


def _total(plans: Mapping[str, TablePlan]) -> int:
    """Bytes of all tables on a device."""
    return sum(plan.device_bytes for plan in plans.values())


def _device_bytes(held: jax.ShapeDtypeStruct, optimizer: str | None) -> int:
    """Bytes of a table and its optimizer's state; None for no optimizer."""
    arrays = [held]
    if optimizer is not None:
        init = functools.partial(sparse_optimizers.init, optimizer)
        arrays += jax.tree.leaves(jax.eval_shape(init, held))
    return sum(x.size * x.dtype.itemsize for x in arrays)


def _sent_bytes(
    mesh: Mesh | AbstractMesh,
    table: jax.ShapeDtypeStruct,
    trained: bool,
    capacity: Capacity,
    ids: int,
) -> tuple[int, bool]:
    """Bytes that a device receives in a step, and whether to sum gradients by table."""
    others, (rows, *width) = mesh.size - 1, table.shape
    row = 4 * math.prod(width)  # gradients are float32
    if capacity.pair:
        both = [table.dtype.itemsize * math.prod(width), *[row] * trained]
        return sum(rounds.received_bytes(capacity, mesh.size, x) for x in both), False
    by_rows = others * ids // mesh.size * (4 + row)
    by_table = 2 * others * rows * (4 + row) // mesh.size
    if not trained:
        return 0, False
    return min(by_rows, by_table), by_table < by_rows


def _stored_rows(table: jax.ShapeDtypeStruct, parts: int, packs: bool) -> int:
    """Rows of a table with those that make it divide evenly."""
    rows, *width = table.shape
    size = -(-rows // parts)
    return parts * (size + (-size % packed.rows_together(*width) if packs else 0))


@functools.partial(jax.jit, static_argnames="mesh")
def distinct_ids(mesh: Mesh, content: Content, batch: Batch) -> dict[str, jax.Array]:
    """Name of a table -> number [] of distinct ids in the part of a batch of a device.

    Args:
      mesh: the devices.
      content: features of users and items.
      batch: as for `embeddings.lookup_ids`, split over the devices.
    """
    count = jax.shard_map(
        exchange.distinct, mesh=mesh, in_specs=sharding.BATCH, out_specs=P(), check_vma=False
    )
    ids = embeddings.lookup_ids(content, batch)
    return {name: count(x) if len(x) else jnp.zeros(()) for name, x in ids.items()}


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
    whole = jax.ShapeDtypeStruct((placement[name].stored_rows, *table.shape[1:]), table.dtype)
    return jax.eval_shape(functools.partial(_form, placement, name), whole)


def plain_shape(placement: Placement, name: str, table: Any) -> jax.ShapeDtypeStruct:
    """Shape of a table as `plain_tree` gives it."""
    return jax.eval_shape(
        functools.partial(_plain, placement=placement, name=name), shape(placement, name, table)
    )


def _form(placement: Placement, name: str, places: Any) -> AnyTable:
    """Rows [d * m, D] in the order of places, or [V, D], in the form of the plan."""
    entry = placement[name]
    form = packed.pack(places) if entry.packed else places
    return dealt.Dealt(form, placement.mesh) if entry.split else form


def put(
    placement: Placement, tables: Mapping[str, jax.Array | np.ndarray | RandomTable]
) -> dict[str, AnyTable]:
    """The tables on the devices of the plan; some get rows of zeros to divide evenly.

    No split table needs to fit into one device: it is sent from the host, or drawn in parts if it
    is random.
    """
    return {name: _put(placement, name, table) for name, table in tables.items()}


def _put(placement: Placement, name: str, table: jax.Array | np.ndarray | RandomTable) -> AnyTable:
    entry, mesh = placement[name], placement.mesh
    where = sharding.named(mesh, spec(placement, name))
    if isinstance(table, RandomTable):
        key = sharding.put(table.key, sharding.named(mesh, sharding.REPLICATED))
        return _draw(key, table.shape, table.scale, placement, name)
    if entry.split:
        return _deal(np.asarray(sharding.local(table)), shape(placement, name, table), mesh)
    if missing := entry.stored_rows - len(table):
        table = np.pad(table, ((0, missing),) + ((0, 0),) * (np.ndim(table) - 1))
    return sharding.put(_form(placement, name, table), where)


def _deal(table: np.ndarray, like: dealt.Dealt, mesh: Mesh | AbstractMesh) -> dealt.Dealt:
    """The rows of a table on the host, each sent to its owner."""
    (stored,) = jax.tree.leaves(like)
    size, parts = len(like) // mesh.size, stored.shape[0] // mesh.size

    def part(index: Any) -> np.ndarray:
        own = dealt.part_of(table, (index[0].start or 0) // parts, mesh.size, size)
        return own.reshape(parts, *stored.shape[1:])

    made = jax.make_array_from_callback(stored.shape, sharding.named(mesh, sharding.TABLE), part)
    return jax.tree.unflatten(jax.tree.structure(like), [made])


@functools.partial(jax.jit, static_argnames=("shape", "scale", "placement", "name"))
def _draw(
    key: jax.Array,
    shape: tuple[int, int],
    scale: float,
    placement: Placement,
    name: str,
) -> AnyTable:
    """`RandomTable`, filled up by rows of zeros.

    The bits of a number are a hash of its place in the order of ids, counted row by row. Each
    device draws its own rows, and further rows at the end do not change earlier ones.
    """
    entry, width = placement[name], shape[1]
    rows, parts = entry.stored_rows, placement.mesh.size if entry.split else 1
    where = sharding.named(placement.mesh, spec(placement, name))
    table = scale * jax.random.normal(key, (rows // parts, parts, width))
    ids = jnp.arange(rows).reshape(-1, parts, 1)
    table = jnp.where(ids < shape[0], table, 0).swapaxes(0, 1)
    table = jax.lax.with_sharding_constraint(table, where)
    form = _form(placement, name, table.reshape(rows, width))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), form)


def placed_tree(placement: Placement, trees: Mapping[str, Any]) -> dict[str, Any]:
    """Plain tables or slots, name -> tree, in the form of the plan. Their memory is given up."""
    return {
        name: _placed(tree, placement, name) if _has_form(placement[name]) else tree
        for name, tree in trees.items()
    }


def plain_tree(placement: Placement, trees: Mapping[str, Any]) -> dict[str, Any]:
    """Tables or slots, name -> tree, as plain arrays with a row for each id in order."""
    return {
        name: _plain(tree, placement, name) if _has_form(placement[name]) else tree
        for name, tree in trees.items()
    }


def _has_form(entry: TablePlan) -> bool:
    return entry.split or entry.packed


@functools.partial(jax.jit, static_argnames=("placement", "name"), donate_argnames="tree")
def _placed(tree: Any, placement: Placement, name: str) -> Any:
    entry, mesh = placement[name], placement.mesh
    where = sharding.named(mesh, spec(placement, name))

    def form(x: jax.Array) -> AnyTable:
        if not x.ndim:
            return x
        if entry.split:
            x = dealt.in_places(x, mesh, entry.stored_rows // mesh.size)
        if x.ndim == 1:
            return x
        made = _form(placement, name, x)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), made)

    return jax.tree.map(form, tree)


@functools.partial(jax.jit, static_argnames=("placement", "name"))
def _plain(tree: Any, placement: Placement, name: str) -> Any:
    where = sharding.named(placement.mesh, spec(placement, name))

    def plain(x: jax.Array) -> jax.Array:
        if not x.ndim:
            return x
        if placement[name].split:
            x = dealt.in_order(x, placement.mesh)
        return jax.lax.with_sharding_constraint(x, where)

    return jax.tree.map(plain, packed.plain(dealt.rows_of(tree)))


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

    split = {name for name in tables if placement[name].split and len(ids[name])}
    whole = {name: table for name, table in tables.items() if name not in split}
    return embeddings.take_rows(whole, ids) | {
        name: exchange.on_owners(tables[name], ids[name], placement[name].capacity)
        for name in split
    }


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

    def local(state, ids, grads, learning_rate, key):
        table, slots = state
        if entry.split:
            return owners.update(
                *(optimizer, table, slots, ids, grads, learning_rate, key, entry.capacity)
            )
        mask = None
        if entry.by_table:
            touched = jnp.zeros(len(table)).at[_inside(ids, table)].add(1.0, mode="drop")
            grads = jnp.zeros(table.shape).at[_inside(ids, table)].add(grads, mode="drop")
            touched, grads = lax.psum((touched, grads), sharding.EVERYWHERE)
            ids, mask = jnp.arange(len(table), dtype=jnp.int32), touched > 0
        else:
            ids = lax.all_gather(ids, sharding.EVERYWHERE, tiled=True)
            grads = lax.all_gather(grads, sharding.EVERYWHERE, tiled=True)
        return sparse_optimizers.update(
            optimizer, table, slots, ids, grads, learning_rate, mask=mask, key=key
        )

    places = dealt.rows_of((table, slots))
    specs = rows, jax.tree.map(functools.partial(_slot_spec, placement, name), places[1])
    changed = jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(specs, sharding.BATCH, sharding.BATCH, P(), P()),
        out_specs=specs,
        check_vma=False,
    )(places, ids, grads, learning_rate, key)
    return dealt.like((table, slots), changed)


def _slot_spec(placement: Placement, name: str, slot: jax.Array | jax.ShapeDtypeStruct) -> P:
    return spec(placement, name) if slot.ndim else sharding.REPLICATED


def _inside(ids: jax.Array, table: AnyTable) -> jax.Array:
    """Ids, with ones below 0 moved past the end: they would count from the end."""
    return jnp.where(ids < 0, len(table), ids)
