"""Intervals of differences that hold for other seeds and for other users.

A result is a table of seeds x users. Both are samples: other seeds draw other samples, starts and
batches, and other users have other tastes. So both are drawn anew, crossed, as in the pigeonhole
bootstrap (Owen 2007, doi:10.1214/07-AOAS122): a user who is drawn twice counts twice with every
seed. All rows of a user are drawn together, because they resemble each other.

Of n seeds or users n - 1 are drawn (Rao and Wu 1988): n draws would give a share (n - 1) / n of the
variance of a mean, which is little of three seeds. The standard error of the replicates makes an
interval and a p-value by Student's t, with as many degrees of freedom as the two sources of
variance have between them (Satterthwaite 1946): few seeds say little about their own spread. Where
seeds and users interact and do little else, the interval is too wide, by up to a factor of 1.7.

The draws are the same in every call, so what two scorers share cancels out.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95  # of all confidence intervals
REPLICATES = 1000
_USERS, _SEEDS = (2007, 1), (2007, 2)  # of the generators
_BLOCK = 1 << 24  # counts of users that are held at a time


class Interval(NamedTuple):
    """A difference and its confidence interval, which is NaN if there are too few values.

    `p` is the two-sided p-value of no difference; `seeds` says whether seeds were drawn, too.
    """

    mean: float
    low: float
    high: float
    p: float = np.nan
    seeds: bool = False

    @property
    def verdict(self) -> str:
        """'better' or 'worse' if the interval does not contain 0, else '='."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "="


class Figures(NamedTuple):
    """A figure with each of S seeds.

    Attributes:
      found: [S], of all users.
      drawn: [R, S], of the users that each replicate draws; NaN where it has none.
      users: how many there are to draw from.
      seeds: the seeds, [S]; None if the figure does not depend on any.
    """

    found: np.ndarray
    drawn: np.ndarray
    users: int
    seeds: tuple[int, ...] | None


