"""Room for the rows of a round, and what devices agree on in rounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.cost import hlo
from cadc_jax.tables import exchange, rounds
from cadc_jax.tables.rounds import Capacity

room = functools.partial(rounds.capacity, ragged=False)


@pytest.mark.parametrize("devices", [4, 32])
@pytest.mark.parametrize("distinct", [100, 20_000])
def test_few_steps_need_more_than_one_round(devices, distinct):
    """Distinct ids of a table that is much larger, in 30 steps."""
    rng = np.random.default_rng(0)
    room = rounds.capacity(distinct, devices, 10**9, ragged=False).pair
    asked = rng.multinomial(distinct, np.full(devices, 1 / devices), (30, devices))
    assert (asked.max(axis=(1, 2)) > room).mean() <= 0.1
    assert room < 1.3 * asked.max() + 8  # nor is there much room that is never used


def test_room_is_bounded_by_the_ids_and_by_the_rows_of_an_owner():
    assert room(3, 8, 10**9) == Capacity(3)
    assert room(10**6, 8, 80) == Capacity(10)
    assert room(0, 8, 80) == Capacity(1)


def test_the_padding_of_a_large_batch_is_small():
    for devices, most in ((8, 1.03), (64, 1.1), (256, 1.2)):
        assert devices * room(8192 * 24, devices, 10**9).pair < most * 8192 * 24


@pytest.mark.parametrize("devices", [4, 32, 256])
def test_few_steps_of_a_ragged_exchange_need_more_room_at_an_owner(devices):
    """A tenth of the ids is wanted by all devices, and dealt out evenly."""
    rng, distinct = np.random.default_rng(0), 50_000
    total = rounds.capacity(distinct, devices, 10**9, ragged=True).total
    everywhere = np.bincount(np.arange(distinct // 10) % devices, minlength=devices) * devices
    own = rng.multinomial(distinct * 9 // 10 * devices, np.full(devices, 1 / devices), 30)
    assert ((everywhere + own).max(axis=1) > total).mean() <= 0.1


def test_the_room_of_a_ragged_exchange_hardly_depends_on_the_number_of_devices():
    n = 8192 * 24
    totals = [rounds.capacity(n, devices, 10**9, ragged=True).total for devices in (8, 64, 256)]
    assert max(totals) < 1.05 * n and max(totals) < 1.03 * min(totals)


def test_the_room_of_a_ragged_exchange_is_at_most_that_of_filled_up_buffers_and_a_row_a_device():
    for distinct in (0, 1, 3, 1000):
        found = rounds.capacity(distinct, 8, 10**9, ragged=True)
        assert found.pair == room(distinct, 8, 10**9).pair
        assert 8 <= found.total <= 8 * found.pair


def test_the_most_that_is_received_is_that_of_the_compiled_program():
    mesh = sharding.make_mesh()
    table = jax.ShapeDtypeStruct((800, 4), jnp.float32)
    where = sharding.named(mesh, sharding.TABLE)
    ids = jax.ShapeDtypeStruct((80,), jnp.int32, sharding=where)
    run = jax.shard_map(
        functools.partial(exchange.lookup, capacity=Capacity(7)),
        mesh=mesh,
        in_specs=sharding.TABLE,
        out_specs=sharding.TABLE,
        check_vma=False,
    )
    table = jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=where)
    received = hlo.received_bytes(jax.jit(run).lower(table, ids).compile().as_text())
    assert sum(received.values()) == rounds.received_bytes(Capacity(7), 8, 4 * 4)
