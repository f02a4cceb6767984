"""The evidence: data sets x rates x arms x models x seeds, with rivals, intervals and a report.

    pip install -e '.[bench]'
    CADC_DATA_DIR=/raw/data python benchmarks/study.py [--quick] [--json FILE]
        [--data ml-100k,ml-1m,epinions,synthetic] [--rates 1,0.1,0.01] [--seeds 5] [--out DIR]
        [--arms random,trainable,frozen] [--models two_tower,dlrm] [--jobs 2]
        [--baselines popularity,mf_alone,ease,item_knn,full,fold_in]
        [--selections per_user,popularity,inverse_propensity,recent,hardest]
        [--selection-rates 0.1]

A cell of the study is one model, trained and tested. Cells run in worker processes; each result is
added to DIR/results.csv as it comes, so a study that was stopped goes on where it was, and a larger
one (more seeds, rates, ...) takes over what is there. A failed cell is noted, the others go on, and
the next start tries it again. DIR/report.html is self-contained.

  arms        random: the kept rows, embeddings from a random start; trainable, frozen: with the
              factors of all rows.
  baselines   popularity, the factorisation alone (mf_alone), for rankings EASE and item neighbours
              (`rivals.py`), all rows from a random start (full; the longest cells), and fold_in.
  seeds       of the sample, of training and of the factorisation; data and splits stay the same.
              The best step is chosen on the validation split, and training ends when that has not
              got better for PATIENCE evaluations.
  selections  other ways to choose as many rows (`selection.py`), with factors and without.
  fold_in     as mf_alone and frozen, but 5 % of the users are hidden from the factorisation and
              from training, and get their factors afterwards by one least-squares step.
"""

import argparse
import collections
import csv
import dataclasses
import importlib.util
import io
import json
import multiprocessing
import os
import pathlib
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers share an accelerator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import rivals, selection, study_report
from cadc_jax import configuration
from cadc_jax.data.readers import movielens, synthetic
from cadc_jax.data.table import Table, open_table, read_columns, write_columns, write_rows
from cadc_jax.errors import CadcError
from cadc_jax.factorization import als
from cadc_jax.factorization.factors import Factors, scores
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.run import bundled_configs
from cadc_jax.run.compressed import Inputs
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.artifacts import Artifact, materialize

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARMS = {"random": "sample", "trainable": "cadc_trainable", "frozen": "cadc_frozen"}
BASELINES = ("popularity", "mf_alone", "ease", "item_knn", "full", "fold_in")
PATIENCE, MAX_EVALUATIONS = 5, 100
PAIR_BLOCK = 1 << 18  # (row, factor) pairs scored at a time


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Where a data set comes from, and its size, roughly, for the first estimate of the time."""

    config: str  # file in configs/
    needs: str  # inside CADC_DATA_DIR; nothing if it is made up
    rows: int  # that train
    pairs: int  # of a test user and an item, in the full ranking


DATA = {
    "ml-100k": DataSet("movielens_100k", "ml-100k/u.data", 98_000, 1_600_000),
    "ml-1m": DataSet("movielens_1m_ncf", "ml-1m-implicit/train.csv.gz", 988_000, 22_000_000),
    "epinions": DataSet("epinions", "epinions/interactions.csv.gz", 600_000, 280_000_000),
    "synthetic": DataSet("criteo", "", 157_000, 0),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One result.

    Attributes:
      data: of DATA.
      arm: 'popularity', 'mf_alone', 'ease', 'item_knn', 'full', or of ARMS.
      model: of `configuration.MODELS`, or '' of arms without one.
      selection: 'uniform', of `selection.RULES`, or 'fold_in'; '' of arms that use all rows.
      rate: share of the training rows that are kept; 1 of arms that use all rows.
      seed: of everything random.
    """

    data: str
    arm: str
    model: str = ""
    selection: str = ""
    rate: float = 1.0
    seed: int = 0


