"""The artefact of a stage, found again or made.

Of several processes the first one looks for artefacts and writes them. If not all see its local
work folder, the others get the artefact from the store.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from cadc_jax.errors import ArtifactError
from cadc_jax.runtime import artifacts, distributed, manifest
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.manifest import FORMAT
from cadc_jax.runtime.mirror import Mirror
from cadc_jax.runtime.storage import Remote


def materialize(
    workdir: pathlib.Path,
    stage: str,
    settings: Mapping[str, Any],
    write: Callable[[pathlib.Path], Mapping[str, Any]],
    verify: bool = False,
    together: bool = False,
    remote: Remote | None = None,
) -> Artifact:
    """Returns the artefact of a stage; runs `write` only if there is none yet.

    All processes have to call it, with the same arguments.

    Args:
      workdir: folder of the run.
      stage: name of the stage; the artefact is `workdir/<stage>/<fingerprint>`.
      settings: everything the result depends on, fingerprints of inputs included; JSON-able.
      write: writes the data into the (existing, empty) folder it is given, and returns facts. The
        fact `seconds_before` is wall time spent in earlier runs; it is added to `seconds`.
      verify: whether to compare the checksums of an existing artefact.
      together: whether all processes run `write`, with the same folder, because they compute
        together; the facts of the first one are kept. Otherwise only the first one runs it.
      remote: where the work folder is copied to, and artefacts are looked for; see `mirror`.

    Raises:
      ArtifactError: if a folder of that name holds no whole artefact of this format.
      StorageError: if the copy cannot be read or written; the artefact is kept.
    """
    mirror = Mirror(pathlib.Path(workdir), remote)
    path = pathlib.Path(workdir) / stage / artifacts.fingerprint(stage, settings)
    settings = {"stage": stage, "format": FORMAT, **settings}
    first = distributed.is_first()
    if _pull_first(mirror, path):
        artifact = _reused(path, settings, verify) if first else None
        distributed.on_first(lambda: mirror.push(path))  # an earlier run may not have come to it
        _give_to_all(mirror, path)
        logging.info("%s: reused %s", stage, path)
        return artifact or _reused(path, settings, verify and distributed.leads())

    def write_together(temporary: pathlib.Path | None = None) -> Mapping[str, Any]:
        if distributed.apart():
            distributed.on_first(lambda: mirror.remove(path))  # the rest of a run that was killed
        # Only the first process knows the folder's name; the others get it here.
        folder = path.with_name(distributed.of_first(temporary and temporary.name))
        if _leads_others():
            _remove_temporary(path)
            folder.mkdir(parents=True)
        distributed.barrier("write")
        return write(folder)

    if first:
        artifacts.write_artifact(path, settings, write_together if together else write)
    elif together:
        write_together()
    distributed.on_first(lambda: mirror.push(path, rest=together and distributed.apart()))
    _give_to_all(mirror, path)
    if _leads_others():
        _remove_temporary(path)
    return dataclasses.replace(artifacts.open_artifact(path), reused=False)


def pull(mirror: Mirror, path: pathlib.Path) -> None:
    """Copies an artefact from the store to all local work folders, unless the same one is there.

    All processes have to call it.
    """
    if _pull_first(mirror, path):
        distributed.on_first(lambda: mirror.push(path))
        _give_to_all(mirror, path)


def _pull_first(mirror: Mirror, path: pathlib.Path) -> bool:
    """Copies an artefact from the store to the first process; returns whether there is one."""
    found: bool = distributed.on_first(lambda: mirror.pull(path, same=distributed.apart()))
    return found


def _give_to_all(mirror: Mirror, path: pathlib.Path) -> None:
    """Makes all processes see an artefact that the first one has, and the store."""
    if _leads_others():
        mirror.pull(path, same=True)
    distributed.barrier("artifact")
    distributed.wait_until_seen(path)


def _leads_others() -> bool:
    """Whether this process keeps a local work folder up to date that is not the first one's."""
    return distributed.leads() and not distributed.is_first()


def _remove_temporary(path: pathlib.Path) -> None:
    """Removes the folders in which a local work folder's processes wrote their part of `path`."""
    for folder in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def _reused(path: pathlib.Path, settings: Mapping[str, Any], verify: bool) -> Artifact:
    """Opens an artefact that was there, and checks that it is the one that was asked for."""
    artifact = artifacts.open_artifact(path, verify)
    if artifact.settings != artifacts.plain(settings):
        raise ArtifactError(
            f"{path}: its {manifest.NAME} has settings that do not belong to this name; "
            f"{manifest.ADVICE}"
        )
    return artifact
