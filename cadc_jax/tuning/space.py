"""Search spaces: which values of which settings there are, and which lie beside others."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence

import numpy as np

from cadc_jax.tuning.trials import Trial

FIRST = 0.6  # of a search's trials, drawn at random; the others lie beside the best ones
_SAME = 0.02  # settings this close are not worth two trials


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values of one setting.

    Attributes:
      name: of the setting.
      grid: values of a first look, the one to be taken in case of doubt first.
      step: distance of neighbours in the grid: a factor, or with `linear` a difference. A
        difference of 0 means that there are no values but those of the grid.
      low: least value; trials beside others go down to it.
      high: largest value.
      linear: whether neighbours differ by a difference.
      draws: least and largest value that are drawn at random.
    """

    name: str
    grid: tuple[float, ...]
    step: float
    low: float
    high: float
    draws: tuple[float, float]
    linear: bool = False

    def moved(self, value: float, steps: float) -> float:
        """The value so many steps above, or below, within the bounds."""
        far = value + steps * self.step if self.linear else value * self.step**steps
        return _short(min(max(far, self.low), self.high))

    def at(self, share: float) -> float:
        """The value at this share, in [0, 1], of the way between the bounds of `draws`."""
        if not self.step:
            return self.grid[int(share * len(self.grid))]
        least, most = self.draws
        if self.linear:
            return _short(least + share * (most - least))
        return _short(least * (most / least) ** share)

    def alike(self, one: float, other: float) -> bool:
        """Whether two values are as good as equal."""
        if self.linear:
            return abs(one - other) <= _SAME * self.step
        return math.isclose(one, other, rel_tol=_SAME)


def choice(name: str, values: Sequence[float]) -> Axis:
    """An axis without values beside these."""
    least, most = min(values), max(values)
    return Axis(name, tuple(values), 0.0, least, most, (least, most), linear=True)


def grid(axes: Sequence[Axis]) -> list[Trial]:
    """Every combination of the grids' values; the first one has the first value of each."""
    return list(itertools.product(*(axis.grid for axis in axes)))


def drawn(axes: Sequence[Axis], number: int, seed: int) -> list[Trial]:
    """So many trials, drawn at random; more of them begin with the same ones."""
    shares = np.random.default_rng(seed).random((number, len(axes)))
    return [tuple(map(Axis.at, axes, row)) for row in shares.tolist()]


def first_trials(axes: Sequence[Axis], start: Trial, number: int, seed: int) -> list[Trial]:
    """The trials of the first rung of a search of so many: `start`, and others drawn at random."""
    return list(dict.fromkeys([start, *drawn(axes, max(0, round(FIRST * number) - 1), seed)]))


def beside(axes: Sequence[Axis], trial: Trial, known: Collection[Trial]) -> list[Trial]:
    """Trials that differ from this one in one setting, by a step; once all are known, by a half.

    Args:
      axes: the space.
      trial: the one to look around.
      known: trials that were tried; what is as good as one of them is left out.
    """
    for size in (1.0, 0.5):
        found: list[Trial] = []
        for place, axis in enumerate(axes):
            for steps in (size, -size):
                moved = axis.moved(trial[place], steps)
                near = (*trial[:place], moved, *trial[place + 1 :])
                if not any(_alike(axes, near, other) for other in (*known, *found)):
                    found.append(near)
        if found:
            return found
    return []


def _alike(axes: Sequence[Axis], one: Trial, other: Trial) -> bool:
    return all(map(Axis.alike, axes, one, other))


def _short(value: float) -> float:
    """The value with four digits, which are enough to write down."""
    return float(f"{value:.4g}")