IDENTITY = tuple(field.name for field in dataclasses.fields(Cell))
METRICS = ("hr", "ndcg", "hr_sampled", "ndcg_sampled", "auc", "logloss", "calibration")
SECONDS = ("prepare_s", "factorize_s", "sample_s", "train_s", "evaluate_s", "cell_s", "cpu_s")
BYTES = ("train_bytes", "sample_bytes", "factors_bytes", "state_bytes")
NUMBERS = frozenset((*METRICS, *SECONDS, *BYTES, "rate", "rows_used", "best_step", "converged"))
COLUMNS = (
    *(*IDENTITY, "settings", "status", *METRICS, "rows_used", "best_step", "converged"),
    *(*SECONDS, *BYTES, "prepared", "evaluation", "chosen", "error"),
)
Row = dict[str, Any]


class SkipCell(Exception):
    """A cell that cannot be had from this data, on this machine; the text says why."""


# The plan.


def plan(
    data: Sequence[str],
    rates: Sequence[float],
    arms: Sequence[str],
    models: Sequence[str],
    seeds: int,
    rules: Sequence[str],
    rule_rates: Sequence[float],
    baselines: Sequence[str] = BASELINES,
) -> list[list[Cell]]:
    """Cells in phases: those of a phase need the artefacts of the phases before it.

    Inside a phase one seed is done before the next begins, so that a study that is stopped early
    has a little of everything.
    """
    ranked = [name for name in data if DATA[name].pairs]
    first = [Cell(name, "popularity") for name in data if "popularity" in baselines]
    second = [
        Cell(name, "mf_alone", seed=seed)
        for seed in range(seeds)
        for name in data
        if "mf_alone" in baselines
    ]
    second += [
        Cell(name, arm) for name in ranked for arm in ("ease", "item_knn") if arm in baselines
    ]
    third = []
    for seed in range(seeds):
        for name in data:
            folds = name in ranked and "fold_in" in baselines
            if folds:
                third.append(Cell(name, "mf_alone", selection="fold_in", seed=seed))
            for model in models:
                if "full" in baselines:
                    third.append(Cell(name, "full", model, seed=seed))
                third += [
                    Cell(name, arm, model, "uniform", rate, seed)
                    for rate in rates
                    for arm in arms
                    if (arm, rate) != ("random", 1)  # which 'full' is
                ]
                with_and_without = [arm for arm in ("random", "frozen") if arm in arms]
                third += [
                    Cell(name, arm, model, rule, rate, seed)
                    for rate in rule_rates
                    for rule in rules
                    for arm in with_and_without
                ]
                if folds and "frozen" in arms:
                    third += [Cell(name, "frozen", model, "fold_in", r, seed) for r in rule_rates]
    return [first, second, third]


def guess_seconds(cell: Cell) -> float:
    """A first guess of what a cell takes on one core, apart from the factor that `Pace` learns."""
    of = DATA[cell.data]
    if not cell.model:
        return 20 + of.rows * {"ease": 3e-4, "item_knn": 3e-4}.get(cell.arm, 5e-5)
    per_row, per_pair = (1e-4, 1e-7) if cell.model == "two_tower" else (4e-4, 5e-7)
    return 20 + cell.rate * of.rows * per_row + of.pairs * per_pair


class Pace:
    """What is left of a study, in seconds: guesses, scaled by what cells took so far."""

    def __init__(self, rows: Iterable[Row], jobs: int):
        self.jobs = jobs
        self.taken: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Learns from a finished cell."""
        if row["status"] != "ok":
            return
        guess = guess_seconds(cell_of(row))
        for group in ((row["data"], row["model"]), ()):
            self.taken[group][0] += float(row["cell_s"])
            self.taken[group][1] += guess

    def left(self, cells: Iterable[Cell]) -> float:
        """Seconds that `cells` will take."""
        total = 0.0
        for cell in cells:
            group = (cell.data, cell.model)
            seconds, guess = self.taken[group if group in self.taken else ()]
            total += guess_seconds(cell) * (seconds / guess if guess else 1)
        return total / self.jobs


# The results on disk.


def cell_of(row: Row) -> Cell:
    """The cell that a row of results.csv belongs to."""
    return Cell(
        *(row[name] for name in IDENTITY[:4]), rate=float(row["rate"]), seed=int(row["seed"])
    )


def read_results(path: pathlib.Path) -> list[Row]:
    """The rows of results.csv, the last one of every cell.

    A line that was cut off, when the study was killed while writing it, is taken off the file.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    rows = {}
    for line in csv.DictReader(io.StringIO(whole.decode(), newline="")):
        row = {
            name: float(text) if text and name in NUMBERS else text for name, text in line.items()
        }
        rows[cell_of(row), row["settings"]] = row
    return list(rows.values())


