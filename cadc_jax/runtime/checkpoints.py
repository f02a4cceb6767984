"""Checkpoints: the state of long work, saved from time to time, to limit what a crash costs.

A checkpoint is a folder `<step>/`. Orbax writes the arrays into `<step>/state/` in the background,
by whatever protocol it has for the file system. When it is done, `<step>/manifest.json` is written,
with the facts that are not arrays and the checksums of all files. Without one the checkpoint is not
there. Restoring compares the checksums first and takes the newest checkpoint without damage.

If the work folder is a URL, a whole checkpoint is copied there as well, its manifest last. If not
all processes see the local folder (`distributed.apart`), it is there alone: each process copies the
files that it wrote, and to restore each machine copies all (see `runtime.states`).

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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from cadc_jax.errors import CadcError, check_at_least
from cadc_jax.runtime import artifacts, distributed, durable, states
from cadc_jax.runtime.interrupts import Stopped
from cadc_jax.runtime.manifest import NAME as MANIFEST
from cadc_jax.runtime.manifest import checksums
from cadc_jax.runtime.mirror import Mirror
from cadc_jax.runtime.states import Checkpointers
from cadc_jax.runtime.text import one_line

FORMAT = 3  # raise it when what a stage saves changes
_STATE = "state"  # the folder of a checkpoint that Orbax writes

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
        mirror: Mirror | None = None,
    ):
        """Opens a folder, which need not exist.

        Args:
          folder: for this work alone, since only its path tells whose checkpoints it holds.
          config: how often to save, and how many checkpoints to keep.
          stop: whether the work has been asked to save and end.
          say: shows the user a line of text.
          mirror: copies checkpoints of a folder below its own to a store, and from it.
        """
        self.newest: int | None = None
        self.seconds_before = 0.0
        self._folder = pathlib.Path(folder).resolve()
        self._config, self._stop, self._say = config, stop, say
        self._quiet = contextlib.ExitStack()
        self._opened = self._saved = time.monotonic()
        self._pending: _Save | None = None  # the save under way
        self._mirror = mirror or Mirror(self._folder)
        self._orbax = Checkpointers()

    def __enter__(self) -> "Checkpoints":
        self._quiet.enter_context(quiet_orbax())
        return self

    def __exit__(self, *error: object) -> None:
        self.wait(alone=True)  # after an error the other processes may not come here
        self._orbax.close()
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
        if distributed.leads():
            self._remove_half_written()
        steps = distributed.on_first(self._steps)
        for step in reversed(steps):
            path = self._folder / str(step)
            try:
                _in_all_processes(self._fetch, path)
                manifest = _in_all_processes(_read_manifest, path)
                state = _in_all_processes(self._orbax.restore, path / _STATE, target)
            except _Unusable as error:
                self._say(f"*** CHECKPOINT SKIPPED: {path} is not usable: {error} ***")
                if distributed.is_first():
                    self._remove(step)
                continue
            if distributed.apart() and distributed.leads():
                shutil.rmtree(path, ignore_errors=True)
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
        self.wait()
        if step != self.newest:  # something was done since the newest checkpoint
            self._save(step, *make())
        if stop:
            self.wait()
            kept = "nothing of this stage" if self.newest is None else f"step {self.newest}"
            raise Stopped(f"{kept} is saved")

    def _steps(self) -> list[int]:
        """Steps that have a checkpoint, here or in the store, in order."""
        here = {path.parent.name for path in self._folder.glob(f"*/{MANIFEST}")}
        return sorted(int(name) for name in here | self._mirrored() if name.isdigit())

    def _mirrored(self) -> set[str]:
        """Names of the checkpoints in the store."""
        try:
            return self._mirror.names(self._folder)
        except CadcError as error:
            self._say(f"*** CHECKPOINTS NOT LOOKED FOR: {_one_line(error)} ***")
            return set()

    def _fetch(self, path: pathlib.Path) -> None:
        """Copies a checkpoint from the store, unless it is here."""
        if distributed.leads():
            self._mirror.pull(path, _read_manifest)

    def _remove(self, step: int) -> None:
        """Removes a checkpoint, here and in the store; its manifest first."""
        path = self._folder / str(step)
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(CadcError):  # one too many does no harm
            self._mirror.remove(path)

    def _remove_half_written(self) -> None:
        """Removes what killed runs have left."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if distributed.apart() or not (path / MANIFEST).exists():
                    shutil.rmtree(path, ignore_errors=True)

    def _save(self, step: int, state: Any, facts: Facts) -> None:
        """Starts a save in the background."""
        seconds = self.seconds_before + time.monotonic() - self._opened
        facts = artifacts.plain(facts)  # a copy, as the work may change its own meanwhile
        self._pending = save = _Save(step, {"format": FORMAT, "seconds": seconds, "facts": facts})
        path = self._folder / str(step)
        own = states.own_folder(path)
        try:
            if distributed.is_first():
                self._remove(step)  # another run of the same work may have left it
            if distributed.apart():
                distributed.barrier("save")
            if distributed.is_first() or distributed.apart():
                durable.make_folder(own)
            self._orbax.save(own / _STATE, state)
        except _SAVE_FAULTS as error:
            save.fault = error
        save.thread = threading.Thread(target=self._complete, args=(save,))
        save.thread.start()
        self._saved = time.monotonic()

    def _complete(self, save: "_Save") -> None:
        """Waits until Orbax is done; the first process then makes the checkpoint whole."""
        path = self._folder / str(save.step)
        try:
            if save.fault is None:
                self._orbax.writer.wait_until_finished()
                if distributed.is_first() and not distributed.apart():
                    self._finish(save, path)
        except _SAVE_FAULTS as error:
            save.fault = error
        if distributed.apart():
            self._gather(save, path)

    def _gather(self, save: "_Save", path: pathlib.Path) -> None:
        """Copies the files of all processes to the store; the first one adds the manifest.

        A process that has failed tells so, as the first one waits for all.
        """
        own, files = states.own_folder(path), None
        try:
            if save.fault is None:
                states.put_own(own, path, self._mirror)
                files = checksums(own)
        except (CadcError, *_SAVE_FAULTS) as error:
            save.fault = error
        shutil.rmtree(own, ignore_errors=True)
        try:
            told = distributed.to_first(f"{self._folder.name}/{save.step}", files)
            if distributed.is_first() and None not in told:
                save.manifest["files"] = {name: x for files in told for name, x in files.items()}
                durable.make_folder(path)
                _write_manifest(path, save.manifest)
                self._mirror.push_files([path / MANIFEST])
                shutil.rmtree(path)
                self._remove_old()
        except (CadcError, *_SAVE_FAULTS) as error:
            save.fault = error

    def _finish(self, save: "_Save", path: pathlib.Path) -> None:
        """Writes the manifest, copies the checkpoint to the store, and deletes old ones."""
        save.manifest["files"] = checksums(path)
        durable.sync_tree(path)
        _write_manifest(path, save.manifest)
        durable.sync(self._folder)
        try:
            self._mirror.push(path)
        except CadcError as error:
            self._say(
                f"*** CHECKPOINT OF STEP {save.step} NOT COPIED: {_one_line(error)}; work "
                f"continues, it is kept in {path} ***"
            )
        self._remove_old()

    def _remove_old(self) -> None:
        for old in self._steps()[: -self._config.keep]:
            self._remove(old)

    def wait(self, alone: bool = False) -> None:
        """Waits until the save under way, if any, is over. All processes call it, unless `alone`.

        Orbax matches what several processes write by its order, so nothing else may be written by
        Orbax during a save.

        Args:
          alone: whether this process decides by itself whether it has succeeded.
        """
        if self._pending is None:
            return
        save, self._pending = self._pending, None
        assert save.thread is not None
        save.thread.join()
        failed = save.fault is not None
        if not alone:
            failed = distributed.in_any(failed)
        if not failed:
            self.newest = save.step
            return
        if distributed.is_first():
            self._remove(save.step)
        last = "there is none yet" if self.newest is None else f"the last good one is {self.newest}"
        why = "another process cannot write it" if save.fault is None else _one_line(save.fault)
        self._say(
            f"*** CHECKPOINT OF STEP {save.step} NOT SAVED in {self._folder}: {why}; work "
            f"continues, {last} ***"
        )


@dataclasses.dataclass
class _Save:
    """A save under way.

    Attributes:
      step: of the checkpoint.
      manifest: without the checksums of its files.
      thread: completes it.
      fault: what went wrong, if anything did.
    """

    step: int
    manifest: dict[str, Any]
    thread: threading.Thread | None = None
    fault: Exception | None = None


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
    except (CadcError, *_RESTORE_FAULTS) as error:
        fault = _one_line(error)
    if distributed.in_any(bool(fault)):
        raise _Unusable(fault or "another process cannot read it")
    return value


def _write_manifest(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a checkpoint, with its hash."""
    durable.write_json(path / MANIFEST, {**manifest, "hash": artifacts.hash_of(manifest)})


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
