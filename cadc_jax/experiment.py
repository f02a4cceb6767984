"""One run: the stages in order, each an artefact on disk, and the arms that are compared.

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
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cadc_jax import (
    artifacts,
    compressed,
    configuration,
    cost,
    distributed,
    evaluation,
    report,
    sharding,
)
from cadc_jax.artifacts import Artifact, materialize
from cadc_jax.checkpoints import Checkpoints
from cadc_jax.compressed import Inputs
from cadc_jax.data import files, negatives, pairs, pipeline, prepare, sources, synthetic
from cadc_jax.data.hosts import Hosts
from cadc_jax.data.table import (
    Columns,
    ColumnWriter,
    Table,
    open_table,
    read_columns,
    write_columns,
    write_rows,
)
from cadc_jax.factorization import als, sgd
from cadc_jax.factorization.factors import Factors, principal_axes, with_bias_columns
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.interrupts import Stop
from cadc_jax.models import embeddings
from cadc_jax.progress import Progress
from cadc_jax.training import loop, losses, placement, step, tensorboard

Say = Callable[[str], None]

# With `factor_rows='unsampled'`: the folder, inside that of the factors, for those of the unsampled
# rows; and the passes over all rows that turn these into factors of all rows, in the same basis.
UNSAMPLED = "unsampled"
REFRESH_PASSES = 5

# Pairs scored at a time in the full ranking: towers hold a score of each, others all embeddings.
PAIR_BLOCKS = {"dlrm": 1 << 18, "dcn": 1 << 18, "two_tower": evaluation.PAIR_BLOCK}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the stages share.

    Attributes:
      config: the validated configuration.
      workdir: where artefacts and the report go.
      say: shows the user a line.
      verify: whether to compare the checksums of artefacts that are reused.
      stop: whether the run is to end, after saving.
    """

    config: ConfigDict
    workdir: pathlib.Path
    say: Say = print
    verify: bool = True
    stop: Stop = dataclasses.field(default_factory=Stop)


def run(this: Run, last: str = "report") -> None:
    """Runs the stages up to `last`, reusing those that are finished.

    Raises:
      CadcError: whatever the user has to mend.
    """
    configuration.validate(this.config)
    distributed.check_shared(this.workdir)
    raw = raw_data(this)
    prepared = prepare_stage(this, raw)
    if last == "prepare":
        return
    factors = factorize_stage(this, prepared)
    if last == "factorize":
        return
    inputs = Inputs(prepared, factors, sample_stage(this, prepared))
    if last != "sample":
        compare(this, inputs, last)


def compress(this: Run, out: pathlib.Path) -> None:
    """Writes the compressed data set to `out`; see `compressed`.

    Raises:
      CadcError: whatever the user has to mend.
    """
    configuration.validate(this.config)
    distributed.check_shared(this.workdir)
    raw = raw_data(this)
    prepared = prepare_stage(this, raw)
    factors = factorize_stage(this, prepared)
    inputs = Inputs(prepared, factors, sample_stage(this, prepared))

    def write() -> None:
        paths = sources.raw_files(this.config.data.source, raw, this.config.data.to_dict())
        made = compressed.write(out, this.config, inputs, files.stored_size(paths))
        this.say(f"\n{compressed.sizes(made)}\n\nTrain from it: cadc train --from={out}")

    distributed.on_first(write)


def train_from(this: Run, inputs: Inputs) -> None:
    """Trains, evaluates and reports from a compressed data set; all rows are not there any more."""
    arms = tuple(arm for arm in this.config.arms if arm != "full")
    config = this.config.copy_and_resolve_references()
    config.arms = arms
    configuration.validate(config)
    distributed.check_shared(this.workdir)
    compare(dataclasses.replace(this, config=config), inputs, "report")


def interactions(this: Run, rows: int) -> None:
    """Shows which pairs of columns of a click log may stand for users and items; see `pairs`.

    Raises:
      CadcError: whatever the user has to mend.
    """
    configuration.validate(this.config)
    if this.config.data.task != "click":
        raise configuration.ConfigError("these rows name their users and items, and have no labels")
    table = open_table(prepare_stage(this, raw_data(this)).path)
    schema, train = table.schema, table.splits["train"]
    count = len(train["label"])
    ids = pipeline.sampled_ids(count, min(1.0, rows / count), this.config.seed)
    columns = dict(zip(schema.context.categorical, train["categorical"][ids].T, strict=True))
    for kind, names in (("user", schema.user_features), ("item", schema.item_features)):
        columns["*".join(names) or kind] = train[kind][ids]
    progress = Progress("interactions", 0, "pairs")

    def show(done: int, total: int) -> None:
        progress.total = total
        progress.update(done)

    records = pairs.study(train["label"][ids], columns, seed=this.config.seed, progress=show)
    progress.close()
    this.say("\n" + pairs.table(records))


