"""The stage `tune`: a search for the numbers of a factorisation, on the validation split.

A configuration may say 'auto' in place of a regularisation or a confidence. `resolved` then makes
this stage first and puts the winner in its place. `cadc tune` makes a larger one of any
configuration. The factorisation may see all training rows, and so may its search; networks are
neither trained nor chosen here.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data.raw import SPLITS, TRAIN
from cadc_jax.data.table import Table, open_table
from cadc_jax.errors import ConfigError, StorageError, TrainingError
from cadc_jax.evaluation import scorers
from cadc_jax.evaluation.resident import Quality
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.factors import Factors, dot_tables
from cadc_jax.run import tune_text, validation
from cadc_jax.run.arms import POPULARITY
from cadc_jax.run.context import Run, als_mesh, make_stage, remove_checkpoints
from cadc_jax.run.fitted_rows import matrix_of, training_rows, with_held_out_users
from cadc_jax.run.lineage import UPDATED, updates_in
from cadc_jax.runtime import artifacts, distributed, durable
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.interrupts import Stopped
from cadc_jax.runtime.progress import Progress
from cadc_jax.tuning import factorization, halving, space, subset
from cadc_jax.tuning.space import Axis
from cadc_jax.tuning.trials import Log, Trial

TRIALS_FILE = "trials.csv"
LEAST_USERS = 2000  # that are ranked, however many items there are


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a search may spend.

    Attributes:
      trials: number of trials at most.
      work: training rows times factors of a trial; a longer log loses some of its users.
      pairs: users times items that are ranked, but at least LEAST_USERS.
      whole: whether to search settings that have numbers as well, at random, from these numbers.
      ranks: numbers of factors to try; none for the configured one alone.
    """

    trials: int = 20
    work: int = 1 << 27
    pairs: int = 1 << 26
    whole: bool = False
    ranks: tuple[int, ...] = ()


AUTOMATIC = Plan()  # a share of the time of a run: see docs/method.md


def larger(trials: int, ranks: Sequence[int] = ()) -> Plan:
    """The plan of `cadc tune`."""
    return Plan(trials, 1 << 30, 1 << 28, whole=True, ranks=tuple(ranks))


def parse_ranks(texts: Sequence[str]) -> tuple[int, ...]:
    """Numbers of factors, of a flag.

    Raises:
      ConfigError: if one of them is none.
    """
    for text in texts:
        if not text.isdecimal() or not int(text):
            raise ConfigError(f"--factors={','.join(texts)}: must be numbers such as 64,128")
    return tuple(dict.fromkeys(map(int, texts)))


def resolved(run: Run, prepared: Artifact) -> Run:
    """The run with numbers in place of 'auto', and what the search for them found in `tuned`.

    A table that an update made keeps the numbers that the factors before it had.

    Args:
      run: what the stages share.
      prepared: the prepared table.
    """
    methods = configuration.methods(run.config)
    names = {name: configuration.automatic(run.config, name) for name in methods}
    if not any(names.values()):
        return run
    if UPDATED in prepared.settings and (found := _numbers_before(run, prepared)):
        return dataclasses.replace(run, config=found)
    if not validation.tells(open_table(prepared.path)):
        run.say("         validation: all rows have the same label; what is 'auto' has its default")
        defaults = {name: vars(configuration.METHODS[name]()) for name in methods}
        return dataclasses.replace(run, config=configuration.with_numbers(run.config, defaults))
    tuned = {}
    for method in filter(names.__getitem__, methods):
        made = stage(run, prepared, method, AUTOMATIC)
        tuned[method] = {**made.facts, "seconds": made.seconds}
    numbers = {method: facts["chosen"] for method, facts in tuned.items()}
    config = configuration.with_numbers(run.config, numbers)
    return dataclasses.replace(run, config=config, tuned=tuned)


def _numbers_before(run: Run, prepared: Artifact) -> ConfigDict | None:
    """The configuration with the numbers of the updated factors of a table; None without any."""
    for _, settings in updates_in(run, "factorize"):
        own = settings["prepared"] == prepared.fingerprint
        if own and configuration.made_by(run.config, settings):
            return configuration.with_numbers_of(run.config, settings)
    return None


def stage(run: Run, prepared: Artifact, method: str, plan: Plan) -> Artifact:
    """A search for the numbers of one factorisation: its trials, and the winner as facts.

    Killed, it resumes after the last finished trial.

    Args:
      run: what the stages share.
      prepared: the prepared table.
      method: a key of `configuration.METHODS`.
      plan: what it may spend.
    """
    config = configuration.factorization_config(run.config, method)
    names = _names(run, method, plan)
    options = configuration.evaluation_config(run.config)
    settings = artifacts.plain(
        {
            "prepared": prepared.fingerprint,
            "method": method,
            "config": run.config[method].to_dict(),
            "names": names,
            "plan": dataclasses.asdict(plan),
            "seed": run.config.seed,
            "by": [options.k[0], options.ranking, options.max_users, options.max_rows],
            "version": factorization.VERSION,
            **configuration.scale_settings(run.config),
        }
    )
    unfinished = run.workdir / "checkpoints" / "tune" / artifacts.fingerprint("tune", settings)

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        trials = unfinished / TRIALS_FILE
        distributed.on_first(lambda: run.mirror.pull_files([trials]))
        log = Log(names, trials, lambda: _copy(run, trials))
        before = sum(result.seconds for result in log.results)
        search = _Search(run, _part(open_table(prepared.path), config, plan), method, names, plan)
        facts = search.run(log)
        if distributed.is_first():
            durable.write_text(folder / TRIALS_FILE, log.text())
        return {**facts, "seconds_before": before}

    with run.stop.deferred():
        made = make_stage(run, "tune", settings, write, method, together=True)
        remove_checkpoints(run, unfinished)
    run.say(f"         {tune_text.describe(method, made.facts)}")
    if warning := tune_text.loud(method, made.facts):
        run.say(warning)
    return made


