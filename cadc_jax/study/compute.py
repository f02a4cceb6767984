"""Computes one cell of a study: from its configuration to its row in results.csv."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cadc_jax import configuration
from cadc_jax.data.readers import synthetic
from cadc_jax.data.table import open_table
from cadc_jax.run.arms import MF_REFRESHED
from cadc_jax.run.compressed import Inputs
from cadc_jax.run.context import Run
from cadc_jax.run.factor_files import factor_tables
from cadc_jax.runtime import artifacts, compilation
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.materialize import materialize
from cadc_jax.study import adapter, samples, selection, tuning
from cadc_jax.study.adapter import Tested
from cadc_jax.study.cells import FOLD_IN, OF_SAMPLES, SEARCHED, Cell, SkipCell
from cadc_jax.study.results import COLUMNS, SECONDS, Row
from cadc_jax.study.rivals import registry, search
from cadc_jax.study.rivals.given import Given, without_test
from cadc_jax.study.settings import Study, makes_up_rows

TRIALS = 20  # of the settings of each rival, if the study does not say


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The result of a cell and the artefacts it used; `_result_row` reads them."""

    tested: Tested
    sample: Artifact | None = None
    factors: Artifact | None = None
    state: Artifact | None = None
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run_cell(study: Study, cell: Cell, say: Callable[[str], None]) -> Row:
    """Computes a cell. Artefacts that are there already are reused.

    Raises:
      SkipCell: if the cell cannot be computed from this data or on this machine.
      CadcError: and any other exception, if it fails.
    """
    start, cpu = time.perf_counter(), time.process_time()
    workdir = study.out / "work" / cell.data
    config = study.config(cell)
    if study.cache:
        compilation.use_cache(study.cache)
    if makes_up_rows(config) and config.data.split == "order":
        seed = configuration.data_seed(config)
        log = synthetic_log(workdir, config.data.synthetic_rows, seed)
        config.data.path = str(log.path / "train.txt")
    run = adapter.open_run(config, workdir, say)
    prepared = adapter.prepare(run)
    run = adapter.with_changes(run, seed=cell.seed)
    if cell.arm in SEARCHED:
        outcome = _run_rival(study, run, cell, prepared)
    else:
        chosen: Mapping[str, Any] = {}
        if study.trials and cell.selection in ("", "uniform"):
            run, chosen = tuning.tuned(study, cell, run, prepared)
        outcome = dataclasses.replace(_run_arm(run, cell, prepared), chosen=chosen)
    return _result_row(study, cell, prepared, outcome) | {
        "cell_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
    }


def synthetic_log(workdir: pathlib.Path, rows: int, seed: int) -> Artifact:
    """A synthetic log, `train.txt`, and `truth.npy` [N], the click probability of each row."""

    def write(folder: pathlib.Path) -> dict[str, int]:
        truth = synthetic.write_criteo(folder / "train.txt", rows, seed)
        np.save(folder / "truth.npy", truth.probability)
        return {"rows": rows}

    settings = {"rows": rows, "seed": seed, "truth": True}
    with adapter.alone(workdir, settings):
        return materialize(workdir, "synthetic", settings, write)


def has_converged(history: Sequence[Mapping[str, Any]], best_step: int, patience: int) -> bool:
    """Whether training ended because validation did not improve, and not at its limit.

    Args:
      history: an entry for each evaluation, with its `step`; the first is at step 0.
      best_step: the step that validated best.
      patience: evaluations without improvement after which training ends.
    """
    steps_between = history[1]["step"]
    return history[-1]["step"] - best_step >= patience * steps_between


