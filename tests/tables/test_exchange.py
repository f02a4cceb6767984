"""Rows that are asked of their owners: room for them, and reading outside of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.tables import dealt, exchange
from cadc_jax.tables.dealt import Dealt

V, D = 50, 4


@pytest.mark.parametrize("devices", [4, 32])
@pytest.mark.parametrize("distinct", [100, 20_000])
def test_few_steps_need_more_than_one_round(devices, distinct):
    """Distinct ids of a table that is much larger, in 30 steps."""
    rng = np.random.default_rng(0)
    room = exchange.capacity(distinct, devices, 10**9)
    asked = rng.multinomial(distinct, np.full(devices, 1 / devices), (30, devices))
    assert (asked.max(axis=(1, 2)) > room).mean() <= 0.1
    assert room < 1.3 * asked.max() + 8  # nor is there much room that is never used


def test_room_is_bounded_by_the_ids_and_by_the_rows_of_an_owner():
    assert exchange.capacity(3, 8, 10**9) == 3
    assert exchange.capacity(10**6, 8, 80) == 10
    assert exchange.capacity(0, 8, 80) == 1


def test_the_padding_of_a_large_batch_is_small():
    for devices, most in ((8, 1.03), (64, 1.1), (256, 1.2)):
        assert devices * exchange.capacity(8192 * 24, devices, 10**9) < most * 8192 * 24


def test_distinct_ids_are_counted_on_each_device_without_those_of_no_row():
    ids = jnp.asarray([3, 3, -1, 5] + [-1] * 4 + [7] * 8, jnp.int32)  # 2, 0, 1 and 1
    count = jax.shard_map(
        exchange.distinct,
        mesh=sharding.make_mesh(jax.devices()[:4]),
        in_specs=sharding.BATCH,
        out_specs=sharding.REPLICATED,
        check_vma=False,
    )
    assert count(ids) == 1


@pytest.mark.parametrize("n", [0, 1, 16, 45])
def test_a_dealt_table_is_read_as_the_whole_one(n):
    """Numbers of ids need not divide."""
    rng = np.random.default_rng(n)
    table, mesh = rng.normal(size=(V, D)).astype(np.float32), sharding.make_mesh()
    parts = [dealt.part_of(table, nth, 8, 7) for nth in range(8)]
    there = sharding.named(mesh, sharding.TABLE)
    form = Dealt(jax.device_put(np.concatenate(parts), there), mesh)
    assert form.shape == (56, D) and form.dtype == np.float32 and form.ndim == 2
    ids = rng.integers(-1, V, n).astype(np.int32)
    rows = np.asarray(jax.jit(exchange.read)(form, ids))
    np.testing.assert_array_equal(rows[ids >= 0], table[ids[ids >= 0]])
    assert rows.shape == (n, D) and np.isfinite(rows).all()
