"""Tables whose narrow rows lie side by side in rows of 128 numbers, as a TPU stores them.

A TPU keeps the last axis of an array in lanes of 128. A table [V, 64] either fills half of its
lanes, or is stored by columns and copied as a whole before its rows can be read. A packed table is
the same numbers as [V / 2, 128]: row r is part r % 2 of the wide row r // 2. Reading takes the wide
rows and selects their parts; writing adds to wide rows what is zero outside of the parts.

All functions take plain tables too, and give the same bits for both.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

LANES = 128
NARROWEST = 8  # a row of fewer numbers would be selected from too many parts
NOTHING = np.float32(-0.0)  # changes no number when it is added; 0.0 would change -0.0


@struct.dataclass
class Packed:
    """A table [V, D] as [V * D / 128, 128].

    Attributes:
      wide: [V * D / 128, 128] float32.
      width: D, a divisor of 128.
    """

    wide: jax.Array
    width: int = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(V, D)."""
        return len(self), self.width

    @property
    def dtype(self) -> np.dtype:
        """That of the numbers."""
        return self.wide.dtype

    @property
    def ndim(self) -> int:
        """Axes of the table: 2."""
        return 2

    def __len__(self) -> int:
        """V."""
        return len(self.wide) * rows_together(self.width)


AnyTable = Any  # jax.Array | Packed, or its shape


def rows_together(width: int) -> int:
    """Rows of a table of this width in a wide row."""
    return LANES // width


def stored_width(width: int, platform: str) -> int:
    """Numbers that a row of `width` takes in memory: a TPU fills up its last lanes."""
    return width + -width % LANES if platform == "tpu" else width


def can_pack(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether a table of this shape and dtype can be packed, and gains by it."""
    narrow = len(shape) == 2 and NARROWEST <= shape[1] < LANES and LANES % shape[1] == 0
    return narrow and dtype == jnp.float32


def pack(table: jax.Array | np.ndarray) -> Packed:
    """[V, D] packed; V is a multiple of 128 / D."""
    wide: Any = table.reshape(-1, LANES)
    return Packed(wide, table.shape[1])


def zeros_like(table: AnyTable, dtype: Any) -> AnyTable:
    """A table of zeros in the same form."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), table)


def plain(tree: Any) -> Any:
    """The tree with every packed table as [V, D]."""
    return jax.tree.map(
        lambda x: x.wide.reshape(x.shape) if isinstance(x, Packed) else x, tree, is_leaf=_is_packed
    )


def read(table: AnyTable, ids: jax.Array) -> jax.Array:
    """Rows [n, D] of ids [n]. A negative id or one past the end reads the last row."""
    if not isinstance(table, Packed):
        return _rows(table, ids)
    together, width = rows_together(table.width), table.width
    ids = jnp.where((ids < 0) | (ids >= len(table)), len(table) - 1, ids)
    wide = _rows(table.wide, ids // together)
    part = (ids % together)[:, None]
    rows = wide[:, :width]
    for k in range(1, together):
        rows = jnp.where(part == k, wide[:, k * width : (k + 1) * width], rows)
    return rows


def add(
    table: AnyTable,
    ids: jax.Array,
    change: jax.Array,
    *,
    unique: bool = False,
    ascending: bool = False,
) -> AnyTable:
    """Adds change [n, D] to the rows of ids [n] >= 0; ids past the end are dropped.

    Args:
      table: [V, D], or [V] with changes [n].
      ids: [n] int32.
      change: [n, D].
      unique: whether no id occurs twice.
      ascending: whether the ids that are not past the end ascend; a packed table then needs no
        sort on a TPU.
    """
    if not isinstance(table, Packed):
        return table.at[ids].add(change, mode="drop", unique_indices=unique)
    together = rows_together(table.width)
    if ascending:  # those past the end get the next id instead, and change nothing there
        change = jnp.where((ids < len(table))[:, None], change, NOTHING)
        ids = jax.lax.cummin(ids, reverse=True)
    there = jnp.arange(LANES) // table.width == (ids % together)[:, None]
    wide = jnp.where(there, jnp.tile(change, (1, together)), NOTHING)
    places = table.wide.at[ids // together]
    sums = places.add(wide, mode="drop", indices_are_sorted=ascending)
    return dataclasses.replace(table, wide=sums)


def write(
    table: AnyTable, ids: jax.Array, old: jax.Array, new: jax.Array, *, ascending: bool = False
) -> AnyTable:
    """Replaces the rows of unique ids [n] >= 0, now `old` [n, D], by `new`.

    Ids and `ascending` are as for `add`. Several rows of a wide row may change, so that wide rows
    cannot be set in a packed table. There the old numbers are subtracted, which leaves exact zeros,
    and the new ones are added.
    """
    if not isinstance(table, Packed):
        return table.at[ids].set(new, mode="drop", unique_indices=True)
    return add(add(table, ids, -old, ascending=ascending), ids, new, ascending=ascending)


def _rows(array: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of ids [n], which are clipped."""
    rows = array.at[ids].get(mode="clip")
    # In products that round their inputs a TPU's compiler might round the whole table instead.
    return jax.lax.platform_dependent(
        rows, tpu=jax.lax.optimization_barrier, default=lambda rows: rows
    )


def _is_packed(x: Any) -> bool:
    return isinstance(x, Packed)
