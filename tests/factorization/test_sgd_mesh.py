"""Logistic SGD on several devices: what it does on one, wherever its rows are."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.cost import hlo
from cadc_jax.factorization import sgd, sgd_rows, sgd_step
from cadc_jax.factorization.sgd import SGDConfig, TrainingRows
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stopped
from cadc_jax.tables import rounds
from cadc_jax.tables.rounds import Capacity

U, I, D = 83, 45, 4  # noqa: E741 (the letters of the package); neither divides
KEY = jax.random.key(0)
CONFIG = SGDConfig(factors=D, batch_rows=32, epochs=2, learning_rate=0.1, regularization=0.01)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def mesh_of(devices):
    return sharding.make_mesh(jax.devices()[:devices])


def log(labelled, rows=300, users=U):
    """A log with a long tail of items, in which one user has a third of all rows."""
    rng = np.random.default_rng(0)
    user = np.where(rng.random(rows) < 1 / 3, users // 2, rng.integers(0, users, rows))
    item = np.minimum(rng.geometric(0.1, rows) - 1, I - 1)
    label = (rng.random(rows) < 0.4).astype(np.float32) if labelled else None
    return TrainingRows(user, item, users, I, label)


def assert_same(found, wanted):
    (factors, losses), (same, again) = found, wanted
    np.testing.assert_allclose(losses, again, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), factors, same)


@pytest.fixture(scope="module")
def on_one_device():
    found = {}

    def fit(labelled, optimizer):
        key = labelled, optimizer
        if key not in found:
            config = dataclasses.replace(CONFIG, optimizer=optimizer)
            found[key] = sgd.fit(log(labelled), config, KEY)
        return found[key]

    return fit


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("optimizer", ["adagrad", slow("adam"), slow("sgd")])
@pytest.mark.parametrize("labelled", [True, False])
def test_several_devices_find_the_factors_and_losses_of_one(
    devices, optimizer, labelled, on_one_device
):
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    found = sgd.fit(log(labelled), config, KEY, mesh=mesh_of(devices))
    assert_same(found, on_one_device(labelled, optimizer))


def test_devices_without_users_or_rows_take_part():
    """One user on eight devices, all of whose rows are on the first."""
    rows = log(labelled=False, users=1)
    assert_same(sgd.fit(rows, CONFIG, KEY, mesh=mesh_of(8)), sgd.fit(rows, CONFIG, KEY))


@pytest.mark.usefixtures("ragged_on_cpus")
@pytest.mark.parametrize("room", [Capacity(1), Capacity(1, 8), Capacity(100, 800)], ids=str)
def test_an_exchange_in_many_rounds_or_a_ragged_one_gives_the_same(
    room, monkeypatch, on_one_device
):
    monkeypatch.setattr(sgd_rows.Blocks, "capacity", lambda self, negatives: room)
    found = sgd.fit(log(labelled=False), CONFIG, KEY, mesh=mesh_of(8))
    assert_same(found, on_one_device(False, "adagrad"))


def test_several_devices_go_on_from_factors_as_one_does(on_one_device):
    first, _ = on_one_device(True, "adagrad")
    config, rows = CONFIG.refreshing(1), log(labelled=True)
    found = sgd.fit(rows, config, KEY, mesh=mesh_of(8), init=first)
    assert_same(found, sgd.fit(rows, config, KEY, init=first))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("before, after", [(8, 8), (8, 2), slow(1, 8), slow(8, 1)])
def test_a_fit_goes_on_on_any_number_of_devices(
    before, after, labelled, tmp_path, monkeypatch, on_one_device
):
    whole = sgd.fit(log(labelled), CONFIG, KEY, mesh=mesh_of(after))
    calls = itertools.count()
    with Checkpoints(tmp_path, stop=lambda: next(calls) >= 1) as saved, pytest.raises(Stopped):
        sgd.fit(log(labelled), CONFIG, KEY, mesh=mesh_of(before), saved=saved)
    assert saved.newest == 1
    with Checkpoints(tmp_path) as saved:
        found = sgd.fit(log(labelled), CONFIG, KEY, mesh=mesh_of(after), saved=saved)
    assert_same(found, whole)
    if before == after:
        np.testing.assert_array_equal(found[1], whole[1])
        jax.tree.map(np.testing.assert_array_equal, found[0], whole[0])


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_row_of_a_batch_is_on_the_device_of_its_user(devices):
    rows = log(labelled=False)
    blocks = sgd_rows.Blocks(rows, 32, mesh_of(devices))
    order, count = blocks.order(0, np.random.default_rng(0))
    plain, _ = sgd_rows.Blocks(rows, 32, mesh_of(1)).order(0, np.random.default_rng(0))
    assert count == len(rows) and len(order) == len(plain)
    block = jax.tree.map(np.asarray, blocks.on_devices(0))
    room = len(block.user) // devices
    number = np.arange(room) if block.number is None else block.number
    for step, wanted in zip(np.asarray(order).reshape(len(order), devices, -1), plain, strict=True):
        found = []
        for device, slots in enumerate(step):
            own = device * room + slots[slots >= 0]
            np.testing.assert_array_equal(
                block.user[own] * devices + device, rows.user[number[own]]
            )
            np.testing.assert_array_equal(block.item[own], rows.item[number[own]])
            found += number[own].tolist()
        assert sorted(found) == sorted(wanted[wanted >= 0].tolist())


def test_a_device_keeps_the_known_items_of_its_own_users_alone():
    rows, devices = log(labelled=False), 8
    block = jax.tree.map(
        lambda x: np.asarray(x).reshape(devices, -1),
        sgd_rows.Blocks(rows, 32, mesh_of(devices)).on_devices(0),
    )
    pairs = {
        (place * devices + device, int(item))
        for device in range(devices)
        for place in range(block.offsets.shape[1] - 1)
        for item in block.items[device][slice(*block.offsets[device, place : place + 2])]
    }
    assert pairs == set(zip(rows.user.tolist(), rows.item.tolist(), strict=True))


def test_negatives_follow_from_the_number_of_a_row_alone():
    numbers = jnp.arange(1000, dtype=jnp.int32)
    drawn = np.asarray(sgd_rows.negatives(KEY, numbers, 4, I))
    np.testing.assert_array_equal(sgd_rows.negatives(KEY, numbers[::-1], 4, I)[::-1], drawn)
    assert drawn.min() == 0 and drawn.max() == I - 1
    counts = np.bincount(drawn.reshape(-1), minlength=I)
    assert ((counts - 4000 / I) ** 2 / (4000 / I)).sum() < 80  # chi square, 44 degrees of freedom


def test_room_for_item_rows_follows_from_how_often_items_are_in_the_log():
    """All rows have one item: a device asks for it and for its negatives."""
    rows = TrainingRows(np.arange(8000), np.zeros(8000, int), 8000, 10**6, np.ones(8000))
    blocks = sgd_rows.Blocks(rows, 800, mesh_of(8))
    assert blocks.capacity(0) == Capacity(1)
    assert 4 * 100 / 8 < blocks.capacity(4).pair < 3 * 4 * 100 / 8
    assert sgd_rows.Blocks(rows, 800, mesh_of(1)).capacity(4) == rounds.NO_ROOM


def compiled(devices, users=800_000, items=400_000, batch=256 * 8):
    """A pass over 16 batches, and what is the same of any mesh."""
    mesh = mesh_of(devices)
    capacity = Capacity(8 * 256 // devices)
    step = sgd_step.StepConfig("adagrad", 0, items, capacity, mesh)
    sizes = {"num_users": users, "num_items": items, "factors": 15}

    def start(key, bias):
        return sgd_step.random_state(key, bias, **sizes, optimizer="adagrad", mesh=mesh)

    def on(x, spec):
        where = sharding.named(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    state = jax.eval_shape(start, KEY, 0.5)
    state = jax.tree.map(on, state, sgd_step._specs(state))
    ids, label = (
        on(jax.ShapeDtypeStruct((1 << 16,), x), sharding.TABLE) for x in (jnp.int32, jnp.float32)
    )
    order = on(jax.ShapeDtypeStruct((16, batch), jnp.int32), sharding.BATCHES)
    penalties = sgd_rows.Penalties(
        on(jax.ShapeDtypeStruct((users,), jnp.float32), sharding.TABLE),
        on(jax.ShapeDtypeStruct((items,), jnp.float32), sharding.REPLICATED),
    )
    arguments = state, sgd_rows.Block(ids, ids, label), order, penalties, 0.1, KEY
    return sgd_step.train_block.lower(*arguments, config=step).compile()


def test_only_item_rows_of_a_batch_are_exchanged_and_no_table_is_copied():
    found = compiled(8)
    received = hlo.received_bytes(found.as_text())
    one_way = 7 * 256 * (4 + 16 * 4)  # ids and rows of 16 numbers from seven owners
    assert received["all-to-all"] == 16 * 2 * one_way
    assert sum(received.values()) < 1.05 * received["all-to-all"]
    table = 400_000 * 16 * 4 // 8
    assert found.memory_analysis().temp_size_in_bytes < table
