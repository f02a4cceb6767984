"""Counts in small programs whose traffic can be worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cadc_jax import sharding
from cadc_jax.cost import hlo

ROWS = 16  # of 4 float32 on 8 devices: 256 bytes in all, 32 on each


def text_of(function, out=sharding.BATCH):
    mesh = sharding.make_mesh()
    where = sharding.named(mesh, sharding.BATCH)
    x = jax.ShapeDtypeStruct((ROWS, 4), jnp.float32, sharding=where)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=sharding.BATCH, out_specs=out, check_vma=False
    )
    return jax.jit(mapped).lower(x).compile().as_text()


ALL = sharding.EVERYWHERE


@pytest.mark.parametrize(
    ("function", "kind", "expected"),
    [
        (lambda x: lax.all_gather(x, ALL, tiled=True) * 2, "all-gather", 7 * 32),
        (lambda x: lax.psum(x, ALL), "all-reduce", 2 * 7 / 8 * 32),
        (
            lambda x: lax.psum_scatter(jnp.tile(x, (4, 1)), ALL, tiled=True),
            "reduce-scatter",
            7 * 16,
        ),
        (
            lambda x: lax.all_to_all(jnp.tile(x, (4, 1)), ALL, 0, 0, tiled=True),
            "all-to-all",
            7 * 16,
        ),
    ],
)
def test_bytes_of_a_collective(function, kind, expected):
    found = hlo.received_bytes(text_of(function))
    assert found[kind] == expected
    assert sum(found.values()) == expected


@pytest.mark.parametrize("group", [2, 4])
def test_a_collective_of_some_devices_counts_those(group):
    groups = np.arange(8).reshape(-1, group).tolist()
    gather = functools.partial(lax.all_gather, axis_index_groups=groups, tiled=True)
    text = text_of(lambda x: gather(x, ALL) * 2)
    assert hlo.received_bytes(text)["all-gather"] == (group - 1) * 32


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x):
        return lax.fori_loop(0, 5, lambda i, y: lax.psum(y * 2, ALL), x)

    assert hlo.received_bytes(text_of(loop))["all-reduce"] == 5 * 2 * 7 / 8 * 32

    def products(x):
        return lax.fori_loop(0, 5, lambda i, y: y @ y, x)

    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    assert hlo.product_flops(jax.jit(products).lower(x).compile().as_text()) == 5 * 2 * 64**3


def test_a_ragged_exchange_counts_as_if_its_buffer_were_filled():
    """Of 8 rows of 128 numbers a quarter is the device's own. Programs for CPUs have none."""
    text = """
ENTRY %main (p: u32[8,1,128]) -> u32[8,1,128] {
  ROOT %r = u32[8,1,128]{2,1,0} ragged-all-to-all(%p, %p, %a, %b), replica_groups={{0,1,2,3}}
}
"""
    found = hlo.received_bytes(text)
    assert found["ragged-all-to-all"] == sum(found.values()) == 3 / 4 * 8 * 128 * 4
