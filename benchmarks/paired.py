"""Statistics of the study: paired differences over users or rows, the best possible AUC, costs.

Two scorers are compared on the same held-out rows, so that what makes a row easy or hard for both
cancels out. Results of several seeds are averaged row by row first: the interval then says how far
the difference could move with other users, and the spread over seeds is reported beside it.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95  # of all intervals


class Interval(NamedTuple):
    """A mean and its confidence interval; NaN where there is too little to tell."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """'better' or 'worse' where the interval leaves 0 out, else '='."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "="


def mean_and_sd(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation of [S] values; NaN instead of that of a single one."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else np.nan


def over_users(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """The mean difference of a metric over users, with Student's t interval of paired values.

    Args:
      ours: [S, N] the metric of each of N users with each of S seeds.
      theirs: [S', N] likewise; the seeds need not be the same.
    """
    difference = np.mean(ours, axis=0, dtype=np.float64) - np.mean(theirs, axis=0, dtype=np.float64)
    count, mean = len(difference), float(difference.mean())
    if count < 2:
        return Interval(mean, np.nan, np.nan)
    error = difference.std(ddof=1) / np.sqrt(count)
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1) * error)
    return Interval(mean, mean - reach, mean + reach)


def over_rows(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """The difference of two AUCs of the same rows, with the interval of DeLong et al. (1988).

    It takes rows to be independent of each other.

    Args:
      labels: [N] in {0, 1}.
      ours: [S, N] scores with each of S seeds.
      theirs: [S', N] likewise.
    """
    placed = [
        [np.mean(part, axis=0) for part in zip(*(placements(labels, s) for s in side), strict=True)]
        for side in (ours, theirs)
    ]
    clicks, others = (a - b for a, b in zip(*placed, strict=True))
    mean = float(clicks.mean())
    if min(len(clicks), len(others)) < 2:
        return Interval(mean, np.nan, np.nan)
    error = np.sqrt(clicks.var(ddof=1) / len(clicks) + others.var(ddof=1) / len(others))
    reach = float(scipy.stats.norm.ppf((1 + LEVEL) / 2) * error)
    return Interval(mean, mean - reach, mean + reach)


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each row stands among the rows of the other label.

    Args:
      labels: [N] in {0, 1}.
      scores: [N].

    Returns:
      Of each click the share of other rows with a lower score, ties counted half; of each other row
      the share of clicks with a higher one. The mean of either is the AUC.
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
    """The AUC to expect of the best possible scorer: clicks drawn with [N] known probabilities.

    The probabilities are the scores; labels are left to chance. With p of a click and q = 1 - p,
    it is sum_{i != j} p_i q_j ([p_i > p_j] + [p_i = p_j] / 2) / sum_{i != j} p_i q_j.
    """
    p = np.sort(np.asarray(probability, np.float64))
    q = 1 - p
    _, first, size = np.unique(p, return_index=True, return_counts=True)
    total = np.concatenate([[0], np.cumsum(q)])
    below = np.repeat(total[first], size)
    equal = np.repeat(total[first + size] - total[first], size) - q  # but for the row itself
    pairs = p.sum() * q.sum() - p @ q
    return float(p @ (below + equal / 2) / pairs)


def break_even(factorize: float, full: float, sampled: float) -> float:
    """Trainings after which a factorisation is paid for, each saving `full - sampled` seconds.

    Infinity if the sample takes no less time than all rows.
    """
    saved = full - sampled
    return factorize / saved if saved > 0 else np.inf


def deciles(size: np.ndarray) -> np.ndarray:
    """[N] sizes -> [N] groups 0 to 9 of nearly the same number of rows, smallest sizes first.

    Rows of one size stay together, so that groups can be uneven where many are alike.
    """
    share = (scipy.stats.rankdata(size, "average") - 0.5) / len(size)
    return np.minimum((share * 10).astype(np.int64), 9)
