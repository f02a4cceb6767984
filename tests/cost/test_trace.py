"""FLOPs and kernels of traced programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding
from cadc_jax.cost import trace

MATRIX = np.zeros((4, 4), np.float32)


def traced(function, *arguments):
    return jax.make_jaxpr(function)(*arguments).jaxpr


def test_matrix_products_are_counted_as_often_as_they_run():
    def three(x):
        return jax.lax.scan(lambda y, _: (y @ y, None), x, None, 3)[0]

    assert trace.product_flops(traced(three, MATRIX)) == 3 * 2 * 4**3


def test_elementwise_arithmetic_starts_no_kernel_of_its_own():
    assert trace.launches(traced(lambda x: jnp.tanh(2 * (x @ x)).sum(), MATRIX), 0) == 2


def test_a_turn_of_a_loop_starts_its_kernels_and_one_for_the_loop():
    def loop(x, turns):
        return jax.lax.fori_loop(0, turns, lambda _, y: jnp.sort(y @ y), x)

    assert trace.launches(traced(lambda x: loop(x, 5), MATRIX), 0) == 5 * (2 + 1)
    assert trace.launches(traced(loop, MATRIX, 5), 7) == 7 * (2 + 1)  # the end depends on data


def test_a_loop_of_rounds_of_an_exchange_counts_once():
    def rounds(x):
        def one(y):
            return jax.lax.psum(y @ y, sharding.EVERYWHERE)

        return jax.lax.while_loop(lambda y: y[0, 0] > 0, one, x)

    mapped = jax.shard_map(
        rounds, mesh=sharding.make_mesh(), in_specs=P(), out_specs=P(), check_vma=False
    )
    assert trace.launches(traced(mapped, MATRIX), 7) == 2 + 1


def test_the_longest_branch_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: -y, x)

    assert trace.launches(traced(either, MATRIX), 0) == 2


@pytest.mark.parametrize(("platform", "count"), [("cpu", 1), ("tpu", 3), ("gpu", 2)])
def test_of_branches_for_platforms_one_counts(platform, count):
    def either(x):
        return jax.lax.platform_dependent(
            x, cpu=lambda x: x @ x, tpu=lambda x: x @ x @ x @ x, default=lambda x: x @ x @ x
        )

    assert trace.launches(traced(either, MATRIX), 0, platform) == count