def append_result(path: pathlib.Path, row: Row) -> None:
    """Adds a row to results.csv in one write that is on disk when this returns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writeheader()
    row = {name: " ".join(x.split()) if isinstance(x, str) else x for name, x in row.items()}
    writer.writerow(row)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, text.getvalue().encode())
        os.fsync(file)
    finally:
        os.close(file)


# What a cell computes.


@dataclasses.dataclass(frozen=True)
class Study:
    """What all cells share."""

    out: pathlib.Path
    quick: bool = False

    def config(self, cell: Cell) -> ConfigDict:
        """The configuration of a cell; its seed is that of the data until `run_cell` sets it."""
        config = bundled_configs.config(DATA[cell.data].config)
        config.train.max_evaluations, config.train.patience = MAX_EVALUATIONS, PATIENCE
        config.rate = cell.rate
        if cell.model:
            config.models = (cell.model,)
        if cell.selection in ("", "fold_in") or cell.rate == 1:
            config.factor_rows = "all"
        if self.quick:
            config.data.synthetic_rows = 20_000
            config.train.max_evaluations = 3
            config.evaluation.max_users = 300
            config.als.iterations = config.sgd.epochs = 3
        return config

    def settings(self, cell: Cell) -> str:
        """Fingerprint of all a cell depends on besides what `Cell` says."""
        return artifacts.hash_of(self.config(cell).to_dict())


def run_cell(study: Study, cell: Cell, say: Callable[[str], None]) -> Row:
    """Computes a cell, from artefacts where they are there.

    Raises:
      SkipCell: if it cannot be had.
      CadcError: and whatever else goes wrong.
    """
    from cadc_jax import experiment, sharding
    from cadc_jax.run import stages  # they import TensorFlow; the parent does not

    start, cpu = time.perf_counter(), time.process_time()
    work = study.out / "work" / cell.data
    config = study.config(cell)
    if cell.data == "synthetic":
        config.data.path = str(synthetic_log(work, config.data.synthetic_rows).path / "train.txt")
    configuration.validate(config)
    base = stages.Run(config, work, say, verify=False, cores=sharding.split_cores())
    prepared = stages.prepare_stage(base, stages.raw_data(base))
    config = config.copy_and_resolve_references()
    config.seed = cell.seed
    run = dataclasses.replace(base, config=config)
    chosen: dict[str, Any] = {}
    factors = sample = trained = None
    if cell.arm in ("ease", "item_knn"):
        made, chosen = rival(run, prepared, cell.arm)
        row = {"metrics": made.facts, "seconds": {"evaluate": made.seconds}}
        row |= {"evaluation": made.fingerprint, "rows_used": prepared.facts["rows"]["train"]}
    else:
        if cell.arm in ARMS:
            sample = chosen_sample(run, cell, prepared)
        if cell.selection == "fold_in":
            factors = folded_factors(run, prepared)
        else:
            by_rule = sample if cell.selection in selection.RULES else None
            factors = stages.factorize_stage(run, prepared, by_rule)
        inputs = Inputs(prepared, factors, sample or prepared)
        if cell.model:
            arm = ARMS.get(cell.arm, cell.arm)
            row = experiment.arm_row(run, inputs, cell.model, arm)
            trained = stages.train_stage(run, inputs, cell.model, arm)
        else:
            row = experiment.baseline_row(run, inputs, cell.arm)
    result = dataclasses.asdict(cell) | {
        "settings": study.settings(cell),
        "status": "ok",
        "rows_used": row["rows_used"],
        "prepared": prepared.fingerprint,
        "evaluation": row["evaluation"],
        "chosen": json.dumps(chosen) if chosen else "",
        "train_bytes": artifacts.size_of(prepared.path / "train"),
    }
    names = {"hr@": "hr", "ndcg@": "ndcg"}
    for name, value in row["metrics"].items():
        kind = next((names[start] for start in names if name.startswith(start)), name)
        result[kind + ("_sampled" if "/" in name else "")] = value
    result |= {f"{name}_s": s for name, s in row["seconds"].items() if f"{name}_s" in SECONDS}
    for name, made in (("sample", sample), ("factors", factors), ("state", trained)):
        if made is not None:
            result[f"{name}_bytes"] = artifacts.size_of(made.path)
    if trained is not None:
        history, best = trained.facts["history"], trained.facts["best_step"]
        waited = history[-1]["step"] - best
        result["best_step"] = best
        result["converged"] = int(waited >= config.train.patience * history[1]["step"])
    return {k: x for k, x in result.items() if k in COLUMNS} | {
        "cell_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
    }


def synthetic_log(work: pathlib.Path, rows: int) -> Artifact:
    """The made-up log, and `truth.npy` [N]: the click probabilities that it was drawn from."""

    def write(folder: pathlib.Path) -> Row:
        truth = synthetic.write_criteo(folder / "train.txt", rows, seed=0)
        np.save(folder / "truth.npy", truth.probability)
        return {"rows": rows}

    return materialize(work, "synthetic", {"rows": rows, "seed": 0, "truth": True}, write)


def rival(run, prepared: Artifact, arm: str) -> tuple[Artifact, dict[str, Any]]:
    """Test metrics of a rival, its settings chosen by validation."""
    from cadc_jax.run import stages

    table = open_table(prepared.path)
    options = run.config.evaluation
    if arm == "ease" and table.schema.num_items > rivals.EASE_ITEMS:
        raise SkipCell(
            f"EASE inverts a matrix of items x items: {table.schema.num_items:,} items are more "
            f"than {rivals.EASE_ITEMS:,}"
        )
    if arm == "item_knn" and importlib.util.find_spec("implicit") is None:
        raise SkipCell("the library implicit is not installed: pip install -e '.[bench]'")
    chosen: dict[str, Any] = {}

    def score_of(table: Table):
        matrix = rivals.matrix_of(table)
        every = rivals.ease_candidates if arm == "ease" else rivals.neighbour_candidates
        found, score = rivals.best(every(matrix), table, options.k, options.max_users, run.say)
        chosen.update(found)
        return score

    made = stages.evaluate_stage(run, prepared, arm, score_of, arm, calibrated=False)
    return made, chosen


def chosen_sample(run, cell: Cell, prepared: Artifact) -> Artifact:
    """The rows that the cell's selection keeps, as many as the uniform rule keeps."""
    from cadc_jax.run import stages

    uniform = stages.sample_stage(run, prepared)
    if cell.selection == "uniform":
        return uniform
    settings = {
        "prepared": prepared.fingerprint,
        "rate": cell.rate,
        "seed": cell.seed,
        "rule": cell.selection,
    }
    proxy = None
    if cell.selection == "hardest":
        config = run.config.copy_and_resolve_references()
        config.factor_rows = "all"
        proxy = stages.factorize_stage(dataclasses.replace(run, config=config), prepared)
        settings |= {"proxy": proxy.fingerprint}
    table = open_table(prepared.path)
    train = table.splits["train"]
    user, item = np.asarray(train["user"]), np.asarray(train["item"])
    moment = None
    if cell.selection == "recent":
        moment = times(run.config, prepared.path, table)

    def write(folder: pathlib.Path) -> Row:
        if cell.selection == "fold_in":
            kept = np.load(uniform.path / "row.npy")
            ids = kept[~selection.hidden_users(table.schema.num_users, cell.seed)[user[kept]]]
        else:
            loss = None if proxy is None else proxy_loss(run.config, proxy, train)
            count = uniform.facts["rows"]
            ids = selection.choose(cell.selection, count, cell.seed, user, item, moment, loss)
        write_columns(folder, {"row": ids})
        write_rows(folder, train, ids)
        return {"rows": len(ids)}

    return materialize(run.workdir, "sample", settings, write)


