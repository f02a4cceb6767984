"""The stages of a run, each an artefact on disk that a second run finds again.

Of several processes all go through the stages in the same order. Synthetic data and the sample are
the first one's work; preparing, ALS, training and evaluation are done together.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cadc_jax import configuration, sharding
from cadc_jax.data import negatives, pipeline, prepare
from cadc_jax.data.hosts import Hosts
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
from cadc_jax.evaluation import evaluate
from cadc_jax.factorization import als, sgd
from cadc_jax.factorization.factors import Factors, dot_tables, principal_axes
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.models import embeddings
from cadc_jax.run.compressed import Inputs
from cadc_jax.runtime import artifacts, distributed
from cadc_jax.runtime.artifacts import Artifact, materialize
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stop
from cadc_jax.runtime.progress import Progress
from cadc_jax.training import loop, losses, step, tensorboard

Say = Callable[[str], None]

# With `factor_rows='unsampled'`: the folder, inside that of the factors, for those of the unsampled
# rows; and the passes over all rows that turn these into factors of all rows, in the same basis.
UNSAMPLED = "unsampled"
REFRESH_PASSES = 5

# What the copies of a side of the matrix on devices that are the cores of one CPU may take.
COPIES_BYTES = 1 << 30

# Pairs scored at a time in the full ranking: towers hold a score of each, others all embeddings.
PAIR_BLOCKS = {"dlrm": 1 << 18, "dcn": 1 << 18, "two_tower": evaluate.PAIR_BLOCK}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the stages share.

    Attributes:
      config: the validated configuration.
      workdir: where artefacts and the report go.
      say: shows the user a line.
      verify: whether to compare the checksums of artefacts that are reused.
      stop: whether the run is to end, after saving.
      cores: whether the CPU is one device a core (`sharding.split_cores`). ALS uses them all, as
        far as there is room for a copy of a side on each; training uses the first, whose products
        take all cores by themselves.
    """

    config: ConfigDict
    workdir: pathlib.Path
    say: Say = print
    verify: bool = True
    stop: Stop = dataclasses.field(default_factory=Stop)
    cores: bool = False


def raw_data(run: Run) -> pathlib.Path:
    """The raw file or folder; where Criteo's is not there, a synthetic file in its place."""
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

    made = _stage(run, "synthetic", settings, write)
    run.say(
        f"*** NO CRITEO DATA GIVEN: running on {data.synthetic_rows:,} SYNTHETIC rows in its "
        f"format ({made.path / 'train.txt'}); for real ones: --config.data.path=/path/train.txt ***"
    )
    return made.path / "train.txt"


def prepare_stage(run: Run, raw: pathlib.Path) -> Artifact:
    """Raw rows to the prepared table."""
    data = run.config.data.to_dict()

    def identity() -> list[list]:
        return artifacts.file_identity(registry.raw_files(data["source"], raw, data))

    settings = prepare_settings(run.config) | {"files": distributed.on_first(identity)}

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        source = registry.open_raw_data(data["source"], raw, data)
        hosts = Hosts(distributed.index(), distributed.count(), distributed.barrier)
        return prepare.write_table(folder, source, configuration.prepare_config(run.config), hosts)

    made = _stage(run, "prepare", settings, write, together=True)
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
    """All that the prepared table depends on, but for the raw files."""
    data = config.data.to_dict()
    data = {name: value for name, value in data.items() if name not in ("path", "folder")}
    return {"data": data, "seed": config.seed}


