"""Artefacts: what a finished stage leaves on disk, found again by the next run.

An artefact is a folder named after a fingerprint, a hash of the stage's settings and inputs. The
same configuration finds it again; another one gets a folder of its own. A stage writes into a
temporary folder, which gets its final name only when it is whole, with a `manifest.json` beside the
data (see `runtime/manifest.py`), by which damage is found and located. `materialize` in the module
of that name finds or makes the artefact of a stage.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cadc_jax.runtime import durable, manifest, storage
from cadc_jax.runtime.manifest import FORMAT
from cadc_jax.runtime.storage import AnyPath, Remote

_TEMPORARY = re.compile(r"\.(\w+)\..+\.tmp")  # see `temporary_folder`
_SAMPLE_BYTES = 1 << 16  # read at three places of a raw file


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished stage.

    Attributes:
      path: its folder.
      fingerprint: hash of its settings and inputs.
      facts: what the stage reported about itself (row counts, losses, ...).
      seconds: wall time the stage took when it ran. It includes the time of interrupted runs whose
        checkpoints it continued.
      reused: whether it was found rather than made.
      settings: its settings, with `stage` and `format`.
      sha256: of its manifest, which covers all its files.
    """

    path: pathlib.Path
    fingerprint: str
    facts: Mapping[str, Any]
    seconds: float
    reused: bool
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sha256: str = ""


def fingerprint(stage: str, settings: Mapping[str, Any]) -> str:
    """The name of the artefact of a stage with these settings."""
    return hash_of({"stage": stage, "format": FORMAT, **settings})


def write_artifact(
    path: pathlib.Path,
    settings: Mapping[str, Any],
    write: Callable[[pathlib.Path], Mapping[str, Any]],
) -> None:
    """Writes an artefact and its manifest to `path`, either whole or not at all.

    If another process finishes the same artefact first, that one is kept.

    Args:
      path: folder to make.
      settings: of the stage, for the manifest; JSON-able.
      write: as for `materialize.materialize`.

    Raises:
      OSError: if it cannot be written; the error names a file.
    """
    temporary = temporary_folder(path)
    durable.make_folder(path.parent)
    temporary.mkdir()
    try:
        start = time.perf_counter()
        facts = dict(write(temporary))
        seconds = time.perf_counter() - start + facts.pop("seconds_before", 0.0)
        manifest.write(temporary, settings, facts, seconds)
        try:
            durable.publish(temporary, path)
        except OSError:
            if not path.exists():  # otherwise another process was faster
                raise
    except OSError as error:
        error.filename = error.filename or str(path)  # some libraries leave it out
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_folder(path: pathlib.Path) -> pathlib.Path:
    """Name of a folder for this process beside `path`; deletes the folders of killed processes."""
    prefix = f".{path.name}.{socket.gethostname()}."
    for folder in path.parent.glob(f"{prefix}*.tmp"):
        process = int(folder.name.removeprefix(prefix).removesuffix(".tmp"))
        # A process of this number may have been killed before: in a container all may be number 1.
        if process == os.getpid() or not durable.is_running(process):
            shutil.rmtree(folder, ignore_errors=True)
    return path.with_name(f"{prefix}{os.getpid()}.tmp")


def finished(path: pathlib.Path) -> pathlib.Path:
    """The path once the temporary folder that it leads through, if any, has its final name."""
    return pathlib.Path(*(_TEMPORARY.sub(r"\1", part) for part in path.parts))


def open_artifact(path: pathlib.Path, verify: bool = False) -> Artifact:
    """Opens a finished artefact.

    Args:
      path: its folder.
      verify: whether to read all files and compare their checksums. Sizes are always compared.

    Raises:
      ArtifactError: if its manifest is missing, damaged or of another format version, or its files
        are not exactly those that the manifest lists.
    """
    found = manifest.read(path)
    manifest.check_files(path, found.files, verify)
    return Artifact(path, path.name, found.facts, found.seconds, True, found.settings, found.sha256)


def size_of(path: pathlib.Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def file_identity(paths: Iterable[str | AnyPath]) -> list[list]:
    """What represents raw files in a fingerprint.

    Returns:
      [absolute path, size in bytes, time of the last change in nanoseconds, hash of the beginning,
      middle and end] of each file. Only a change of other bytes that keeps size and time is missed.
      Of an object in a store [URL, size in bytes, generation or entity tag].
    """
    identities: list[list] = []
    for path in map(storage.path_of, paths):
        if isinstance(path, Remote):
            identities.append([str(path), *path.state()])
            continue
        stat, whole = os.stat(path), str(pathlib.Path(path).resolve())
        identities.append([whole, stat.st_size, stat.st_mtime_ns, _sample_hash(path, stat.st_size)])
    return identities


def _sample_hash(path: str | pathlib.Path, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def hash_of(value: Any) -> str:
    """A short stable hash of a JSON-able value: 12 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain(value: Any) -> Any:
    """A JSON-able value as JSON gives it back: tuples become lists, keys become strings."""
    return json.loads(json.dumps(value))
