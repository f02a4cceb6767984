"""Quality of predictions: AUC and log loss of clicks, hit rate and NDCG of rankings."""

import jax
import jax.numpy as jnp
import optax


@jax.jit
def auc(labels: jax.Array, scores: jax.Array) -> jax.Array:
    """Area under the ROC curve: P(score of a click > score of a non-click), ties counted half.

    Args:
      labels: [N] in {0, 1}.
      scores: [N] float.

    Returns:
      [] float32; NaN when all labels are equal or any score is NaN.
    """
    order = jnp.argsort(scores)
    ordered = scores[order]
    positive = labels[order].astype(jnp.float32)
    first = jnp.searchsorted(ordered, ordered, side="left")
    last = jnp.searchsorted(ordered, ordered, side="right")
    # Each click beats the non-clicks strictly below it and half of those at its own score.
    below = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(positive == 0)])
    beaten = (below[first] + below[last]) / (2 * below[-1])
    # NaN sorts last, as if it were the best score: a model that has diverged must not look good.
    return jnp.where(jnp.isnan(scores).any(), jnp.nan, jnp.mean(beaten, where=positive > 0))


@jax.jit
def log_loss(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Mean binary cross-entropy, in nats: [N] labels, [N] logits -> []."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


def hit_rate(ranks: jax.Array, k: int) -> jax.Array:
    """HR@k: share of rows whose held-out item is among the first k. `ranks` [N], best is 0."""
    return jnp.mean(ranks < k)


def ndcg(ranks: jax.Array, k: int) -> jax.Array:
    """NDCG@k for one relevant item a row: mean of 1 / log2(rank + 2) within the first k."""
    return jnp.mean(jnp.where(ranks < k, 1 / jnp.log2(ranks + 2.0), 0.0))
