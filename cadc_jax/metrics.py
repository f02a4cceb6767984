"""Metrics of clicks (AUC, log loss, calibration) and of rankings (per user and per row).

`UserRankings` has the metrics of whole lists, a value for each user. `hit_rate` and `ndcg` are of
rows: each held-out item has a rank of its own, whoever its user is.

`auc` sorts all scores at once. For more rows than fit in memory, `click_stats` reduces each block
of rows to statistics of fixed size, and `merge` adds them up.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax


@jax.jit
def auc(labels: jax.Array | np.ndarray, scores: jax.Array | np.ndarray) -> jax.Array:
    """Area under the ROC curve: P(score of a click > score of a non-click), ties counted half.

    Exact up to the rounding of float32, about 1e-7.

    Args:
      labels: [N] in {0, 1}; N < 2^30.
      scores: [N] float.

    Returns:
      [] float32; NaN if all labels are equal or any score is NaN.
    """
    order = jnp.argsort(scores)
    ordered = scores[order]
    positive = labels[order] > 0
    # A click beats all non-clicks with lower scores, and half of those with the same score. Both
    # counts grow along the order. Each row takes them from the ends of its run of equal scores.
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    ends = jnp.concatenate([starts[1:], jnp.ones(1, bool)])
    others = jnp.cumsum(~positive)
    below = lax.cummax(jnp.where(starts, others - ~positive, 0))
    up_to = lax.cummin(jnp.where(ends, others, others[-1]), reverse=True)
    beaten = (below + up_to) / (2 * others[-1])
    # NaN sorts last, as if it were the best score: a model that has diverged must not look good.
    return jnp.where(jnp.isnan(scores).any(), jnp.nan, jnp.mean(beaten, where=positive))


def auc_standard_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """Standard error of the AUC, rows being independent (DeLong et al. 1988, Biometrics 44).

    Args:
      labels: [N] in {0, 1}.
      scores: [N] float, finite.

    Returns:
      A float; NaN if a class has fewer than two rows.
    """
    clicks, others = (np.sort(scores[labels == label]) for label in (1, 0))
    if min(len(clicks), len(others)) < 2:
        return np.nan
    variance = 0.0
    for own, other in ((clicks, others), (others, clicks)):
        beaten = np.searchsorted(other, own) + np.searchsorted(other, own, side="right")
        variance += float(np.var(beaten / (2 * len(other)), ddof=1)) / len(own)
    return math.sqrt(variance)


@struct.dataclass
class ClickStats:
    """Statistics of a set of scored rows. Their size does not depend on the number of rows.

    Scores are counted in bins around K `edges`. If i edges are smaller than a score and j edges are
    smaller or equal, it belongs to bin i + j. So scores equal to an edge (i < j) and scores between
    two edges (i = j) have separate bins.

    Counts are exact up to 2^31 - 1 rows in a bin. Sums are pairs of float32; the second number is
    what rounding lost from the first. So merging loses nothing, however many blocks there are.

    Attributes:
      edges: [K] float32, sorted, with repeats.
      clicks: [2K + 1] int32, rows with label 1 by the bin of their score.
      others: [2K + 1] int32, rows with label 0.
      loss: [2] float32, summed cross-entropy in nats, the scores being logits.
      predicted: [2] float32, summed probabilities of a click; NaN if any score is.
    """

    edges: jax.Array
    clicks: jax.Array
    others: jax.Array
    loss: jax.Array
    predicted: jax.Array

    def auc(self) -> tuple[float, float]:
        """The AUC, and a bound on its difference from the AUC of the scores themselves.

        Pairs in the same bin count half. That is wrong only for pairs of different scores, so the
        bound is half the share of pairs in the bins between edges. It is 0 if every score is an
        edge. Both are NaN if all labels are equal or any score is NaN.
        """
        clicks, others = np.asarray(self.clicks, np.float64), np.asarray(self.others, np.float64)
        pairs = clicks.sum() * others.sum()
        if not pairs or np.isnan(self.predicted).any():
            return np.nan, np.nan
        below = np.cumsum(others) - others
        doubtful = clicks * others
        doubtful[np.asarray(_bins(self.edges, self.edges))] = 0
        value = clicks @ (below + others / 2) / pairs
        return float(value), float(doubtful.sum() / 2 / pairs)

    def log_loss(self) -> float:
        """Mean binary cross-entropy, in nats."""
        return _total(self.loss) / (_total(self.clicks) + _total(self.others))

    def calibration(self) -> float:
        """Mean predicted probability of a click / share of clicks: 1 is right on average.

        NaN if there is no click.
        """
        clicks = _total(self.clicks)
        return _total(self.predicted) / clicks if clicks else np.nan


@jax.jit
def click_stats(
    labels: jax.Array | np.ndarray,
    scores: jax.Array | np.ndarray,
    weight: jax.Array | np.ndarray | None = None,
    edges: jax.Array | np.ndarray | None = None,
) -> ClickStats:
    """Statistics of one block of rows.

    Args:
      labels: [N] in {0, 1}.
      scores: [N] float; they have to be logits for log loss and calibration.
      weight: [N], 0 for padding, above 0 for rows that count; None if all rows count.
      edges: [K] sorted scores at which bins begin and end. With the scores of a sample of the rows
        all bins hold about as many rows, for any distribution, and the bound on the AUC is about
        1 / K or less. Without edges the AUC is not known.

    Returns:
      Statistics; the same on every device if rows are split over devices.
    """
    scores = jnp.asarray(scores, jnp.float32)
    edges = jnp.zeros(0) if edges is None else jnp.asarray(edges, jnp.float32)
    real = jnp.ones(labels.shape, bool) if weight is None else weight > 0
    click = labels > 0
    bins = _bins(edges, scores)
    empty = jnp.zeros(2 * len(edges) + 1, jnp.int32)
    loss = jax.nn.softplus(jnp.where(click, -scores, scores))
    return ClickStats(
        edges=edges,
        clicks=empty.at[bins].add(real & click),
        others=empty.at[bins].add(real & ~click),
        loss=jnp.stack([jnp.sum(loss, where=real), 0.0]),
        predicted=jnp.stack([jnp.sum(jax.nn.sigmoid(scores), where=real), 0.0]),
    )


@jax.jit
def merge(a: ClickStats, b: ClickStats) -> ClickStats:
    """Statistics of the rows of both; `a` and `b` must have the same edges."""
    return ClickStats(
        edges=a.edges,
        clicks=a.clicks + b.clicks,
        others=a.others + b.others,
        loss=_add(a.loss, b.loss),
        predicted=_add(a.predicted, b.predicted),
    )


NEVER = np.iinfo(np.int64).max  # place of an item that is in no list


@dataclasses.dataclass(frozen=True)
class UserRankings:
    """The places of users' held-out items in their lists.

    Rows are those of the held-out items, without users that were not ranked and without repeats of
    an item. All metrics are float64, a value for each user.

    Attributes:
      users: [U], ids of the users, ascending.
      rows: [M], which of the given rows these are: by user, the best places first.
      owner: [M], index in `users`.
      nth: [M], number of the user's held-out items with a better place.
      place: [M] int64, place in the user's list, 0 the first; NEVER if it is in none.
    """

    users: np.ndarray
    rows: np.ndarray
    owner: np.ndarray
    nth: np.ndarray
    place: np.ndarray

    @classmethod
    def of_ranks(
        cls, ranks: np.ndarray, user: np.ndarray, item: np.ndarray, num_items: int
    ) -> "UserRankings":
        """Places of the items that `evaluation.ranking.full_ranks` has ranked.

        Args:
          ranks: [N] int, as it gives them; rows below 0 are left out.
          user: [N] int.
          item: [N] int; 0 is an unknown item, of which a user may have several.
          num_items: I; a rank of I or more is a miss.
        """
        user, item = np.asarray(user), np.asarray(item)
        rows = np.flatnonzero(ranks >= 0)
        rows = rows[np.lexsort((item[rows], ranks[rows], user[rows]))]
        repeated = np.zeros(len(rows), bool)
        same = (user[rows][1:] == user[rows][:-1]) & (item[rows][1:] == item[rows][:-1])
        repeated[1:] = same & (item[rows][1:] != 0)
        rows = rows[~repeated]
        users, first, owner = np.unique(user[rows], return_index=True, return_inverse=True)
        nth = np.arange(len(rows)) - first[owner]
        found = np.asarray(ranks)[rows].astype(np.int64)
        return cls(users, rows, owner, nth, np.where(found < num_items, found + nth, NEVER))

    @property
    def held_out(self) -> np.ndarray:
        """[U], number of held-out items."""
        return np.bincount(self.owner, minlength=len(self.users))

    def recall(self, k: int) -> np.ndarray:
        """[U], hits among the first k / number of held-out items."""
        return self._sum(self.place < k) / self.held_out

    def hit(self, k: int) -> np.ndarray:
        """[U], 1 if any held-out item is among the first k."""
        return (self._sum(self.place < k) > 0).astype(np.float64)

    def ndcg(self, k: int) -> np.ndarray:
        """[U], sum of 1 / log2(place + 2) of the hits / that of the first min(k, n) places."""
        ideal = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(k) + 2.0))])
        return self._sum(self.gain(k)) / ideal[np.minimum(self.held_out, k)]

    def gain(self, k: int) -> np.ndarray:
        """[M], 1 / log2(place + 2) of each held-out item among the first k, else 0."""
        return np.where(self.place < k, 1 / np.log2(self.place + 2.0), 0)

    def average_precision(self, k: int) -> np.ndarray:
        """[U], sum of the precision at each hit among the first k / min(k, n)."""
        precision = np.where(self.place < k, (self.nth + 1) / (self.place + 1.0), 0)
        return self._sum(precision) / np.minimum(self.held_out, k)

    def reciprocal_rank(self) -> np.ndarray:
        """[U], 1 / (place + 1) of the best held-out item; 0 if none is in the list."""
        first = self.place[self.nth == 0]
        return np.where(first < NEVER, 1 / (first + 1.0), 0)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """[M] -> [U], sums by user."""
        return np.bincount(self.owner, values, minlength=len(self.users))


def hit_rate(ranks: jax.Array | np.ndarray, k: int) -> jax.Array:
    """HR@k of rows: share of them whose held-out item is among the first k.

    Args:
      ranks: [N] int, rank of each row's held-out item; 0 is the best.
      k: the cut-off.

    Returns:
      [] float32.
    """
    return jnp.mean(ranks < k)


def ndcg(ranks: jax.Array | np.ndarray, k: int) -> jax.Array:
    """NDCG@k of rows with one relevant item each: mean of 1 / log2(rank + 2) below k, else 0.

    Args:
      ranks: [N] int, rank of each row's held-out item; 0 is the best.
      k: the cut-off.

    Returns:
      [] float32.
    """
    return jnp.mean(jnp.where(ranks < k, 1 / jnp.log2(ranks + 2.0), 0.0))


def _bins(edges: jax.Array, scores: jax.Array) -> jax.Array:
    """Bin [N] int32 of each score: number of edges below it + number of edges not above it."""
    return jnp.searchsorted(edges, scores) + jnp.searchsorted(edges, scores, side="right")


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum of two [2] pairs of a number and its lost rounding (two-sum, Knuth 1969)."""
    total = a[0] + b[0]
    added = total - a[0]  # b[0], but for rounding
    lost = (a[0] - (total - added)) + (b[0] - added)
    return jnp.stack([total, a[1] + b[1] + lost])


def _total(parts: jax.Array) -> float:
    return float(np.asarray(parts, np.float64).sum())
