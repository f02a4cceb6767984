"""Ranks of held-out items, in the full protocol and in the sampled '1 + K' one.

A rank is the number of other items with at least the same score. Rank 0 is best. Ties count against
the model: one that scores everything alike gets no credit. Item id 0, 'not in training', cannot be
recommended in either protocol. Held out it ranks last, and it never competes as a candidate.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax import sharding

ScoreGrid = Callable[[np.ndarray], jax.Array]  # users [B] int32 -> scores [B, I]
ScoreItems = Callable[[np.ndarray, np.ndarray], jax.Array]  # users [B], items [B, G] -> [B, G]


def full_ranks(
    score_grid: ScoreGrid, user: np.ndarray, item: np.ndarray, seen: "SeenItems", block: int
) -> np.ndarray:
    """Rank of each held-out item among all items the user has not seen in training.

    Args:
      score_grid: scores of all items for a block of users.
      user: [N] int32.
      item: [N] int32 held-out items.
      seen: items of each user to leave out of the ranking.
      block: users scored at a time.

    Returns:
      [N] int32 ranks.
    """

    def ranks_of(users: np.ndarray, items: np.ndarray) -> jax.Array:
        return _ranks_in_grid(score_grid(users), items, seen.padded(users))

    return _in_blocks(ranks_of, (user, item), block)


def sampled_ranks(
    score_items: ScoreItems, user: np.ndarray, item: np.ndarray, negatives: np.ndarray, block: int
) -> np.ndarray:
    """Rank of each held-out item among its K given negatives.

    Args:
      score_items: scores of each user's own candidates.
      user: [N] int32.
      item: [N] int32.
      negatives: [N, K] int32.
      block: users scored at a time.

    Returns:
      [N] int32 ranks.
    """

    def ranks_of(users: np.ndarray, items: np.ndarray, negatives: np.ndarray) -> jax.Array:
        candidates = np.concatenate([items[:, None], negatives], axis=1)
        return _ranks_among(score_items(users, candidates), candidates)

    return _in_blocks(ranks_of, (user, item, negatives), block)


@dataclasses.dataclass(frozen=True)
class SeenItems:
    """Items that each user has seen, as compressed rows.

    Attributes:
      offsets: [U + 1] int64; the items of user u are `items[offsets[u] : offsets[u + 1]]`.
      items: [P] int32.
    """

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def of_pairs(cls, user: np.ndarray, item: np.ndarray, num_users: int) -> "SeenItems":
        """Groups pairs of user [P] and item [P] by user."""
        order = np.argsort(user, kind="stable")
        counts = np.bincount(user, minlength=num_users)
        return cls(np.concatenate([[0], np.cumsum(counts)]), np.asarray(item)[order])

    @functools.cached_property
    def longest(self) -> int:
        """L, the largest number of items of a user."""
        return int(np.diff(self.offsets).max(initial=0))

    def padded(self, users: np.ndarray, fill: int = 0) -> np.ndarray:
        """Items [B, L] int32 of users [B]; shorter lists are filled up with `fill`."""
        if not len(self.items):
            return np.zeros((len(users), 0), np.int32)
        places = self.offsets[users][:, None] + np.arange(self.longest)
        inside = places < self.offsets[users + 1][:, None]
        found = self.items[np.where(inside, places, 0)]
        return np.where(inside, found, fill).astype(np.int32)


@jax.jit
def _ranks_among(scores: jax.Array, candidates: np.ndarray) -> jax.Array:
    """[B, 1 + K] scores of the held-out item and its negatives, and their ids -> [B] ranks."""
    own = scores[:, :1]
    others = jnp.where(candidates[:, 1:] == 0, -jnp.inf, scores[:, 1:])
    ranks = jnp.sum(~(others < own), axis=1)  # NaN ranks last
    return jnp.where(candidates[:, 0] == 0, others.shape[1], ranks)


@jax.jit
def _ranks_in_grid(scores: jax.Array, item: np.ndarray, excluded: np.ndarray) -> jax.Array:
    """[B, I] scores, [B] held-out items, [B, L] items left out -> [B] ranks."""
    rows = jnp.arange(len(item))[:, None]
    own = scores[rows, item[:, None]]
    candidates = scores.at[rows, excluded].set(-jnp.inf).at[:, 0].set(-jnp.inf)
    candidates = candidates.at[rows, item[:, None]].set(-jnp.inf)
    ranks = jnp.sum(~(candidates < own), axis=1)  # NaN ranks last
    return jnp.where(item == 0, scores.shape[1], ranks)


def _in_blocks(
    ranks_of: Callable[..., jax.Array], columns: tuple[np.ndarray, ...], block: int
) -> np.ndarray:
    """Ranks [N] of the columns [N, ...], computed `block` rows at a time.

    The last block repeats the last row: all blocks have one shape.
    """
    rows = len(columns[0])
    ranks = []
    for start in range(0, rows, block):
        places = np.minimum(np.arange(start, start + block), rows - 1)
        found = ranks_of(*(np.asarray(column[places]) for column in columns))
        ranks.append(np.asarray(sharding.local(found)))
    return np.concatenate(ranks)[:rows]