def plan(this: Run, devices: int, hardware: str, given: Mapping[str, int]) -> None:
    """Shows what the run would need on so many devices of a kind; see `cost`. It runs nothing.

    Args:
      this: its work folder may hold the prepared table, whose sizes then count.
      devices: how many.
      hardware: a key of `cost.HARDWARE`.
      given: sizes to use instead: `rows`, `num_users`, `num_items`, `feature_rows`.

    Raises:
      CadcError: whatever the user has to mend, sizes that are not known among it.
    """
    config = this.config
    configuration.validate(config)
    device, found = cost.hardware(hardware), _prepared_before(this)
    if found is None:
        sizes = configuration.sizes(config, given)
        origin = "options and bounds of the configuration"
    else:
        sizes = cost.sizes_of(open_table(found))
        if given:  # how entries spread is no longer known
            sizes = dataclasses.replace(sizes, user_counts=None, item_counts=None, **given)
        origin = f"{found}{', changed by options' if given else ''}"
    costs = [_factorization_cost(config, sizes, devices)]
    costs += _training_costs(config, sizes, devices)
    group = config.devices.model
    this.say(
        f"{config.name} on {devices} x {hardware}, tables that are split over {group}. A model, "
        f"not a measurement: see docs/scale.md.\nSizes ({origin}): {sizes.rows:,} training rows, "
        f"{sizes.num_users:,} users, {sizes.num_items:,} items, {sizes.feature_rows:,} other "
        f"feature values.\n\n{cost.text(costs, device)}"
    )


def _prepared_before(this: Run) -> pathlib.Path | None:
    """The latest prepared table of this configuration in the work folder, of whatever raw files."""
    wanted = json.loads(json.dumps(_prepare_settings(this.config)))
    found = []
    for path in (this.workdir / "prepare").glob(f"*/{artifacts.MANIFEST}"):
        settings = json.loads(path.read_text())["settings"]
        if {name: settings[name] for name in wanted} == wanted:
            found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def _factorization_cost(config: ConfigDict, sizes: cost.Sizes, devices: int) -> cost.Cost:
    settings = configuration.factorization_config(config)
    if isinstance(settings, als.ALSConfig):
        return cost.als(sizes, settings, devices)
    return cost.sgd_factorization(sizes, settings)


def _training_costs(config: ConfigDict, sizes: cost.Sizes, devices: int) -> list[cost.Cost]:
    """One for each model and the arms that cost the same."""
    settings = configuration.factorization_config(config)
    biases = isinstance(settings, sgd.SGDConfig) or settings.feedback == "explicit"
    alike: dict[tuple, list[str]] = {}
    for model in config.models:
        for arm in config.arms:
            rows = sizes.rows if arm == "full" else round(config.rate * sizes.rows)
            alike.setdefault((model, _frozen_tables(arm), rows), []).append(arm)
    batch = config.train.batch_rows
    return [
        cost.training(
            f"train {model}, {', '.join(arms)}: {rows:,} rows, batches of {batch:,}",
            configuration.make_model(config, model),
            configuration.train_config(config),
            dataclasses.replace(sizes, rows=rows),
            settings.factors + 2 * biases,
            config.dlrm.embedding_dim,
            frozen,
            devices,
            config.devices.model,
            config.devices.table_bytes,
        )
        for (model, frozen, rows), arms in alike.items()
    ]


