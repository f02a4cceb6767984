"""Checkpoints: the state of long work, saved from time to time, to limit what a crash costs.

A checkpoint is a folder that Orbax writes in the background; it gets its final name when it is
whole. Its `manifest.json` holds the facts that are not arrays and the checksums of all files.
Restoring compares the checksums first and takes the newest checkpoint without damage.

    with Checkpoints(folder) as checkpoints:
        factors, losses = als.fit(interactions, config, key, saved=checkpoints)
"""

import contextlib
import dataclasses
import json
import logging as python_logging
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from cadc_jax.errors import check_at_least
from cadc_jax.runtime import artifacts, distributed, durable
from cadc_jax.runtime.interrupts import Stopped
from cadc_jax.runtime.manifest import NAME as MANIFEST
from cadc_jax.runtime.manifest import checksums
from cadc_jax.runtime.text import one_line

FORMAT = 2  # raise it when what a stage saves changes
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that Orbax is writing
_ORBAX_METADATA = "_CHECKPOINT_METADATA"  # Orbax changes it after the checksums are taken

# What Orbax and TensorStore raise for a disk that fails or is full, and for damaged files.
_SAVE_FAULTS = (OSError, ValueError, RuntimeError)
_RESTORE_FAULTS = (*_SAVE_FAULTS, KeyError, TypeError)

Facts = Mapping[str, Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often checkpoints are saved, and how many are kept.

    Attributes:
      seconds: wall time between saves. 0 saves at every chance. A run that is asked to stop saves
        whatever the time.
      keep: checkpoints to keep, at least 2: if the newest is damaged, the one before it is used.
    """

    seconds: float = 300.0
    keep: int = 2

    def __post_init__(self) -> None:
        check_at_least("checkpoints.seconds", self.seconds, 0)
        check_at_least("checkpoints.keep", self.keep, 2)


def like(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """The tree's shapes and dtypes with `sharding`, as a target for `Checkpoints.restore`.

    Args:
      tree: a pytree of arrays, or of their shapes and dtypes.
      sharding: where all restored arrays are to lie.
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


class Checkpoints:
    """The checkpoints of one piece of work, in a folder of their own.

    A failed save, for example on a full disk, is only a warning: work continues, and the last good
    checkpoint stays.

    Attributes:
      newest: step of the newest checkpoint known to be good, or None.
      seconds_before: wall time that went into the restored checkpoint; 0 after a fresh start.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: CheckpointConfig = CheckpointConfig(),
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = print,
    ):
        """Opens a folder, which need not exist.

        Args:
          folder: for this work alone, since only its path tells whose checkpoints it holds.
          config: how often to save, and how many checkpoints to keep.
          stop: whether the work has been asked to save and end.
          say: shows the user a line of text.
        """
        self.newest: int | None = None
        self.seconds_before = 0.0
        self._folder = pathlib.Path(folder).resolve()
        self._config, self._stop, self._say = config, stop, say
        self._quiet = contextlib.ExitStack()
        self._opened = self._saved = time.monotonic()
        self._pending: tuple[int, Facts] | None = None  # step and manifest of the save under way
        options = ocp.options.AsyncOptions(post_finalization_callback=self._complete)
        self._writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=options)

    def __enter__(self) -> "Checkpoints":
        self._quiet.enter_context(quiet_orbax())
        return self

    def __exit__(self, *error: object) -> None:
        self._wait()
        self._writer.close()
        self._quiet.close()

    def restore(self, target: Any) -> tuple[Any, Facts] | None:
        """Restores the newest undamaged checkpoint; reports damaged ones and deletes them.

        Args:
          target: shapes, dtypes and shardings of the saved arrays, as `like` makes them. A table
            may have other rows of padding than the saved one, as their number depends on the
            number of devices: missing rows are filled with zeros, surplus rows are cut off.

        Returns:
          (state, facts) as they were saved, or None if there is no usable checkpoint.
        """
        if distributed.is_first():
            for half_written in self._folder.glob(f"*{_TEMPORARY}*"):  # by a killed run
                shutil.rmtree(half_written, ignore_errors=True)
        steps = distributed.on_first(self._steps)
        for step in reversed(steps):
            path = self._folder / str(step)
            try:
                manifest = _in_all_processes(_read_manifest, path)
                state = _in_all_processes(self._read_state, path, target)
            except _Unusable as error:
                self._say(f"*** CHECKPOINT SKIPPED: {path} is not usable: {error} ***")
                if distributed.is_first():
                    shutil.rmtree(path, ignore_errors=True)
                continue
            self.newest, self.seconds_before = step, manifest["seconds"]
            self._say(f"         Resuming from step {step} ({path})")
            return state, manifest["facts"]
        if steps:
            self._say(f"*** NO USABLE CHECKPOINT in {self._folder}: starting over ***")
        return None

    def maybe_save(self, step: int, make: Callable[[], tuple[Any, Facts]]) -> None:
        """Saves if the time has come; waits only for the previous save and a copy of the arrays.

        All processes have to call it at the same steps. It saves when the clock of the first
        process says so, or when any process is asked to stop.

        Args:
          step: how much of the work is done.
          make: returns the state, a pytree of arrays, and the facts, JSON-able; called only if
            there is something to save. The arrays may be donated afterwards.

        Raises:
          Stopped: after saving, if `stop` asks to end.
        """
        late = time.monotonic() - self._saved >= self._config.seconds
        stop = distributed.reported_by_any("stop", self._stop())
        late, stop = distributed.of_first([late, stop])
        if not (late or stop):
            return
        self._wait()
        if step != self.newest:  # something was done since the newest checkpoint
            self._save(step, *make())
        if stop:
            self._wait()
            kept = "nothing of this stage" if self.newest is None else f"step {self.newest}"
            raise Stopped(f"{kept} is saved")

    def _steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def _read_state(self, path: pathlib.Path, target: Any) -> Any:
        return self._writer.restore(path, args=ocp.args.StandardRestore(target, strict=False))

    def _save(self, step: int, state: Any, facts: Facts) -> None:
        """Starts a save in the background."""
        seconds = self.seconds_before + time.monotonic() - self._opened
        facts = artifacts.plain(facts)  # a copy, as the work may change its own meanwhile
        self._pending = step, {"format": FORMAT, "seconds": seconds, "facts": facts}
        try:
            if distributed.is_first():
                durable.make_folder(self._folder)
            # `force` replaces a folder of that name: another run of the same work left it.
            path = self._folder / str(step)
            self._writer.save(path, args=ocp.args.StandardSave(state), force=True)
        except _SAVE_FAULTS as error:
            self._give_up_save(step, error)
        self._saved = time.monotonic()

    def _complete(self) -> None:
        """Adds the manifest and deletes old checkpoints.

        Orbax calls it in the background of process 0, just before it renames the folder.
        """
        assert self._pending is not None
        step, manifest = self._pending
        (temporary,) = self._folder.glob(f"{step}{_TEMPORARY}*")
        names = [str(x.relative_to(temporary)) for x in temporary.rglob("*") if x.is_file()]
        files = checksums(temporary, [x for x in names if x != _ORBAX_METADATA])
        manifest = {**manifest, "files": files}
        manifest["hash"] = artifacts.hash_of(manifest)
        durable.write_json(temporary / MANIFEST, manifest)
        durable.sync_tree(temporary)
        for old in self._steps()[: 1 - self._config.keep]:
            shutil.rmtree(self._folder / str(old), ignore_errors=True)

    def _wait(self) -> None:
        """Waits until the save under way, if any, is over."""
        if self._pending is None:
            return
        step, _ = self._pending
        try:
            self._writer.wait_until_finished()
            if distributed.is_first():
                durable.sync(self._folder)  # the name that Orbax has given to the checkpoint
        except _SAVE_FAULTS as error:
            self._give_up_save(step, error)
        else:
            self.newest, self._pending = step, None

    def _give_up_save(self, step: int, error: Exception) -> None:
        self._pending = None
        for half_written in self._folder.glob(f"{step}{_TEMPORARY}*"):
            shutil.rmtree(half_written, ignore_errors=True)
        last = "there is none yet" if self.newest is None else f"the last good one is {self.newest}"
        self._say(
            f"*** CHECKPOINT OF STEP {step} NOT SAVED in {self._folder}: {_one_line(error)}; "
            f"work continues, {last} ***"
        )


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Within it a fault of Orbax is an exception alone, whose text we show.

    Orbax also logs it. Its threads and futures may complain later that nobody waits for them any
    more: that is dropped from here on.
    """
    python_logging.getLogger("asyncio").addFilter(_is_not_unretrieved)
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)
    logger = python_logging.getLogger("absl")

    def is_ours(record: python_logging.LogRecord) -> bool:  # a filter of this block alone
        return "orbax" not in record.pathname or record.levelno < python_logging.WARNING

    logger.addFilter(is_ours)
    try:
        yield
    finally:
        logger.removeFilter(is_ours)


