"""Chooses the settings of a rival on the validation split, with the same budget for each rival.

The first trial has the middle of every axis. Others are drawn at random, and the rest lie beside
the best one. Each trial is a whole fit.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from cadc_jax.errors import TrainingError
from cadc_jax.evaluation.resident import Quality
from cadc_jax.study.rivals.given import Fit
from cadc_jax.study.rivals.registry import Rival
from cadc_jax.tuning import halving, space
from cadc_jax.tuning.halving import Rung
from cadc_jax.tuning.trials import Log, Result, Trial

VERSION = 1  # raise it when trials of the same settings score otherwise
_WHOLE = [Rung(1, 1)]
_SEED = 0  # of the draw


class Chosen(NamedTuple):
    """What a search ends in.

    Attributes:
      settings: those that validate best.
      trials: how many were compared.
      seconds: of all trials, also of those of an earlier process.
    """

    settings: dict[str, Any]
    trials: int
    seconds: float


class TrialLog(Log):
    """A log that knows which of its results the search of this process asked for."""

    def __init__(self, *arguments: Any):
        """As `Log`."""
        super().__init__(*arguments)
        self.asked: dict[Trial, None] = {}

    def find(self, trial: Trial, resource: int) -> Result | None:
        """As `Log.find`."""
        self.asked[trial] = None
        return super().find(trial, resource)


def best(
    rival: Rival,
    fit: Fit,
    quality: Quality,
    log: TrialLog,
    trials: int,
    say: Callable[[str], None],
) -> Chosen:
    """The settings that validate best; the same arguments give the same ones.

    Args:
      rival: whose settings.
      fit: fits it with some settings.
      quality: of a scorer on the validation split; higher is better.
      log: takes the results. Those that it holds are not computed again.
      trials: how many, at most: an axis has only so many values that differ.
      say: shows each trial.

    Raises:
      TrainingError: if no setting gives finite scores.
    """

    def evaluate(trial: Trial, resource: int, state: Any) -> tuple[float, None]:
        del resource, state
        settings = rival.settings(trial)
        try:
            score = quality(fit(settings))
        except TrainingError:
            score = -np.inf
        say(f"validation {score:.5f}: {settings}")
        return score, None

    def extend(trial: Trial, known: Collection[Trial]) -> list[Trial]:
        return space.beside(rival.axes, trial, known)

    middle = tuple(float(axis.grid[0]) for axis in rival.axes)
    start = space.first_trials(rival.axes, middle, trials, _SEED)
    found = halving.search(start, _WHOLE, evaluate, log, extend=extend, most=trials)
    if not np.isfinite(found.score):
        raise TrainingError("no setting gives finite scores")
    seconds = sum(x.seconds for x in log.results if x.trial in log.asked)
    return Chosen(rival.settings(found.trial), len(log.asked), seconds)
