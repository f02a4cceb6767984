"""Products with the Gram matrix of the interactions, G = X' W^2 X, on one device or many.

X [U, I] holds the values of the interactions and W a weight for each user. G is never formed: two
sparse products apply it. (Where G would fit, as for MovieLens 1M, a dense one is no faster on a
CPU, and takes longer to compute than all these products.) Tables of users and of items hold their
rows at the places that the layout gives them, zeros in between, and are split over the devices.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding
from cadc_jax.factorization.factors import Array
from cadc_jax.factorization.interactions import (
    Chunking,
    Chunks,
    Interactions,
    Layout,
    make_layout,
    pack,
)
from cadc_jax.tables.packed import stored_width

# Sums are in full float32 on every backend; the TPU's default would round inputs to bfloat16.
einsum = functools.partial(
    jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)

CACHED_BYTES = 1 << 20  # of rows that a CPU gathers at once: they stay in its cache
GATHERED_BYTES = 1 << 28  # the same for an accelerator, which prefers few large steps
LEAST_ENTRIES = 256  # gathered at once, however wide the rows are


@flax.struct.dataclass
class Packed:
    """X by users or by items, in chunks that are split over the devices."""

    short: Chunks
    long: Chunks
    chunk_rows: int = flax.struct.field(pytree_node=False)  # table rows of a chunk of short rows
    long_rows: int = flax.struct.field(pytree_node=False)  # table rows before those, of all devices


@flax.struct.dataclass
class Gram:
    """X and W on the devices.

    Attributes:
      users: X by users.
      items: X by items.
      weight: [rows of a table of users] float32, the square of each user's weight.
      mesh: the devices.
    """

    users: Packed
    items: Packed
    weight: jax.Array
    mesh: Mesh = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Placed:
    """Interactions on the devices, and the places of users and items in their tables."""

    gram: Gram
    users: Layout
    items: Layout

    def table(self, rows: Array) -> jax.Array:
        """The table [T, ...] float32 that holds the rows [I, ...] of all items."""
        rows = np.asarray(sharding.local(rows), np.float32)
        table = np.zeros((self.items.table_rows, *rows.shape[1:]), np.float32)
        table[self.items.position] = rows
        return sharding.put(table, _split(self.gram.mesh))

    def rows(self, table: Array) -> jax.Array:
        """The rows [I, ...] of all items in a table."""
        return _gather(table, self.items.position)

    def encode(self, encoder: jax.Array) -> jax.Array:
        """X P [U, D] float32, with P a table [T, D] of items."""
        table = user_product(self.gram, encoder)
        return jnp.asarray(_gather(sharding.local(table), self.users.position))


def place(
    interactions: Interactions, weight: np.ndarray, width: int, mesh: Mesh | None = None
) -> Placed:
    """Packs the interactions and puts them on the devices.

    Args:
      interactions: X.
      weight: [U], the square of each user's weight.
      width: columns of the tables to multiply with, about. It sets how much is gathered at once.
      mesh: devices to spread users and items over (all its axes); None for one device of this
        process.
    """
    if mesh is None:
        mesh = Mesh(np.array(jax.local_devices()[:1]), (sharding.EVERYWHERE,))
    chunks = chunking(width, sharding.platform(mesh))
    both = interactions.by_user, interactions.by_item
    users, items = (make_layout(side.counts, chunks, mesh.size) for side in both)
    own = sharding.own_parts(mesh)

    def packed(side, layout, other):
        short, long = sharding.put_own(pack(side, layout, other.position, own), mesh)
        return Packed(
            short=short, long=long, chunk_rows=layout.chunk_rows, long_rows=layout.long_rows
        )

    table = np.zeros(users.table_rows, np.float32)
    table[users.position] = weight
    gram = Gram(
        users=packed(both[0], users, items),
        items=packed(both[1], items, users),
        weight=sharding.put(table, _split(mesh)),
        mesh=mesh,
    )
    return Placed(gram, users, items)


def chunking(width: int, platform: str) -> Chunking:
    """How much a 'cpu', 'gpu' or 'tpu' gathers at once, for tables of about so many columns."""
    room = CACHED_BYTES if platform == "cpu" else GATHERED_BYTES
    return Chunking(max(LEAST_ENTRIES, room // (4 * stored_width(width, platform))))


@jax.jit
def product(gram: Gram, table: jax.Array) -> jax.Array:
    """G times a table [T, K] of items: [T, K] float32."""
    users = user_product(gram, table) * gram.weight[:, None]
    return _sparse_product(gram.items, users, gram.mesh)


@jax.jit
def user_product(gram: Gram, table: jax.Array) -> jax.Array:
    """X times a table [T, K] of items: a table of users [rows, K], float32."""
    return _sparse_product(gram.users, table, gram.mesh)


def _split(mesh: Mesh) -> NamedSharding:
    return sharding.named(mesh, P(mesh.axis_names))


@jax.jit
def _gather(table: jax.Array, position: Array) -> jax.Array:
    return table.at[position].get(mode="promise_in_bounds")


def _sparse_product(packed: Packed, fixed: jax.Array, mesh: Mesh) -> jax.Array:
    """X by one side, times a table of the other side. Each device computes the rows it stores."""
    rows = P(mesh.axis_names)
    local = functools.partial(
        _local_product,
        chunk_rows=packed.chunk_rows,
        long_rows=packed.long_rows,
        axes=mesh.axis_names,
    )
    everywhere = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return everywhere(packed.short, packed.long, fixed)


def _local_product(short, long, fixed, *, chunk_rows, long_rows, axes):
    """`_sparse_product` on this device; long rows are added up over the chunks of all devices."""
    whole = lax.all_gather(fixed, axes, tiled=True)

    def sums(chunk: Chunks) -> jax.Array:  # [S, K], of each segment
        found = whole.at[chunk.index].get(mode="promise_in_bounds")
        return einsum("slk,sl->sk", found, _values(chunk))

    def rows_of(chunk: Chunks) -> jax.Array:
        return jax.ops.segment_sum(sums(chunk), chunk.row, chunk_rows, indices_are_sorted=True)

    found = lax.map(rows_of, short).reshape(-1, fixed.shape[1])
    if not long_rows:
        return found

    def add(total: jax.Array, chunk: Chunks) -> tuple[jax.Array, None]:
        return total.at[chunk.row].add(sums(chunk), indices_are_sorted=True), None

    total, _ = lax.scan(add, jnp.zeros((long_rows, fixed.shape[1])), long)
    return jnp.concatenate([lax.psum_scatter(total, axes, tiled=True), found])


def _values(chunk: Chunks) -> jax.Array:
    """[S, L] float32, 0 for padding."""
    real = jnp.arange(chunk.index.shape[-1]) < chunk.length[:, None]
    return jnp.where(real, 1.0 if chunk.value is None else chunk.value, 0.0)
