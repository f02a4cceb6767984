"""Tables on meshes of up to 8 devices against one device, and what crosses between devices."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.cost import hlo
from cadc_jax.errors import ConfigError
from cadc_jax.tables import owners
from cadc_jax.tables.rounds import Capacity
from cadc_jax.training import placement

V, D, N = 21, 4, 16


def mesh_of(devices):
    return sharding.make_mesh(jax.devices()[:devices])


def placed_on(mesh, split, optimizer="adagrad", ids=N, rows=V, capacity=None):
    table = {"t": jax.ShapeDtypeStruct((rows, D), jnp.float32)}
    plan = functools.partial(placement.plan_placement, mesh, table, {"t"}, optimizer, {"t": ids})
    whole = plan()
    placed = plan(whole["t"].device_bytes - 1) if split else whole
    if capacity is None:
        return placed
    return dataclasses.replace(
        placed, tables=(dataclasses.replace(placed["t"], capacity=capacity),)
    )


def table():
    return jax.random.normal(jax.random.key(0), (V, D))


def ids():
    return jnp.asarray([3, 20, 0, -1, 3, 7, 7, 7, 12, 1, 19, 5, 6, 20, 2, -1], jnp.int32)


def grads():
    return jax.random.normal(jax.random.key(1), (N, D))


DEVICES = [2, 4, 8]
BATCHES = {
    "spread": [3, 20, 0, -1, 3, 7, 7, 7, 12, 1, 19, 5, 6, 20, 2, -1],
    "one id in half of all places": [7, 3, 7, 0, 7, 20, 7, 1, 7, 12, 7, 5, 7, -1, 7, 6],
    "all ids of one device": [0, 8, 16, 0, 8, 16, 16, 8, 8, 0, 16, 8, 0, -1, 0, 16],
    "all distinct": [15, 3, 2, 9, 20, 7, 1, 0, 4, 12, 11, 13, 18, 17, 16, 6],
    "no id": [-1] * N,
}


# Room for the rows of a round; None is that of the plan. Most batches need several rounds if there
# is room for one row of an owner, or in all for as many rows as there are devices.
ROOMS = {
    "split": lambda devices: None,
    "in rounds": lambda devices: Capacity(1),
    "ragged": lambda devices: Capacity(N, N * devices),
    "ragged, in rounds": lambda devices: Capacity(N, devices),
    "ragged, in rounds of a row": lambda devices: Capacity(1, devices),
}


@pytest.mark.usefixtures("ragged_on_cpus")
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("devices", DEVICES)
def test_rows_of_a_split_table_are_those_of_the_whole(devices, room):
    placed = placed_on(mesh_of(devices), split=True, capacity=ROOMS[room](devices))
    assert placed["t"].split
    tables = placement.put(placed, {"t": table()})
    lookup = jax.jit(placement.lookup, static_argnums=0)
    for batch in BATCHES.values():
        wanted = jnp.asarray(batch, jnp.int32)
        on_all = jax.device_put(wanted, sharding.named(placed.mesh, sharding.BATCH))
        rows = lookup(placed, tables, {"t": on_all})["t"]
        real = np.asarray(wanted) >= 0
        np.testing.assert_array_equal(rows[real], table()[wanted][real])
        assert np.isfinite(rows).all()


@pytest.mark.usefixtures("ragged_on_cpus")
@pytest.mark.parametrize("optimizer", sparse_optimizers.OPTIMIZERS)
@pytest.mark.parametrize("devices", [1, *DEVICES])
@pytest.mark.parametrize("layout", [*ROOMS, "by rows", "by table"])
def test_an_update_on_a_mesh_is_that_of_one_device(layout, devices, optimizer):
    split = layout in ROOMS
    if split and devices == 1:
        pytest.skip("one device cannot split")
    mesh, capacity = mesh_of(devices), ROOMS[layout](devices) if split else None
    many_ids = 10_000 if layout == "by table" else 1 if layout == "by rows" else N
    placed = placed_on(mesh, split, optimizer, ids=many_ids, capacity=capacity)
    if devices > 1:
        assert (placed["t"].split, placed["t"].by_table) == (split, layout == "by table")
    want = table(), sparse_optimizers.init(optimizer, table())
    got = placement.put(placed, {"t": table()})["t"]
    got = got, placement.init_slots(placed, optimizer, "t", got)
    where = sharding.named(mesh, sharding.BATCH)
    update = jax.jit(placement.update, static_argnums=(0, 1, 2))
    for number, batch in enumerate(BATCHES.values(), 1):
        change = grads() * number
        given = jnp.asarray(batch, jnp.int32)
        want = sparse_optimizers.update(optimizer, *want, given, change, 0.1)
        there = jax.device_put((given, change), where)
        got = update(placed, optimizer, "t", *got, *there, 0.1)
    plain = placement.plain_tree(placed, {"t": got})["t"]
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(want), strict=True):
        if one.dtype == jnp.float32:  # the others are counts and working memory
            np.testing.assert_allclose(one[:V] if one.ndim else one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("ragged_on_cpus")
@pytest.mark.parametrize("room", ROOMS)
def test_a_split_bfloat16_table_is_rounded_at_random_and_right_on_average(room):
    """All rows take a step of a tenth of the distance to the next number."""
    rows, width = 64, 32
    shape = {"t": jax.ShapeDtypeStruct((rows, width), jnp.bfloat16)}
    placed = placement.plan_placement(mesh_of(8), shape, {"t"}, "sgd", {"t": rows}, 4000)
    plan = dataclasses.replace(placed["t"], capacity=ROOMS[room](8) or placed["t"].capacity)
    placed = dataclasses.replace(placed, tables=(plan,))
    assert plan.split
    given = placement.put(placed, {"t": np.ones((rows, width), jnp.bfloat16)})["t"]
    slots = placement.init_slots(placed, "sgd", "t", given)
    batch = jnp.arange(rows, dtype=jnp.int32), jnp.full((rows, width), -1 / 1280)
    batch = jax.device_put(batch, sharding.named(placed.mesh, sharding.BATCH))
    update = jax.jit(placement.update, static_argnums=(0, 1, 2))
    got, _ = update(placed, "sgd", "t", given, slots, *batch, 1.0, jax.random.key(0))
    changes = np.asarray(placement.take(placed, {"t": got})["t"], np.float32) - 1
    up = changes > 0
    np.testing.assert_array_equal(changes[up], 1 / 128)
    assert up.mean() == pytest.approx(0.1, abs=0.03)
    assert len({row.tobytes() for row in up}) > rows / 2  # devices and rounds draw other numbers


def test_the_gradients_of_equal_ids_are_summed_in_a_fixed_order_on_accelerators(monkeypatch):
    """The way of GPUs and TPUs, on a CPU."""
    jax.clear_caches()
    monkeypatch.setattr(owners, "_totals_by_scatter", owners._totals_by_sort)
    test_an_update_on_a_mesh_is_that_of_one_device("split", 4, "adagrad")


@pytest.mark.parametrize("devices", [2, 8])
def test_no_table_crosses_between_devices(devices):
    rows = 4096
    placed = placed_on(mesh_of(devices), split=True, rows=rows)
    there = sharding.named(placed.mesh, sharding.TABLE)
    split = sharding.named(placed.mesh, sharding.BATCH)
    big = placement.shape(placed, "t", jax.ShapeDtypeStruct((rows, D), jnp.float32))
    big = placement.like(placed, "t", big)
    few = jax.ShapeDtypeStruct((N,), jnp.int32, sharding=split)

    @jax.jit
    def step(table, slots, ids):
        found = placement.lookup(placed, {"t": table}, {"t": ids})["t"]
        return placement.update(placed, "adagrad", "t", table, slots, ids, found, 0.1)

    slots = {
        name: jax.ShapeDtypeStruct((rows,), dtype, sharding=there)
        for name, dtype in (("scratch", jnp.int32), ("accumulator", jnp.float32))
    }
    compiled = step.lower(big, slots, few).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * D * 4 // devices
    text = compiled.as_text()
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    collectives = [x for x in text.splitlines() if re.search(rf"= .*\b({kinds})[\w-]*\(", x)]
    assert collectives
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for line in collectives
        for shape in re.findall(r"\w\d+\[([\d,]+)\]", line.split("metadata")[0])
    ]
    # A batch's, in buffers for each of the devices; a part of the table has 2048 numbers or more.
    assert max(sizes) <= devices * placed["t"].capacity.pair * D <= 2 * N * D


def test_memory_of_a_device_falls_with_the_number_of_parts():
    held = [placed_on(mesh_of(m), split=m > 1, rows=4096)["t"].device_bytes for m in (1, 2, 4, 8)]
    assert held == [held[0] // m for m in (1, 2, 4, 8)]
    for parts in (2, 8):
        placed = placed_on(mesh_of(parts), split=True, rows=4096)
        put = placement.put(placed, {"t": jnp.zeros((4096, D))})["t"]
        slots = placement.init_slots(placed, "adagrad", "t", put)
        shards = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((put, slots))]
        assert sum(shards) == placed["t"].device_bytes


def test_the_largest_tables_are_split_until_the_rest_fits():
    tables = {
        name: jax.ShapeDtypeStruct((rows, D), jnp.float32)
        for name, rows in (("small", 10), ("large", 10_000), ("middle", 1_000))
    }
    mesh, few = mesh_of(8), dict.fromkeys(("small", "large", "middle"), 8)

    def split(device_bytes):
        placed = placement.plan_placement(mesh, tables, (), "sgd", few, device_bytes)
        return {table.name for table in placed.tables if table.split}

    assert split(11_010 * D * 4) == set()
    assert split(11_010 * D * 4 - 1) == {"large"}
    assert split(2_260 * D * 4 - 1) == {"large", "middle"}
    with pytest.raises(ConfigError, match="more devices"):
        split(100)


def test_a_trained_table_is_split_where_a_device_then_receives_less():
    """On two devices the same crosses in both ways, and frozen tables need nothing to cross."""

    def split(devices, trained):
        shapes = {"large": jax.ShapeDtypeStruct((10**7, D), jnp.float32)}
        ids = {"large": 8192 * devices}
        plan = placement.plan_placement(mesh_of(devices), shapes, trained, "sgd", ids)
        return plan["large"].split, plan["large"].sent_bytes

    assert not split(2, {"large"})[0] and not split(8, ())[0]
    (four, received), (eight, same) = split(4, {"large"}), split(8, {"large"})
    assert four and eight
    assert same == pytest.approx(received, rel=0.3)


def test_optimizer_state_counts_and_frozen_tables_have_none():
    table = {"t": jax.ShapeDtypeStruct((100, D), jnp.bfloat16)}
    mesh = mesh_of(1)

    def held(trained, optimizer):
        return placement.plan_placement(mesh, table, trained, optimizer, {"t": 1})["t"].device_bytes

    assert held((), "adam") == 100 * D * 2
    assert held({"t"}, "adagrad") == 100 * (D * 2 + 4 + 4)
    assert held({"t"}, "adam") == 100 * (D * 2 + 4 + D * 8) + 4


def test_gradients_travel_by_table_only_where_that_is_less():
    few = placed_on(mesh_of(8), split=False, ids=8)["t"]
    many = placed_on(mesh_of(8), split=False, ids=8000)["t"]
    assert (few.by_table, many.by_table) == (False, True)
    assert few.sent_bytes == 7 * 1 * (4 + 4 * D)  # an id and a row from each of the others
    assert many.sent_bytes == 2 * 7 * V * (4 + 4 * D) // 8  # a ring all-reduce


def test_the_plan_reads_as_a_table():
    text = str(placed_on(mesh_of(8), split=True))
    assert re.search(r"t +21 +split over 8 ", text)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("devices", DEVICES)
def test_a_table_that_a_batch_asks_nothing_of_stays_as_it_is(devices, split):
    """Data without categorical features still has their table, of one row."""
    placed = placed_on(mesh_of(devices), split)
    tables = placement.put(placed, {"t": table()})
    slots = placement.init_slots(placed, "adagrad", "t", tables["t"])
    none = jnp.zeros(0, jnp.int32)
    rows = jax.jit(placement.lookup, static_argnums=0)(placed, tables, {"t": none})["t"]
    assert rows.shape == (0, D)
    update = jax.jit(placement.update, static_argnums=(0, 1, 2))
    after, _ = update(placed, "adagrad", "t", tables["t"], slots, none, jnp.zeros((0, D)), 0.1)
    jax.tree.map(np.testing.assert_array_equal, after, tables["t"])


@pytest.mark.parametrize("devices, split", [(1, False), (8, False), (4, True), (8, True)])
def test_random_tables_are_the_same_on_any_devices(devices, split):
    """13 rows do not divide: those that fill a split table up are zeros, and change no others."""
    key, shape = jax.random.key(3), (13, 5)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    room = 13 * 5 * 4 - 1 if split else math.inf
    table = placement.RandomTable(shape, key, 0.5)
    placed = placement.plan_placement(mesh, {"user": table}, (), "sgd", {"user": 8}, room)
    drawn = placement.put(placed, {"user": table})["user"]
    assert placed["user"].split == split
    (stored,) = jax.tree.leaves(drawn)
    assert stored.addressable_shards[0].data.shape[0] == -(-13 // (devices if split else 1))
    plain = placement.plain_tree(placed, {"user": drawn})["user"]
    np.testing.assert_array_equal(plain[:13], 0.5 * jax.random.normal(key, shape))
    assert not np.any(plain[13:])


def test_a_split_random_table_is_drawn_without_a_word_between_devices():
    table = placement.RandomTable((4099, D), jax.random.key(3), 0.5)
    placed = placed_on(mesh_of(8), split=True, rows=4099)
    key = sharding.put(table.key, sharding.named(placed.mesh, sharding.REPLICATED))
    compiled = placement._draw.lower(key, table.shape, table.scale, placed, "t").compile()
    assert sum(hlo.received_bytes(compiled.as_text()).values()) == 0
    assert compiled.memory_analysis().temp_size_in_bytes < 4099 * D * 4


def test_rows_are_dealt_out_in_turn():
    """Whatever a column's range of ids is, each device owns the same share of it."""
    placed = placed_on(mesh_of(8), split=True)
    stored = placement.put(placed, {"t": table()})["t"].rows
    for device, shard in enumerate(stored.addressable_shards):
        own = np.asarray(table())[device::8]
        np.testing.assert_array_equal(shard.data[: len(own)], own)
        assert not np.any(shard.data[len(own) :])


