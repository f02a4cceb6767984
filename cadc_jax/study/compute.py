"""Computes one cell of a study: from its configuration to its row in results.csv."""

import dataclasses
import importlib.util
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cadc_jax import configuration
from cadc_jax.data.readers import synthetic
from cadc_jax.data.table import Table, open_table
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.run.arms import MF_REFRESHED
from cadc_jax.run.compressed import Inputs
from cadc_jax.run.context import Run
from cadc_jax.runtime import artifacts, compilation
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.materialize import materialize
from cadc_jax.study import adapter, rivals, samples, selection
from cadc_jax.study.adapter import Tested
from cadc_jax.study.cells import EASE, FOLD_IN, ITEM_KNN, OF_SAMPLES, Cell, SkipCell
from cadc_jax.study.results import COLUMNS, SECONDS, Row
from cadc_jax.study.settings import Study, makes_up_rows


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
    if cell.arm in (EASE, ITEM_KNN):
        outcome = _run_rival(run, cell, prepared)
    else:
        outcome = _run_arm(run, cell, prepared)
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


def _run_rival(run: Run, cell: Cell, prepared: Artifact) -> _Outcome:
    """Tests a rival whose options are chosen on the validation split."""
    num_items = open_table(prepared.path).schema.num_items
    if cell.arm == EASE and num_items > rivals.EASE_ITEMS:
        raise SkipCell(
            f"EASE inverts a matrix of items x items: {num_items:,} items are more than "
            f"{rivals.EASE_ITEMS:,}"
        )
    if cell.arm == ITEM_KNN and importlib.util.find_spec("implicit") is None:
        raise SkipCell("the library implicit is not installed: pip install -e '.[bench]'")
    options = configuration.evaluation_config(run.config)
    chosen: dict[str, Any] = {}

    def make_scorer(table: Table) -> Scorer:
        candidates = rivals.CANDIDATES[cell.arm](rivals.matrix_of(table))
        found, scorer = rivals.best(candidates, table, options.k[0], options.max_users, run.say)
        chosen.update(found)
        return scorer

    tested = adapter.test_scorer(run, prepared, cell.arm, make_scorer)
    if not chosen:  # the test was reused, and its choice is not stored with it
        make_scorer(open_table(prepared.path))
    return _Outcome(tested, chosen=chosen)


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
