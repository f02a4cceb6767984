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
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from cadc_jax import sharding

# Held-out items of a user that are ranked at a time. A user with more is scored once for each
# group, because the user with the most sets the width of a block.
GROUP = 64

ScoreGrid = Callable[[np.ndarray], jax.Array]  # users [B] int32 -> scores [B, I]
ScoreItems = Callable[[np.ndarray, np.ndarray], jax.Array]  # users [B], items [B, G] -> [B, G]
Keep = Callable[[np.ndarray], None]  # takes lists [B, K] int32 of the best items; 0 is padding


@struct.dataclass
class Block:
    """Users whose held-out items are ranked at a time. All blocks of a split have one shape.

    Pairs that fill up `seen` and `held_out` are row 0 and item 0, which never competes.

    Attributes:
      users: [B] int32.
      items: [B, G] int32 held-out items; the first `steps` columns are ranked.
      steps: [] int32.
      seen: [2, S] int32, a row of the block and an item: pairs that are left out.
      held_out: [2, H] int32, the same of all held-out items of the users, which do not compete with
        each other.
    """

    users: jax.Array | np.ndarray
    items: jax.Array | np.ndarray
    steps: jax.Array | np.ndarray
    seen: jax.Array | np.ndarray
    held_out: jax.Array | np.ndarray


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
    length, keep = lists or (0, None)
    ranks = np.empty(len(user), np.int32)
    for part, rows in blocks(user, item, seen, block):
        inside = rows >= 0
        made = rank_block(score_grid(np.asarray(part.users)), part, length=length)
        found, best = (np.asarray(sharding.local(x)) for x in made)
        ranks[rows[inside]] = found[inside]
        if keep is not None:
            keep(best[inside.any(axis=1)])
    return ranks


def blocks(
    user: np.ndarray, item: np.ndarray, seen: "SeenItems", block: int
) -> Iterator[tuple[Block, np.ndarray]]:
    """Blocks of users, and which row each of their held-out items is.

    Args:
      user: [N] int32, in any order.
      item: [N] int32 held-out items; all held-out items of a user are among the rows.
      seen: items of each user that are left out.
      block: users of a block, B.

    Yields:
      A block on the host, and [B, G] rows in [0, N), -1 for padding.
    """
    held_out = SeenItems.of_pairs(user, item, len(seen.offsets) - 1)
    parts = list(_user_blocks(user, block))
    real = [users[: np.count_nonzero(rows.max(axis=1) >= 0)] for users, rows in parts]
    widths = [_width(known, real) for known in (seen, held_out)]
    for own, (users, rows) in zip(real, parts, strict=True):
        inside = rows >= 0
        yield (
            Block(
                users=users,
                items=np.where(inside, np.asarray(item)[rows], 0).astype(np.int32),
                steps=np.asarray(inside.sum(axis=1).max(), np.int32),
                seen=seen.pairs(own, widths[0]),
                held_out=held_out.pairs(own, widths[1]),
            ),
            rows,
        )


def _width(known: "SeenItems", parts: Sequence[np.ndarray]) -> int:
    """Pairs of known items of the users of each part, at most; with similar logs the same."""
    most = max((int(known.counts(users).sum()) for users in parts), default=0)
    return most + -most % 64


def num_groups(user: np.ndarray) -> int:
    """Number of users of rows [N] that are ranked apart; one with many rows is several."""
    counts = np.unique(user, return_counts=True)[1]
    return int((-(-counts // GROUP)).sum())


def _user_blocks(user: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Users [B] int32 and their rows [B, G], of `user` [N], filled up with -1; all of one shape.

    Users with many rows come first. So users of a block have about as many rows, and little of the
    block's work is for padding. Where all have one row, they come in the order of their ids. The
    last block is filled up with the last user, without rows.
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
        places = np.arange(start, start + block)
        chosen = by_size[np.minimum(places, len(owner) - 1)]
        own = np.where(places < len(owner), size[chosen], 0)
        inside = column < own[:, None]
        places = (starts[owner] + skipped)[chosen, None] + column
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
        return ranks_among(score_items(users, candidates), candidates)

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

    def counts(self, users: np.ndarray) -> np.ndarray:
        """Number of items [B] of users [B]."""
        return self.offsets[users + 1] - self.offsets[users]

    def pairs(self, users: np.ndarray, width: int) -> np.ndarray:
        """Places in `users` [B], and items: [2, width] int32, filled up with 0 and 0."""
        counts = self.counts(users)
        row = np.repeat(np.arange(len(users)), counts)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        found = np.zeros((2, width), np.int32)
        found[:, : len(row)] = row, self.items[self.offsets[users][row] + nth]
        return found

    def padded(self, users: np.ndarray, fill: int = 0) -> np.ndarray:
        """Items [B, L] int32 of users [B]; shorter lists are filled up with `fill`."""
        if not len(self.items):
            return np.zeros((len(users), 0), np.int32)
        places = self.offsets[users][:, None] + np.arange(self.longest)
        inside = places < self.offsets[users + 1][:, None]
        found = self.items[np.where(inside, places, 0)]
        return np.where(inside, found, fill).astype(np.int32)


@jax.jit
def ranks_among(scores: jax.Array, candidates: jax.Array | np.ndarray) -> jax.Array:
    """[B, 1 + K] scores of the held-out item and its negatives, and their ids -> [B] ranks."""
    own = scores[:, :1]
    others = jnp.where(candidates[:, 1:] == 0, -jnp.inf, scores[:, 1:])
    ranks = jnp.sum(~(others < own), axis=1)  # NaN ranks last
    return jnp.where(candidates[:, 0] == 0, others.shape[1], ranks)


@functools.partial(jax.jit, static_argnames="length")
def rank_block(scores: jax.Array, block: Block, *, length: int) -> tuple[jax.Array, jax.Array]:
    """Ranks and lists of a block of users.

    Args:
      scores: [B, I].
      block: the users, and what does not compete.
      length: K of the lists.

    Returns:
      [B, G] int32 ranks and [B, K] int32 items.
    """
    items = jnp.asarray(block.items)
    own = jnp.take_along_axis(scores, items, axis=1)
    unseen = scores.at[block.seen[0], block.seen[1]].set(-jnp.inf).at[:, 0].set(-jnp.inf)
    best = jnp.zeros((len(items), 0), jnp.int32)
    if length:
        values, best = lax.top_k(jnp.where(jnp.isnan(unseen), -jnp.inf, unseen), length)
        best = jnp.where(values > -jnp.inf, best, 0)
    candidates = unseen.at[block.held_out[0], block.held_out[1]].set(-jnp.inf)

    def count(column: jax.Array, ranks: jax.Array) -> jax.Array:
        score = lax.dynamic_slice_in_dim(own, column, 1, axis=1)
        found = jnp.sum(~(candidates < score), axis=1, dtype=jnp.int32)  # NaN ranks last
        return lax.dynamic_update_slice_in_dim(ranks, found[:, None], column, axis=1)

    # A column at a time: all at once would need [B, G, I], where they are not fused.
    ranks = lax.fori_loop(0, block.steps, count, jnp.zeros(items.shape, jnp.int32))
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