def test_a_table_whose_parts_would_be_padded_to_more_than_the_whole_is_not_split():
    shapes = {"t": jax.ShapeDtypeStruct((1, D), jnp.float32)}
    with pytest.raises(ConfigError, match="tables take"):
        placement.plan_placement(mesh_of(8), shapes, (), "sgd", {"t": 8}, 8)


WIDTH = 32  # 4 rows in a wide one


def wide_tables():
    return {"t": jax.random.normal(jax.random.key(4), (V, WIDTH))}


def both_forms(mesh, split):
    """Placements of the same table, plain and packed."""
    tables = {"t": jax.ShapeDtypeStruct((V, WIDTH), jnp.float32)}
    plan = functools.partial(placement.plan_placement, mesh, tables, {"t"}, "adam", {"t": N})
    limit = plan()["t"].device_bytes - 1 if split else math.inf
    return [plan(limit, pack=pack) for pack in (False, True)]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_packed_tables_are_read_and_updated_as_plain_ones(devices, split):
    if split and devices == 1:
        pytest.skip("one device cannot split")
    found = []
    for placed in both_forms(mesh_of(devices), split):
        tables = placement.put(placed, wide_tables())
        assert tables["t"].shape == placement.shape(placed, "t", wide_tables()["t"]).shape
        batch = jax.device_put(ids(), sharding.named(placed.mesh, sharding.BATCH))
        rows = jax.jit(placement.lookup, static_argnums=0)(placed, tables, {"t": batch})["t"]
        slots = placement.init_slots(placed, "adam", "t", tables["t"])
        update = jax.jit(placement.update, static_argnums=(0, 1, 2))
        table, slots = update(placed, "adam", "t", tables["t"], slots, batch, rows, 0.1)
        state = placement.plain_tree(placed, {"t": (table, slots)})["t"]
        found.append(
            (rows[ids() >= 0], placement.take(placed, {"t": table})["t"], state[1]["mean"][:V])
        )
    for plain, form in zip(*found, strict=True):
        np.testing.assert_allclose(form, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", [False, True])
def test_packed_tables_go_to_plain_ones_and_back_with_their_state(split):
    _, placed = both_forms(mesh_of(8), split)
    table = placement.put(placed, wide_tables())["t"]
    before = {"t": {"table": table, **placement.init_slots(placed, "adam", "t", table)}}
    plain = placement.plain_tree(placed, before)
    assert plain["t"]["mean"].shape == plain["t"]["table"].shape
    np.testing.assert_array_equal(plain["t"]["table"][:V], wide_tables()["t"])
    after = placement.placed_tree(placed, plain)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_random_tables_are_the_same_in_both_forms():
    table = placement.RandomTable((V, WIDTH), jax.random.key(3), 0.5)
    forms = both_forms(mesh_of(8), split=True)
    drawn = [placement.take(placed, placement.put(placed, {"t": table}))["t"] for placed in forms]
    np.testing.assert_array_equal(*drawn)


def test_tables_are_packed_on_tpus_alone():
    assert not any(table.packed for table in placed_on(mesh_of(1), split=False).tables)
    plain, packed = both_forms(mesh_of(1), split=False)
    assert (plain["t"].packed, packed["t"].packed) == (False, True)
