"""Tunes the arms of a study: each arm and rate with the same number of trials.

The trials are those of `tuning.halving`. Their resource is the number of evaluations, and so of
epochs, that a network may train for. They have a seed of their own, which no reported result has,
and see the validation split alone. The factorisation is searched first, by `run.tune`, with as many
trials.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cadc_jax.errors import ConfigError, TrainingError
from cadc_jax.run import arms
from cadc_jax.run.arms import Arm
from cadc_jax.run.compressed import Inputs
from cadc_jax.run.context import Run, for_arm
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.study import adapter
from cadc_jax.study.cells import OF_SAMPLES, Cell
from cadc_jax.study.settings import Study
from cadc_jax.tuning import halving, space
from cadc_jax.tuning.space import Axis
from cadc_jax.tuning.trials import Log, Trial

SEED = 1_000_003  # of all trials
SOFTMAX_ITEMS = 12_000  # with more a softmax over all items is too slow to search


@dataclasses.dataclass(frozen=True)
class Knob:
    """One setting that is searched.

    Attributes:
      axis: its values; of a knob with choices, their places in the list.
      choices: what each place stands for, field -> value; empty for a number.
    """

    axis: Axis
    choices: Sequence[Mapping[str, Any]] = ()

    @staticmethod
    def among(field: str, *values: Any) -> "Knob":
        """A knob of one field that has some values only."""
        return Knob.of(field, *({field: value} for value in values))

    @staticmethod
    def of(name: str, *choices: Mapping[str, Any]) -> "Knob":
        """A knob that sets several fields at once; its name tells what the places stand for."""
        named = ((place, next(iter(fields.values()))) for place, fields in enumerate(choices))
        text = " ".join(f"{place}={value}" for place, value in named)
        places = tuple(map(float, range(len(choices))))
        return Knob(space.choice(f"{name}: {text}", places), choices)

    def fields(self, value: float) -> dict[str, Any]:
        """The fields of a configuration, by name, that a value of the axis stands for."""
        return dict(self.choices[int(value)]) if self.choices else {self.axis.name: value}

    def place(self, config: ConfigDict) -> float | None:
        """The value of a configuration; None if it has none of the choices."""
        known = config.to_dict()
        if not self.choices:
            return float(_field(known, self.axis.name))
        for place, fields in enumerate(self.choices):
            if all(_field(known, name) == value for name, value in fields.items()):
                return float(place)
        return None


def _field(known: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        known = known[part]
    return known


def _number(field: str, least: float, most: float, middle: float) -> Knob:
    """A knob of positive numbers, searched by their logarithm."""
    return Knob(Axis(field, (middle,), 2.0, least / 8, most * 8, (least, most)))


_LEARNING_RATE = _number("train.learning_rate", 1e-4, 1e-2, 1e-3)
_TABLES = (
    _number("train.table_learning_rate", 1e-3, 1e-1, 1e-2),
    _number("train.l2", 1e-4, 1e-1, 3e-3),
    _number("two_tower.scale", 0.3, 6.0, 1.0),
)
# Steps of plain SGD have the size of the gradient of a batch's mean loss, and of the score's scale.
_SGD_TABLES = (
    _number("train.table_learning_rate", 10.0, 300.0, 60.0),
    _number("train.l2", 3e-5, 3e-3, 3e-4),
    _number("two_tower.scale", 4.0, 40.0, 14.0),
)
_LOSSES = (
    {"train.loss": "all_items", "train.negatives": 0},
    {"train.loss": "softmax", "train.negatives": 16},
    {"train.loss": "bce", "train.negatives": 4},
)
_NETWORKS = {
    "two_tower": (
        Knob.among("two_tower.hidden", (), (64,)),
        Knob.among("two_tower.dropout", 0.0, 0.3),
        Knob.among("two_tower.gate", 0, 32),
    ),
    "dlrm": (
        Knob.among("dlrm.top", (64,), (128, 64), (256, 128)),
        Knob.among("dlrm.dropout", 0.0, 0.3),
    ),
    "dcn": (
        Knob.among("dcn.cross_layers", 1, 2, 3),
        Knob.among("dcn.top", (64,), (128, 64), (256, 128)),
        Knob.among("dcn.dropout", 0.0, 0.3),
    ),
}


def knobs(config: ConfigDict, arm: Arm, model: str, num_items: int) -> list[Knob]:
    """What is searched for a network in an arm.

    Args:
      config: the configuration.
      arm: one of `arms.TRAINED`.
      model: the network.
      num_items: of the table; with many the softmax over all items is left out.
    """
    *tables, scale = _SGD_TABLES if config.train.table_optimizer == "sgd" else _TABLES
    found = [_LEARNING_RATE, *tables, *_NETWORKS[model]]
    ranking = config.data.task == "ranking"
    if model == "two_tower":
        if ranking:
            few = num_items <= SOFTMAX_ITEMS
            found.append(Knob.of("train.loss", *_LOSSES[0 if few else 1 :]))
        found.append(scale)
    if ranking and not arm.takes_factors and "+" not in config.factorization:
        width = f"{config.factorization}.factors"  # of the random tables
        found.append(Knob.among(width, 32, 64, 128))
    if arm.frozen and config.rate < 1:
        found.append(Knob.among("factor_rows", "all", "unsampled"))
    if arm.takes_factors and config.factorization == "sgd":
        found = [_penalty(config.sgd), *found]  # the first to be tried beside others
    return found


def _penalty(config: ConfigDict) -> Knob:
    """The penalty of logistic factors: what is best for their own scores, and more of it.

    A network starts with these scores, and often does better with factors that are less confident.
    """
    own = config.regularization
    return Knob(Axis("sgd.regularization", (own,), 1.6, own / 8, own * 8, (own, 2 * own)))


def changed(searched: Sequence[Knob], trial: Trial) -> dict[str, Any]:
    """The fields that a trial sets, with their values."""
    fields: dict[str, Any] = {}
    for knob, value in zip(searched, trial, strict=True):
        fields |= knob.fields(value)
    return fields


def first_trials(config: ConfigDict, searched: Sequence[Knob], number: int) -> list[Trial]:
    """The configured settings, and others drawn at random."""
    axes = [knob.axis for knob in searched]
    places = [knob.place(config) for knob in searched]
    start = (axis.grid[0] if x is None else x for axis, x in zip(axes, places, strict=True))
    return space.first_trials(axes, tuple(start), number, SEED)


def with_factorization(study: Study, run: Run, prepared: Artifact) -> tuple[Run, dict[str, Any]]:
    """The run with the settings of its factorisation that validate best, and these as facts.

    Args:
      study: says how many trials there are.
      run: its configuration.
      prepared: the prepared table.
    """
    seed, run = run.config.seed, adapter.with_changes(run, seed=SEED)
    run, settings = adapter.tune_factorization(run, prepared, study.trials)
    return adapter.with_changes(run, seed=seed), settings


def tuned(study: Study, cell: Cell, run: Run, prepared: Artifact) -> tuple[Run, dict[str, Any]]:
    """The run with the settings that validate best for the arm of a cell.

    Another worker's search of the same arm is waited for. Killed, it resumes after its last trial.

    Args:
      study: says how many trials there are.
      cell: an arm of the package.
      run: its configuration.
      prepared: the prepared table.

    Returns:
      The run, and facts: `settings`, and the number of `trials` of each search.
    """
    settings: dict[str, Any] = {}
    if arms.ARMS[cell.arm].takes_factors:
        run, settings = with_factorization(study, run, prepared)
    elif cell.model:
        run = for_arm(run, arms.TRAINED[cell.arm])
    if cell.model:
        # The same file for any number of trials: a larger search begins with those of a smaller.
        base = dataclasses.replace(study, trials=0).settings(cell)
        file = study.out / "trials" / f"{_name(cell)}-{base[:6]}.csv"
        own = adapter.with_changes(run, seed=SEED)
        with adapter.alone(run.workdir, ["tune", str(file)]):
            found = _search(study.trials, cell, own, prepared, file)
        run, settings = adapter.with_changes(run, **found), settings | found
    return run, {"settings": settings, "trials": study.trials} if settings else {}


def _name(cell: Cell) -> str:
    return f"{cell.data}-{cell.arm}-{cell.model}-{cell.rate:g}"


def _search(
    trials: int, cell: Cell, run: Run, prepared: Artifact, file: pathlib.Path
) -> dict[str, Any]:
    """The fields of the best trial."""
    arm = arms.TRAINED[cell.arm]
    searched = knobs(run.config, arm, cell.model, prepared.facts["num_items"])
    axes = [knob.axis for knob in searched]
    log = Log([axis.name for axis in axes], file)

    def evaluate(trial: Trial, resource: int, state: Any) -> tuple[float, Any]:
        del state  # a longer training starts over: its checkpoint is the best step, not the last
        fields = changed(searched, trial)
        own = adapter.with_changes(run, **{**fields, "train.max_evaluations": resource})
        score = _validation(own, cell, prepared)
        run.say(f"trial {len(log.results) + 1}, {resource} evaluations: {score:.5f} {fields}")
        return score, None

    def extend(trial: Trial, known: Collection[Trial]) -> list[Trial]:
        return space.beside(axes, trial, known)

    first = first_trials(run.config, searched, trials)
    levels = halving.rungs(run.config.train.max_evaluations, len(first))
    best = halving.search(first, levels, evaluate, log, extend=extend, most=trials)
    if not np.isfinite(best.score):
        raise TrainingError(f"none of {trials} trials of {_name(cell)} can be trained; see {file}")
    return changed(searched, best.trial)


def _validation(run: Run, cell: Cell, prepared: Artifact) -> float:
    """The best validation result of a training; -inf if it fails. What it leaves is deleted."""
    try:
        factors = adapter.factorize(run, prepared)
        sample = adapter.uniform_sample(run, prepared) if cell.arm in OF_SAMPLES else prepared
        inputs = Inputs(prepared, factors, sample)
        trained = adapter.train(run, inputs, cell.model, cell.arm)
    except (TrainingError, ConfigError) as error:
        run.say(f"trial failed: {error}")
        return float("-inf")
    history = trained.facts["history"]
    shutil.rmtree(trained.path)
    return max(entry["validation"] for entry in history)
