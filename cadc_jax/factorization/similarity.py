"""Items that are similar: of a small angle between their vectors."""

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.factorization import topk
from cadc_jax.factorization.factors import Array

ITEM_BLOCK = 1 << 14  # items compared at a time, at most


def directions(item: Array) -> np.ndarray:
    """Vectors [I, D] of length 1 in the directions of the items; 0 of an item that is 0."""
    table = np.asarray(item, np.float32)
    length = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(length > 0, length, 1)


def nearest(
    directions: np.ndarray, items: np.ndarray, k: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k items of largest cosine with each of some items, best first, without the item itself.

    Args:
      directions: [I, D] float32, as `directions` gives them; items of 0 are nobody's.
      items: [B] integer in [0, I).
      k: at most I.
      block: items to compare with all at a time; the last ones are padded to so many.

    Returns:
      cosines [B, k] float32 and ids [B, k] int32; -inf and -1 where there are no more items.
    """
    table = jnp.asarray(directions)
    there = jnp.asarray(directions.any(1))
    cosines = np.zeros((len(items), k), np.float32)
    ids = np.zeros((len(items), k), np.int32)
    for start in range(0, len(items), block):
        part = np.asarray(items[start : start + block], np.int32)
        padded = np.pad(part, (0, block - len(part)), mode="edge")  # one shape, one program
        found = topk.search(
            lambda others, queries=padded: _cosines(table, there, queries, others),  # type: ignore[misc]
            range(len(table)),
            k,
            padded[:, None],
            ITEM_BLOCK,
        )
        cosines[start : start + block], ids[start : start + block] = (x[: len(part)] for x in found)
    return cosines, ids


@jax.jit
def _cosines(table: jax.Array, there: jax.Array, queries: Array, others: Array) -> jax.Array:
    """Cosines [B, G] of items [B] with others [G]; -inf where another has no direction."""
    with jax.default_matmul_precision("float32"):
        found = table[queries] @ table[others].T
    return jnp.where(there[others], found, -jnp.inf)
