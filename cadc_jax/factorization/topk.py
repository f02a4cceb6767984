"""The k items with the highest scores, exact, scored a block of items at a time."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P


@functools.partial(jax.jit, static_argnames=("k", "block", "mesh"))
def retrieve(
    queries: jax.Array,
    items: jax.Array,
    k: int,
    exclude: jax.Array | None = None,
    *,
    block: int = 8192,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k items with the largest inner product with each query, best first, in one program.

    Among equal scores the lower id wins.

    Args:
      queries: [B, D] float.
      items: [I, D] float.
      k: at most I.
      exclude: [B, L] int32, ids that must not be returned to that query, padded with -1; or None.
      block: items scored at once.
      mesh: devices to spread the items over (all its axes); None for one device.

    Returns:
      scores [B, k] float32 and ids [B, k] int32. If a query has fewer than k items left, the rest
      have score -inf and id -1.

    Raises:
      ValueError: if k is not in [1, I].
    """
    num_items = len(items)
    _check(k, num_items)
    if exclude is None:
        exclude = jnp.zeros((len(queries), 0), jnp.int32)
    devices = 1 if mesh is None else mesh.size
    rows = -(-num_items // devices)  # of each device, padding included
    block = min(block, rows)
    if padding := rows * devices - num_items:  # copies the table
        items = jnp.pad(items, ((0, padding), (0, 0)))
    search = functools.partial(_search, k=k, block=block, num_items=num_items)
    if mesh is None:
        return search(queries, items, exclude, 0)

    def search_shard(queries, items, exclude):
        first = lax.axis_index(mesh.axis_names) * rows
        found = search(queries, items, exclude, first)
        scores, ids = (lax.all_gather(x, mesh.axis_names, axis=1, tiled=True) for x in found)
        return _best(scores, ids, k)

    return jax.shard_map(
        search_shard,
        mesh=mesh,
        in_specs=(P(), P(mesh.axis_names), P()),
        out_specs=P(),
        check_vma=False,
    )(queries, items, exclude)


def search(
    score: Callable[[np.ndarray], jax.Array],
    items: range,
    k: int,
    exclude: np.ndarray,
    block: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k items with the highest scores for each query, by any scoring function.

    The host goes through the blocks. Among equal scores the lower id wins.

    Args:
      score: ids [block] int32 -> scores [B, block] of all queries. Scores of ids that repeat at the
        end of the last block are ignored.
      items: ids of the candidates.
      k: at most the number of items.
      exclude: [B, L] int32, ids that must not be returned to that query, padded with -1.
      block: items scored at once.

    Returns:
      scores [B, k] float32 and ids [B, k] int32, as `retrieve`.

    Raises:
      ValueError: if k is not in [1, number of items].
    """
    _check(k, len(items))
    best = _nothing(len(exclude), k)
    block = min(block, len(items))
    for start in items[::block]:
        ids = np.minimum(np.arange(start, start + block, dtype=np.int32), items[-1])
        best = _merge(best, score(ids), start, items.stop, exclude)
    scores, ids = (np.asarray(x) for x in best)
    return scores, ids


def _search(queries, items, exclude, first, *, k, block, num_items):
    """The best of `items`, whose ids count from `first`; ids from `num_items` on are padding."""

    def step(best, start):
        at = jnp.minimum(
            start, len(items) - block
        )  # the last block repeats items of the one before
        scores = jnp.einsum(
            "bd,nd->bn",
            queries,
            lax.dynamic_slice_in_dim(items, at, block),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        scores = jnp.where(at + jnp.arange(block) >= start, scores, -jnp.inf)
        return _with_block(best, scores, first + at, num_items, exclude), None

    starts = jnp.arange(0, len(items), block, dtype=jnp.int32)
    best, _ = lax.scan(step, _nothing(len(queries), k), starts)
    return best


def _with_block(best, scores, start, end, exclude):
    """The k best of those so far [B, k] and of a block of scores [B, G], for ids from `start` on.

    Ids from `end` on are padding.
    """
    block = scores.shape[1]
    rows = jnp.arange(len(scores))[:, None]
    ids = jnp.broadcast_to(start + jnp.arange(block, dtype=jnp.int32), scores.shape)
    inside = (exclude >= start) & (exclude < start + block)
    column = jnp.where(inside, exclude - start, block)
    scores = scores.astype(jnp.float32).at[rows, column].set(-jnp.inf, mode="drop")
    scores = jnp.where(ids < end, scores, -jnp.inf)
    scores, ids = (jnp.concatenate(pair, 1) for pair in zip(best, (scores, ids), strict=True))
    return _best(scores, ids, best[0].shape[1])


_merge = jax.jit(_with_block, donate_argnums=0)


def _best(scores, ids, k):
    """The k best columns of each row; earlier columns first among equals."""
    scores, column = lax.top_k(scores, k)
    ids = jnp.take_along_axis(ids, column, 1)
    return scores, jnp.where(scores > -jnp.inf, ids, -1)


def _nothing(queries: int, k: int) -> tuple[jax.Array, jax.Array]:
    return jnp.full((queries, k), -jnp.inf), jnp.full((queries, k), -1, jnp.int32)


def _check(k: int, num_items: int) -> None:
    if not 1 <= k <= num_items:
        raise ValueError(f"k={k} is not between 1 and the number of items, {num_items}")
