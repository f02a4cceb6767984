"""One run: the stages in order, and the arms that are compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cadc_jax import configuration, report, sharding
from cadc_jax.data import pipeline, user_item_candidates
from cadc_jax.data.raw import SPLITS, TRAIN
from cadc_jax.data.table import Table, open_table
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.evaluation import scorers
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.models import embeddings
from cadc_jax.run import compressed, compressed_sizes, lineage, stages, tune, updates, validation
from cadc_jax.run.arms import MF_ALONE, MF_REFRESHED, POPULARITY, TRAINED, Arm
from cadc_jax.run.budget import choose
from cadc_jax.run.compressed import Compressed
from cadc_jax.run.context import COMPILING, EVALUATING, begin, for_arm, training_mesh
from cadc_jax.run.context import Inputs as Inputs
from cadc_jax.run.context import Run as Run
from cadc_jax.run.factor_files import are_logits, factor_tables, is_crossed
from cadc_jax.run.factors import factorize_stage, plain_factors
from cadc_jax.runtime import artifacts, distributed, durable, manifest, mirror
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.progress import Progress
from cadc_jax.runtime.storage import AnyPath
from cadc_jax.training import placement


def run(this: Run, last: str = "report") -> None:
    """Runs the stages up to `last`, and reuses the ones that are finished.

    Raises:
      CadcError: an error that the user can fix.
    """
    with begin(this):
        prepared = prepared_table(this)
        if last == "prepare":
            return
        this = tune.resolved(this, prepared)
        factors = factorize_stage(this, prepared)
        if last == "factorize":
            return
        inputs = Inputs(prepared, factors, stages.sample_stage(this, prepared))
        if last != "sample":
            compare(this, inputs, last)


def prepare(this: Run, engine: stages.Engine) -> None:
    """Makes the prepared table with another engine; `run` finds it finished.

    Raises:
      CadcError: an error that the user can fix.
    """
    with begin(this):
        stages.prepare_stage(this, stages.raw_data(this), engine)


def prepared_table(this: Run) -> Artifact:
    """The table that an update left in the work folder, or else that of the raw log."""
    updated = lineage.find_updated(this, "prepare", stages.prepare_settings(this.config))
    return updated or stages.prepare_stage(this, stages.raw_data(this))


def update(this: Run, before: updates.Before, log: AnyPath) -> None:
    """Adds rows to a finished run, in a work folder of its own; see `run.updates`.

    Args:
      this: the run to make, with the configuration of `before`.
      before: the finished run.
      log: the new rows.

    Raises:
      CadcError: an error that the user can fix.
    """
    new = updates.open_new(this, before, log)
    updates.check_folder(this, new)
    with begin(this):
        updates.update(this, before, new)


def compress(this: Run, out: AnyPath, budget: int | None = None) -> None:
    """Writes the compressed data set to `out`; see `run.compressed`.

    Args:
      this: the run.
      out: a folder that is not there yet, or a URL of one.
      budget: bytes of what training reads, for which `run.budget` chooses rank, bits and rate.

    Raises:
      CadcError: an error that the user can fix.
    """
    durable.check_new(out)
    with begin(this):
        prepared = prepared_table(this)
        this = tune.resolved(this, prepared)
        config = this.config
        if budget is None:
            inputs = compressed.make_inputs(this, prepared)
        else:
            chosen = choose(this, budget, prepared)
            config, inputs = chosen.config, chosen.inputs

    def write() -> None:
        raw_size = compressed.RawSize(*lineage.raw_size(prepared))
        with mirror.destination(out) as folder:
            made = compressed.write_compressed(folder, config, inputs, raw_size)
            text = compressed_sizes.describe(made)
        this.say(f"\n{text}\n\nSHA-256 {made.sha256}\nTrain from it: cadc train --from={out}")

    distributed.on_first(write)


def train_from(this: Run, given: Compressed) -> None:
    """Trains, evaluates and reports from a compressed data set, which has the kept rows only.

    Raises:
      CadcError: an error that the user can fix.
    """
    config = this.config.copy_and_resolve_references()
    config.arms = tuple(name for name in this.config.arms if TRAINED[name].takes_sample)
    this = dataclasses.replace(this, config=config)
    with begin(this):
        compare(this, compressed.unpack(this, given), "report")


def tune_factorization(this: Run, trials: int, ranks: Sequence[int] = ()) -> None:
    """Searches the settings of each factorisation of the configuration; see `run.tune`.

    Args:
      this: the run; its table is prepared if it is not there yet.
      trials: number of trials of each.
      ranks: numbers of factors to try; none for the configured one alone.

    Raises:
      CadcError: an error that the user can fix.
    """
    with begin(this):
        prepared = prepared_table(this)
        if not validation.tells(open_table(prepared.path)):
            raise DataError("validation: all rows have the same label: no setting is better")
        for method in configuration.methods(this.config):
            tune.show(this, method, tune.stage(this, prepared, method, tune.larger(trials, ranks)))


def candidates(this: Run, rows: int) -> None:
    """Shows which pairs of columns of a click log may stand for users and items.

    Args:
      this: the run; its table is prepared if it is not there yet.
      rows: training rows to look at.

    Raises:
      CadcError: an error that the user can fix.
    """
    if this.config.data.task != "click":
        raise ConfigError("these rows name their users and items, and have no labels")
    with begin(this):
        table = open_table(prepared_table(this).path)
    schema, train = table.schema, table.splits["train"]
    count = len(train["label"])
    ids = pipeline.sampled_ids(count, min(1.0, rows / count), this.config.seed)
    columns = dict(zip(schema.context.categorical, train["categorical"][ids].T, strict=True))
    own = {}  # columns of ids, by their names in the log
    for kind, names in (("user", schema.user_features), ("item", schema.item_features)):
        name = user_item_candidates.CROSS.join(names)
        if not names:
            own[kind] = name = this.config.data.columns[kind]
        columns[name] = train[kind][ids]
    progress = Progress("candidates", 0, "pairs")

    def show(done: int, total: int) -> None:
        progress.total = total
        progress.update(done)

    records = user_item_candidates.compare_pairs(
        train["label"][ids], columns, seed=this.config.seed, progress=show
    )
    progress.close()
    this.say("\n" + user_item_candidates.table(records, ids=own.values()))


def compare(this: Run, inputs: Inputs, last: str) -> None:
    """Trains all models in all arms; evaluates and reports unless `last` is an earlier stage."""
    arms = _arms(this)
    pairs = [(model, arm) for model in this.config.models for arm in arms]
    if last == "train":
        for model, arm in pairs:
            stages.train_stage(this, inputs, model, arm)
        return
    rows = _baseline_rows(this, inputs)
    rows += [arm_row(this, inputs, model, arm) for model, arm in pairs]
    if last == "report":
        config = this.config
        results = {"config": config.to_dict(), "seed": config.seed, "rows": rows}
        results |= {"tuned": dict(this.tuned)} if this.tuned else {}
        facts = inputs.prepared.facts
        distributed.on_first(lambda: _write_report(this, results, facts))


def _write_report(this: Run, results: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    text = report.write_report(this.workdir, results, facts, this.mirror.shown(this.workdir))
    folders = (this.workdir, this.workdir / "reports" / report.own_name(results["config"]))
    this.mirror.push_files(folder / name for folder in folders for name in report.FILES)
    this.say("\n" + text)


def _baseline_rows(this: Run, inputs: Inputs) -> list[dict[str, Any]]:
    """Popularity and the factors, a row each.

    MF alone is a factorisation of all rows by itself. Where the factors of the run have the history
    of `factor_rows='unsampled'`, they have a row of their own, and the plain ones are made for this
    comparison: no other row pays for them. Without training rows they cannot be.
    """
    rows = [baseline_row(this, inputs, POPULARITY)]
    if not is_crossed(inputs.factors):
        return [*rows, baseline_row(this, inputs, MF_ALONE)]
    if SPLITS[TRAIN] in open_table(inputs.prepared.path).splits:
        plain = plain_factors(this, inputs.prepared)
        rows.append(baseline_row(this, dataclasses.replace(inputs, factors=plain), MF_ALONE))
    return [*rows, baseline_row(this, inputs, MF_REFRESHED)]


def _arms(this: Run) -> list[Arm]:
    """The arms to train. A line names the ones that cannot score the users of the split."""
    arms = [TRAINED[name] for name in this.config.arms]
    if this.config.data.split != "users":
        return arms
    if left_out := [arm.name for arm in arms if not arm.scores_held_out_users]:
        this.say(
            f"         left out: {', '.join(left_out)}, which learn a user's vector from training "
            "rows; held-out users have none (data.split='users')"
        )
    return [arm for arm in arms if arm.scores_held_out_users]


def arm_row(run: Run, inputs: Inputs, model_name: str, arm: Arm) -> dict[str, Any]:
    """Trains and evaluates one arm: a row of the results."""
    run = for_arm(run, arm)
    trained = stages.train_stage(run, inputs, model_name, arm)

    def make_scorer(table: Table) -> Scorer:
        return _network_scorer(run, model_name, arm, trained, inputs.factors, table)

    evaluated = stages.evaluate_stage(
        run, inputs.prepared, trained.fingerprint, make_scorer, f"{model_name}, {arm.name}"
    )
    rows, pairs = trained.facts["rows"], trained.facts["pairs"]
    row = _row(run, inputs, arm, evaluated, trained)
    facts = {"rows_used": rows, "rows_read": rows, "pairs_read": pairs}
    return row | facts | {"model": model_name, "best_step": trained.facts["best_step"]}


def _network_scorer(
    run: Run, model_name: str, arm: Arm, trained: Artifact, factors: Artifact, table: Table
) -> Scorer:
    """A trained network with its tables on the devices that train."""
    model = configuration.make_model(run.config, model_name)
    params, tables = stages.restore(trained, arm, factors, model, table)
    mesh, room = training_mesh(run), configuration.device_config(run.config).room
    no_ids = dict.fromkeys(tables, 0)
    optimizer = run.config.train.table_optimizer
    placed = placement.plan_placement(mesh, tables, (), optimizer, no_ids, room)
    params, content = sharding.put(
        (params, embeddings.content_of(table)), sharding.named(mesh, sharding.REPLICATED)
    )
    return scorers.network(model, params, placement.put(placed, tables), content, mesh)


def baseline_row(run: Run, inputs: Inputs, arm: Arm) -> dict[str, Any]:
    """Evaluates a scorer without a network: popularity, or the factors alone."""
    factors, logits = inputs.factors, are_logits(run.config)

    def make_scorer(table: Table) -> Scorer:
        if arm.takes_factors:
            return scorers.factors(*factor_tables(factors.path), calibrated=logits)
        return scorers.popularity(table)

    source = factors.fingerprint if arm.takes_factors else arm.name
    evaluated = stages.evaluate_stage(run, inputs.prepared, source, make_scorer, arm.name)
    return _row(run, inputs, arm, evaluated)


def _row(
    run: Run, inputs: Inputs, arm: Arm, evaluated: Artifact, trained: Artifact | None = None
) -> dict[str, Any]:
    """A row of the results; each arm pays for the stages that it needs."""
    stages_of = {"prepare": inputs.prepared}
    if arm.takes_factors:
        stages_of["factorize"] = inputs.factors
    if arm.takes_sample:
        stages_of["sample"] = inputs.sample
    if trained is not None:
        stages_of["train"] = trained
    stages_of["evaluate"] = evaluated
    seconds = {name: round(made.seconds, 2) for name, made in stages_of.items()}
    compiling = sum(made.facts.get(COMPILING, 0) for made in stages_of.values())
    if run.tuned and arm.takes_factors:
        seconds["tune"] = round(sum(facts["seconds"] for facts in run.tuned.values()), 2)
        compiling += sum(facts[COMPILING] for facts in run.tuned.values())
    evaluating = 0.0 if trained is None else trained.facts.get(EVALUATING, 0.0)
    users = evaluated.facts["users"]  # of clicks nothing
    rows = inputs.prepared.facts["rows"]["train"]
    return {
        "arm": arm.name,
        "model": None,
        "rate": run.config.rate if arm.takes_sample else 1.0,
        "rows_used": rows,
        "rows_read": rows,
        "pairs_read": rows,
        "bytes": _bytes_of(inputs, arm),
        "metrics": dict(evaluated.facts["metrics"]),
        "test": dict(evaluated.facts["metrics"]),
        "validation": dict(evaluated.facts["validation"]),
        "standard_errors": dict(evaluated.facts["standard_errors"]),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "compile_seconds": round(compiling, 2),  # of the total
        "evaluation_seconds": round(evaluating, 2),  # of the training
        "evaluation": evaluated.fingerprint,
        **({"test_users": users} if users else {}),
    }


def _bytes_of(inputs: Inputs, arm: Arm) -> dict[str, int]:
    """Bytes, in the work folder, of what an arm is made from once the factors are there."""
    prepared, size = inputs.prepared.path, artifacts.size_of
    found = {}
    if arm.rows is not None:
        found["sample"] = _payload(inputs.sample) if arm.takes_sample else size(prepared / "train")
    if arm.takes_factors:
        found["factors"] = _payload(inputs.factors)
    found["content"] = sum(size(prepared / name) for name in ("users", "items", "vocabularies"))
    return found


def _payload(made: Artifact) -> int:
    """Bytes of an artefact without its manifest, which has seconds in it."""
    return artifacts.size_of(made.path) - (made.path / manifest.NAME).stat().st_size
