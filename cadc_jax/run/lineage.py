"""Artefacts that an update made from those of an earlier run, and how a run finds them.

Their settings are those of an ordinary artefact, and the fingerprint of the earlier one under
UPDATED. A prepared table has also the new `files`, factors the `passes` that follow new rows.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from cadc_jax.data.readers import files
from cadc_jax.errors import ArtifactError
from cadc_jax.run.context import Run
from cadc_jax.run.formats import open_stage
from cadc_jax.runtime import artifacts, distributed, materialize
from cadc_jax.runtime.artifacts import Artifact

UPDATED = "updated"
_OWN = ("stage", "format", UPDATED, "files", "passes")  # settings beside those of other artefacts


def find_updated(run: Run, stage: str, settings: Mapping[str, Any]) -> Artifact | None:
    """The artefact with these settings that an update left in the work folder, and a line.

    Raises:
      ArtifactError: if it is damaged.
    """
    wanted = artifacts.plain(settings)

    def find() -> str | None:
        for folder, found in updates_in(run, stage):
            if {name: x for name, x in found.items() if name not in _OWN} == wanted:
                return folder.name
        return None

    name = distributed.on_first(find)
    if name is None:
        return None
    folder = run.workdir / stage / name
    materialize.pull(run.mirror, folder)
    made = open_stage(folder, run.verify and distributed.leads())
    run.say(f"[{stage:>9}] {stage}: updated, made in {made.seconds:.1f} s -> {folder}")
    return made


def updates_in(run: Run, stage: str) -> Iterator[tuple[pathlib.Path, Mapping[str, Any]]]:
    """Folder and settings of each artefact of a stage that an update left in the work folder."""
    place, mirror = run.workdir / stage, run.mirror
    names = {path.name for path in place.glob("[!.]*")} | mirror.names(place)
    for folder in sorted(place / name for name in names):
        try:
            found = mirror.read_manifest(folder).settings
        except ArtifactError:  # of another format, perhaps: the stage itself says so if it needs it
            continue
        if UPDATED in found:
            yield folder, found


def raw_size(prepared: Artifact) -> tuple[int, int]:
    """Bytes of all raw files of a prepared table: as they are stored, and unpacked.

    A file that is gone by now counts as it was stored.

    Raises:
      DataError: if a file is damaged.
    """
    if UPDATED in prepared.settings:
        stored, unpacked = prepared.facts["raw_bytes"]
        return stored, unpacked
    found = prepared.settings["files"]
    there = [path for path, *_ in found if files.stored_size([path])]
    gone = sum(size for path, size, *_ in found if path not in there)
    return gone + files.stored_size(there), gone + files.unpacked_size(there)