def times(config: ConfigDict, prepared: pathlib.Path, table: Table) -> np.ndarray:
    """When each training row happened, [N], in any unit.

    Raises:
      SkipCell: if the data does not say.
    """
    train = table.splits["train"]
    if config.data.split == "order":
        return np.arange(len(train["user"]))
    if config.data.source != "movielens":
        raise SkipCell(f"{config.data.folder} has no timestamps of its training rows")
    raw = movielens.read_movielens(configuration.raw_path(config), config.data.variant)
    if raw.timestamp is None:
        raise SkipCell(f"{config.data.folder} has no timestamps")
    names = [np.load(prepared / "vocabularies" / f"{kind}.npy") for kind in ("user", "item")]
    span = int(raw.item.max()) + 1
    keys = raw.user * span + raw.item
    order = np.argsort(keys, kind="stable")
    user, item = (names[i][train[kind] - 1] for i, kind in enumerate(("user", "item")))
    return raw.timestamp[order[np.searchsorted(keys[order], user * span + item)]]


def proxy_loss(config: ConfigDict, factors: Artifact, train) -> np.ndarray:
    """Loss of the factorisation on each training row, [N]: squared of ALS, logistic of SGD."""
    found = Factors(**{name: jnp.asarray(x) for name, x in read_columns(factors.path).items()})
    count = len(train["user"])
    parts = [slice(start, start + PAIR_BLOCK) for start in range(0, count, PAIR_BLOCK)]
    score = np.concatenate(
        [np.asarray(scores(found, train["user"][p], train["item"][p])) for p in parts]
    )
    label = np.asarray(train["label"]) if "label" in train else np.ones(count)
    if config.factorization == "als":
        return (label - score) ** 2
    return np.logaddexp(0, np.where(label > 0, -score, score))


