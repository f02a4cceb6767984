"""The artefact of a stage, found again or made.

When several processes share a work folder, the first one looks for artefacts and writes them.
"""

import dataclasses
import pathlib
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
    if distributed.on_first(lambda: mirror.pull(path)):
        distributed.wait_until_seen(path)
        artifact = artifacts.open_artifact(path, verify and first)
        if artifact.settings != artifacts.plain(settings):
            raise ArtifactError(
                f"{path}: its {manifest.NAME} has settings that do not belong to this name; "
                f"{manifest.ADVICE}"
            )
        logging.info("%s: reused %s", stage, path)
        distributed.on_first(lambda: mirror.push(path))  # an earlier run may not have come to it
        return artifact

    def write_together(temporary: pathlib.Path | None = None) -> Mapping[str, Any]:
        # Only the first process knows the folder's name; the others get it here.
        return write(path.with_name(distributed.of_first(temporary and temporary.name)))

    if first:
        artifacts.write_artifact(path, settings, write_together if together else write)
    elif together:
        write_together()
    distributed.on_first(lambda: mirror.push(path))
    distributed.of_first(None)  # waits until the first process has written everything
    distributed.wait_until_seen(path)
    return dataclasses.replace(artifacts.open_artifact(path), reused=False)