def _copy(run: Run, trials: pathlib.Path) -> None:
    """Copies the results so far to the store; the next copy makes up for one that fails."""
    with contextlib.suppress(StorageError):
        run.mirror.push_files([trials])


def _names(run: Run, method: str, plan: Plan) -> tuple[str, ...]:
    """The settings that are searched."""
    if not plan.whole:
        return configuration.automatic(run.config, method)
    config = configuration.factorization_config(run.config, method)
    return (*factorization.axes(config), *(["factors"] if plan.ranks else []))


def _part(table: Table, config: configuration.Factorization, plan: Plan) -> Table:
    """The table, or of a long log some of its users."""
    rank = max((config.factors, *plan.ranks))
    return subset.of_users(table, max(1, plan.work // rank))


@dataclasses.dataclass(frozen=True)
class _Search:
    this: Run
    table: Table
    method: str
    names: tuple[str, ...]
    plan: Plan

    @property
    def config(self) -> configuration.Factorization:
        return configuration.factorization_config(self.this.config, self.method)

    def run(self, log: Log) -> dict[str, Any]:
        """Searches; returns the facts of the stage."""
        items = self.table.schema.num_items
        users = max(LEAST_USERS, self.plan.pairs // items)
        metric, quality = validation.of_table(self.this, self.table, users)
        axes, first = self._axes(), self._first()
        full = factorization.resource(self.config)
        levels = halving.rungs(full, len(first))
        fits = self.plan.trials + sum(level.keep for level in levels[:-1])
        progress = Progress("tune", fits + self.plan.whole, "fits")
        evaluate = self._evaluate(quality, log, progress)

        def extend(trial: Trial, known: Collection[Trial]) -> list[Trial]:
            return space.beside(axes, trial, known)

        try:
            most = self.plan.trials
            best = halving.search(first, levels, evaluate, log, extend=extend, most=most)
            if not np.isfinite(best.score):
                raise TrainingError(f"tune: no {self.method} setting gives finite factors")
            facts: dict[str, Any] = {}
            if self.plan.whole:  # the configured one, whatever it reached with less
                last = halving.search(first[:1], levels[-1:], evaluate, log)
                facts["configured"] = last.score
                best = max(last, best, key=lambda result: result.score)
            facts |= {"chosen": self._named(best.trial), "validation": best.score}
        finally:
            progress.close()
        return {
            **facts,
            "metric": metric,
            POPULARITY.name: distributed.of_first(quality(scorers.popularity(self.table))),
            "trials": len({result.trial for result in log.results}),
            "rows": len(self.table.splits[SPLITS[TRAIN]]["user"]),
        }

    def _axes(self) -> list[Axis]:
        known, ranks = factorization.axes(self.config), self.plan.ranks
        if ranks:
            known = {**known, "factors": space.choice("factors", ranks)}
        return [known[name] for name in self.names]

    def _first(self) -> list[Trial]:
        """The trials of the first rung."""
        if not self.plan.whole:
            return space.grid(self._axes())
        configured = tuple(float(getattr(self.config, name)) for name in self.names)
        seed = self.this.config.seed
        return space.first_trials(self._axes(), configured, self.plan.trials, seed)

    def _named(self, trial: Trial) -> dict[str, float]:
        named: dict[str, float] = dict(zip(self.names, trial, strict=True))
        if "factors" in named:
            named["factors"] = int(named["factors"])
        return named

    def _evaluate(self, quality: Quality, log: Log, progress: Progress) -> halving.Evaluate:
        """Scores a trial in all processes, unless the run is asked to end."""
        score_trial = self._trials(quality)

        def evaluate(trial: Trial, resource: int, state: Any) -> tuple[float, Any]:
            if distributed.of_first(distributed.reported_by_any("stop", self.this.stop())):
                raise Stopped(f"{len(log.results)} results are saved")
            progress.update(len(log.results))
            score, state = score_trial(trial, resource, state)
            return distributed.of_first(score), state

        return evaluate

    def _trials(self, quality: Quality) -> halving.Evaluate:
        table, config, key = self.table, self.config, jax.random.key(self.this.config.seed)

        def of_factors(factors: Factors) -> float:
            user, item = map(np.asarray, dot_tables(factors))
            return quality(scorers.factors(user, item, calibrated=False))

        if not isinstance(config, ALSConfig | AutoencoderConfig):
            rows = training_rows(table)
            return factorization.of_sgd(
                rows, config, self.names, lambda factors, own: of_factors(factors), key
            )
        scale = self.this.config.data.value_scale
        matrix = matrix_of(table, config, scale)
        rank = max((config.factors, *self.plan.ranks))
        mesh = als_mesh(self.this, max(matrix.num_users, matrix.num_items), rank)

        def whole(factors: Factors, own: configuration.Factorization) -> float:
            return of_factors(with_held_out_users(table, own, scale, factors, matrix.extent, mesh))

        if isinstance(config, ALSConfig):
            return factorization.of_als(matrix, config, self.names, whole, key, mesh)
        return factorization.of_autoencoder(matrix, config, self.names, whole, key, mesh)


def show(run: Run, method: str, made: Artifact) -> None:
    """Shows the best trials, and copies all of them into the work folder."""
    log = Log(made.settings["names"], made.path / TRIALS_FILE)
    copy = run.workdir / f"trials-{method}.csv"
    if distributed.is_first():
        durable.write_text(copy, log.text())
        run.mirror.push_files([copy])
    shown = run.mirror.shown(copy)
    run.say(f"\n{tune_text.table(method, made.facts, log)}\n\nAll trials: {shown}")
