"""Every call of the study into the stages of a run of `cadc_jax`, and its names of the arms.

Modules that import TensorFlow are imported where they are used: worker processes need them, and the
process that starts these does not.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax import configuration, sharding
from cadc_jax.data.table import Table
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.run import arms, bundled_configs
from cadc_jax.run.compressed import Inputs
from cadc_jax.run.context import Run
from cadc_jax.runtime.artifacts import Artifact

_ARMS = {
    "popularity": arms.POPULARITY,
    "mf_alone": arms.MF_ALONE,
    "full": arms.FULL,
    "random": arms.SAMPLE,
    "trainable": arms.CADC_TRAINABLE,
    "frozen": arms.CADC_FROZEN,
}


@dataclasses.dataclass(frozen=True)
class Tested:
    """The result of testing a scorer.

    Attributes:
      metrics: 'hr@10', 'ndcg@10/1+99', 'auc', ... -> value.
      seconds: stage -> wall time; 'train', 'evaluate', ...
      rows_used: training rows that the scorer was trained on.
      evaluation: fingerprint of the artefact, which has the score or rank of each test row.
    """

    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    rows_used: int
    evaluation: str


def bundled_config(name: str) -> ConfigDict:
    """A new copy of a configuration of the package."""
    return bundled_configs.config(name)


def open_run(config: ConfigDict, workdir: pathlib.Path, say: Callable[[str], None]) -> Run:
    """A run of a valid configuration; artefacts in `workdir` are reused without a check.

    Raises:
      ConfigError: if the configuration is not valid.
    """
    configuration.validate(config)
    return Run(config, workdir, say, verify=False, cores=sharding.split_cores())


def with_changes(run: Run, **changes: Any) -> Run:
    """The same run with other values in its configuration."""
    config = run.config.copy_and_resolve_references()
    config.update(changes)
    return dataclasses.replace(run, config=config)


def prepare(run: Run) -> Artifact:
    """The prepared table."""
    from cadc_jax.run import stages

    return stages.prepare_stage(run, stages.raw_data(run))


def uniform_sample(run: Run, prepared: Artifact) -> Artifact:
    """The training rows that the uniform rule keeps."""
    from cadc_jax.run import stages

    return stages.sample_stage(run, prepared)


def factorize(run: Run, prepared: Artifact, sample: Artifact | None = None) -> Artifact:
    """Factors of all training rows; `sample` are the kept rows if not by the uniform rule."""
    from cadc_jax.run.factors import factorize_stage

    return factorize_stage(run, prepared, sample)


def test_scorer(
    run: Run, prepared: Artifact, name: str, make_scorer: Callable[[Table], Scorer]
) -> Tested:
    """Tests a scorer that is not of the package."""
    from cadc_jax.run import stages

    made = stages.evaluate_stage(run, prepared, name, make_scorer, name)
    rows = prepared.facts["rows"]["train"]
    return Tested(made.facts["metrics"], {"evaluate": made.seconds}, rows, made.fingerprint)


def test_baseline(run: Run, prepared: Artifact, factors: Artifact, arm: str) -> Tested:
    """Tests 'popularity' or 'mf_alone'."""
    from cadc_jax import experiment

    inputs = Inputs(prepared, factors, prepared)  # a baseline uses no sample
    return _tested(experiment.baseline_row(run, inputs, _ARMS[arm]))


def train_and_test(run: Run, inputs: Inputs, model: str, arm: str) -> tuple[Tested, Artifact]:
    """Trains a model in an arm ('full', or one of `cells.ARMS`); its test and its state."""
    from cadc_jax import experiment
    from cadc_jax.run import stages

    row = experiment.arm_row(run, inputs, model, _ARMS[arm])
    return _tested(row), stages.train_stage(run, inputs, model, _ARMS[arm])


def _tested(row: Mapping[str, Any]) -> Tested:
    return Tested(row["metrics"], row["seconds"], row["rows_used"], row["evaluation"])
