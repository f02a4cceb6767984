"""Training losses: pure functions of a batch's logits. All are means over rows by `weight` [B]."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, weight: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Mean binary cross-entropy, in nats.

    Args:
      logits: [B, G] float.
      labels: [B, G] in [0, 1].
      weight: [B] float, 0 for padding.
      smoothing: share of each label replaced by 1/2 (Szegedy et al. 2016, arXiv 1512.00567, section
        7). It pulls predictions towards 1/2, away from the click rate.

    Returns:
      [] float32.
    """
    labels = labels * (1 - smoothing) + smoothing / 2
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels)
    return _mean(losses.mean(axis=1), weight)


def sampled_softmax(logits: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean negative log share of each row's first item among all its items.

    The others are negatives drawn uniformly, so that no correction for their frequency is due.

    Args:
      logits: [B, 1 + negatives] float, the positive first.
      weight: [B] float, 0 for padding.

    Returns:
      [] float32.
    """
    return _mean(-jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0], weight)


def in_batch_softmax(
    scores: jax.Array, user: jax.Array, item: jax.Array, log_q: jax.Array, weight: jax.Array
) -> jax.Array:
    """Softmax in which the items of all rows compete, each corrected for how often it turns up.

    An item is in the batch as often as it is in the data, so that plain in-batch negatives punish
    the popular. Subtracting the log of that frequency makes the loss estimate the softmax over all
    items (Yi et al. 2019, 'Sampling-bias-corrected neural modeling for large corpus item
    recommendations', RecSys; the frequencies are counted here, where they estimate them).

    Left out as competitors of a row are padding, the same item in another row (an accidental hit),
    and the items of other rows of its user, which are positives too.

    Args:
      scores: [B, B] float, of each row's user with each row's item; a row's positive is on the
        diagonal.
      user: [B] int, the user of each row.
      item: [B] int, the positive of each row.
      log_q: [B] float32, log of the share of training rows that hold the row's item (see
        `log_frequency`); adding a constant changes nothing.
      weight: [B] float, 0 for padding.

    Returns:
      [] float32.
    """
    corrected = scores.astype(jnp.float32) - log_q
    positive = (user[:, None] == user) | (item[:, None] == item)
    # A row's own item always takes part: a padded row then has a finite loss, of weight 0.
    competes = (~positive & (weight > 0)) | jnp.eye(len(item), dtype=bool)
    own = jnp.diagonal(corrected)
    return _mean(jax.nn.logsumexp(corrected, axis=1, where=competes) - own, weight)


def log_frequency(item: np.ndarray, num_items: int) -> np.ndarray:
    """Log of the share of rows that hold each item: [N] ids -> [num_items] float32.

    The rows must be those that batches are drawn from: with a sample, the sample. Items in no row
    count as in one; they never turn up.
    """
    counts = np.bincount(item, minlength=num_items)
    return np.log(np.maximum(counts, 1) / len(item)).astype(np.float32)


def _mean(losses: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean of losses [B] by weight [B]; 0 where no row counts."""
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1)
