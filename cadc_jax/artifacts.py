"""Artefacts: what a finished stage leaves on disk, named by a fingerprint of all it depends on.

A stage writes into a temporary folder, which is renamed into place only when whole, with a
`manifest.json` beside the data. The folder's name ends in the fingerprint of the stage's settings
and inputs, so another configuration never overwrites an artefact and the same one finds it again.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from cadc_jax import __version__
from cadc_jax.errors import ArtifactError

FORMAT = 1  # of every artefact; raise it when a layout on disk changes
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished stage.

    Attributes:
      path: its folder.
      fingerprint: hash of its settings and inputs.
      facts: what the stage reported of itself (row counts, losses, ...).
      seconds: wall time the stage took when it ran.
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
) -> Artifact:
    """Returns the artefact of a stage, running `write` only if it is not there yet.

    Args:
      workdir: folder of the run.
      stage: name of the stage; the artefact is `workdir/<stage>/<fingerprint>`.
      settings: everything the result depends on, inputs' fingerprints included; JSON-able.
      write: writes the data into the (existing, empty) folder it is given and returns facts.

    Raises:
      ArtifactError: if a folder of that name holds no readable manifest of this format.
    """
    settings = {"stage": stage, "format": FORMAT, **settings}
    fingerprint = hash_of(settings)
    path = pathlib.Path(workdir) / stage / fingerprint
    if path.exists():
        artifact = read(path)
        logging.info("%s: reused %s", stage, path)
        return dataclasses.replace(artifact, reused=True)
    temporary = path.with_name(f".{fingerprint}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        start = time.perf_counter()
        facts = write(temporary)
        manifest = {
            "settings": settings,
            "facts": facts,
            "seconds": round(time.perf_counter() - start, 3),
            "versions": {
                "cadc_jax": __version__,
                "jax": jax.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        write_json(temporary / MANIFEST, manifest)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dataclasses.replace(read(path), reused=False)


def read(path: pathlib.Path) -> Artifact:
    """Opens a finished artefact.

    Raises:
      ArtifactError: if its manifest is missing, unreadable or of another format version.
    """
    advice = "delete the folder and run again"
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version = manifest["settings"]["format"]
        artifact = Artifact(path, path.name, manifest["facts"], manifest["seconds"], reused=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a whole artefact ({error!r}); {advice}") from None
    if version != FORMAT:
        raise ArtifactError(
            f"{path}: artefact format {version}, this version reads {FORMAT}; {advice}"
        )
    return artifact


def file_identity(paths) -> list[list]:
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
