"""The stages of a run except `factorize`; each leaves an artefact that a second run finds again.

Synthetic data and the sample are the first process's work. Preparing, training and evaluating are
done by all processes together.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data import negatives, pipeline, prepare
from cadc_jax.data.hosts import Hosts
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.data.readers import registry, synthetic
from cadc_jax.data.table import (
    Columns,
    ColumnWriter,
    Table,
    open_table,
    read_columns,
    write_columns,
    write_rows,
)
from cadc_jax.errors import ConfigError
from cadc_jax.evaluation import evaluate
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.models import embeddings
from cadc_jax.run import factors as factor_stage
from cadc_jax.run.arms import Arm
from cadc_jax.run.compressed import Inputs
from cadc_jax.run.context import Run, make_long_stage, make_stage, training_mesh
from cadc_jax.runtime import artifacts, distributed
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.training import assemble, tensorboard
from cadc_jax.training.assemble import EmbeddingStart, TrainingData
from cadc_jax.training.loop import FitOptions, Fitted


def raw_data(run: Run) -> pathlib.Path:
    """The raw file or folder; a synthetic file in its place if there is no Criteo log."""
    data = run.config.data
    path = configuration.raw_path(run.config)
    if data.source != "criteo" or data.path or not data.synthetic_rows:
        return path
    if distributed.on_first(path.exists):
        return path
    settings = {"rows": data.synthetic_rows, "seed": run.config.seed}

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        synthetic.write_criteo(folder / "train.txt", data.synthetic_rows, run.config.seed)
        return {"rows": data.synthetic_rows}

    made = make_stage(run, "synthetic", settings, write)
    run.say(
        f"*** NO CRITEO DATA GIVEN: running on {data.synthetic_rows:,} SYNTHETIC rows in its "
        f"format ({made.path / 'train.txt'}); for real ones: --config.data.path=/path/train.txt ***"
    )
    return made.path / "train.txt"


def prepare_stage(run: Run, raw: pathlib.Path) -> Artifact:
    """Turns raw rows into the prepared table."""
    data = run.config.data.to_dict()

    def identity() -> list[list]:
        return artifacts.file_identity(registry.raw_files(data["source"], raw, data))

    settings = prepare_settings(run.config) | {"files": distributed.on_first(identity)}

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        source = registry.open_raw_data(data["source"], raw, data)
        hosts = Hosts(distributed.index(), distributed.count(), distributed.barrier)
        return prepare.write_table(folder, source, configuration.prepare_config(run.config), hosts)

    made = make_stage(run, "prepare", settings, write, together=True)
    facts = made.facts
    read = facts["reader"]
    rows = ", ".join(f"{count:,} {split}" for split, count in facts["rows"].items())
    run.say(f"         {rows} rows; {facts['num_users']:,} users, {facts['num_items']:,} items")
    if read["padded"]:
        run.say(f"         {read['padded']:,} rows lacked trailing fields: filled in as missing")
    if read["malformed"]:
        run.say(f"         {read['malformed']:,} malformed rows left out: {read['examples'][0]}")
    return made


def prepare_settings(config: ConfigDict) -> dict[str, Any]:
    """Everything that the prepared table depends on, except the raw files."""
    data = config.data.to_dict()
    data = {name: value for name, value in data.items() if name not in ("path", "folder")}
    return {"data": data, "seed": config.seed}


def sample_stage(run: Run, prepared: Artifact) -> Artifact:
    """Writes the training rows that the sampling rule keeps."""
    rate, seed = run.config.rate, run.config.seed
    settings = {"prepared": prepared.fingerprint, "rate": rate, "seed": seed}

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        train = open_table(prepared.path).splits["train"]
        ids = pipeline.sampled_ids(len(train["user"]), rate, seed)
        write_columns(folder, {"row": ids})
        write_rows(folder, train, ids)
        return {"rows": len(ids)}

    made = make_stage(run, "sample", settings, write)
    run.say(f"         {made.facts['rows']:,} of {prepared.facts['rows']['train']:,} rows kept")
    if not made.facts["rows"]:
        raise ConfigError(f"rate={rate} keeps no row: raise it")
    return made


def train_settings(config: ConfigDict, model_name: str) -> dict[str, Any]:
    """Everything in a configuration that a trained model depends on, except rows and factors."""
    return {
        "model": [model_name, config[model_name].to_dict()],
        "train": dataclasses.asdict(configuration.train_config(config)),
        "k": config.evaluation.k,
        "ranking": config.evaluation.ranking,
        "seed": config.seed,
    }


def train_stage(run: Run, inputs: Inputs, model_name: str, arm: Arm) -> Artifact:
    """Trains one model in one arm; the artefact holds the state with the best validation result."""
    prepared, factors, sample = inputs.prepared, inputs.factors, inputs.sample
    settings = {
        "prepared": prepared.fingerprint,
        "sample": sample.fingerprint if arm.takes_sample else None,
        # Random arms take no more from the factors than their width.
        "factors": factors.fingerprint if arm.takes_factors else factor_stage.width_of(factors),
        "embeddings": arm.embeddings,
        **train_settings(run.config, model_name),
    }

    def write(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        jax.clear_caches()  # each arm pays for its own compilation
        table = open_table(prepared.path)
        rows = read_columns(sample.path) if arm.takes_sample else table.splits["train"]
        fitted = _fit(run, table, rows, factors, model_name, arm, saved)
        trained = {name: x for name, x in fitted.tables.items() if name not in arm.frozen}
        with ocp.StandardCheckpointer() as checkpointer:
            path = (folder / "state").resolve()
            checkpointer.save(path, {"params": fitted.params, "tables": trained})
        return {
            "arm": arm.name,
            "model": model_name,
            "rows": len(rows["user"]),
            "best_step": fitted.best_step,
            "history": fitted.history,
        }

    return make_long_stage(run, "train", settings, write, f"{model_name}, {arm.name}")


def _fit(
    run: Run,
    table: Table,
    rows: Columns,
    factors: Artifact,
    model_name: str,
    arm: Arm,
    saved: Checkpoints | None,
) -> Fitted:
    config, schema = run.config, table.schema
    train_config, evaluation = (
        configuration.train_config(config),
        configuration.evaluation_config(config),
    )
    sampler = None
    if schema.task == "ranking":
        known = negatives.pair_keys(*table.known_pairs(), schema.num_items)  # sorted, as they are
        sampler = NegativeSampling(train_config.negatives, known, schema.num_items)
    data = TrainingData(
        rows, embeddings.content_of(table), embeddings.num_feature_rows(table), sampler
    )
    logs = run.workdir / "logs" / f"{model_name}-{arm.name}"
    first = distributed.is_first()
    return assemble.train(
        configuration.make_model(config, model_name),
        train_config,
        data,
        _embedding_start(run, factors, arm),
        lambda scorer: evaluate.validation_quality(scorer, table, evaluation),
        config.seed,
        FitOptions(
            mesh=training_mesh(run),
            device_bytes=config.devices.table_bytes,
            label=f"train {model_name}, {arm.name}",
            record=tensorboard.recorder(logs) if config.log.tensorboard and first else None,
            trace=str(logs) if config.log.profile and first else None,
            saved=saved,
        ),
    )


def _embedding_start(run: Run, factors: Artifact, arm: Arm) -> EmbeddingStart:
    given, predict_with = None, None
    if arm.frozen:
        given = factor_stage.tables_to_train_on(factors)
        predict_with = factor_stage.tables_to_predict_with(factors)
    elif arm.takes_factors:
        given = factor_stage.factor_tables(factors.path)
    width = run.config.dlrm.embedding_dim
    return EmbeddingStart(factor_stage.width_of(factors), width, given, arm.frozen, predict_with)


def restore(
    trained: Artifact, arm: Arm, factors: Artifact | None
) -> tuple[Any, dict[str, np.ndarray]]:
    """Parameters and all embedding tables of a trained model, on the host.

    Args:
      trained: the artefact of `train_stage`.
      arm: the arm it was trained in.
      factors: the factors it was trained with; only frozen tables are made from them.
    """
    path = (trained.path / "state").resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        # To the host: the devices may be others than the ones it was saved from.
        saved = checkpointer.metadata(path).item_metadata.tree
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved)
        state = checkpointer.restore(path, like)
    tables = dict(state["tables"])
    if arm.frozen:
        assert factors is not None  # such an arm was trained with some
        trained_on = factor_stage.tables_to_train_on(factors)
        predict_with = factor_stage.tables_to_predict_with(factors) or trained_on
        tables |= assemble.scaled(predict_with, like=trained_on)
    return state["params"], tables


def evaluate_stage(
    run: Run,
    prepared: Artifact,
    source: str,
    make_scorer: Callable[[Table], Scorer],
    label: str,
) -> Artifact:
    """Test metrics of a scorer, and the scores or ranks of all test rows.

    `scores.npy` [N] float32 of clicks; `ranks_full.npy` [N] int32 (-1: a user that was not drawn)
    and `ranks_sampled.npy` [N] int32 of rankings. Two scorers can be compared user by user with
    them. The users drawn by `max_users` depend on the table alone, not on the seed of the run.

    Args:
      run: what the stages share.
      prepared: the prepared table.
      source: names what the scorer is made from, such as the fingerprint of a trained model.
      make_scorer: makes the scorer.
      label: shown to the user.
    """
    options = configuration.evaluation_config(run.config)
    settings = {
        "prepared": prepared.fingerprint,
        "scorer": source,
        "evaluation": dataclasses.asdict(options),
        "keeps": "rows",
    }

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        table = open_table(prepared.path)
        scorer, test = make_scorer(table), table.splits["test"]
        first = distributed.is_first()
        if table.schema.task == "click":
            if not first:
                return evaluate.evaluate_clicks(scorer, test)
            scores = ColumnWriter(folder / "scores.npy", np.float32, (len(test["label"]),))
            quality = evaluate.evaluate_clicks(scorer, test, keep=scores.append)
            scores.close()
            return quality
        full = evaluate.ranks_full(scorer, table, "test", options.max_users)
        sampled = evaluate.ranks_sampled(scorer, test)
        if first:
            write_columns(folder, {"ranks_full": full, "ranks_sampled": sampled})
        among = test["negatives"].shape[1]
        return evaluate.of_ranks(full, options.k) | evaluate.of_ranks(sampled, options.k, among)

    return make_stage(run, "evaluate", settings, write, label, together=True)