def means(
    values: np.ndarray,
    user: np.ndarray,
    seeds: tuple[int, ...] | None,
    replicates: int = REPLICATES,
) -> Figures:
    """The mean of values, whose users are drawn.

    Args:
      values: [S, N]; NaN where a seed has none.
      user: [N], the user of each value; several may have the same one.
      seeds: see `Figures`.
      replicates: R.
    """
    values = np.asarray(values, np.float64)
    users, place = np.unique(user, return_inverse=True)
    there = np.isfinite(values)

    def of_users(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(place, row, len(users)) for row in rows], axis=1)

    sums, counts = of_users(np.where(there, values, 0)), of_users(there.astype(np.float64))
    drawn = np.full((replicates, len(values)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for part, count in _draws(len(users), replicates):
            drawn[part] = (count @ sums) / (count @ counts)
        found = sums.sum(axis=0) / counts.sum(axis=0)
    return Figures(found, drawn, len(users), seeds)


def aucs(
    labels: np.ndarray,
    scores: np.ndarray,
    user: np.ndarray,
    seeds: tuple[int, ...] | None,
    replicates: int = REPLICATES,
) -> Figures:
    """The area under the ROC curve, whose users are drawn with all their rows.

    Args:
      labels: [N], 0 or 1.
      scores: [S, N].
      user: [N], the user of each row.
      seeds: see `Figures`.
      replicates: R.
    """
    users, place = np.unique(user, return_inverse=True)
    click = np.asarray(labels) > 0
    of_seed = [_weighted_auc(click, row, place) for row in scores]
    drawn = np.full((replicates, len(scores)), np.nan)
    for part, counts in _draws(len(users), replicates):
        drawn[part] = [[auc(count) for auc in of_seed] for count in counts]
    found = np.array([auc(np.ones(len(users))) for auc in of_seed])
    return Figures(found, drawn, len(users), seeds)


def _weighted_auc(
    click: np.ndarray, scores: np.ndarray, place: np.ndarray
) -> Callable[[np.ndarray], float]:
    """The AUC of rows as a function of the weights of their users, [U]; it sorts only once."""
    by_score = np.argsort(scores, kind="stable")  # so that memory is read in order
    scores, click, place = scores[by_score], click[by_score], place[by_score]
    others, of_other, of_click = scores[~click], place[~click], place[click]
    below = np.searchsorted(others, scores[click], "left")
    up_to = np.searchsorted(others, scores[click], "right")  # a tie counts half
    tied = np.flatnonzero(up_to > below)
    low, high = below[tied], up_to[tied]
    total = np.zeros(len(others) + 1)

    def auc(weight: np.ndarray) -> float:
        weight.take(of_other).cumsum(out=total[1:])
        own = weight.take(of_click)
        pairs = own.sum() * total[-1]
        if not pairs:
            return np.nan
        # Not by BLAS, whose threads take longer to meet than such a product does.
        won = (own * total.take(below)).sum()
        won += (own.take(tied) * (total.take(high) - total.take(low))).sum() / 2
        return float(won / pairs)

    return auc


def difference(ours: Figures, theirs: Figures) -> Interval:
    """How much larger `ours` is: its interval over seeds and users.

    Seeds of the same numbers are drawn together: they share samples and factors. One seed cannot be
    drawn from, and the interval is over users alone.

    Args:
      ours: figures.
      theirs: figures of the same rows of the same users.
    """
    if ours.seeds == theirs.seeds:
        sides = [(ours.found - theirs.found, ours.drawn - theirs.drawn, 0)]
    else:
        sides = [(ours.found, ours.drawn, 0), (-theirs.found, -theirs.drawn, 1)]
    mean = float(sum(found.mean() for found, *_ in sides))
    alone = any(x.seeds is not None and len(x.seeds) == 1 for x in (ours, theirs))
    shape = len(ours.drawn), 1
    total, parts = np.zeros(shape[0]), []
    for found, drawn, side in sides:
        count = len(found)
        if alone or count == 1:
            total += drawn.mean(axis=1)
        else:
            total += _seed_weights(count, side, shape[0], drawn)
            parts.append((float(found.var(ddof=1)) / count, count - 1))
    total = total[np.isfinite(total)]
    if ours.users < 2 or len(total) < 2:
        return Interval(mean, np.nan, np.nan)
    by_seeds = sum(variance for variance, _ in parts)
    variance = max(float(total.var(ddof=1)), by_seeds)
    parts.append((variance - by_seeds, ours.users - 1))
    return _interval(mean, variance, parts)


def _interval(mean: float, variance: float, parts: list[tuple[float, int]]) -> Interval:
    """The interval for a variance that is a sum of parts, each with its degrees of freedom."""
    seeds = len(parts) > 1
    if variance == 0:
        return Interval(mean, mean, mean, float(mean == 0), seeds)
    scale = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    error = np.sqrt(variance)
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, scale) * error)
    p = float(2 * scipy.stats.t.sf(abs(mean) / error, scale))
    return Interval(mean, mean - reach, mean + reach, p, seeds)


def _draws(users: int, replicates: int) -> Iterator[tuple[slice, np.ndarray]]:
    """How often each replicate draws each user, [r, U], for some replicates at a time."""
    rng = np.random.default_rng(_USERS)
    step = max(1, _BLOCK // max(users, 1))
    for start in range(0, replicates, step):
        size = min(step, replicates - start)
        counts = np.empty((size, users))
        for row in counts:
            drawn = rng.integers(0, users, users - 1, dtype=np.int32)
            row[:] = np.bincount(drawn, minlength=users)
        yield slice(start, start + size), counts


def _seed_weights(count: int, side: int, replicates: int, drawn: np.ndarray) -> np.ndarray:
    """The mean of [R, S] figures over the seeds that each replicate draws."""
    rng = np.random.default_rng((*_SEEDS, side))
    places = rng.integers(0, count, (replicates, count - 1))
    return np.take_along_axis(drawn, places, axis=1).mean(axis=1)
