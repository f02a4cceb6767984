"""Artefacts: what a finished stage leaves on disk, named by a fingerprint of all it depends on.

A stage writes into a temporary folder, which is renamed into place only when whole, with a
`manifest.json` beside the data. The folder's name ends in the fingerprint of the stage's settings
and inputs, so another configuration never overwrites an artefact and the same one finds it again.
The manifest has the size and the checksum of every file, so that damage is found, and where.

Of several processes, which share the work folder, the first one looks for artefacts and writes
them.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from cadc_jax import __version__
from cadc_jax.errors import ArtifactError
from cadc_jax.runtime import distributed

FORMAT = 2  # of every artefact; raise it when a layout on disk changes
MANIFEST = "manifest.json"
_READ_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished stage.

    Attributes:
      path: its folder.
      fingerprint: hash of its settings and inputs.
      facts: what the stage reported of itself (row counts, losses, ...).
      seconds: wall time the stage took when it ran, that of broken-off runs included as far as
        their work was taken over.
      reused: whether it was found rather than made.
    """

    path: pathlib.Path
    fingerprint: str
    facts: Mapping[str, Any]
    seconds: float
    reused: bool


def materialize(
    workdir: pathlib.Path,
    stage: str,
    settings: Mapping[str, Any],
    write: Callable[[pathlib.Path], Mapping[str, Any]],
    verify: bool = False,
    together: bool = False,
) -> Artifact:
    """Returns the artefact of a stage, running `write` only if it is not there yet.

    All processes have to call it, with the same arguments.

    Args:
      workdir: folder of the run.
      stage: name of the stage; the artefact is `workdir/<stage>/<fingerprint>`.
      settings: everything the result depends on, inputs' fingerprints included; JSON-able.
      write: writes the data into the (existing, empty) folder it is given and returns facts; of
        these, `seconds_before` is wall time that went into it earlier.
      verify: whether to compare the checksums of an artefact that is there.
      together: whether all processes run `write`, with the same folder, since they compute
        together; what the first one returns counts. Otherwise the first one runs it alone.

    Raises:
      ArtifactError: if a folder of that name holds no whole artefact of this format.
    """
    path = pathlib.Path(workdir) / stage / fingerprint(stage, settings)
    settings = {"stage": stage, "format": FORMAT, **settings}
    first = distributed.is_first()
    if distributed.on_first(path.exists):
        distributed.wait_until_seen(path)
        artifact = open_artifact(path, verify and first)
        logging.info("%s: reused %s", stage, path)
        return artifact

    def write_together(folder: pathlib.Path | None = None) -> Mapping[str, Any]:
        return write(path.with_name(distributed.of_first(folder and folder.name)))

    if first:
        write_artifact(path, settings, write_together if together else write)
    elif together:
        write_together()
    distributed.of_first(None)  # the first one is through
    distributed.wait_until_seen(path)
    return dataclasses.replace(open_artifact(path), reused=False)


def fingerprint(stage: str, settings: Mapping[str, Any]) -> str:
    """What names the artefact of a stage with these settings."""
    return hash_of({"stage": stage, "format": FORMAT, **settings})


def write_artifact(
    path: pathlib.Path,
    settings: Mapping[str, Any],
    write: Callable[[pathlib.Path], Mapping[str, Any]],
) -> None:
    """Writes an artefact with its manifest to `path`, whole or not at all: see `materialize`.

    If another process has finished the same artefact meanwhile, that one stays.
    """
    own = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{own}*.tmp"):
        if not _is_running(int(left.name.removeprefix(own).removesuffix(".tmp"))):
            shutil.rmtree(left, ignore_errors=True)  # of a killed run
    temporary = path.with_name(f"{own}{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        start = time.perf_counter()
        facts = dict(write(temporary))
        seconds = time.perf_counter() - start + facts.pop("seconds_before", 0.0)
        manifest = {
            "settings": settings,
            "facts": facts,
            "seconds": round(seconds, 3),
            "versions": {
                "cadc_jax": __version__,
                "jax": jax.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "files": checksums(temporary),
        }
        write_json(temporary / MANIFEST, manifest)
        try:
            temporary.rename(path)
        except OSError:
            if not path.exists():
                raise
    except OSError as error:
        error.filename = error.filename or str(path)  # libraries do not always tell
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_artifact(path: pathlib.Path, verify: bool = False) -> Artifact:
    """Opens a finished artefact.

    Args:
      path: its folder.
      verify: whether to read all files and compare their checksums; sizes are always compared.

    Raises:
      ArtifactError: if its manifest is missing, unreadable or of another format version, or a file
        is missing or damaged.
    """
    advice = "delete the folder and run again"
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder")
    if not (path / MANIFEST).exists():
        raise ArtifactError(
            f"{path}: not a whole artefact, as it has no {MANIFEST}; name another folder, or, if a "
            f"stage made this one, {advice}"
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version = manifest["settings"]["format"]
        files = manifest["files"] if version == FORMAT else {}
        artifact = Artifact(path, path.name, manifest["facts"], manifest["seconds"], reused=True)
    except PermissionError:  # nothing to delete for
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a whole artefact ({error!r}); {advice}") from None
    if version != FORMAT:
        raise ArtifactError(
            f"{path}: artefact format {version}, this version reads {FORMAT}; {advice}"
        )
    for name, (size, _) in files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            fault = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ArtifactError(f"{path / name}: the file {fault}; {advice}")
    if verify:
        now = checksums(path, files)
        for name, expected in files.items():
            if now[name] != expected:
                raise ArtifactError(
                    f"{path / name}: the file is damaged (its checksum is {now[name][1]} instead "
                    f"of {expected[1]}); {advice}"
                )
    return artifact


def settings_of(path: pathlib.Path) -> Mapping[str, Any]:
    """The settings in the manifest of an artefact that `open_artifact` has opened."""
    return json.loads((path / MANIFEST).read_text())["settings"]


def checksums(path: pathlib.Path, names: Iterable[str] | None = None) -> dict[str, list]:
    """Name -> [size in bytes, CRC-32 in hexadecimal] of the files under a folder (default: all)."""
    if names is None:
        names = sorted(str(x.relative_to(path)) for x in path.rglob("*") if x.is_file())
    names = list(names)

    def checksum(name: str) -> list:
        size, value = 0, 0
        with open(path / name, "rb") as file:
            while block := file.read(_READ_BYTES):
                size, value = size + len(block), zlib.crc32(block, value)
        return [size, f"{value:08x}"]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(checksum, names), strict=True))


def size_of(path: pathlib.Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def file_identity(paths: Iterable[str | pathlib.Path]) -> list[list]:
    """What stands for raw files in a fingerprint: path, size in bytes and time of change."""
    identities = []
    for path in paths:
        stat = os.stat(path)
        identities.append([str(pathlib.Path(path).resolve()), stat.st_size, stat.st_mtime_ns])
    return identities


def hash_of(value: Any) -> str:
    """A short stable hash of a JSON-able value."""
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, default=list) + "\n")
    temporary.replace(path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, but another user's
        return True
    return True
