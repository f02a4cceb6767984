"""Small helpers: shapes, their bytes and tiles, sums of equal ids, and an all-reduce."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from cadc_jax.tables.packed import stored_width

_SUBLANES = 8  # a TPU stores a float32 table in tiles of 8 rows x 128 lanes
CPU, GPU, TPU = "cpu", "gpu", "tpu"  # platforms


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


def table_bytes(rows: int, width: int, itemsize: int, platform: str) -> int:
    """Bytes that a table [rows, width] takes; a TPU pads it to whole tiles."""
    if platform == TPU:
        rows, width = up(rows, _SUBLANES) * _SUBLANES, stored_width(width, platform)
    return rows * width * itemsize


def doublings(rows: int) -> int:
    """Most turns of the loop that sums the gradients of equal ids: one id is in every row."""
    return math.ceil(math.log2(max(rows, 2)))


def sums_of_equal_ids(rows: int, platform: str) -> int:
    """How often `sparse_optimizers` writes or reads each gradient to sum those of equal ids.

    A CPU adds them to the first of their id. Others put them in order, and in each turn of a loop
    read two of them and write the sum.

    Args:
      rows: of a batch.
      platform: what the devices are.
    """
    return 3 if platform == CPU else 2 + 3 * doublings(rows)


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    """A float32 array's shape."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    """An int32 array's shape."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)
