"""Ranks of held-out items, in the full protocol and in the sampled '1 + K' one.

A rank is the number of other items with at least the same score. Rank 0 is best. Ties count against
the model: one that scores everything alike gets no credit. Item id 0, 'not in training', cannot be
recommended in either protocol. Held out it ranks last, and it never competes as a candidate.

In the full protocol all items are scored once for each user. What the user has seen does not
compete, and neither do the other held-out items of the user. So the j-th best held-out item of a
user, counted from 0, is at place rank + j of the user's list.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cadc_jax import sharding

# Held-out items of a user that are ranked at a time. A user with more is scored once for each
# group, because the user with the most sets the width of a block.
GROUP = 64

ScoreGrid = Callable[[np.ndarray], jax.Array]  # users [B] int32 -> scores [B, I]
ScoreItems = Callable[[np.ndarray, np.ndarray], jax.Array]  # users [B], items [B, G] -> [B, G]
Keep = Callable[[np.ndarray], None]  # takes lists [B, K] int32 of the best items; 0 is padding


def full_ranks(
    score_grid: ScoreGrid,
    user: np.ndarray,
    item: np.ndarray,
    seen: "SeenItems",
    block: int,
    lists: tuple[int, Keep] | None = None,
) -> np.ndarray:
    """Rank of each held-out item among all items the user has not seen and that are not held out.

    Args:
      score_grid: scores of all items for a block of users.
      user: [N] int32, in any order.
      item: [N] int32 held-out items; all held-out items of a user are among the rows.
      seen: items of each user to leave out of the ranking.
      block: users scored at a time.
      lists: a length K and what to do with the lists of each block of users: their K best items
        among all that they have not seen, best first. None makes no lists.

    Returns:
      [N] int32 ranks; the number of items, which no candidate reaches, for id 0 and for a score
      that is not a number.
    """
    held_out = SeenItems.of_pairs(user, item, len(seen.offsets) - 1)
    length, keep = lists or (0, None)
    ranks = np.empty(len(user), np.int32)
    for users, rows in _user_blocks(user, block):
        inside = rows >= 0
        items = np.where(inside, np.asarray(item)[rows], 0).astype(np.int32)
        excluded, steps = (seen.padded(users), held_out.padded(users)), inside.sum(1).max()
        made = _rank_users(score_grid(users), items, *excluded, steps, length=length)
        found, best = (np.asarray(sharding.local(x)) for x in made)
        ranks[rows[inside]] = found[inside]
        if keep is not None:
            keep(best)
    return ranks


def _user_blocks(user: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Users [B] int32 and their rows [B, G], of `user` [N], filled up with -1; all of one shape.

    Users with many rows come first. So users of a block have about as many rows, and little of the
    block's work is for padding. Where all have one row, they come in the order of their ids. The
    last block repeats the last user.
    """
    order = np.argsort(user, kind="stable")
    ids, starts, counts = np.unique(user[order], return_index=True, return_counts=True)
    groups = -(-counts // GROUP)
    owner = np.repeat(np.arange(len(ids)), groups)
    skipped = (np.arange(len(owner)) - np.repeat(np.cumsum(groups) - groups, groups)) * GROUP
    size = np.minimum(counts[owner] - skipped, GROUP)
    by_size = np.argsort(-size, kind="stable")
    column = np.arange(size.max(initial=0))
    for start in range(0, len(owner), block):
        chosen = by_size[np.minimum(np.arange(start, start + block), len(owner) - 1)]
        places = (starts[owner] + skipped)[chosen, None] + column
        inside = column < size[chosen, None]
        rows = np.where(inside, order[np.where(inside, places, 0)], -1)
        yield ids[owner[chosen]].astype(np.int32), rows


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


@functools.partial(jax.jit, static_argnames="length")
def _rank_users(
    scores: jax.Array,
    items: np.ndarray,
    seen: np.ndarray,
    held_out: np.ndarray,
    steps: np.ndarray,
    *,
    length: int,
) -> tuple[jax.Array, jax.Array]:
    """Ranks and lists of a block of users.

    Args:
      scores: [B, I].
      items: [B, G] held-out items; the first `steps` columns are ranked.
      seen: [B, L] items left out.
      held_out: [B, M] all held-out items of each user, which do not compete with each other.
      steps: [] int.
      length: K of the lists.

    Returns:
      [B, G] int32 ranks and [B, K] int32 items.
    """
    users = jnp.arange(len(items))[:, None]
    own = scores[users, items]
    unseen = scores.at[users, seen].set(-jnp.inf).at[:, 0].set(-jnp.inf)
    best = jnp.zeros((len(items), 0), jnp.int32)
    if length:
        values, best = lax.top_k(jnp.where(jnp.isnan(unseen), -jnp.inf, unseen), length)
        best = jnp.where(values > -jnp.inf, best, 0)
    candidates = unseen.at[users, held_out].set(-jnp.inf)

    def count(column: jax.Array, ranks: jax.Array) -> jax.Array:
        score = lax.dynamic_slice_in_dim(own, column, 1, axis=1)
        found = jnp.sum(~(candidates < score), axis=1, dtype=jnp.int32)  # NaN ranks last
        return lax.dynamic_update_slice_in_dim(ranks, found[:, None], column, axis=1)

    # A column at a time: all at once would need [B, G, I], where they are not fused.
    ranks = lax.fori_loop(0, steps, count, jnp.zeros(items.shape, jnp.int32))
    return jnp.where(items == 0, scores.shape[1], ranks), best


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
