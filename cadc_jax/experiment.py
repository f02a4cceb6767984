"""One run: the stages in order, and the arms that are compared."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax import configuration, report, sharding
from cadc_jax.data import pipeline, user_item_candidates
from cadc_jax.data.readers import files, registry
from cadc_jax.data.table import Table, open_table
from cadc_jax.evaluation import evaluate
from cadc_jax.models import embeddings
from cadc_jax.run import compressed
from cadc_jax.run.compressed import Inputs
from cadc_jax.run.stages import (
    PAIR_BLOCKS,
    Run,
    evaluate_stage,
    factor_tables,
    factorize_stage,
    prepare_stage,
    raw_data,
    restore,
    sample_stage,
    scorer,
    train_stage,
    training_mesh,
)
from cadc_jax.runtime import distributed
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.progress import Progress
from cadc_jax.training import placement


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
        paths = registry.raw_files(this.config.data.source, raw, this.config.data.to_dict())
        made = compressed.write_compressed(out, this.config, inputs, files.stored_size(paths))
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

    records = user_item_candidates.compare_pairs(
        train["label"][ids], columns, seed=this.config.seed, progress=show
    )
    progress.close()
    this.say("\n" + user_item_candidates.table(records))


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
        distributed.on_first(
            lambda: this.say("\n" + report.write_report(this.workdir, results, facts))
        )


def arm_row(run: Run, inputs: Inputs, model_name: str, arm: str) -> dict[str, Any]:
    """Trains and evaluates one arm: a row of the results."""
    prepared, factors, sample = inputs.prepared, inputs.factors, inputs.sample
    trained = train_stage(run, inputs, model_name, arm)

    def score_of(table: Table) -> evaluate.Score:
        model = configuration.make_model(run.config, model_name)
        params, tables = restore(arm, trained, factors)
        mesh, room = training_mesh(run), run.config.devices.table_bytes
        nothing = dict.fromkeys(tables, 0)
        placed = placement.plan_placement(
            mesh, tables, (), run.config.train.table_optimizer, nothing, room
        )
        params, content = sharding.put(
            (params, embeddings.content_of(table)),
            sharding.named(mesh, sharding.REPLICATED),
        )
        return scorer(mesh, model, params, placement.put(placed, tables), content)

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


def baseline_row(run: Run, inputs: Inputs, arm: str) -> dict[str, Any]:
    """Evaluates what needs no deep model: popularity, or the factors' own score."""
    prepared, factors = inputs.prepared, inputs.factors

    def score_of(table: Table) -> evaluate.Score:
        return popularity(table) if arm == "popularity" else factor_score(factors)

    source = factors.fingerprint if arm == "mf_alone" else "popularity"
    # ALS scores are preferences, not logits.
    calibrated = arm == "popularity" or run.config.factorization == "sgd"
    evaluated = evaluate_stage(run, prepared, source, score_of, arm, calibrated)
    seconds = {"prepare": prepared.seconds}
    if arm == "mf_alone":
        seconds["factorize"] = factors.seconds
    seconds["evaluate"] = evaluated.seconds
    return _row(arm, None, 1.0, prepared.facts["rows"]["train"], evaluated, seconds)


def popularity(table: Table) -> evaluate.Score:
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


def factor_score(factors: Artifact) -> evaluate.Score:
    """Scores by the factorisation alone."""
    tables = [jnp.asarray(table) for table in factor_tables(factors.path)]

    @jax.jit
    def score(batch):
        user, item = tables[0][batch["user"]], tables[1][batch["item"]]
        return user @ item[0].T if len(item) == 1 else jnp.einsum("bd,bgd->bg", user, item)

    return score


def _row(
    arm: str,
    model: str | None,
    rate: float,
    rows_used: int,
    evaluated: Artifact,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
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