def compare(this: Run, inputs: Inputs, last: str) -> None:
    """Trains all models in all arms, and evaluates and reports unless another stage is the last."""
    pairs = [(model, arm) for model in this.config.models for arm in this.config.arms]
    if last == "train":
        for model, arm in pairs:
            train_stage(this, inputs, model, arm)
        return
    rows = [baseline_row(this, inputs, arm) for arm in ("popularity", "mf_alone")]
    rows += [arm_row(this, inputs, model, arm) for model, arm in pairs]
    if last == "report":
        config = this.config
        results = {"config": config.to_dict(), "seed": config.seed, "rows": rows}
        facts = inputs.prepared.facts
        distributed.on_first(lambda: this.say("\n" + report.write(this.workdir, results, facts)))


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
        return artifacts.file_identity(sources.raw_files(data["source"], raw, data))

    settings = _prepare_settings(run.config) | {"files": distributed.on_first(identity)}

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        source = sources.open_source(data["source"], raw, data)
        hosts = Hosts(distributed.index(), distributed.count(), distributed.barrier)
        return prepare.write(folder, source, configuration.prepare_config(run.config), hosts)

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


def _prepare_settings(config: ConfigDict) -> dict[str, Any]:
    """All that the prepared table depends on, but for the raw files."""
    data = config.data.to_dict()
    data = {name: value for name, value in data.items() if name not in ("path", "folder")}
    return {"data": data, "seed": config.seed}


