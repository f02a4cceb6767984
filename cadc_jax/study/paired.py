"""Statistics of the study beside its intervals: spreads, AUC and the best possible one, deciles."""

import numpy as np
import scipy.stats


def mean_and_sd(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation of [S] values; of a single value that is NaN."""
    sd = float(np.std(values, ddof=1, dtype=np.float64)) if len(values) > 1 else np.nan
    return float(np.mean(values, dtype=np.float64)), sd


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each row among the rows of the other label.

    Args:
      labels: [N], 0 or 1.
      scores: [N].

    Returns:
      For each click the share of the other rows with a lower score, where ties count half. For each
      other row the share of clicks with a higher score. The mean of either is the AUC.
    """
    click = np.asarray(labels) > 0
    ranks = scipy.stats.rankdata(scores)  # from 1; ties share their mean
    clicks, others = int(click.sum()), int((~click).sum())
    below = ranks[click] - scipy.stats.rankdata(scores[click])
    clicks_below = ranks[~click] - scipy.stats.rankdata(scores[~click])
    return below / others, 1 - clicks_below / clicks


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN if all labels are equal."""
    if not 0 < np.sum(labels > 0) < len(labels):
        return np.nan
    return float(placements(labels, scores)[0].mean())


def bayes_auc(probability: np.ndarray) -> float:
    """The expected AUC of the best possible scorer, which knows each click probability.

    Labels are drawn with the probabilities, which are also the scores. With p the probability of a
    row and q = 1 - p, it is sum_{i != j} p_i q_j ([p_i > p_j] + [p_i = p_j] / 2) divided by
    sum_{i != j} p_i q_j.

    Args:
      probability: [N], from 0 to 1.
    """
    p = np.sort(np.asarray(probability, np.float64))
    q = 1 - p
    _, first, size = np.unique(p, return_index=True, return_counts=True)
    total = np.concatenate([[0], np.cumsum(q)])
    below = np.repeat(total[first], size)
    equal = np.repeat(total[first + size] - total[first], size) - q  # without the row itself
    pairs = p.sum() * q.sum() - p @ q
    return float(p @ (below + equal / 2) / pairs)


def break_even(factorize: float, full: float, sampled: float) -> float:
    """The number of trainings whose savings pay for a factorisation.

    Args:
      factorize: seconds of the factorisation.
      full: seconds of a training on all rows.
      sampled: seconds of a training on the sample.

    Returns:
      Infinity if training on the sample is not faster.
    """
    saved = full - sampled
    return factorize / saved if saved > 0 else np.inf


def deciles(size: np.ndarray) -> np.ndarray:
    """Ten groups of nearly equal numbers of rows: [N] sizes -> [N] int64 from 0 (smallest) to 9.

    Rows of the same size are in the same group, so groups are uneven if many sizes are equal.
    """
    share = (scipy.stats.rankdata(size, "average") - 0.5) / len(size)
    return np.minimum((share * 10).astype(np.int64), 9)
