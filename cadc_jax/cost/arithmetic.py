"""Bytes of shapes, and of what devices send each other."""

from typing import Any

import jax
import jax.numpy as jnp


def all_reduce(size: float, devices: int) -> float:
    """Bytes that a device receives in a ring: a reduce-scatter, then an all-gather."""
    return 2 * (devices - 1) / devices * size


def up(a: int, b: int) -> int:
    return -(-a // b)


def tree_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
