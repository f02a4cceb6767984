"""Tables on meshes of up to 8 devices against one device, and what crosses between devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.errors import ConfigError
from cadc_jax.training import placement

V, D, N = 21, 4, 16


def mesh_of(model, devices):
    return sharding.make_mesh(model, jax.devices()[:devices])


def placed_on(mesh, split, optimizer="adagrad", ids=N, rows=V):
    table = jax.ShapeDtypeStruct((rows, D), jnp.float32)
    whole = placement.plan_placement(mesh, {"t": table}, {"t"}, optimizer, {"t": ids})
    if not split:
        return whole
    limit = whole["t"].device_bytes - 1
    return placement.plan_placement(mesh, {"t": table}, {"t"}, optimizer, {"t": ids}, limit)


def table():
    return jax.random.normal(jax.random.key(0), (V, D))


def ids():
    return jnp.asarray([3, 20, 0, -1, 3, 7, 7, 7, 12, 1, 19, 5, 6, 20, 2, -1], jnp.int32)


def grads():
    return jax.random.normal(jax.random.key(1), (N, D))


MESHES = [(1, 1), (2, 2), (2, 4), (4, 8), (8, 8)]  # model, devices


@pytest.mark.parametrize("model, devices", MESHES[1:])
def test_rows_of_a_split_table_are_those_of_the_whole(model, devices):
    placed = placed_on(mesh_of(model, devices), split=True)
    assert placed["t"].split
    tables = placement.put(placed, {"t": table()})
    on_all = jax.device_put(ids(), sharding.named(placed.mesh, sharding.BATCH))
    rows = jax.jit(placement.lookup, static_argnums=0)(placed, tables, {"t": on_all})["t"]
    real = np.asarray(ids()) >= 0
    np.testing.assert_array_equal(rows[real], table()[ids()][real])
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("optimizer", sparse_optimizers.OPTIMIZERS)
@pytest.mark.parametrize("model, devices", MESHES)
@pytest.mark.parametrize("layout", ["split", "by rows", "by table"])
def test_an_update_on_a_mesh_is_that_of_one_device(layout, model, devices, optimizer):
    if layout == "split" and model == 1:
        pytest.skip("one device cannot split")
    mesh = mesh_of(model, devices)
    many_ids = 10_000 if layout == "by table" else 1
    placed = placed_on(mesh, layout == "split", optimizer, ids=many_ids)
    if devices > 1:
        assert (placed["t"].split, placed["t"].by_table) == (
            layout == "split",
            layout == "by table",
        )
    slots = sparse_optimizers.init(optimizer, table())
    want = table(), slots
    got = placement.put(placed, {"t": table()})["t"]
    got = got, placement.init_slots(placed, optimizer, "t", got)
    split = sharding.named(mesh, sharding.BATCH)
    update = jax.jit(placement.update, static_argnums=(0, 1, 2))
    for seed in range(2):
        change = grads() * (seed + 1)
        want = sparse_optimizers.update(optimizer, *want, ids(), change, 0.1)
        batch = jax.device_put((ids(), change), split)
        got = update(placed, optimizer, "t", *got, *batch, 0.1)
    np.testing.assert_allclose(
        placement.take(placed, {"t": got[0]})["t"], want[0], rtol=1e-5, atol=1e-6
    )


def test_copies_of_a_stochastically_rounded_table_stay_the_same():
    placed = placed_on(mesh_of(2, 8), split=True)
    got = placement.put(placed, {"t": table().astype(jnp.bfloat16)})["t"]
    split = sharding.named(placed.mesh, sharding.BATCH)
    batch = jax.device_put((ids(), grads()), split)
    update = jax.jit(placement.update, static_argnums=(0, 1, 2))
    slots = sparse_optimizers.init("sgd", got)
    got, _ = update(placed, "sgd", "t", got, slots, *batch, 0.1, jax.random.key(0))
    by_rows = {}
    for shard in got.addressable_shards:
        by_rows.setdefault(shard.index[0].start, []).append(np.asarray(shard.data, np.float32))
    assert sorted(len(copies) for copies in by_rows.values()) == [4, 4]
    for copies in by_rows.values():
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


@pytest.mark.parametrize("model", [2, 8])
def test_no_table_crosses_between_devices(model):
    rows = 4096
    placed = placed_on(mesh_of(model, 8), split=True, rows=rows)
    there = sharding.named(placed.mesh, sharding.TABLE)
    split = sharding.named(placed.mesh, sharding.BATCH)
    big = jax.ShapeDtypeStruct((rows, D), jnp.float32, sharding=there)
    few = jax.ShapeDtypeStruct((N,), jnp.int32, sharding=split)

    @jax.jit
    def step(table, slots, ids):
        found = placement.lookup(placed, {"t": table}, {"t": ids})["t"]
        return placement.update(placed, "adagrad", "t", table, slots, ids, found, 0.1)

    slots = {
        name: jax.ShapeDtypeStruct((rows,), dtype, sharding=there)
        for name, dtype in (("scratch", jnp.int32), ("accumulator", jnp.float32))
    }
    text = step.lower(big, slots, few).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    collectives = [x for x in text.splitlines() if re.search(rf"= .*\b({kinds})[\w-]*\(", x)]
    assert collectives
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for line in collectives
        for shape in re.findall(r"\w\d+\[([\d,]+)\]", line.split("metadata")[0])
    ]
    assert max(sizes) <= N * D  # of a batch, not of a table or a part of it (2048 numbers or more)


def test_memory_of_a_device_falls_with_the_number_of_parts():
    held = [
        placed_on(mesh_of(m, m), split=m > 1, rows=4096)["t"].device_bytes for m in (1, 2, 4, 8)
    ]
    assert held == [held[0] // m for m in (1, 2, 4, 8)]
    for parts in (2, 8):
        placed = placed_on(mesh_of(parts, parts), split=True, rows=4096)
        put = placement.put(placed, {"t": jnp.zeros((4096, D))})["t"]
        slots = placement.init_slots(placed, "adagrad", "t", put)
        shards = [x.addressable_shards[0].data.nbytes for x in (put, *slots.values())]
        assert sum(shards) == placed["t"].device_bytes


def test_the_largest_tables_are_split_until_the_rest_fits():
    tables = {
        name: jax.ShapeDtypeStruct((rows, D), jnp.float32)
        for name, rows in (("small", 10), ("large", 10_000), ("middle", 1_000))
    }
    mesh, few = mesh_of(8, 8), dict.fromkeys(("small", "large", "middle"), 8)

    def split(device_bytes):
        placed = placement.plan_placement(mesh, tables, (), "sgd", few, device_bytes)
        return {table.name for table in placed.tables if table.split}

    assert split(11_010 * D * 4) == set()
    assert split(11_010 * D * 4 - 1) == {"large"}
    assert split(2_260 * D * 4 - 1) == {"large", "middle"}
    with pytest.raises(ConfigError, match="more devices"):
        split(100)


def test_optimizer_state_counts_and_frozen_tables_have_none():
    table = {"t": jax.ShapeDtypeStruct((100, D), jnp.bfloat16)}
    mesh = mesh_of(1, 1)

    def held(trained, optimizer):
        return placement.plan_placement(mesh, table, trained, optimizer, {"t": 1})["t"].device_bytes

    assert held((), "adam") == 100 * D * 2
    assert held({"t"}, "adagrad") == 100 * (D * 2 + 4 + 4)
    assert held({"t"}, "adam") == 100 * (D * 2 + 4 + D * 8) + 4


def test_gradients_travel_by_table_only_where_that_is_less():
    few = placed_on(mesh_of(1, 8), split=False, ids=8)["t"]
    many = placed_on(mesh_of(1, 8), split=False, ids=8000)["t"]
    assert (few.by_table, many.by_table) == (False, True)
    assert few.sent_bytes == 7 * 1 * (4 + 4 * D)  # an id and a row from each of the others
    assert many.sent_bytes == 2 * 7 * V * (4 + 4 * D) // 8  # a ring all-reduce


def test_the_plan_reads_as_a_table():
    text = str(placed_on(mesh_of(2, 8), split=True))
    assert re.search(r"t +21 +split over 2 ", text)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("model, devices", MESHES[1:])
def test_a_table_that_a_batch_asks_nothing_of_stays_as_it_is(model, devices, split):
    """Data without categorical features still has their table, of one row."""
    placed = placed_on(mesh_of(model, devices), split)
    tables = placement.put(placed, {"t": table()})
    slots = placement.init_slots(placed, "adagrad", "t", tables["t"])
    none = jnp.zeros(0, jnp.int32)
    rows = jax.jit(placement.lookup, static_argnums=0)(placed, tables, {"t": none})["t"]
    assert rows.shape == (0, D)
    update = jax.jit(placement.update, static_argnums=(0, 1, 2))
    after, _ = update(placed, "adagrad", "t", tables["t"], slots, none, jnp.zeros((0, D)), 0.1)
    np.testing.assert_array_equal(after, tables["t"])


@pytest.mark.parametrize("model, devices", [(1, 1), (1, 8), (2, 4), (8, 8)])
def test_random_tables_are_the_same_on_any_devices(model, devices):
    """13 rows do not divide: those that fill a split table up are zeros, and change no others."""
    key, shape = jax.random.key(3), (13, 5)
    mesh = sharding.make_mesh(model, jax.devices()[:devices])
    room = math.inf if model == 1 else 13 * 5 * 4 - 1
    table = placement.RandomTable(shape, key, 0.5)
    placed = placement.plan_placement(mesh, {"user": table}, (), "sgd", {"user": 8}, room)
    drawn = placement.put(placed, {"user": table})["user"]
    assert placed["user"].split == (model > 1)
    assert drawn.addressable_shards[0].data.shape[0] == -(-13 // model)
    np.testing.assert_array_equal(drawn[:13], 0.5 * jax.random.normal(key, shape))
    assert not np.any(drawn[13:])


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
@pytest.mark.parametrize("model, devices", MESHES)
def test_packed_tables_are_read_and_updated_as_plain_ones(model, devices, split):
    if split and model == 1:
        pytest.skip("one device cannot split")
    found = []
    for placed in both_forms(mesh_of(model, devices), split):
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
    _, placed = both_forms(mesh_of(4, 8), split)
    table = placement.put(placed, wide_tables())["t"]
    before = {"t": {"table": table, **placement.init_slots(placed, "adam", "t", table)}}
    plain = placement.plain_tree(placed, before)
    assert plain["t"]["mean"].shape == plain["t"]["table"].shape == table.shape
    after = placement.packed_tree(placed, plain)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_random_tables_are_the_same_in_both_forms():
    table = placement.RandomTable((V, WIDTH), jax.random.key(3), 0.5)
    forms = both_forms(mesh_of(4, 8), split=True)
    drawn = [placement.take(placed, placement.put(placed, {"t": table}))["t"] for placed in forms]
    np.testing.assert_array_equal(*drawn)


def test_tables_are_packed_on_tpus_alone():
    assert not any(table.packed for table in placed_on(mesh_of(1, 1), split=False).tables)
    plain, packed = both_forms(mesh_of(1, 1), split=False)
    assert (plain["t"].packed, packed["t"].packed) == (False, True)
