"""Metrics: AUC, log loss and calibration for clicks, hit rate and NDCG for rankings.

`auc` sorts all scores at once. For more rows than fit in memory, `click_stats` reduces each block
of rows to statistics of fixed size, and `merge` adds them up.
"""

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


def hit_rate(ranks: jax.Array | np.ndarray, k: int) -> jax.Array:
    """HR@k: share of rows whose held-out item is among the first k.

    Args:
      ranks: [N] int, rank of each row's held-out item; 0 is the best.
      k: the cut-off.

    Returns:
      [] float32.
    """
    return jnp.mean(ranks < k)


def ndcg(ranks: jax.Array | np.ndarray, k: int) -> jax.Array:
    """NDCG@k with one relevant item a row: mean of 1 / log2(rank + 2) for ranks below k, else 0.

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
