"""Small helpers: shapes, their bytes, and the bytes of an all-reduce."""

from typing import Any

import jax
import jax.numpy as jnp


def all_reduce(size: float, devices: int) -> float:
    """Bytes that a device receives when `size` bytes are all-reduced in a ring.

    A reduce-scatter and an all-gather each send all parts but one.
    """
    return 2 * (devices - 1) / devices * size


def up(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes, of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    """A float32 array's shape."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    """An int32 array's shape."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)
