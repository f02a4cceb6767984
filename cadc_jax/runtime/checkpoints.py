"""Checkpoints: where long work stands, saved now and then, so that a crash costs little of it.

A checkpoint is a folder that Orbax writes in the background, under another name until it is whole.
Its `manifest.json` holds what is no array, and the checksum of every file, by which damage is
found before anything is read. Of several, the newest that is whole counts.

    with Checkpoints(folder) as checkpoints:
        factors, losses = als.fit(interactions, config, key, checkpoints=checkpoints)
"""

import json
import logging as python_logging
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from cadc_jax.runtime import artifacts, distributed
from cadc_jax.runtime.interrupts import Stopped

FORMAT = 1  # raise it when what a stage saves changes
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that Orbax is writing
_CHANGES = "_CHECKPOINT_METADATA"  # Orbax adds the time to it after the checksums are taken

# What Orbax and TensorStore raise for a disk that fails or is full, and for damaged files.
_SAVE_FAULTS = (OSError, ValueError, RuntimeError)
_RESTORE_FAULTS = (*_SAVE_FAULTS, KeyError, TypeError)

Facts = Mapping[str, Any]


def like(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes and dtypes of a tree of arrays, or of their shapes, all of them to lie so."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


class Checkpoints:
    """The checkpoints of one piece of work.

    A save that fails, as on a full disk, is a warning: the work goes on, and the last good
    checkpoint stays.

    Attributes:
      newest: step of the newest checkpoint of the folder that is known to be good, or None.
      seconds_before: wall time that went into the restored checkpoint; 0 for a fresh start.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        seconds: float = 300.0,
        keep: int = 2,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = print,
    ):
        """Opens a folder, which need not exist.

        Args:
          folder: of this work alone: nothing but its path tells whose checkpoints they are.
          seconds: wall time between saves; 0 saves whenever it can be done, infinity only on
            `stop`.
          keep: how many to keep, at least 2, so that a damaged one has one before it.
          stop: whether the work is to save and end.
          say: shows the user a line.
        """
        if keep < 2:
            raise ValueError(f"keep={keep}: must be at least 2")
        self.newest: int | None = None
        self.seconds_before = 0.0
        self._folder = pathlib.Path(folder).resolve()
        self._seconds, self._keep, self._stop, self._say = seconds, keep, stop, say
        self._opened = self._saved = time.monotonic()
        self._pending: tuple[int, Facts] | None = None  # what the background is writing
        options = ocp.options.AsyncOptions(post_finalization_callback=self._complete)
        self._writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=options)

    def __enter__(self) -> "Checkpoints":
        python_logging.getLogger("absl").addFilter(_is_not_orbax_error)
        return self

    def __exit__(self, *error: object) -> None:
        self._wait()
        self._writer.close()
        python_logging.getLogger("absl").removeFilter(_is_not_orbax_error)

    def restore(self, target: Any) -> tuple[Any, Facts] | None:
        """The newest checkpoint that is whole; those found damaged are told of and removed.

        Args:
          target: as `like` makes it: what was saved, and where it is to lie now. Rows of zeros that
            are missing are added, and those that are too many are left out: the padding of a split
            table differs by the number of devices.

        Returns:
          (state, facts) as they were saved, or None if there is none.
        """
        if distributed.is_first():
            for left in self._folder.glob(f"*{_TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)  # of a killed run
        steps = distributed.on_first(self._steps)
        for step in reversed(steps):
            path = self._folder / str(step)
            state, fault = None, ""
            manifest: Mapping[str, Any] = {}
            try:
                manifest = _read_manifest(path)
            except _RESTORE_FAULTS as error:
                fault = _one_line(error)
            if not distributed.in_any(bool(fault)):  # reading needs all processes
                try:
                    args = ocp.args.StandardRestore(target, strict=False)
                    state = self._writer.restore(path, args=args)
                except _RESTORE_FAULTS as error:
                    fault = _one_line(error)
            if not distributed.in_any(bool(fault)):
                self.newest, self.seconds_before = step, manifest["seconds"]
                self._say(f"         goes on from step {step} ({path})")
                return state, manifest["facts"]
            self._say(f"*** CHECKPOINT LEFT OUT: {path} is not usable: {fault} ***")
            if distributed.is_first():
                shutil.rmtree(path, ignore_errors=True)
        if steps:
            self._say(f"*** NO CHECKPOINT LEFT in {self._folder}: starting over ***")
        return None

    def maybe_save(self, step: int, make: Callable[[], tuple[Any, Facts]]) -> None:
        """Saves if it is time to; waits for a copy of the arrays, and for the save before.

        Of several processes all call it at the same steps. The first one's clock decides, or a
        `stop` of any of them, of which the first one hears in time.

        Args:
          step: number of the work done so far.
          make: gives the state, a pytree of arrays, and the facts, JSON-able; called only if it is
            time. The arrays may be donated afterwards.

        Raises:
          Stopped: after saving, if `stop` asks to end.
        """
        late = time.monotonic() - self._saved >= self._seconds
        late, stop = distributed.of_first(
            [late, distributed.any_process_has_said("stop", self._stop())]
        )
        if not (late or stop):
            return
        self._wait()
        if step != self.newest:  # there is none yet, or work was done since
            self._save(step, *make())
        if stop:
            self._wait()
            kept = "nothing of this stage" if self.newest is None else f"step {self.newest}"
            raise Stopped(f"{kept} is saved")

    def _save(self, step: int, state: Any, facts: Facts) -> None:
        seconds = self.seconds_before + time.monotonic() - self._opened
        facts = json.loads(json.dumps(facts))  # a copy: the work may go on changing its own
        self._pending = step, {"format": FORMAT, "seconds": seconds, "facts": facts}
        try:
            # A folder of that name can only be what another run of the same work has left.
            path = self._folder / str(step)
            self._writer.save(path, args=ocp.args.StandardSave(state), force=True)
        except _SAVE_FAULTS as error:
            self._failed(step, error)
        self._saved = time.monotonic()

    def _complete(self) -> None:
        """Ends a save, in the background of process 0, just before the folder is given its name."""
        assert self._pending is not None  # it is what is being saved
        step, manifest = self._pending
        (temporary,) = self._folder.glob(f"{step}{_TEMPORARY}*")
        names = [str(x.relative_to(temporary)) for x in temporary.rglob("*") if x.is_file()]
        files = artifacts.checksums(temporary, [name for name in names if name != _CHANGES])
        manifest = {**manifest, "files": files}
        manifest["hash"] = artifacts.hash_of(manifest)
        artifacts.write_json(temporary / artifacts.MANIFEST, manifest)
        for old in self._steps()[: 1 - self._keep]:
            shutil.rmtree(self._folder / str(old), ignore_errors=True)

    def _wait(self) -> None:
        """Waits until the save under way, if any, is over."""
        if self._pending is None:
            return
        step, _ = self._pending
        try:
            self._writer.wait_until_finished()
        except _SAVE_FAULTS as error:
            self._failed(step, error)
        else:
            self.newest, self._pending = step, None

    def _failed(self, step: int, error: Exception) -> None:
        self._pending = None
        for half in self._folder.glob(f"{step}{_TEMPORARY}*"):
            shutil.rmtree(half, ignore_errors=True)
        self._say(
            f"*** CHECKPOINT OF STEP {step} NOT SAVED in {self._folder}: {_one_line(error)}; "
            f"going on, the last one is {'none' if self.newest is None else self.newest} ***"
        )

    def _steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())


def _read_manifest(path: pathlib.Path) -> Mapping[str, Any]:
    """The manifest of a checkpoint that is whole.

    Raises:
      ValueError: if it is of another format, or a file is missing or damaged.
      OSError: if it cannot be read.
    """
    manifest = json.loads((path / artifacts.MANIFEST).read_text())
    if artifacts.hash_of({k: v for k, v in manifest.items() if k != "hash"}) != manifest["hash"]:
        raise ValueError(f"{artifacts.MANIFEST} is damaged")
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']}, this version reads {FORMAT}")
    found = artifacts.checksums(path, manifest["files"])
    for name, expected in manifest["files"].items():
        if found[name] != expected:
            raise ValueError(f"{name} is damaged")
    return manifest


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if len(text) > 240:  # TensorStore tells what it was at first, and the cause at last
        text = f"{text[:80]} ... {text[-150:]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_not_orbax_error(record: python_logging.LogRecord) -> bool:
    """Orbax logs the traceback of a failed save, which `_failed` tells in a line."""
    return not ("orbax" in record.pathname and record.levelno >= python_logging.ERROR)