def factorize_stage(run: Run, prepared: Artifact, sample: Artifact | None = None) -> Artifact:
    """User and item factors of all training rows.

    With `factor_rows='unsampled'` these go on from the factors of the rows that the sample does not
    keep, which are a stage of their own and lie in the artefact's folder UNSAMPLED, too.

    Args:
      run: what the stages share.
      prepared: the prepared table.
      sample: rows kept by another rule than that of `sample_stage`.
    """
    config = configuration.factorization_config(run.config)
    settings = {
        "prepared": prepared.fingerprint,
        "method": run.config.factorization,
        "config": dataclasses.asdict(config),
        "seed": run.config.seed,
    }
    key = jax.random.key(run.config.seed)
    together = run.config.factorization == "als"
    if run.config.factor_rows == "all":

        def write(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
            table = open_table(prepared.path)
            factors, losses = _factorize(run, table, slice(None), config, key, saved)
            _write_factors(folder, factors)
            return {"losses": losses.tolist()}

        return _long_stage(run, "factorize", settings, write, together=together)

    def kept(count: int) -> np.ndarray:
        if sample is None:
            return pipeline.sampled_ids(count, run.config.rate, run.config.seed)
        return read_columns(sample.path)["row"]

    def write_first(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        table = open_table(prepared.path)
        left = np.ones(len(table.splits["train"]["user"]), bool)
        left[kept(len(left))] = False
        factors, losses = _factorize(run, table, np.flatnonzero(left), config, key, saved)
        _write_factors(folder, principal_axes(factors))
        return {"losses": losses.tolist()}

    settings |= {"unsampled_at": run.config.rate if sample is None else sample.fingerprint}
    first = _long_stage(run, UNSAMPLED, settings, write_first, together=together)

    def refresh(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        table, start = open_table(prepared.path), Factors(**read_columns(first.path))
        passes = config.refreshing(REFRESH_PASSES)
        factors, losses = _factorize(run, table, slice(None), passes, key, saved, start)
        _write_factors(folder, factors)
        _write_factors(folder / UNSAMPLED, start)
        return {"losses": losses.tolist(), "seconds_before": first.seconds}

    settings |= {"refresh": REFRESH_PASSES}
    return _long_stage(run, "factorize", settings, refresh, together=together)


def _write_factors(folder: pathlib.Path, factors: Factors) -> None:
    if not distributed.is_first():
        return
    found = {field.name: getattr(factors, field.name) for field in dataclasses.fields(factors)}
    arrays = {name: np.asarray(x, np.float32) for name, x in found.items() if x is not None}
    write_columns(folder, arrays)


def _factorize(
    run: Run,
    table: Table,
    rows: slice | np.ndarray,
    config: als.ALSConfig | sgd.SGDConfig,
    key: jax.Array,
    saved: Checkpoints | None,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factorises some of the training rows; see the methods' `fit`."""
    schema, train = table.schema, table.splits["train"]
    users, items = np.asarray(train["user"])[rows], np.asarray(train["item"])[rows]
    total = config.iterations if isinstance(config, als.ALSConfig) else config.epochs
    progress = Progress("factorize", total, "passes")

    def show(done: int, loss: float, seconds: float) -> None:
        del seconds
        progress.update(done, f"loss {loss:.6g}")

    try:
        if isinstance(config, als.ALSConfig):
            if schema.task == "click":  # an impression without a click is no preference
                clicked = np.flatnonzero(train["label"][rows])
                users, items, value = users[clicked], items[clicked], None
            else:  # implicit feedback: that it happened counts, not how it was rated
                value = None if config.feedback == "implicit" else train["value"][rows]
            matrix = Interactions.from_rows(users, items, schema.num_users, schema.num_items, value)
            mesh = _als_mesh(run, matrix, config.factors)
            return als.fit(matrix, config, key, mesh=mesh, progress=show, saved=saved, init=init)
        label = train["label"][rows] if schema.task == "click" else None
        size = schema.num_users, schema.num_items
        return sgd.fit(
            users, items, *size, config, key, label, progress=show, saved=saved, init=init
        )
    finally:
        progress.close()


def _als_mesh(run: Run, matrix: Interactions, factors: int) -> Mesh:
    devices = jax.devices()
    if _on_cores(run):
        copy = 4 * factors * max(matrix.num_users, matrix.num_items)
        devices = devices[: max(1, COPIES_BYTES // copy)]
    return sharding.make_mesh(devices=devices)


def training_mesh(run: Run) -> Mesh:
    """The devices that train and score."""
    devices = jax.devices()[:1] if _on_cores(run) else None
    return sharding.make_mesh(run.config.devices.model, devices)


def _on_cores(run: Run) -> bool:
    """Whether the devices in use are the cores of one CPU."""
    return run.cores and jax.default_backend() == "cpu"


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

    made = _stage(run, "sample", settings, write)
    run.say(f"         {made.facts['rows']:,} of {prepared.facts['rows']['train']:,} rows kept")
    if not made.facts["rows"]:
        raise configuration.ConfigError(f"rate={rate} keeps no row: raise it")
    return made


def train_settings(config: ConfigDict, model_name: str) -> dict[str, Any]:
    """All of a configuration that a trained model depends on, but for its rows and factors."""
    return {
        "model": [model_name, config[model_name].to_dict()],
        "train": dataclasses.asdict(configuration.train_config(config)),
        "k": config.evaluation.k,
        "ranking": config.evaluation.ranking,
        "seed": config.seed,
    }


def train_stage(run: Run, inputs: Inputs, model_name: str, arm: str) -> Artifact:
    """Trains one model in one arm; the artefact holds the state that validated best."""
    config, prepared, factors, sample = run.config, inputs.prepared, inputs.factors, inputs.sample
    train_config = configuration.train_config(config)
    settings = {
        "prepared": prepared.fingerprint,
        "sample": None if arm == "full" else sample.fingerprint,
        # Random arms take no more from the factors than their width.
        "factors": factors.fingerprint if arm.startswith("cadc") else _rank(factors),
        "embeddings": _embeddings(arm),
        **train_settings(config, model_name),
    }

    def write(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        jax.clear_caches()  # so that each arm pays for its own compilation
        table = open_table(prepared.path)
        rows = table.splits["train"] if arm == "full" else read_columns(sample.path)
        fitted = _fit(run, table, rows, factors, model_name, arm, train_config, saved)
        trained = {name: x for name, x in fitted.tables.items() if name not in frozen_tables(arm)}
        with ocp.StandardCheckpointer() as checkpointer:
            path = (folder / "state").resolve()
            checkpointer.save(path, {"params": fitted.params, "tables": trained})
        return {
            "rows": len(rows["user"]),
            "best_step": fitted.best_step,
            "history": fitted.history,
        }

    return _long_stage(run, "train", settings, write, f"{model_name}, {arm}")


def _fit(
    run: Run,
    table: Table,
    rows: Columns,
    factors: Artifact,
    model_name: str,
    arm: str,
    config: step.TrainConfig,
    saved: Checkpoints | None,
) -> loop.Fitted:
    schema, seed = table.schema, run.config.seed
    model = configuration.make_model(run.config, model_name)
    tables_key, fit_key = jax.random.split(jax.random.key(seed))
    frozen = frozen_tables(arm)
    given = None
    if arm.startswith("cadc"):
        given = factor_tables(_trained_on(factors) if frozen else factors.path)
    tables = loop.initial_tables(
        schema.num_users,
        schema.num_items,
        embeddings.num_feature_rows(table),
        _rank(factors),
        run.config.dlrm.embedding_dim,
        given,
        tables_key,
    )
    mesh = training_mesh(run)
    content = sharding.put(embeddings.content_of(table), sharding.named(mesh, sharding.REPLICATED))
    sampler = None
    if schema.task == "ranking":
        known = negatives.pair_keys(*table.known_pairs(), schema.num_items)  # sorted, as they are
        sampler = pipeline.NegativeSampling(config.negatives, known, schema.num_items)
    options = run.config.evaluation
    first = distributed.is_first()
    logs = run.workdir / "logs" / f"{model_name}-{arm}"
    names = {"user", "item", "dense", "categorical"} | ({"label"} if sampler is None else set())
    rows = {name: column for name, column in rows.items() if name in names}
    if config.loss == "in_batch":  # frequencies are those of the rows that are trained on
        rows["log_q"] = losses.log_frequency(rows["item"], schema.num_items)[rows["item"]]

    def validate(params: Any, tables: embeddings.Tables) -> float:
        score = scorer(mesh, model, params, tables, content)
        if schema.task == "click":
            return -evaluate.evaluate_clicks(score, table.splits["validation"])["logloss"]
        if options.ranking == "full":
            block = PAIR_BLOCKS[model_name]
            quality = evaluate.evaluate_ranking_full(
                score, table, "validation", options.k, options.max_users, pair_block=block
            )
        else:
            quality = evaluate.evaluate_ranking_sampled(
                score, table.splits["validation"], options.k
            )
        return next(value for key, value in quality.items() if key.startswith("ndcg"))

    return loop.fit(
        model,
        config,
        tables,
        frozen,
        content,
        lambda start: pipeline.training_batches(
            rows,
            config.batch_rows,
            seed,
            start,
            sampler=sampler,
            host_index=distributed.index(),
            host_count=distributed.count(),
        ),
        pipeline.steps_per_epoch(len(rows["user"]), config.batch_rows),
        validate,
        fit_key,
        label=f"train {model_name}, {arm}",
        mesh=mesh,
        device_bytes=run.config.devices.table_bytes,
        record=tensorboard.recorder(logs) if run.config.log.tensorboard and first else None,
        trace=str(logs) if run.config.log.profile and first else None,
        saved=saved,
        predict_with=_predict_with(factors) if frozen and _is_crossed(factors) else {},
    )


def scorer(
    mesh: Mesh,
    model: nn.Module,
    params: Any,
    tables: embeddings.Tables,
    content: embeddings.Content,
) -> evaluate.Score:
    """Logits of batches that every process has whole; each device scores its own users."""

    def score(batch: embeddings.HostBatch) -> jax.Array:
        def put(x: jax.Array | np.ndarray) -> jax.Array:
            split = len(x) == len(batch["user"]) and len(x) % mesh.size == 0
            return sharding.put(
                x, sharding.named(mesh, sharding.BATCH if split else sharding.REPLICATED)
            )

        batch = {name: put(x) for name, x in batch.items()}
        return step.predict(model, params, tables, content, batch, mesh.size)

    return score


def restore(arm: str, trained: Artifact, factors: Artifact | None) -> tuple[Any, dict[str, Any]]:
    """Parameters and all embedding tables of a trained model, saved ones on the host.

    `factors` are those that it was trained with; only frozen tables are made from them.
    """
    path = (trained.path / "state").resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        # To the host: the devices may be others than those it was saved from.
        saved = checkpointer.metadata(path).item_metadata.tree
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved)
        state = checkpointer.restore(path, like)
    tables = dict(state["tables"])
    if frozen_tables(arm):
        assert factors is not None  # of such an arm there are
        tables |= _predict_with(factors)
    return state["params"], tables


def evaluate_stage(
    run: Run,
    prepared: Artifact,
    scorer: str,
    score_of: Callable[[Table], evaluate.Score],
    label: str,
    calibrated: bool = True,
    pair_block: int = evaluate.PAIR_BLOCK,
) -> Artifact:
    """Test metrics of a scorer, as an artefact, with what they come from, a row of the test split.

    Of clicks `scores.npy` [N] float32; of rankings `ranks_full.npy` [N] int32 (-1: a user that was
    not drawn) and `ranks_sampled.npy` [N] int32. Two scorers can so be compared user by user. The
    users drawn by `max_users` depend on the table alone, and not on the seed of the run.
    """
    options = run.config.evaluation.to_dict()
    settings = {"prepared": prepared.fingerprint, "scorer": scorer, "evaluation": options}
    settings["keeps"] = "rows"

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        table = open_table(prepared.path)
        score, test = score_of(table), table.splits["test"]
        first = distributed.is_first()
        if table.schema.task == "click":
            if not first:
                return evaluate.evaluate_clicks(score, test, calibrated=calibrated)
            scores = ColumnWriter(folder / "scores.npy", np.float32, (len(test["label"]),))
            quality = evaluate.evaluate_clicks(
                score, test, calibrated=calibrated, keep=scores.append
            )
            scores.close()
            return quality
        max_users, k = options["max_users"], options["k"]
        full = evaluate.ranks_full(score, table, "test", max_users, pair_block=pair_block)
        sampled = evaluate.ranks_sampled(score, test)
        if first:
            write_columns(folder, {"ranks_full": full, "ranks_sampled": sampled})
        negatives = test["negatives"].shape[1]
        return evaluate.of_ranks(full, k) | evaluate.of_ranks(sampled, k, negatives)

    return _stage(run, "evaluate", settings, write, label, together=True)


def _stage(
    run: Run,
    stage: str,
    settings: Mapping[str, Any],
    write: Callable[[pathlib.Path], Mapping[str, Any]],
    label: str = "",
    together: bool = False,
) -> Artifact:
    """`materialize`, and a line for the user."""
    settings = json.loads(json.dumps(settings))
    made = materialize(run.workdir, stage, settings, write, run.verify, together)
    how = "reused, made in" if made.reused else "done in"
    name = f"{stage} ({label})" if label else stage
    run.say(f"[{stage:>9}] {name}: {how} {made.seconds:.1f} s -> {made.path}")
    logging.info("%s settings: %s", name, settings)
    return made


def _long_stage(
    run: Run,
    stage: str,
    settings: Mapping[str, Any],
    write: Callable[[pathlib.Path, Checkpoints | None], Mapping[str, Any]],
    label: str = "",
    together: bool = True,
) -> Artifact:
    """`_stage` of work that goes on from its checkpoints, which `write` is given.

    Asked to end, it does so after saving. Once the artefact is whole, its checkpoints go. One of
    several processes that works alone has no checkpoints, which take all of them to write.
    """
    if distributed.count() > 1 and not together:
        return _stage(run, stage, settings, lambda out: write(out, None), label)
    folder = run.workdir / "checkpoints" / stage / artifacts.fingerprint(stage, settings)
    options = run.config.checkpoints.to_dict()

    def resume(out: pathlib.Path) -> Mapping[str, Any]:
        with Checkpoints(folder, **options, stop=run.stop, say=run.say) as saved:
            facts = write(out, saved)
        return {**facts, "seconds_before": facts.get("seconds_before", 0) + saved.seconds_before}

    with run.stop.deferred():
        made = _stage(run, stage, settings, resume, label, together)
        if distributed.is_first():
            shutil.rmtree(folder, ignore_errors=True)
        return made


def _embeddings(arm: str) -> str:
    return {"cadc_frozen": "frozen", "cadc_trainable": "trainable"}.get(arm, "random")


def frozen_tables(arm: str) -> frozenset[str]:
    return frozenset({"user", "item"} if arm == "cadc_frozen" else ())


def _is_crossed(factors: Artifact) -> bool:
    return (factors.path / UNSAMPLED).exists()


def _trained_on(factors: Artifact) -> pathlib.Path:
    """Folder of the factors that a model trains on where they stay as they are."""
    return factors.path / UNSAMPLED if _is_crossed(factors) else factors.path


def _predict_with(factors: Artifact) -> dict[str, np.ndarray]:
    """Tables of the factors of all rows, on the scale of those that the model trains on."""
    return loop.scaled(factor_tables(factors.path), factor_tables(_trained_on(factors)))


def factor_tables(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """User and item tables, on the host, whose dot product is the factorisation's score."""
    user, item = dot_tables(Factors(**read_columns(folder)))
    return np.asarray(user), np.asarray(item)


def _rank(factors: Artifact) -> int:
    """Width of `factor_tables`."""
    columns = read_columns(factors.path)
    return columns["user"].shape[1] + (2 if "user_bias" in columns else 0)
