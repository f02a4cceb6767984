"""Rows that are asked of their owners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.tables import dealt, exchange
from cadc_jax.tables.dealt import Dealt
from cadc_jax.tables.rounds import Capacity

V, D = 50, 4


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


@pytest.mark.usefixtures("ragged_on_cpus")
@pytest.mark.parametrize("room", [Capacity(2), Capacity(8, 64)], ids=["filled up", "ragged"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", [3, 5, 64, 128])
def test_rows_of_any_width_and_type_come_as_they_are(width, dtype, room):
    """Two numbers of 16 bits travel as one of 32, and narrow rows of a ragged exchange together."""
    mesh = sharding.make_mesh()
    table = jax.random.normal(jax.random.key(0), (64, width), dtype)
    form = Dealt(dealt.put(np.asarray(table), mesh), mesh)
    ids = jax.random.randint(jax.random.key(1), (64,), 0, 64)
    ids = jax.device_put(ids, sharding.named(mesh, sharding.BATCH))
    rows = jax.jit(exchange.on_owners, static_argnums=2)(form, ids, room)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, table[ids])


def test_an_even_row_of_16_bits_takes_half_of_the_words():
    for width, words in ((4, 2), (5, 3), (1, 1)):
        rows = jnp.arange(2 * width, dtype=jnp.bfloat16).reshape(2, width)
        packed = exchange.as_words(rows)
        assert packed.shape == (2, words) and packed.dtype == jnp.uint32
        np.testing.assert_array_equal(exchange.numbers(packed, width, rows.dtype), rows)
