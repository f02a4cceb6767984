"""Tables whose rows are dealt out to devices in turn: row r belongs to device r mod d.

Every device gets the same share of any range of ids, and so about the same share of what a batch
asks for. A part has m = ceil(V / d) rows, and row r is in place (r mod d) * m + r // d of the whole
array, which is split evenly over the devices.
"""

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import AbstractMesh, Mesh

from cadc_jax import sharding
from cadc_jax.tables.packed import AnyTable

AnyMesh = Mesh | AbstractMesh
Ids = TypeVar("Ids", jax.Array, np.ndarray)


@struct.dataclass
class Dealt:
    """A table [V, D], the rows of the first device first.

    Attributes:
      rows: [d * m, D], plain or packed, in the order of places.
      mesh: the devices.
    """

    rows: AnyTable
    mesh: AnyMesh = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(d * m, D)."""
        shape: tuple[int, int] = self.rows.shape
        return shape

    @property
    def dtype(self) -> np.dtype:
        """That of the numbers."""
        dtype: np.dtype = self.rows.dtype
        return dtype

    @property
    def ndim(self) -> int:
        """Axes of the table: 2."""
        return 2

    def __len__(self) -> int:
        """d * m."""
        return len(self.rows)


def place(ids: Ids, parts: int, size: int) -> Ids:
    """Places of ids >= 0 among `parts` parts of `size` rows."""
    return ids % parts * size + ids // parts


def rows_of(tree: Any) -> Any:
    """The tree with every dealt table as its rows in the order of places."""
    return jax.tree.map(lambda x: x.rows if is_dealt(x) else x, tree, is_leaf=is_dealt)


def like(tree: Any, rows: Any) -> Any:
    """`rows`, with the tables dealt that are so in `tree`."""

    def form(x: Any, rows: Any) -> Any:
        return dataclasses.replace(x, rows=rows) if is_dealt(x) else rows

    return jax.tree.map(form, tree, rows, is_leaf=is_dealt)


def is_dealt(x: Any) -> bool:
    """Whether it is a dealt table."""
    return isinstance(x, Dealt)


def part_of(table: np.ndarray, nth: int, parts: int, size: int) -> np.ndarray:
    """The rows [size, ...] of one device; rows past the end of the table [V, ...] are zeros."""
    own = table[nth::parts]
    return np.pad(own, ((0, size - len(own)),) + ((0, 0),) * (own.ndim - 1))


def put(table: np.ndarray, mesh: Mesh) -> jax.Array:
    """A table [V, D] of the host in the order of places: [d * m, D], each part on its device."""
    parts = mesh.size
    size = -(-len(table) // parts)

    def part(index: Any) -> np.ndarray:
        return part_of(table, (index[0].start or 0) // max(size, 1), parts, size)

    shape = parts * size, *table.shape[1:]
    return jax.make_array_from_callback(shape, sharding.named(mesh, sharding.TABLE), part)


def in_order(x: jax.Array, mesh: AnyMesh) -> jax.Array:
    """An array [d * m, ...] in the order of places as one in the order of ids, with more rows.

    Both are split over the devices. No device holds more than a few parts.
    """

    def local(x: jax.Array) -> jax.Array:
        parts = _to_blocks(jnp.pad(x, ((0, -len(x) % mesh.size),) + ((0, 0),) * (x.ndim - 1)), mesh)
        return parts.swapaxes(0, 1).reshape(-1, *x.shape[1:])

    return _on_all(local, mesh)(x)


def in_places(x: jax.Array, mesh: AnyMesh, size: int) -> jax.Array:
    """The inverse of `in_order`: [d * m, ...], m = `size`, in the order of places."""

    def local(x: jax.Array) -> jax.Array:
        blocks = x.reshape(-1, mesh.size, *x.shape[1:]).swapaxes(0, 1)
        parts = _to_blocks(blocks.reshape(x.shape), mesh)
        return parts.reshape(x.shape)[:size]

    return _on_all(local, mesh)(x)


def _to_blocks(x: jax.Array, mesh: AnyMesh) -> jax.Array:
    """Sends the k-th of d blocks of x [n, ...] to device k: -> [d, n / d, ...], by sender."""
    blocks = x.reshape(mesh.size, -1, *x.shape[1:])
    return lax.all_to_all(blocks, sharding.EVERYWHERE, 0, 0, tiled=True)


def _on_all(local: Any, mesh: AnyMesh) -> Any:
    return functools.partial(
        jax.shard_map, mesh=mesh, in_specs=sharding.TABLE, out_specs=sharding.TABLE, check_vma=False
    )(local)
