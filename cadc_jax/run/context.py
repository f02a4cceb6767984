"""What the stages of a run share, and how a stage becomes an artefact on disk.

Several processes go through all stages in the same order.
"""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cadc_jax import configuration, sharding
from cadc_jax.errors import StorageError
from cadc_jax.run.arms import Arm
from cadc_jax.runtime import artifacts, compilation, distributed, durable, lease
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stop
from cadc_jax.runtime.materialize import materialize
from cadc_jax.runtime.mirror import Mirror
from cadc_jax.runtime.storage import Remote
from cadc_jax.runtime.text import printable

Say = Callable[[str], None]
Write = Callable[[pathlib.Path], Mapping[str, Any]]  # writes into a folder and returns facts
LongWrite = Callable[[pathlib.Path, Checkpoints], Mapping[str, Any]]

COMPILING = "compile_seconds"  # fact of a stage: of its seconds those that compiling took
EVALUATING = "evaluation_seconds"  # the same of evaluations while training, less their compiling
COPIES_BYTES = 1 << 30  # for the copies of a side of the matrix on the cores of one CPU


def show(line: str) -> None:
    """Prints a line; names that come from data cannot control the terminal."""
    print(printable(line))


@dataclasses.dataclass(frozen=True)
class Run:
    """What the stages share.

    Attributes:
      config: the validated configuration.
      workdir: where artefacts and the report go.
      say: shows the user a line.
      verify: whether to compare the checksums of artefacts that are reused.
      stop: whether the run is to end, after saving.
      cores: whether the CPU is one device a core (`sharding.split_cores`). ALS uses all of them, if
        there is room for a copy of a side on each. Training uses the first: its products take all
        cores by themselves.
      tuned: what a search has chosen in place of 'auto': method -> facts of the stage `tune`.
      remote: where the work folder is copied to, if the user has given a URL; see `runtime.mirror`.
    """

    config: ConfigDict
    workdir: pathlib.Path
    say: Say = show
    verify: bool = True
    stop: Stop = dataclasses.field(default_factory=Stop)
    cores: bool = False
    tuned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remote: Remote | None = None

    @property
    def mirror(self) -> Mirror:
        """Copies parts of the work folder to the URL that the user has given, if any."""
        return Mirror(self.workdir, self.remote)

    @property
    def on_cores(self) -> bool:
        """Whether the devices in use are the cores of one CPU."""
        return self.cores and jax.default_backend() == "cpu"


def for_arm(run: Run, arm: Arm) -> Run:
    """The run with the settings of an arm: one whose embeddings start at random has its own."""
    if arm.takes_factors:
        return run
    return dataclasses.replace(run, config=configuration.of_random_start(run.config))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The artefacts that training starts from.

    Attributes:
      prepared: the prepared table.
      factors: factors of all training rows, and of the unsampled rows if they are used.
      sample: columns of the kept training rows.
    """

    prepared: Artifact
    factors: Artifact
    sample: Artifact


@contextlib.contextmanager
def begin(run: Run) -> Iterator[None]:
    """Checks the configuration and the work folder, and holds the folder for this run.

    Raises:
      ConfigError: if a setting is wrong, or another run is using the work folder.
    """
    configuration.validate(run.config)
    distributed.find_folders(run.workdir, shared=run.remote is None)
    with contextlib.ExitStack() as held:
        if distributed.is_first():
            held.enter_context(durable.lock(run.workdir))
            if run.remote is not None:
                held.enter_context(lease.held(run.remote))
        yield


def als_mesh(run: Run, largest_side: int, factors: int) -> Mesh:
    """The devices that ALS spreads over.

    Args:
      run: what the stages share.
      largest_side: number of users or of items, whichever is larger.
      factors: D.
    """
    devices = jax.devices()
    if run.on_cores:
        most = max(1, COPIES_BYTES // (4 * factors * largest_side))
        processes = range(jax.process_count())
        devices = [x for process in processes for x in jax.local_devices(process)[:most]]
    return sharding.make_mesh(devices=devices)


def training_mesh(run: Run) -> Mesh:
    """The devices that train and score."""
    devices = jax.devices()[:1] if run.on_cores else None
    return sharding.make_mesh(devices)


def make_stage(
    run: Run,
    stage: str,
    settings: Mapping[str, Any],
    write: Write,
    label: str = "",
    together: bool = False,
) -> Artifact:
    """The artefact of a stage, found or made, and a line for the user; see `materialize`.

    The fact COMPILING counts the process that finished the stage, not ones that were killed.
    """
    settings = artifacts.plain(settings)

    def timed(folder: pathlib.Path) -> Mapping[str, Any]:
        before = compilation.seconds()
        facts = write(folder)
        return {**facts, COMPILING: round(compilation.seconds() - before, 3)}

    made = materialize(run.workdir, stage, settings, timed, run.verify, together, run.remote)
    compilation.publish()
    how = "reused, made in" if made.reused else "done in"
    name = f"{stage} ({label})" if label else stage
    run.say(f"[{stage:>9}] {name}: {how} {made.seconds:.1f} s -> {run.mirror.shown(made.path)}")
    logging.info("%s settings: %s", name, settings)
    return made


def make_long_stage(
    run: Run,
    stage: str,
    settings: Mapping[str, Any],
    write: LongWrite,
    label: str = "",
) -> Artifact:
    """`make_stage` for work of all processes that resumes from checkpoints, which `write` is given.

    If the run is asked to end, it saves first. Checkpoints are removed once the artefact is whole.
    """
    folder = run.workdir / "checkpoints" / stage / artifacts.fingerprint(stage, settings)
    options = configuration.checkpoint_config(run.config)

    def resume(out: pathlib.Path) -> Mapping[str, Any]:
        with Checkpoints(folder, options, run.stop, run.say, run.mirror) as saved:
            facts = write(out, saved)
        return {**facts, "seconds_before": facts.get("seconds_before", 0) + saved.seconds_before}

    with run.stop.deferred():
        made = make_stage(run, stage, settings, resume, label, together=True)
        remove_checkpoints(run, folder)
        return made


def remove_checkpoints(run: Run, folder: pathlib.Path) -> None:
    """Removes the checkpoints of a finished stage, here and in the store; all processes call it."""
    if distributed.leads():
        shutil.rmtree(folder, ignore_errors=True)
    if not distributed.is_first():
        return
    with contextlib.suppress(StorageError):  # some too many do no harm
        run.mirror.remove(folder)