def factorize_stage(run: Run, prepared: Artifact) -> Artifact:
    """User and item factors of all training rows.

    With `factor_rows='unsampled'` these go on from the factors of the rows that the sample does not
    keep, which are a stage of their own and lie in the artefact's folder UNSAMPLED, too.
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
            factors, losses = _factorize(table, slice(None), config, key, saved)
            _write_factors(folder, factors)
            return {"losses": losses.tolist()}

        return _long_stage(run, "factorize", settings, write, together=together)

    def write_first(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        table = open_table(prepared.path)
        left = np.ones(len(table.splits["train"]["user"]), bool)
        left[pipeline.sampled_ids(len(left), run.config.rate, run.config.seed)] = False
        factors, losses = _factorize(table, np.flatnonzero(left), config, key, saved)
        _write_factors(folder, principal_axes(factors))
        return {"losses": losses.tolist()}

    settings |= {"unsampled_at": run.config.rate}
    first = _long_stage(run, UNSAMPLED, settings, write_first, together=together)

    def refresh(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        table, start = open_table(prepared.path), Factors(**read_columns(first.path))
        passes = config.refreshing(REFRESH_PASSES)
        factors, losses = _factorize(table, slice(None), passes, key, saved, start)
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
            mesh = sharding.make_mesh()
            return als.fit(matrix, config, key, mesh=mesh, progress=show, saved=saved, init=init)
        label = train["label"][rows] if schema.task == "click" else None
        size = schema.num_users, schema.num_items
        return sgd.fit(
            users, items, *size, config, key, label, progress=show, saved=saved, init=init
        )
    finally:
        progress.close()


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
        "model": [model_name, config[model_name].to_dict()],
        "train": dataclasses.asdict(train_config),
        "k": config.evaluation.k,
        "seed": config.seed,
    }

    def write(folder: pathlib.Path, saved: Checkpoints) -> Mapping[str, Any]:
        jax.clear_caches()  # so that each arm pays for its own compilation
        table = open_table(prepared.path)
        rows = table.splits["train"] if arm == "full" else read_columns(sample.path)
        fitted = _fit(run, table, rows, factors, model_name, arm, train_config, saved)
        trained = {name: x for name, x in fitted.tables.items() if name not in _frozen_tables(arm)}
        with ocp.StandardCheckpointer() as checkpointer:
            path = (folder / "state").resolve()
            checkpointer.save(path, {"params": fitted.params, "tables": trained})
        return {
            "rows": len(rows["user"]),
            "best_step": fitted.best_step,
            "history": fitted.history,
        }

    return _long_stage(run, "train", settings, write, f"{model_name}, {arm}")


def _fit(run, table: Table, rows: Columns, factors: Artifact, model_name, arm, config, saved):
    schema, seed = table.schema, run.config.seed
    model = configuration.make_model(run.config, model_name)
    tables_key, fit_key = jax.random.split(jax.random.key(seed))
    frozen = _frozen_tables(arm)
    given = None
    if arm.startswith("cadc"):
        given = _factor_tables(_trained_on(factors) if frozen else factors.path)
    tables = loop.initial_tables(
        schema.num_users,
        schema.num_items,
        embeddings.num_feature_rows(table),
        _rank(factors),
        run.config.dlrm.embedding_dim,
        given,
        tables_key,
    )
    mesh = sharding.make_mesh(run.config.devices.model)
    content = sharding.put(embeddings.content_of(table), sharding.named(mesh, sharding.REPLICATED))
    sampler = None
    if schema.task == "ranking":
        known = negatives.pair_keys(*table.known_pairs(), schema.num_items)  # sorted, as they are
        sampler = pipeline.NegativeSampling(config.negatives, known, schema.num_items)
    first = distributed.is_first()
    logs = run.workdir / "logs" / f"{model_name}-{arm}"
    names = {"user", "item", "dense", "categorical"} | ({"label"} if sampler is None else set())
    rows = {name: column for name, column in rows.items() if name in names}
    if config.loss == "in_batch":  # frequencies are those of the rows that are trained on
        rows["log_q"] = losses.log_frequency(rows["item"], schema.num_items)[rows["item"]]

    def validate(params, tables) -> float:
        score = _scorer(mesh, model, params, tables, content)
        if schema.task == "click":
            return -evaluation.evaluate_clicks(score, table.splits["validation"])["logloss"]
        k = run.config.evaluation.k
        quality = evaluation.evaluate_ranking_sampled(score, table.splits["validation"], k)
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


def _scorer(mesh: Mesh, model, params, tables, content) -> evaluation.Score:
    """Logits of batches that every process has whole; each device scores its own users."""

    def score(batch):
        def put(x):
            split = len(x) == len(batch["user"]) and len(x) % mesh.size == 0
            return sharding.put(
                x, sharding.named(mesh, sharding.BATCH if split else sharding.REPLICATED)
            )

        return step.predict(model, params, tables, content, {n: put(x) for n, x in batch.items()})

    return score


def arm_row(run: Run, inputs: Inputs, model_name: str, arm: str) -> dict[str, Any]:
    """Trains and evaluates one arm: a row of the results."""
    prepared, factors, sample = inputs.prepared, inputs.factors, inputs.sample
    trained = train_stage(run, inputs, model_name, arm)

    def score_of(table: Table):
        model = configuration.make_model(run.config, model_name)
        params, tables = restore(arm, trained, factors)
        mesh, room = sharding.make_mesh(run.config.devices.model), run.config.devices.table_bytes
        nothing = dict.fromkeys(tables, 0)
        placed = placement.plan(mesh, tables, (), run.config.train.table_optimizer, nothing, room)
        params, content = sharding.put(
            (params, embeddings.content_of(table)),
            sharding.named(mesh, sharding.REPLICATED),
        )
        return _scorer(mesh, model, params, placement.put(placed, tables), content)

    evaluated = evaluate_stage(
        run,
        prepared,
        trained.fingerprint,
        score_of,
        f"{model_name}, {arm}",
        pair_block=PAIR_BLOCKS[model_name],
    )
    seconds = {"prepare": prepared.seconds}
    if arm.startswith("cadc"):
        seconds["factorize"] = factors.seconds
    if arm != "full":
        seconds["sample"] = sample.seconds
    seconds |= {"train": trained.seconds, "evaluate": evaluated.seconds}
    rate = 1.0 if arm == "full" else run.config.rate
    row = _row(arm, model_name, rate, trained.facts["rows"], evaluated, seconds)
    return row | {"best_step": trained.facts["best_step"]}


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
    if _frozen_tables(arm):
        tables |= _predict_with(factors)
    return state["params"], tables


def baseline_row(run: Run, inputs: Inputs, arm: str) -> dict[str, Any]:
    """Evaluates what needs no deep model: popularity, or the factors' own score."""
    prepared, factors = inputs.prepared, inputs.factors

    def score_of(table: Table):
        return popularity(table) if arm == "popularity" else factor_score(factors)

    scorer = factors.fingerprint if arm == "mf_alone" else "popularity"
    # ALS scores are preferences, not logits.
    calibrated = arm == "popularity" or run.config.factorization == "sgd"
    evaluated = evaluate_stage(run, prepared, scorer, score_of, arm, calibrated)
    seconds = {"prepare": prepared.seconds}
    if arm == "mf_alone":
        seconds["factorize"] = factors.seconds
    seconds["evaluate"] = evaluated.seconds
    return _row(arm, None, 1.0, prepared.facts["rows"]["train"], evaluated, seconds)


