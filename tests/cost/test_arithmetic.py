"""Bytes and roundings by hand."""

import jax
import jax.numpy as jnp
import pytest

from cadc_jax.cost import arithmetic


def test_an_all_reduce_receives_all_parts_but_one_twice():
    assert arithmetic.all_reduce(100.0, 1) == 0
    assert arithmetic.all_reduce(100.0, 4) == 150  # 3 of 4 parts, reduced and gathered


@pytest.mark.parametrize(("a", "b", "expected"), [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2)])
def test_quotients_are_rounded_up(a, b, expected):
    assert arithmetic.up(a, b) == expected


def test_the_bytes_of_a_tree_are_those_of_its_arrays_and_shapes():
    tree = {"x": jnp.zeros((2, 3)), "y": [jax.ShapeDtypeStruct((5,), jnp.bfloat16)]}
    assert arithmetic.tree_bytes(tree) == 2 * 3 * 4 + 5 * 2


def test_shapes_have_the_type_of_their_name():
    assert arithmetic.f32(2, 3) == jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert arithmetic.i32() == jax.ShapeDtypeStruct((), jnp.int32)
