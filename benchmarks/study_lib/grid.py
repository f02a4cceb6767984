"""Which cells a study has, in which order, and how long they will take."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.study_lib.cells import BASELINES, DATA, RIVALS, Cell
from benchmarks.study_lib.results import Row, cell_of


@dataclasses.dataclass(frozen=True)
class Grid:
    """The choices that a study combines. Each field is the option of that name.

    Attributes:
      data: keys of DATA.
      rates: rates of the uniform samples.
      arms: some of ARMS.
      models: keys of `configuration.MODELS`.
      seeds: how many; they are 0, 1, ...
      selections: some of `selection.RULES`.
      selection_rates: rates of the samples that these rules choose, and of folding in.
      baselines: some of BASELINES.
    """

    data: Sequence[str]
    rates: Sequence[float]
    arms: Sequence[str]
    models: Sequence[str]
    seeds: int
    selections: Sequence[str]
    selection_rates: Sequence[float]
    baselines: Sequence[str] = BASELINES


def phases(grid: Grid) -> list[list[Cell]]:
    """All cells, in three phases.

    The first phase prepares the data, and the second makes the factors. So no two workers make the
    same artefact at the same time. Within a phase, all cells of a seed come before the next seed: a
    study that is stopped early has a few results of every kind.
    """
    seeds = range(grid.seeds)
    first = [Cell(name, "popularity") for name in grid.data if "popularity" in grid.baselines]
    second = [
        Cell(name, "mf_alone", seed=seed)
        for seed in seeds
        for name in grid.data
        if "mf_alone" in grid.baselines
    ]
    second += [
        Cell(name, arm)
        for name in grid.data
        for arm in RIVALS
        if DATA[name].pairs and arm in grid.baselines
    ]
    third = [cell for seed in seeds for name in grid.data for cell in _trained(grid, name, seed)]
    return [first, second, third]


def _trained(grid: Grid, name: str, seed: int) -> Iterator[Cell]:
    """The cells of the third phase: networks, and folding in."""
    folds_in = DATA[name].pairs > 0 and "fold_in" in grid.baselines
    if folds_in:
        yield Cell(name, "mf_alone", selection="fold_in", seed=seed)
    for model in grid.models:
        if "full" in grid.baselines:
            yield Cell(name, "full", model, seed=seed)
        for rate in grid.rates:
            for arm in grid.arms:
                if (arm, rate) != ("random", 1):  # the same as 'full'
                    yield Cell(name, arm, model, "uniform", rate, seed)
        for rate in grid.selection_rates:
            for rule in grid.selections:
                for arm in ("random", "frozen"):
                    if arm in grid.arms:
                        yield Cell(name, arm, model, rule, rate, seed)
        if folds_in and "frozen" in grid.arms:
            for rate in grid.selection_rates:
                yield Cell(name, "frozen", model, "fold_in", rate, seed)


class Pace:
    """Estimates the time that cells will take: a rough guess, scaled by what cells took so far."""

    def __init__(self, rows: Iterable[Row], jobs: int):
        """Learns from finished cells.

        Args:
          rows: their rows.
          jobs: cells that run at the same time.
        """
        self.jobs = jobs
        # Seconds and guessed seconds of each (data set, model), and under () of all cells.
        self.taken: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Learns from a finished cell."""
        if row["status"] != "ok":
            return
        guess = _guess_seconds(cell_of(row))
        for group in ((row["data"], row["model"]), ()):
            self.taken[group][0] += float(row["cell_s"])
            self.taken[group][1] += guess

    def seconds_for(self, cells: Iterable[Cell]) -> float:
        """Seconds until all of `cells` are done."""
        total = 0.0
        for cell in cells:
            group = (cell.data, cell.model)
            seconds, guess = self.taken[group if group in self.taken else ()]
            total += _guess_seconds(cell) * (seconds / guess if guess else 1)
        return total / self.jobs


def duration(seconds: float) -> str:
    """Seconds as text in minutes or hours."""
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _guess_seconds(cell: Cell) -> float:
    """A rough guess of the seconds of a cell on one core."""
    data = DATA[cell.data]
    if not cell.model:
        return 20 + data.rows * (3e-4 if cell.arm in RIVALS else 5e-5)
    per_row, per_pair = (1e-4, 1e-7) if cell.model == "two_tower" else (4e-4, 5e-7)
    return 20 + cell.rate * data.rows * per_row + data.pairs * per_pair