def folded_factors(run, prepared: Artifact) -> Artifact:
    """Factors without the hidden users' rows; theirs come from one half-step on their own rows."""
    config = configuration.factorization_config(run.config)
    if not isinstance(config, als.ALSConfig):
        raise SkipCell("folding in needs the factorisation 'als'")
    settings = {
        "prepared": prepared.fingerprint,
        "config": dataclasses.asdict(config),
        "seed": run.config.seed,
        "hidden": selection.HIDDEN_USERS,
    }

    def write(folder: pathlib.Path) -> Row:
        table = open_table(prepared.path)
        schema, train = table.schema, table.splits["train"]
        user, item = np.asarray(train["user"]), np.asarray(train["item"])
        hidden = selection.hidden_users(schema.num_users, run.config.seed)

        def matrix(rows):
            sizes = schema.num_users, schema.num_items
            return Interactions.from_rows(user[rows], item[rows], *sizes)

        of_hidden = hidden[user]
        found, _ = als.fit(matrix(~of_hidden), config, jax.random.key(run.config.seed))
        folded, _ = als.fold_in(found, matrix(of_hidden), config)
        tables = {"user": jnp.where(hidden[:, None], folded, found.user), "item": found.item}
        write_columns(folder, {name: np.asarray(x, np.float32) for name, x in tables.items()})
        return {"hidden": int(hidden.sum())}

    return materialize(run.workdir, "factorize", settings, write)


# Workers.


