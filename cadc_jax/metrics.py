"""Quality: AUC, log loss and calibration of clicks, hit rate and NDCG of rankings."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax


@jax.jit
def auc(labels: jax.Array | np.ndarray, scores: jax.Array | np.ndarray) -> jax.Array:
    """Area under the ROC curve: P(score of a click > score of a non-click), ties counted half.

    Exact up to the rounding of float32, about 1e-7. For rows too many to sort see `click_stats`.

    Args:
      labels: [N] in {0, 1}; N < 2^30.
      scores: [N] float.

    Returns:
      [] float32; NaN when all labels are equal or any score is NaN.
    """
    order = jnp.argsort(scores)
    ordered = scores[order]
    positive = labels[order] > 0
    # Each click beats the non-clicks strictly below it and half of those at its own score. Both
    # counts grow along the order: each row takes them from the ends of its run of equal scores.
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
    """What a set of scored rows comes down to: of fixed size, and added up by `merge`.

    Scores are counted in bins around K `edges`: bin i + j holds the scores of which i edges are
    smaller and j edges are no greater. So scores equal to an edge have a bin of their own (i < j),
    apart from those between two edges (i = j).

    Counts are exact up to 2^31 - 1 rows a bin. Sums are pairs of float32, the second number being
    what rounding took from the first: no number of merges loses more than single blocks do.

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
        """AUC and the most by which it may differ from that of the scores themselves.

        Only pairs of different scores in one bin, counted half here, are in doubt: the bound is
        half the share of such pairs, 0 where every score is an edge. Both are NaN when all labels
        are equal or any score is NaN.
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
        """Mean predicted probability of a click over the share of clicks: 1 is right on average.

        NaN where there is no click.
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
    """The statistics of one block of rows.

    Args:
      labels: [N] in {0, 1}.
      scores: [N] float; logits, if log loss and calibration are to mean anything.
      weight: [N], 0 for padding and anything above it for rows that count; None if all do.
      edges: [K] sorted scores at which bins begin and end. The scores of a sample of the rows make
        bins of about equal content whatever the distribution, so that the bound on the AUC is
        about 1 / K or less. None leaves the AUC open.

    Returns:
      Statistics, the same on every device where rows are split over devices.
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
    """The statistics of the rows of both, which have the same edges."""
    return ClickStats(
        edges=a.edges,
        clicks=a.clicks + b.clicks,
        others=a.others + b.others,
        loss=_add(a.loss, b.loss),
        predicted=_add(a.predicted, b.predicted),
    )


def hit_rate(ranks: jax.Array | np.ndarray, k: int) -> jax.Array:
    """HR@k: share of rows whose held-out item is among the first k. `ranks` [N], best is 0."""
    return jnp.mean(ranks < k)


def ndcg(ranks: jax.Array | np.ndarray, k: int) -> jax.Array:
    """NDCG@k for one relevant item a row: mean of 1 / log2(rank + 2) within the first k."""
    return jnp.mean(jnp.where(ranks < k, 1 / jnp.log2(ranks + 2.0), 0.0))


def _bins(edges: jax.Array, scores: jax.Array) -> jax.Array:
    """Bin [N] int32 of each score: edges below it plus edges not above it."""
    return jnp.searchsorted(edges, scores) + jnp.searchsorted(edges, scores, side="right")


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum of two [2] pairs of a number and what rounding took from it (two-sum, Knuth 1969)."""
    total = a[0] + b[0]
    taken = total - a[0]
    lost = (a[0] - (total - taken)) + (b[0] - taken)
    return jnp.stack([total, a[1] + b[1] + lost])


def _total(parts: jax.Array) -> float:
    return float(np.asarray(parts, np.float64).sum())
