"""The stages of a run except `factorize`; each leaves an artefact that a second run finds again.

Synthetic data and the sample are the first process's work. Preparing, training and evaluating are
done by all processes together.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data import pipeline, prepare
from cadc_jax.data.facts import describe_rows
from cadc_jax.data.hosts import Carrier, Hosts
from cadc_jax.data.raw import RawData
from cadc_jax.data.readers import registry, synthetic
from cadc_jax.data.table import (
    Columns,
    ColumnWriter,
    Table,
    open_rows,
    open_table,
    write_blocks,
    write_columns,
)
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.evaluation import evaluate, resident
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.models import embeddings, scoring
from cadc_jax.run import factor_files
from cadc_jax.run.arms import Arm
from cadc_jax.run.context import (
    EVALUATING,
    Inputs,
    Run,
    for_arm,
    make_long_stage,
    make_stage,
    training_mesh,
)
from cadc_jax.runtime import artifacts, distributed, states
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.checkpoints import Checkpoints, quiet_orbax
from cadc_jax.runtime.manifest import ADVICE
from cadc_jax.runtime.storage import AnyPath
from cadc_jax.runtime.text import one_line
from cadc_jax.training import assemble, tensorboard
from cadc_jax.training.assemble import EmbeddingStart, TrainingData
from cadc_jax.training.loop import FitOptions, Fitted

# Settings that tables have had since they were added: at their defaults they change nothing, and
# a table that was made before is found again.
_NEWER = ("min_value", "min_user_rows", "min_item_rows", "format")


def raw_data(run: Run) -> AnyPath:
    """The raw file or folder; a synthetic file in its place if there is no Criteo log."""
    data = run.config.data
    path = configuration.raw_path(run.config)
    if data.source != "criteo" or data.path or not data.synthetic_rows:
        return path
    if distributed.on_first(path.exists):
        return path
    seed = configuration.data_seed(run.config)
    settings = {"rows": data.synthetic_rows, "seed": seed}
    given = data.split == "given"
    if given:
        settings["files"] = [data.validation_file, data.test_file]

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        log = folder / "train.txt"
        synthetic.write_criteo(log, data.synthetic_rows, seed)
        if given:
            _cut_into_days(log, folder / "days", settings["files"])
        return {"rows": data.synthetic_rows}

    made = make_stage(run, "synthetic", settings, write)
    name = "days" if given else "train.txt"
    run.say(
        f"*** NO CRITEO DATA GIVEN: running on {data.synthetic_rows:,} SYNTHETIC rows in its "
        f"format ({made.path / name}); for real ones: --config.data.path=/path/{name} ***"
    )
    return made.path / name


def _cut_into_days(log: pathlib.Path, folder: pathlib.Path, names: Sequence[str]) -> None:
    """Moves a log into a folder: to two files of these names a seventh each, in order, at the end.

    A * in a name stands for nothing. The rows before them are in `train.txt`.
    """
    folder.mkdir()
    lines = log.read_bytes().splitlines(keepends=True)
    seventh = len(lines) // 7
    ends = len(lines) - 2 * seventh, len(lines) - seventh, len(lines)
    start = 0
    for name, end in zip(["train.txt", *(x.replace("*", "") for x in names)], ends, strict=True):
        (folder / name).write_bytes(b"".join(lines[start:end]))
        start = end
    log.unlink()


# Writes the prepared table of the source that a function opens into a folder; returns the facts.
Engine = Callable[[pathlib.Path, Callable[[], RawData], prepare.PrepareConfig], Mapping[str, Any]]


def _together(run: Run) -> Engine:
    """The engine of all processes of the run."""
    mirror = run.mirror
    carrier = Carrier(mirror.push_files, mirror.pull_files) if distributed.apart() else None
    hosts = Hosts(distributed.index(), distributed.count(), distributed.barrier, carrier)
    return lambda folder, source, config: prepare.write_table(folder, source(), config, hosts)


def prepare_stage(run: Run, raw: AnyPath, engine: Engine | None = None) -> Artifact:
    """Turns raw rows into the prepared table, which does not depend on the engine.

    Args:
      run: what the stages share.
      raw: the raw file or folder.
      engine: what does it; None for the processes of the run.
    """
    data = run.config.data.to_dict()
    _check_row_features(data)

    def identity() -> list[list]:
        return [_identity(run, file) for file in registry.raw_files(data["source"], raw, data)]

    settings = prepare_settings(run.config) | {"files": distributed.on_first(identity)}

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        open_source = functools.partial(registry.open_raw_data, data["source"], raw, data)
        prepare_table = engine or _together(run)
        return prepare_table(folder, open_source, configuration.prepare_config(run.config))

    made = make_stage(run, "prepare", settings, write, together=True)
    facts = made.facts
    read = facts["reader"]
    rows = describe_rows(facts["rows"])
    run.say(f"         {rows} rows; {facts['num_users']:,} users, {facts['num_items']:,} items")
    if below := read.get("below", 0):
        run.say(f"         {below:,} rows left out: their value is below {data['min_value']:g}")
    if cut := facts.get("core"):
        least = f"{data['min_user_rows']} and {data['min_item_rows']} rows"
        run.say(
            f"         {cut['rows']:,} rows left out, with {cut['users']:,} users and "
            f"{cut['items']:,} items that have fewer than {least}"
        )
    if merged := facts["merged_repeats"]:
        run.say(f"         {merged:,} rows merged into others of the same user and item")
    if read["padded"]:
        run.say(f"         {read['padded']:,} rows lacked trailing fields: filled in as missing")
    if read["malformed"]:
        run.say(f"         {read['malformed']:,} malformed rows left out: {read['examples'][0]}")
    if run.config.factorization == "sgd" and data["columns"]["value"] and data["task"] == "ranking":
        run.say("         factorization='sgd' counts every row once: it does not use the values")
    for trap in facts.get("traps", ()):
        run.say(f"         warning: {trap}")
    return made


def _identity(run: Run, file: AnyPath) -> list:
    """What represents a raw file in a fingerprint; see `artifacts.file_identity`.

    A made-up one in a work folder on a URL is the same on every machine: the settings it was made
    with are in its name.
    """
    if run.remote is not None and isinstance(file, pathlib.Path):
        if file.is_relative_to(run.workdir):
            return [str(run.mirror.shown(file)), file.stat().st_size]
    (identity,) = artifacts.file_identity([file])
    return identity


def _check_row_features(data: Mapping[str, Any]) -> None:
    """Raises ConfigError if rows of the ranking task have features: items are ranked in no row."""
    columns, named = data["columns"], (data["user_features"], data["item_features"])
    alone = {names[0] for names in named if len(names) == 1}  # is the user or the item itself
    left = [name for name in (*columns["dense"], *columns["categorical"]) if name not in alone]
    if data["task"] == "ranking" and left:
        raise ConfigError(
            f"data.columns: the ranking task takes no features of rows ({', '.join(left)}): leave "
            "them out of dense and categorical, or use data.task='click'"
        )


def prepare_settings(config: ConfigDict) -> dict[str, Any]:
    """Everything that the prepared table depends on, except the raw files."""
    data, defaults = config.data.to_dict(), configuration.default_config().data
    for name in ("path", "folder", "seed", "value_scale"):
        del data[name]
    for name in _NEWER:
        if data[name] == defaults[name]:
            del data[name]
    return {"data": data, "seed": configuration.data_seed(config)}


def sample_stage(run: Run, prepared: Artifact) -> Artifact:
    """Writes the training rows that the sampling rule keeps."""
    rate, seed = run.config.rate, run.config.seed
    settings = {"prepared": prepared.fingerprint, "rate": rate, "seed": seed}

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        train = open_table(prepared.path).splits["train"]
        return {"rows": write_blocks(folder, pipeline.sampled_rows(train, rate, seed))}

    if not (run.workdir / "sample" / artifacts.fingerprint("sample", settings)).exists():
        pipeline.import_tf_data()  # takes seconds, which are none of the stage's
    made = make_stage(run, "sample", settings, write)
    run.say(f"         {made.facts['rows']:,} of {prepared.facts['rows']['train']:,} rows kept")
    if not made.facts["rows"]:
        raise ConfigError(f"rate={rate} keeps no row: raise it")
    return made


def train_settings(config: ConfigDict, model_name: str) -> dict[str, Any]:
    """Everything in a configuration that a trained model depends on, except rows and factors."""
    options = configuration.evaluation_config(config)
    return {
        "model": [model_name, config[model_name].to_dict()],
        "train": dataclasses.asdict(configuration.train_config(config)),
        "k": options.k[0],
        "ranking": options.ranking,
        "max_users": options.max_users if options.ranking == "full" else 0,
        "max_rows": options.max_rows,
        "seed": config.seed,
    }


def train_stage(run: Run, inputs: Inputs, model_name: str, arm: Arm) -> Artifact:
    """Trains one model in one arm; the artefact holds the state with the best validation result."""
    run = for_arm(run, arm)
    prepared, factors, sample = inputs.prepared, inputs.factors, inputs.sample
    settings = {
        "prepared": prepared.fingerprint,
        "sample": sample.fingerprint if arm.takes_sample else None,
        # Random arms take no more from the factors than their width.
        "factors": factors.fingerprint if arm.takes_factors else factor_files.width_of(factors),
        "embeddings": arm.embeddings,
        **train_settings(run.config, model_name),
    }
    if arm.takes_factors and factor_files.are_logits(run.config):
        settings["logits"] = True

    def write(folder: pathlib.Path, saved: Checkpoints) -> Mapping[str, Any]:
        table = open_table(prepared.path)
        # A sample arm opens the kept rows alone.
        kept = arm.takes_sample
        rows = open_rows(sample.path, table.schema) if kept else table.splits["train"]
        share = len(rows["user"]) / prepared.facts["rows"]["train"]
        start = _embedding_start(run, factors, arm)
        data = _training_data(run.config, table, rows, share, start)
        fitted = _fit(run, table, data, start, model_name, arm, saved)
        saved.wait()
        trained = {name: x for name, x in fitted.tables.items() if name not in arm.frozen}
        with quiet_orbax():
            state = {"params": fitted.params, "tables": trained}
            states.save(folder / "state", state, run.mirror)
        return {
            "arm": arm.name,
            "model": model_name,
            "rows": len(rows["user"]),
            # Each row of a click log is a pair of its own.
            "pairs": len(rows["user"] if data.negatives is None else data.negatives.known),
            "best_step": fitted.best_step,
            "history": fitted.history,
            EVALUATING: round(fitted.evaluation_seconds, 3),
        }

    made = make_long_stage(run, "train", settings, write, f"{model_name}, {arm.name}")
    if distributed.is_first() and not made.reused:
        run.mirror.push_files(_logs(run, model_name, arm).rglob("*"))
    return made


def _logs(run: Run, model_name: str, arm: Arm) -> pathlib.Path:
    """The folder of what is recorded while a model is trained."""
    return run.workdir / "logs" / f"{model_name}-{arm.name}"


def _training_data(
    config: ConfigDict, table: Table, rows: Columns, share: float, start: EmbeddingStart
) -> TrainingData:
    """Rows, which are a share of all training rows, and what there is to know of their ids."""
    sampler = None
    if table.schema.task == "ranking":
        of_all_rows = start.factors if start.predict_with is None else start.predict_with
        sampler = assemble.negatives_of(
            configuration.train_config(config), rows, table.schema.num_items, share, of_all_rows
        )
    return TrainingData(
        rows, embeddings.content_of(table), embeddings.num_feature_rows(table), sampler
    )


def _fit(
    run: Run,
    table: Table,
    data: TrainingData,
    start: EmbeddingStart,
    model_name: str,
    arm: Arm,
    saved: Checkpoints,
) -> Fitted:
    config = run.config
    evaluation, mesh = configuration.evaluation_config(config), training_mesh(run)
    logs = _logs(run, model_name, arm)
    first = distributed.is_first()
    return assemble.train(
        configuration.make_model(config, model_name),
        configuration.train_config(config),
        data,
        start,
        resident.validation(table, evaluation, mesh),
        config.seed,
        FitOptions(
            mesh=mesh,
            device_bytes=configuration.device_config(config).room,
            label=f"train {model_name}, {arm.name}",
            record=tensorboard.recorder(logs) if config.log.tensorboard and first else None,
            trace=str(logs) if config.log.profile and first else None,
            saved=saved,
        ),
    )


def _embedding_start(run: Run, factors: Artifact, arm: Arm) -> EmbeddingStart:
    given, predict_with = None, None
    if arm.frozen:
        given = factor_files.tables_to_train_on(factors)
        predict_with = factor_files.tables_to_predict_with(factors)
    elif arm.takes_factors:
        given = factor_files.factor_tables(factors.path)
    return EmbeddingStart(
        factor_files.width_of(factors),
        run.config.dlrm.embedding_dim,
        given,
        arm.frozen,
        predict_with,
        factor_files.are_logits(run.config),
    )


def starts_from_logits(trained: Artifact) -> bool:
    """Whether the factors that a model was trained with are logits; see `assemble.divisors`."""
    return bool(trained.settings.get("logits"))


def restore(
    trained: Artifact, arm: Arm, factors: Artifact | None, network: nn.Module, table: Table
) -> tuple[Any, dict[str, np.ndarray]]:
    """Parameters and all embedding tables of a trained model, on the host.

    Args:
      trained: the artefact of `train_stage`.
      arm: the arm it was trained in.
      factors: the factors it was trained with; only frozen tables are made from them.
      network: the network.
      table: the prepared table it was trained on.

    Raises:
      ArtifactError: if the saved state is not one of this network and this table.
    """
    path, frozen = (trained.path / "state").resolve(), {}
    if arm.frozen:
        assert factors is not None  # such an arm was trained with some
        trained_on = factor_files.tables_to_train_on(factors)
        predict_with = factor_files.tables_to_predict_with(factors) or trained_on
        frozen = assemble.scaled(predict_with, trained_on, starts_from_logits(trained))
    try:
        with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata
            if metadata is None:
                raise ValueError("it cannot be read")
            saved = metadata.tree
            _check_state(saved, frozen, network, table)
            # To the host: the devices may be others than the ones it was saved from.
            like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved)
            state = checkpointer.restore(path, like)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        text = one_line(error)[:200]
        raise ArtifactError(f"{path}: not a state of this network ({text}); {ADVICE}") from None
    return state["params"], dict(state["tables"]) | frozen


def _check_state(
    saved: Mapping[str, Any], frozen: Mapping[str, np.ndarray], network: nn.Module, table: Table
) -> None:
    """Raises ValueError unless a saved state has the tables and parameters that are needed."""
    rows = {
        "user": table.schema.num_users,
        "item": table.schema.num_items,
        "features": max(1, embeddings.num_feature_rows(table)),
    }
    tables = saved["tables"] | frozen
    found = {name: x.shape[:-1] for name, x in tables.items()}
    if found != {name: (size,) for name, size in rows.items()}:
        raise ValueError(f"its tables have {found} rows, not {rows}")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tables.items()}
    dense = len(table.schema.context.dense)
    wanted = scoring.parameter_shapes(network, shapes, embeddings.content_of(table), dense)
    if jax.tree.map(lambda x: x.shape, saved["params"]) != jax.tree.map(lambda x: x.shape, wanted):
        raise ValueError("its parameters are those of another network")


def evaluate_stage(
    run: Run,
    prepared: Artifact,
    source: str,
    make_scorer: Callable[[Table], Scorer],
    label: str,
) -> Artifact:
    """Metrics of a scorer on both held-out splits, and the scores or ranks of all test rows.

    `scores.npy` [N] float32 of clicks. Of rankings `ranks_full.npy` [N] int32, what
    `FullRanking.ranks` is (-1: a user that was not drawn), and `ranks_sampled.npy` [N] int32. Two
    scorers can be compared user by user with them; `metrics.UserRankings` has each user's metrics.
    The users drawn by `max_users` depend on the table alone, not on the seed of the run.

    The facts are `metrics` of the test split, `standard_errors` of the first of these,
    `validation` (`evaluate.validation_quality`) and `users`, of rankings how many were `ranked` of
    `all`.

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
        "keeps": "rows, ranked by user; validation; standard errors",
    }

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        table = open_table(prepared.path)
        scorer, test = make_scorer(table), table.splits["test"]
        first = distributed.is_first()
        facts = {"validation": evaluate.validation_quality(scorer, table, options)}
        if table.schema.task == "click":
            if not first:
                return {"metrics": evaluate.evaluate_clicks(scorer, test), "users": {}, **facts}
            scores = ColumnWriter(folder / "scores.npy", np.float32, (len(test["label"]),))
            quality = evaluate.evaluate_clicks(scorer, test, keep=scores.append)
            scores.close()
            errors = evaluate.click_errors(test["label"], np.load(folder / "scores.npy"))
            return {"metrics": quality, "users": {}, "standard_errors": errors, **facts}
        length, k = max(options.k), options.k
        full = evaluate.rank_users(scorer, table, "test", options.max_users, length=length)
        sampled = evaluate.ranks_sampled(scorer, test)
        if first:
            write_columns(folder, {"ranks_full": full.ranks, "ranks_sampled": sampled})
        found = full.quality(k, coverage=True)
        found |= evaluate.sampled_quality(sampled, k, test["negatives"].shape[1])
        errors = full.standard_errors(k[0])
        return {"metrics": found, "users": full.users, "standard_errors": errors, **facts}

    return make_stage(run, "evaluate", settings, write, label, together=True)
