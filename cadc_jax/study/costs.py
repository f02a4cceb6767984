"""Seconds of a trained cell, from the artefacts in the work folder of a study."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cadc_jax.data.pipeline import steps_per_epoch
from cadc_jax.errors import ArtifactError
from cadc_jax.run.context import COMPILING, EVALUATING
from cadc_jax.run.factor_columns import UNSAMPLED
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.artifacts import Artifact

_BEFORE = {"factors": "factorize", "sample": "sample"}  # setting of a training -> stage


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one training cost. Seconds are wall time, and none but `compiling` hold compiling.

    Attributes:
      factorize: seconds of the factors; 0 of arms without.
      sample: seconds of the sample; 0 of arms without.
      train: seconds of the training, evaluations on the validation split included.
      evaluating: seconds of these evaluations.
      compiling: seconds of compiling in all of these stages.
      steps: training steps until it stopped.
      best_step: the step that validated best.
      steps_per_epoch: steps in which every row is seen once.
    """

    factorize: float
    sample: float
    train: float
    evaluating: float
    compiling: float
    steps: int
    best_step: int
    steps_per_epoch: int

    @property
    def before(self) -> float:
        """Seconds until training starts, without preparing the data, which all arms need."""
        return self.factorize + self.sample

    @property
    def per_step(self) -> float:
        """Seconds of a training step, without evaluations; NaN without a step."""
        return max(0.0, self.train - self.evaluating) / self.steps if self.steps else math.nan

    @property
    def total(self) -> float:
        """Seconds until training stopped."""
        return self.before + self.train

    @property
    def to_best(self) -> float:
        """Seconds until the best step, without evaluations."""
        return self.before + (self.per_step * self.best_step if self.best_step else 0.0)

    def of_epochs(self, epochs: float) -> float:
        """Seconds of a training of so many epochs, without evaluations."""
        return self.before + self.per_step * epochs * self.steps_per_epoch


def of(work: pathlib.Path, evaluation: str) -> Cost | None:
    """The cost of the training whose test is in an artefact; None if it is not in the folder.

    Args:
      work: work folder of a configuration.
      evaluation: fingerprint of the artefact of the test.
    """
    try:
        tested = artifacts.open_artifact(work / "evaluate" / evaluation)
        trained = artifacts.open_artifact(work / "train" / tested.settings["scorer"])
        before = [_opened(work, stage, trained.settings[stage]) for stage in _BEFORE]
    except (ArtifactError, KeyError):
        return None
    compiling = [_compiling(work, made) if made else 0.0 for made in before]
    seconds = [
        max(0.0, made.seconds - spent) if made else 0.0
        for made, spent in zip(before, compiling, strict=True)
    ]
    facts, own = trained.facts, float(trained.facts.get(COMPILING, 0))
    return Cost(
        factorize=seconds[0],
        sample=seconds[1],
        train=max(0.0, trained.seconds - own),
        evaluating=float(facts.get(EVALUATING, 0)),
        compiling=sum(compiling) + own,
        steps=int(facts["history"][-1]["step"]),
        best_step=int(facts["best_step"]),
        steps_per_epoch=steps_per_epoch(facts["rows"], trained.settings["train"]["batch_rows"]),
    )


def _opened(work: pathlib.Path, setting: str, fingerprint: Any) -> Artifact | None:
    """What a training has used; arms without factors name only their width."""
    if not isinstance(fingerprint, str):
        return None
    return artifacts.open_artifact(work / _BEFORE[setting] / fingerprint)


def _compiling(work: pathlib.Path, made: Artifact) -> float:
    """Seconds of compiling in an artefact, and in those that its own seconds include."""
    total = float(made.facts.get(COMPILING, 0))
    for part in made.settings.get("parts", ()):
        total += _compiling(work, artifacts.open_artifact(work / "factorize" / part))
    if "refresh" in made.settings:
        left_out = ("refresh", "stage", "format")
        settings = {name: x for name, x in made.settings.items() if name not in left_out}
        first = work / UNSAMPLED / artifacts.fingerprint(UNSAMPLED, settings)
        total += _compiling(work, artifacts.open_artifact(first))
    return total


def mean(costs: Sequence[Cost], figure: Callable[[Cost], float]) -> float:
    """The mean of a figure over seeds; NaN without any."""
    return float(np.mean([figure(cost) for cost in costs])) if costs else math.nan


def cold_and_warm(costs: Sequence[Cost]) -> tuple[float, float]:
    """The most and the least seconds of compiling of a seed; NaN where there are too few seeds."""
    found = sorted(cost.compiling for cost in costs)
    return found[-1] if found else math.nan, found[0] if len(found) > 1 else math.nan