def _run_rival(study: Study, run: Run, cell: Cell, prepared: Artifact) -> _Outcome:
    """Tests a rival whose settings are chosen on the validation split."""
    rival, table = registry.RIVALS[cell.arm], without_test(open_table(prepared.path))
    if why := rival.why_not(table):
        raise SkipCell(why)
    factors = None
    if rival.takes_factors:
        own = tuning.with_factorization(study, run, prepared)[0] if study.trials else run
        factors = adapter.factorize(own, prepared)
    fit = rival.open(Given(table, factor_tables(factors.path) if factors else None))
    sources = {
        "prepared": prepared.fingerprint,
        "factors": factors.fingerprint if factors else "",
        "by": dataclasses.asdict(configuration.evaluation_config(run.config)),
        "version": search.VERSION,
    }
    file = f"{cell.data}-{cell.arm}-{artifacts.hash_of(sources)[:8]}.csv"
    log = search.TrialLog([axis.name for axis in rival.axes], study.out / "trials" / file)
    quality = adapter.validation_quality(run, table)
    chosen = search.best(rival, fit, quality, log, study.trials or TRIALS, run.say)
    source = f"{cell.arm} {artifacts.hash_of([sources, chosen.settings])}"
    tested = adapter.test_scorer(
        run, prepared, source, lambda table: fit(chosen.settings), cell.arm
    )
    if factors:
        seconds = {**tested.seconds, "factorize": factors.seconds}
        tested = dataclasses.replace(tested, seconds=seconds)
    return _Outcome(tested, factors=factors, chosen=chosen._asdict())


def _run_arm(run: Run, cell: Cell, prepared: Artifact) -> _Outcome:
    """Trains and tests an arm of the package, or tests a baseline of it.

    Raises:
      SkipCell: if there are no refreshed factors in this variant of a sweep.
    """
    if cell.arm == MF_REFRESHED.name and run.config.factor_rows == "all":
        raise SkipCell("factor_rows='all': the factors are not refreshed")
    sample = samples.chosen_sample(run, cell, prepared) if cell.arm in OF_SAMPLES else None
    if cell.selection == FOLD_IN:
        factors = samples.folded_factors(run, prepared)
    else:
        by_rule = sample if cell.selection in selection.RULES else None
        factors = adapter.factorize(run, prepared, by_rule)
    if not cell.model:
        return _Outcome(adapter.test_baseline(run, prepared, factors, cell.arm), sample, factors)
    inputs = Inputs(prepared, factors, sample or prepared)
    tested, state = adapter.train_and_test(run, inputs, cell.model, cell.arm)
    return _Outcome(tested, sample, factors, state)


def _result_row(study: Study, cell: Cell, prepared: Artifact, outcome: _Outcome) -> Row:
    """The row of a cell, except for the time of the whole cell."""
    tested = outcome.tested
    cut_off = configuration.evaluation_config(study.config(cell)).k[0]
    row = dataclasses.asdict(cell) | {
        "settings": study.settings(cell),
        "status": "ok",
        "cut_off": cut_off,
        "rows_used": tested.rows_used,
        "prepared": prepared.fingerprint,
        "evaluation": tested.evaluation,
        "chosen": json.dumps(outcome.chosen) if outcome.chosen else "",
        "train_bytes": artifacts.size_of(prepared.path / "train"),
    }
    for name, value in tested.metrics.items():  # 'hr@10' -> hr, 'hr@10/1+99' -> hr_sampled
        metric, _, at = name.partition("@")
        if at.partition("/")[0] in ("", str(cut_off)):
            row[metric + ("_sampled" if "/" in name else "")] = value
    if tested.validation:
        row["validation_metric"], row["validation"] = next(iter(tested.validation.items()))
    row |= {f"{name}_s": s for name, s in tested.seconds.items() if f"{name}_s" in SECONDS}
    for name in ("sample", "factors", "state"):
        made = getattr(outcome, name)
        if made is not None:
            row[f"{name}_bytes"] = artifacts.size_of(made.path)
    if outcome.state is not None:
        facts, patience = outcome.state.facts, study.config(cell).train.patience
        row["best_step"] = facts["best_step"]
        row["converged"] = int(has_converged(facts["history"], facts["best_step"], patience))
    return {name: value for name, value in row.items() if name in COLUMNS}
