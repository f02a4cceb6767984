"""Ranks of held-out items, in the full protocol and in the sampled '1 + K' one.

A rank is the number of other items scored at least as high (so ties count against the model, and
one that scores everything alike gets no credit). Rank 0 is best. Item id 0, 'not in training',
cannot be recommended, in either protocol: held out it ranks last, as a candidate it never competes.
"""

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
      seen: training items of each user, which are left out of the ranking.
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


class SeenItems:
    """Training items of each user, as compressed rows."""

    def __init__(self, user: np.ndarray, item: np.ndarray, num_users: int):
        order = np.argsort(user, kind="stable")
        self.items = item[order]
        self.start = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=num_users))])
        self.longest = int(np.diff(self.start).max(initial=0))

    def padded(self, users: np.ndarray) -> np.ndarray:
        """[B] users -> [B, longest] int32 items, filled up with id 0 (never recommended)."""
        start, length = self.start[users], self.start[users + 1] - self.start[users]
        place = np.arange(self.longest)
        inside = place < length[:, None]
        return np.where(inside, self.items[np.where(inside, start[:, None] + place, 0)], 0)


@jax.jit
def _ranks_among(scores: jax.Array, candidates: np.ndarray) -> jax.Array:
    """[B, 1 + K] scores of the held-out item and its negatives, and their ids -> [B] ranks."""
    own = scores[:, :1]
    others = jnp.where(candidates[:, 1:] == 0, -jnp.inf, scores[:, 1:])
    ranks = jnp.sum(~(others < own), axis=1)  # so that NaN ranks last
    return jnp.where(candidates[:, 0] == 0, others.shape[1], ranks)


@jax.jit
def _ranks_in_grid(scores: jax.Array, item: np.ndarray, excluded: np.ndarray) -> jax.Array:
    """[B, I] scores, [B] held-out items, [B, L] items left out -> [B] ranks."""
    rows = jnp.arange(len(item))[:, None]
    own = scores[rows, item[:, None]]
    candidates = scores.at[rows, excluded].set(-jnp.inf).at[:, 0].set(-jnp.inf)
    candidates = candidates.at[rows, item[:, None]].set(-jnp.inf)
    ranks = jnp.sum(~(candidates < own), axis=1)  # so that NaN ranks last
    return jnp.where(item == 0, scores.shape[1], ranks)


def _in_blocks(
    ranks_of: Callable[..., jax.Array], columns: tuple[np.ndarray, ...], block: int
) -> np.ndarray:
    """`ranks_of` the columns [N, ...], `block` rows at a time: [N] ranks.

    The last block repeats the last row to be as long as the others.
    """
    rows = len(columns[0])
    ranks = []
    for start in range(0, rows, block):
        places = np.minimum(np.arange(start, start + block), rows - 1)
        found = ranks_of(*(np.asarray(column[places]) for column in columns))
        ranks.append(np.asarray(sharding.local(found)))
    return np.concatenate(ranks)[:rows]
