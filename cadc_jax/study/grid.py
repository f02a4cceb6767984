"""Which cells a study has, in which order, and how long they will take."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from cadc_jax.run.arms import CADC_FROZEN, FULL, MF_ALONE, MF_REFRESHED, POPULARITY, SAMPLE
from cadc_jax.study.cells import FOLD_IN, OF_RANKINGS, OF_SAMPLES, RIVALS, SEARCHED, Cell
from cadc_jax.study.results import Row, cell_of


@dataclasses.dataclass(frozen=True)
class Grid:
    """The choices that a study combines on one data set.

    Attributes:
      data: name of the configuration.
      ranking: whether its task is ranking.
      rates: rates of the uniform samples.
      arms: some of `cells.ARMS`.
      models: keys of `configuration.MODELS`.
      seeds: how many; they are 0, 1, ...
      selections: some of `selection.RULES`.
      selection_rates: rates of the samples that these rules choose, and of folding in.
      rivals: some of RIVALS.
      variants: names of the variants of a sweep.
      refreshed: whether CADC predicts with refreshed factors (factor_rows='unsampled').
    """

    data: str
    ranking: bool
    rates: Sequence[float]
    arms: Sequence[str]
    models: Sequence[str]
    seeds: int
    selections: Sequence[str] = ()
    selection_rates: Sequence[float] = (0.1,)
    rivals: Sequence[str] = RIVALS
    variants: Sequence[str] = ("",)
    refreshed: bool = False


def phases(grids: Sequence[Grid], tuned: bool = False) -> list[list[Cell]]:
    """All cells of the grids, in three phases.

    The first phase prepares the data, and the second makes the factors, which the others wait for.
    Within a phase, all cells of a seed come before the next seed: a study that is stopped early
    has a few results of every kind.

    Args:
      grids: one a data set.
      tuned: whether the first cell of each arm searches its settings. The cells of other seeds,
        which need them, are then phases of their own.
    """
    pairs = [(grid, variant) for grid in grids for variant in grid.variants]
    first = [
        Cell(grid.data, POPULARITY.name, variant=variant)
        for grid, variant in pairs
        if POPULARITY.name in grid.rivals
    ]
    seeds = range(max(grid.seeds for grid in grids))
    seeded = [(grid, variant, seed) for seed in seeds for grid, variant in pairs]
    seeded = [(grid, variant, seed) for grid, variant, seed in seeded if seed < grid.seeds]
    second = [
        Cell(grid.data, MF_ALONE.name, seed=seed, variant=variant)
        for grid, variant, seed in seeded
        if MF_ALONE.name in grid.rivals
    ]
    rivals = [
        Cell(grid.data, rival, variant=variant)
        for grid, variant in pairs
        for rival in SEARCHED
        if grid.ranking == (rival in OF_RANKINGS) and rival in grid.rivals
    ]
    third = [
        dataclasses.replace(cell, seed=seed, variant=variant)
        for grid, variant, seed in seeded
        for cell in _trained(grid)
    ]
    found = [first, second, [*rivals, *dict.fromkeys(third)]]
    if not tuned:
        return found
    split = ([[x for x in cells if not x.seed], [x for x in cells if x.seed]] for cells in found)
    return [cells for pair in split for cells in pair if cells]


def _trained(grid: Grid) -> Iterator[Cell]:
    """The cells of the third phase, of one seed: refreshed factors, networks, and folding in."""
    if grid.refreshed and MF_REFRESHED.name in grid.rivals:
        for rate in (rate for rate in grid.rates if rate < 1):
            yield Cell(grid.data, MF_REFRESHED.name, "", "uniform", rate)
    folds_in = grid.ranking and FOLD_IN in grid.rivals
    if folds_in:
        yield Cell(grid.data, MF_ALONE.name, selection=FOLD_IN)
    for model in grid.models:
        if FULL.name in grid.arms:
            yield Cell(grid.data, FULL.name, model)
        for rate in grid.rates:
            for arm in (arm for arm in grid.arms if arm in OF_SAMPLES):
                if (arm, rate) == (SAMPLE.name, 1):
                    yield Cell(grid.data, FULL.name, model)  # the same
                else:
                    yield Cell(grid.data, arm, model, "uniform", rate)
        for rate in grid.selection_rates:
            for rule in grid.selections:
                for arm in (SAMPLE.name, CADC_FROZEN.name):
                    if arm in grid.arms:
                        yield Cell(grid.data, arm, model, rule, rate)
        if folds_in and CADC_FROZEN.name in grid.arms:
            for rate in grid.selection_rates:
                yield Cell(grid.data, CADC_FROZEN.name, model, FOLD_IN, rate)


class Pace:
    """Estimates the time that cells will take: a rough guess, scaled by what cells took so far."""

    def __init__(self, rows: Iterable[Row], jobs: int):
        """Learns from finished cells.

        Args:
          rows: their rows.
          jobs: cells that run at the same time.
        """
        self.jobs = jobs
        # Seconds and guessed effort of each (data set, model), and under () of all cells.
        self.taken: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Learns from a finished cell."""
        if row["status"] != "ok":
            return
        cell = cell_of(row)
        for group in ((cell.data, cell.model), ()):
            self.taken[group][0] += float(row["cell_s"])
            self.taken[group][1] += _effort(cell)

    def seconds_for(self, cells: Iterable[Cell]) -> float | None:
        """Seconds until all of `cells` are done; None before the first one is."""
        if () not in self.taken:
            return None
        total = 0.0
        for cell in cells:
            group = (cell.data, cell.model)
            seconds, effort = self.taken[group if group in self.taken else ()]
            total += _effort(cell) * seconds / effort
        return total / self.jobs


def duration(seconds: float | None) -> str:
    """Seconds as text in seconds, minutes or hours."""
    if seconds is None:
        return "unknown time"
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _effort(cell: Cell) -> float:
    """How long a cell takes in comparison with others, roughly: reading, and its rows."""
    return 1.0 + 9 * cell.rate if cell.model else 1.0