class _WithoutClosedLoops:
    """A hook for exceptions that nobody can catch, without those of closed event loops."""

    def __init__(self, before: Callable[[Any], Any]):
        self.before = before

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.before(unraisable)


class _Unusable(Exception):
    """A checkpoint cannot be used; the text says why."""


def _in_all_processes(read: Callable[..., T], *arguments: Any) -> T:
    """Reads part of a checkpoint in all processes at once.

    Raises:
      _Unusable: in all of them, if it fails in any.
    """
    value: Any = None
    fault = ""
    try:
        value = read(*arguments)
    except _RESTORE_FAULTS as error:
        fault = _one_line(error)
    if distributed.in_any(bool(fault)):
        raise _Unusable(fault or "another process cannot read it")
    return value


def _read_manifest(path: pathlib.Path) -> Mapping[str, Any]:
    """Reads the manifest of a checkpoint, and compares the checksums of its files.

    Raises:
      ValueError: if it is of another format, or a file is damaged.
      OSError: if a file is missing or cannot be read.
    """
    manifest = json.loads((path / MANIFEST).read_text())
    if artifacts.hash_of({k: v for k, v in manifest.items() if k != "hash"}) != manifest["hash"]:
        raise ValueError(f"{MANIFEST} is damaged")
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']}, this version reads {FORMAT}")
    found = checksums(path, manifest["files"])
    for name, expected in manifest["files"].items():
        if found[name] != expected:
            raise ValueError(f"{name} is damaged")
    return manifest


def _one_line(error: Exception) -> str:
    text = one_line(error)
    if len(text) > 240:  # TensorStore begins with what it tried to do and ends with the cause
        text = f"{text[:80]} ... {text[-150:]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_not_unretrieved(record: python_logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()