def work(study: Study, phases: list[list[Cell]], jobs: int, run: Callable = run_cell) -> list[Row]:
    """Runs what is not in results.csv yet, and returns all rows that belong to the plan.

    Args:
      study: what all cells share.
      phases: as `plan` makes them.
      jobs: worker processes.
      run: computes a cell: (study, cell, say) -> row; a function of a module, as it is sent there.
    """
    path = study.out / "results.csv"
    (study.out / "logs").mkdir(parents=True, exist_ok=True)
    wanted = {cell: study.settings(cell) for phase in phases for cell in phase}
    rows = {
        cell_of(row): row
        for row in read_results(path)
        if wanted.get(cell_of(row)) == row["settings"]
    }
    done = {cell for cell, row in rows.items() if row["status"] in ("ok", "skipped")}
    left = [cell for cell in wanted if cell not in done]
    pace = Pace(rows.values(), jobs)
    print(
        f"{len(wanted)} cells, {len(done)} of them done before; about "
        f"{duration(pace.left(left))} for the rest with {jobs} workers"
        + ("" if done else " (a guess, until the first cells are done)"),
        flush=True,
    )
    lock = threading.Lock()

    def finish(cell: Cell, row: Row) -> None:
        with lock:
            append_result(path, row)
            rows[cell] = row
            pace.add(row)
            left.remove(cell)
            count = len(wanted) - len(left)
            print(
                f"[{count}/{len(wanted)}, {duration(pace.left(left))} left] {describe(row)}",
                flush=True,
            )

    lanes = [_Lane(study, run, lane, jobs) for lane in range(jobs)]
    try:
        for phase in phases:
            waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
            for cell in phase:
                if cell not in done:
                    waiting.put(cell)
            threads = [
                threading.Thread(target=lane.drain, args=(waiting, finish), daemon=True)
                for lane in lanes
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        for lane in lanes:
            lane.stop()
    return [rows[cell] for cell in wanted if cell in rows]


class _Lane:
    """A worker process that is replaced when it dies, and the thread that waits for it."""

    def __init__(self, study: Study, run: Callable, number: int, lanes: int):
        self.study, self.run, self.number = study, run, number
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.cores = cores[number::lanes] or cores[number % max(len(cores), 1) :][:1]
        self.process = self.connection = None

    def drain(self, waiting: queue.SimpleQueue, finish: Callable[[Cell, Row], None]) -> None:
        """Does cells until none is left."""
        while True:
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            finish(cell, self.do(cell))

    def do(self, cell: Cell) -> Row:
        """The row of a cell, whatever becomes of the process."""
        try:
            if self.process is None:
                self._start()
            self.connection.send(cell)
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.process = None
            return failure(self.study, cell, f"the worker process died with exit code {code}")

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        log = self.study.out / "logs" / f"worker-{self.number}.log"
        arguments = (theirs, self.study, self.run, log, self.cores)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.terminate()
            self.process.join()


def _serve(connection, study: Study, run: Callable, log: pathlib.Path, cores) -> None:
    """A worker: receives cells and sends rows until there is nobody to send them to."""
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX starts as many threads as there are cores
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())

        def say(line: str) -> None:
            print(line, file=file)

        while True:
            try:
                cell = connection.recv()
            except EOFError:
                return
            say(f"== {cell}")
            try:
                row = run(study, cell, say)
            except SkipCell as error:
                row = failure(study, cell, str(error)) | {"status": "skipped"}
            except CadcError as error:
                row = failure(study, cell, str(error))
            except Exception as error:  # noqa: BLE001  one cell's fault must not end the study
                say(traceback.format_exc())
                row = failure(study, cell, f"{type(error).__name__}: {error}")
            connection.send(row)


def failure(study: Study, cell: Cell, why: str) -> Row:
    """The row of a cell that has no result."""
    identity = dataclasses.asdict(cell) | {"settings": study.settings(cell)}
    return identity | {"status": "failed", "error": why, "cell_s": 0}


def describe(row: Row) -> str:
    """A row in a line."""
    kept = f"{row['selection']} {row['rate']:g}" if row["selection"] else ""
    name = ", ".join(filter(None, (row["data"], row["arm"], row["model"], kept)))
    name += f", seed {row['seed']}"
    if row["status"] != "ok":
        return f"{name}: {row['status'].upper()}: {row['error']}"
    metric = study_report.primary(row)
    return f"{name}: {metric} {row[metric]:.4f}, {row['cell_s']:.0f} s"


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


