"""Training losses: pure functions of a batch's logits, each a mean over rows by `weight` [B]."""

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

    The other items are negatives drawn uniformly, which need no correction for their frequency.

    Args:
      logits: [B, 1 + negatives] float, the positive first.
      weight: [B] float, 0 for padding.

    Returns:
      [] float32.
    """
    return _mean(-jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0], weight)


def all_items_softmax(
    logits: jax.Array, item: jax.Array, competes: jax.Array, weight: jax.Array
) -> jax.Array:
    """Mean negative log share of each row's item among all items.

    This is the multinomial likelihood of the rows (Liang et al. 2018, arXiv 1802.05814, section
    2.1), but for the pairs that do not compete.

    Args:
      logits: [B, I] float, each row's user with every item.
      item: [B] int, the positive of each row.
      competes: [B, I] bool, the items among which it is; its own always is.
      weight: [B] float, 0 for padding.

    Returns:
      [] float32.
    """
    logits = logits.astype(jnp.float32)
    own = item[:, None] == jnp.arange(logits.shape[1])
    positive = jnp.sum(logits, axis=1, where=own)
    return _mean(jax.nn.logsumexp(logits, axis=1, where=competes | own) - positive, weight)


def in_batch_softmax(
    scores: jax.Array, user: jax.Array, item: jax.Array, log_q: jax.Array, weight: jax.Array
) -> jax.Array:
    """Softmax over the items of all rows, each corrected for its frequency.

    An item is in the batch as often as it is in the data: plain in-batch negatives would punish
    popular items. With the log of its frequency subtracted from each score, the loss estimates the
    softmax over all items (Yi et al. 2019, 'Sampling-bias-corrected neural modeling for large
    corpus item recommendations', RecSys). Frequencies are counted here; the paper estimates them.

    These do not compete with a row: padding, the same item in another row (an accidental hit), and
    the items of other rows of its user, which are positives too.

    Args:
      scores: [B, B] float, each row's user with each row's item; positives are on the diagonal.
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
    # A row's own item always competes: a padded row then has a finite loss, with weight 0.
    competes = (~positive & (weight > 0)) | jnp.eye(len(item), dtype=bool)
    own = jnp.diagonal(corrected)
    return _mean(jax.nn.logsumexp(corrected, axis=1, where=competes) - own, weight)


def log_frequency(item: np.ndarray, num_items: int) -> np.ndarray:
    """Log of the share of rows that hold each item: [N] ids -> [num_items] float32.

    The rows must be the ones that batches are drawn from, such as the sample. An item without a row
    gets the frequency of one row; it never occurs.
    """
    counts = np.bincount(item, minlength=num_items)
    return np.log(np.maximum(counts, 1) / len(item)).astype(np.float32)


def _mean(losses: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean of losses [B] by weight [B]; 0 if all weights are 0."""
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1)