def popularity(table: Table) -> evaluation.Score:
    """Scores an item by its training rows; of clicks, by its smoothed click rate (a logit)."""
    counts = table.items["count"]
    if table.schema.task == "ranking":
        scores = jnp.asarray(counts, jnp.float32)
    else:
        clicks = table.items["clicks"]
        mean = clicks.sum() / counts.sum()
        rate = (clicks + 10 * mean) / (counts + 10)  # ten rows' worth of the mean
        scores = jnp.asarray(np.log(rate / (1 - rate)), jnp.float32)
    return lambda batch: jnp.broadcast_to(
        scores[batch["item"]], (len(batch["user"]), batch["item"].shape[1])
    )


def factor_score(factors: Artifact) -> evaluation.Score:
    """Scores by the factorisation alone."""
    tables = [jnp.asarray(table) for table in _factor_tables(factors.path)]

    @jax.jit
    def score(batch):
        user, item = tables[0][batch["user"]], tables[1][batch["item"]]
        return user @ item[0].T if len(item) == 1 else jnp.einsum("bd,bgd->bg", user, item)

    return score


def evaluate_stage(
    run: Run,
    prepared: Artifact,
    scorer: str,
    score_of: Callable[[Table], evaluation.Score],
    label: str,
    calibrated: bool = True,
    pair_block: int = evaluation.PAIR_BLOCK,
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
                return evaluation.evaluate_clicks(score, test, calibrated=calibrated)
            scores = ColumnWriter(folder / "scores.npy", np.float32, (len(test["label"]),))
            quality = evaluation.evaluate_clicks(
                score, test, calibrated=calibrated, keep=scores.append
            )
            scores.close()
            return quality
        max_users, k = options["max_users"], options["k"]
        full = evaluation.ranks_full(score, table, "test", max_users, pair_block=pair_block)
        sampled = evaluation.ranks_sampled(score, test)
        if first:
            write_columns(folder, {"ranks_full": full, "ranks_sampled": sampled})
        negatives = test["negatives"].shape[1]
        return evaluation.of_ranks(full, k) | evaluation.of_ranks(sampled, k, negatives)

    return _stage(run, "evaluate", settings, write, label, together=True)


def _stage(
    run: Run, stage: str, settings, write, label: str = "", together: bool = False
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
    run: Run, stage: str, settings, write, label: str = "", together: bool = True
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
        return facts | {"seconds_before": facts.get("seconds_before", 0) + saved.seconds_before}

    with run.stop.deferred():
        made = _stage(run, stage, settings, resume, label, together)
        if distributed.is_first():
            shutil.rmtree(folder, ignore_errors=True)
        return made


def _embeddings(arm: str) -> str:
    return {"cadc_frozen": "frozen", "cadc_trainable": "trainable"}.get(arm, "random")


def _frozen_tables(arm: str) -> frozenset[str]:
    return frozenset({"user", "item"} if arm == "cadc_frozen" else ())


def _is_crossed(factors: Artifact) -> bool:
    return (factors.path / UNSAMPLED).exists()


def _trained_on(factors: Artifact) -> pathlib.Path:
    """Folder of the factors that a model trains on where they stay as they are."""
    return factors.path / UNSAMPLED if _is_crossed(factors) else factors.path


def _predict_with(factors: Artifact) -> dict[str, np.ndarray]:
    """Tables of the factors of all rows, on the scale of those that the model trains on."""
    return loop.scaled(_factor_tables(factors.path), _factor_tables(_trained_on(factors)))


def _factor_tables(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """User and item tables, on the host, whose dot product is the factorisation's score."""
    found = Factors(**read_columns(folder))
    if found.user_bias is None:
        return found.user, found.item
    return tuple(np.asarray(table) for table in with_bias_columns(found))


def _rank(factors: Artifact) -> int:
    """Width of `_factor_tables`."""
    columns = read_columns(factors.path)
    return columns["user"].shape[1] + (2 if "user_bias" in columns else 0)


def _row(arm, model, rate, rows_used, evaluated: Artifact, seconds) -> dict[str, Any]:
    seconds = {name: round(value, 2) for name, value in seconds.items()}
    return {
        "arm": arm,
        "model": model,
        "rate": rate,
        "rows_used": rows_used,
        "metrics": dict(evaluated.facts),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "evaluation": evaluated.fingerprint,
    }