# The command.


def available(names: Sequence[str]) -> list[str]:
    """The data sets that are there; says which are not."""
    raw = pathlib.Path(os.environ.get("CADC_DATA_DIR", ROOT.parent / "shared" / "data"))
    os.environ["CADC_DATA_DIR"] = str(raw.resolve())  # workers and configurations read it
    found = []
    for name in names:
        if DATA[name].needs and not (raw / DATA[name].needs).exists():
            print(f"*** SKIPPED {name}: there is no {raw / DATA[name].needs} ***")
        else:
            found.append(name)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study."""
    options = parse(arguments)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // options.jobs)))
    study = Study(options.out.resolve(), options.quick)
    study.out.mkdir(parents=True, exist_ok=True)
    data = available(options.data)
    if not data:
        sys.exit("study: no data set is there; name their folder by CADC_DATA_DIR")
    phases = plan(
        data,
        options.rates,
        options.arms,
        options.models,
        options.seeds,
        options.selections,
        options.selection_rates,
        options.baselines,
    )
    start = time.perf_counter()
    rows = work(study, phases, options.jobs)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
    machine += f"{jax.default_backend()}, {options.jobs} workers at a time"
    if hasattr(os, "getloadavg"):  # more than the workers' own says that seconds are not to be had
        machine += f", load {os.getloadavg()[2]:.1f} over the last 15 minutes"
    command = "python benchmarks/study.py " + " ".join(arguments or sys.argv[1:])
    made = study_report.write(study.out, rows, machine, command)
    print("\n" + study_report.summary(made))
    print(f"\n{study.out / 'report.html'}, results.csv; {time.perf_counter() - start:.0f} s")
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine, "rows": study_report.json_rows(made)}, indent=1) + "\n"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = _list_of(str)
    parser.add_argument("--data", type=names, help=f"of {', '.join(DATA)}; default: all")
    parser.add_argument("--rates", type=_list_of(float))
    parser.add_argument("--arms", type=names, help=f"of {', '.join(ARMS)}; default: all")
    parser.add_argument("--models", type=names, help="default: two_tower,dlrm")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--baselines", type=names, help=f"of {', '.join(BASELINES)}; default: all")
    parser.add_argument("--selections", type=names, help="other ways to choose rows, or 'none'")
    parser.add_argument("--selection-rates", type=_list_of(float), help="at these rates only")
    parser.add_argument("--out", type=pathlib.Path, help="folder; default: workdir/study")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--quick", action="store_true", help="a small one, in under a minute")
    parser.add_argument("--json", type=pathlib.Path, help="also write the comparisons there")
    options = parser.parse_args(arguments)
    defaults = {
        "data": list(DATA),
        "rates": [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005],
        "arms": list(ARMS),
        "models": ["two_tower", "dlrm"],
        "seeds": 5,
        "baselines": list(BASELINES),
        "selections": list(selection.RULES),
        "selection_rates": [0.1],
        "out": pathlib.Path("workdir/study"),
    }
    if options.quick:
        defaults |= {
            "data": ["ml-100k", "synthetic"],
            "rates": [0.1],
            "arms": ["frozen"],
            "models": ["two_tower"],
            "seeds": 1,
            "selections": [],
            "selection_rates": [],
            "out": pathlib.Path("workdir/study-quick"),
        }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.selections == ["none"]:
        options.selections = []
    allowed = {"data": DATA, "arms": ARMS, "models": configuration.MODELS, "baselines": BASELINES}
    for name, known in (allowed | {"selections": selection.RULES}).items():
        for value in getattr(options, name):
            if value not in known:
                parser.error(f"--{name}: {value!r} is not one of {', '.join(known)}")
    for rate in (*options.rates, *options.selection_rates):
        if not 0 < rate <= 1:
            parser.error(f"a rate of {rate:g} is not above 0 and at most 1")
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    return options


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list]:
    def parse_list(text: str) -> list:
        return [kind(part) for part in text.split(",") if part]

    return parse_list


if __name__ == "__main__":
    main()
