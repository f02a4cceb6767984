"""A study from start to end: its cells, its report."""

import contextlib
import dataclasses
import os
import pathlib
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data.readers import registry
from cadc_jax.errors import CadcError, ConfigError
from cadc_jax.run.arms import TRAINED
from cadc_jax.run.context import show
from cadc_jax.runtime import artifacts, durable, lease, mirror, storage
from cadc_jax.runtime.storage import AnyPath, Remote
from cadc_jax.study import grid, report, sweeps, workers
from cadc_jax.study.cells import OF_CLICKS, OF_RANKINGS, RIVALS, Cell
from cadc_jax.study.compute import run_cell
from cadc_jax.study.grid import Grid
from cadc_jax.study.settings import Study, makes_up_rows

QUICK: Mapping[str, Any] = {"rates": (0.1,), "seeds": 1}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a study combines; each field is the flag of that name.

    Attributes:
      rates: rates of the uniform samples.
      arms: some of `cells.ARMS`; empty for those of each configuration.
      models: keys of `configuration.MODELS`; empty for those of each configuration.
      seeds: how many.
      rivals: some of `cells.RIVALS`.
      selections: some of `selection.RULES`.
      selection_rates: their rates, and that of folding in.
      sweeps: see `sweeps.variants`.
      jobs: worker processes.
      quick: whether training is cut short.
      trials: settings that each arm tries, on the validation split; 0 for the configured ones.
    """

    rates: Sequence[float]
    arms: Sequence[str]
    models: Sequence[str]
    seeds: int
    rivals: Sequence[str] = RIVALS
    selections: Sequence[str] = ()
    selection_rates: Sequence[float] = (0.1,)
    sweeps: Sequence[str] = ()
    jobs: int = 2
    quick: bool = False
    trials: int = 0


def run(
    configs: Mapping[str, ConfigDict],
    options: Options,
    out: AnyPath,
    command: str = "",
    cache: pathlib.Path | None = None,
) -> None:
    """Runs a study, or resumes one that was stopped, and writes its report.

    Args:
      configs: configurations by name.
      options: what is combined.
      out: its folder, or a URL of one, to which everything is copied.
      command: the command line, for the report.
      cache: folder of compiled programs; None for none.

    Raises:
      CadcError: an error that the user can fix.
    """
    start = time.perf_counter()
    shown, remote = out, None
    if isinstance(out, Remote):
        remote, out = out, storage.scratch_folder(out)
    variants = sweeps.variants(options.sweeps, next(iter(configs.values())))
    grids = {name: _grid(config, options, list(variants)) for name, config in configs.items()}
    _check(Study(out, configs, variants, options.quick), grid.phases(list(grids.values())))
    found = {name: _raw(name, config, alone=len(configs) == 1) for name, config in configs.items()}
    raw = {name: files for name, files in found.items() if files is not None}
    configs = {name: configs[name] for name in raw}
    if not configs:
        raise ConfigError("no configuration has its data; set CADC_DATA_DIR or data.path")
    for config in configs.values():
        _say_what_is_left_out(config, options)
    study = Study(out, configs, variants, options.quick, raw, cache, options.trials, remote)
    phases = grid.phases([grids[name] for name in configs], tuned=options.trials > 0)
    durable.make_folder(out)
    with contextlib.ExitStack() as held:
        held.enter_context(durable.lock(out, flag="out"))
        if remote is not None:
            held.enter_context(lease.held(remote, flag="out"))
            if not (out / "results.csv").exists() and (remote / "results.csv").exists():
                mirror.local_copy(remote, "out")  # of a study on another machine
        rows = workers.run_cells(study, phases, options.jobs, run_cell)
        reports = report.write(out, rows, _machine(options.jobs), command)
        study.copy()
    show("\n" + report.summary(reports, rows))
    show(
        f"\n{shown / 'report.html'}, results.csv and results.json; "
        f"{time.perf_counter() - start:.0f} s"
    )
    if failed := sum(row["status"] == "failed" for row in rows):
        raise CadcError(
            f"{failed} of {len(rows)} cells failed; {shown / 'results.csv'} says why, and the same "
            "command tries them again"
        )


def _grid(config: ConfigDict, options: Options, variants: Sequence[str]) -> Grid:
    """The grid of a configuration, with the arms and rivals that fit its rows."""
    return Grid(
        data=config.name,
        ranking=config.data.task == "ranking",
        rates=options.rates,
        arms=[arm for arm in options.arms or config.arms if not _misfit(config, arm)],
        models=options.models or config.models,
        seeds=options.seeds,
        selections=options.selections,
        selection_rates=options.selection_rates,
        rivals=[rival for rival in options.rivals if not _misfit(config, rival)],
        variants=variants,
        refreshed=config.factor_rows == "unsampled",
    )


def _check(study: Study, phases: Sequence[Sequence[Cell]]) -> None:
    """Raises ConfigError if the configuration of any cell is not valid."""
    for cell in {dataclasses.replace(cell, seed=0) for phase in phases for cell in phase}:
        configuration.validate(study.config(cell))


def _misfit(config: ConfigDict, name: str) -> str:
    """Why an arm or a rival does not fit the rows of a configuration; '' if it does."""
    if name in OF_RANKINGS and config.data.task != "ranking":
        return "they rank items, and these are clicks"
    if name in OF_CLICKS and config.data.task != "click":
        return "they predict clicks, and these are rankings"
    knows_users = name in OF_RANKINGS or name in TRAINED and not TRAINED[name].scores_held_out_users
    if knows_users and config.data.split == "users":
        return "they learn a user from training rows, and test users have none (data.split='users')"
    return ""


def _say_what_is_left_out(config: ConfigDict, options: Options) -> None:
    """A line about arms and rivals that do not fit the rows."""
    names = (*options.rivals, *(options.arms or config.arms))
    whys = {name: why for name in names if (why := _misfit(config, name))}
    for why in dict.fromkeys(whys.values()):
        left_out = ", ".join(name for name in whys if whys[name] == why)
        show(f"{config.name}: left out {left_out}: {why}")


def _raw(name: str, config: ConfigDict, alone: bool) -> list | None:
    """What represents the raw files of a configuration; None, and a line, if they are missing.

    Raises:
      DataError: if they are missing and there is no other configuration.
    """
    data = config.data.to_dict()
    if makes_up_rows(config):
        show(
            f"*** {name}: NO CRITEO DATA GIVEN: {data['synthetic_rows']:,} SYNTHETIC rows in its "
            "format, or fewer with --quick; for real ones: --config.data.path=/path/train.txt ***"
        )
        return []
    try:
        files = registry.raw_files(data["source"], configuration.raw_path(config), data)
        return artifacts.file_identity(files)
    except CadcError as error:
        if alone:
            raise
        show(f"*** SKIPPED {name}: {error} ***")
        return None


def _machine(jobs: int) -> str:
    """The machine in words, for the report."""
    text = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
    text += f"{jax.default_backend()}, {jobs} workers at a time"
    if hasattr(os, "getloadavg"):  # a load above the number of workers: seconds are too long
        text += f", load {os.getloadavg()[2]:.1f} over the last 15 minutes"
    return text
