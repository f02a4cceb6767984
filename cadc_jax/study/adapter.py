"""Every call of a study into the stages of a run.

Modules that import TensorFlow are imported where they are used: worker processes need them, and the
process that starts these does not.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax import configuration, sharding
from cadc_jax.data.table import Table
from cadc_jax.evaluation import resident
from cadc_jax.evaluation.resident import Quality
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.run import arms
from cadc_jax.run.compressed import Inputs
from cadc_jax.run.context import Run, training_mesh
from cadc_jax.runtime import artifacts, durable
from cadc_jax.runtime.artifacts import Artifact


@dataclasses.dataclass(frozen=True)
class Tested:
    """The result of testing a scorer.

    Attributes:
      metrics: of the test, 'hr@10', 'ndcg@10/1+99', 'auc', ... -> value.
      validation: of the validation split; the first is the one that choices are made by.
      seconds: stage -> wall time; 'train', 'evaluate', ...
      rows_used: training rows that the scorer was trained on.
      evaluation: fingerprint of the artefact, which has the score or rank of each test row.
    """

    metrics: Mapping[str, float]
    validation: Mapping[str, float]
    seconds: Mapping[str, float]
    rows_used: int
    evaluation: str


def open_run(config: ConfigDict, workdir: pathlib.Path, say: Callable[[str], None]) -> Run:
    """A run of a valid configuration; artefacts in `workdir` are reused without a check.

    Raises:
      ConfigError: if the configuration is not valid.
    """
    configuration.validate(config)
    return Run(config, workdir, say, verify=False, cores=sharding.split_cores())


def with_changes(run: Run, **changes: Any) -> Run:
    """The same run with other values in its configuration, by field, such as 'train.l2'."""
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return dataclasses.replace(run, config=config)


def prepare(run: Run) -> Artifact:
    """The prepared table. Workers that need the same one wait for the first of them."""
    from cadc_jax.run import stages

    with alone(run.workdir, stages.prepare_settings(run.config)):
        return stages.prepare_stage(run, stages.raw_data(run))


def uniform_sample(run: Run, prepared: Artifact) -> Artifact:
    """The training rows that the uniform rule keeps."""
    from cadc_jax.run import stages

    return stages.sample_stage(run, prepared)


def factorize(run: Run, prepared: Artifact, sample: Artifact | None = None) -> Artifact:
    """Factors of all training rows; `sample` are the kept rows if not by the uniform rule."""
    from cadc_jax.run.factors import factorize_stage

    config = run.config
    settings = [prepared.fingerprint, configuration.factorization_settings(config), config.seed]
    with alone(run.workdir, settings):
        return factorize_stage(run, prepared, sample)


@contextlib.contextmanager
def alone(workdir: pathlib.Path, settings: Any) -> Iterator[None]:
    """One worker at a time makes what has these settings; the next ones then find it."""
    durable.make_folder(workdir)
    with durable.wait_for(workdir / f".lock-{artifacts.hash_of(settings)}"):
        yield


def validation_quality(run: Run, table: Table) -> Quality:
    """What training chooses its best step by; see `resident.validation`."""
    options = configuration.evaluation_config(run.config)
    return resident.validation(table, options, training_mesh(run))


def test_scorer(
    run: Run, prepared: Artifact, source: str, make_scorer: Callable[[Table], Scorer], label: str
) -> Tested:
    """Tests a scorer that is not of the package; the arguments are those of `evaluate_stage`."""
    from cadc_jax.run import stages

    made = stages.evaluate_stage(run, prepared, source, make_scorer, label)
    rows, facts = prepared.facts["rows"]["train"], made.facts
    seconds = {"evaluate": made.seconds}
    return Tested(facts["metrics"], facts["validation"], seconds, rows, made.fingerprint)


def test_baseline(run: Run, prepared: Artifact, factors: Artifact, arm: str) -> Tested:
    """Tests popularity, or the factors alone."""
    from cadc_jax import experiment

    inputs = Inputs(prepared, factors, prepared)  # a baseline uses no sample
    return _tested(experiment.baseline_row(run, inputs, arms.BASELINES[arm]))


def tune_factorization(run: Run, prepared: Artifact, trials: int) -> tuple[Run, dict[str, Any]]:
    """The run with the settings of its factorisation that validate best, and these as facts.

    Args:
      run: its seed is that of the trials.
      prepared: the prepared table.
      trials: how many there are, of each factorisation.
    """
    from cadc_jax.run import tune

    config, found = run.config.copy_and_resolve_references(), dict[str, Any]()
    for method in configuration.methods(config):
        with alone(run.workdir, ["tune", prepared.fingerprint, method, config[method].to_dict()]):
            made = tune.stage(run, prepared, method, tune.larger(trials, _ranks(config, method)))
        for name, value in made.facts["chosen"].items():
            found[f"{method}.{name}"] = value
    with config.ignore_type():  # a field may be 'auto' before
        config.update_from_flattened_dict(found)
    return dataclasses.replace(run, config=config), found


def _ranks(config: ConfigDict, method: str) -> tuple[int, ...]:
    """Numbers of factors to try: half and twice the configured one; of slow methods this alone."""
    factors = config[method].factors
    return () if method == "autoencoder" else (factors, max(1, factors // 2), 2 * factors)


def train(run: Run, inputs: Inputs, model: str, arm: str) -> Artifact:
    """Trains a model in an arm, one of `cells.ARMS`, and does not test it."""
    from cadc_jax.run import stages

    return stages.train_stage(run, inputs, model, arms.TRAINED[arm])


def train_and_test(run: Run, inputs: Inputs, model: str, arm: str) -> tuple[Tested, Artifact]:
    """Trains a model in an arm, one of `cells.ARMS`; its test and its state."""
    from cadc_jax import experiment

    row = experiment.arm_row(run, inputs, model, arms.TRAINED[arm])
    return _tested(row), train(run, inputs, model, arm)


def _tested(row: Mapping[str, Any]) -> Tested:
    return Tested(
        row["metrics"], row["validation"], row["seconds"], row["rows_used"], row["evaluation"]
    )
