"""What the manifest of each stage holds, checked when a folder may come from elsewhere.

`runtime.manifest.FORMAT` is the version of all of it, and of the layout of every folder. An
artefact of another version is refused in one line: its stage can be run again.
"""

import pathlib

from cadc_jax.data import facts
from cadc_jax.errors import ArtifactError
from cadc_jax.run.arms import POPULARITY
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.manifest import ADVICE, NAME, Kind, check

# Stages whose artefacts leave the work folder.
COMPRESSED, UNPACKED, EXPORT = "compressed", "unpacked", "export"

_FACTORIZED: Kind = {"losses": [float]}
_FACTS: dict[str, Kind] = {
    "synthetic": {"rows": int},
    "prepare": facts.FACTS,
    "tune": {
        "chosen": {str: float},
        "metric": str,
        "validation": float,
        POPULARITY.name: float,
        "trials": int,
        "rows": int,
    },
    "factorize": _FACTORIZED,
    "unsampled": _FACTORIZED,
    "sample": {"rows": int},
    UNPACKED: {"rows": int},
    "train": {
        "arm": str,
        "model": str,
        "rows": int,
        "pairs": int,
        "best_step": int,
        "history": [{"step": int, "validation": float}],
    },
    "evaluate": {
        "metrics": {str: float},
        "validation": {str: float},
        "standard_errors": {str: float},
        "users": {str: int},
    },
    COMPRESSED: {
        "raw": {"stored": int, "unpacked": int},
        "facts": {"prepared": facts.FACTS, "factors": _FACTORIZED, "sample": {"rows": int}},
        "seconds": {"prepared": float, "factors": float, "sample": float},
    },
    EXPORT: {"tables": {str: [int]}, "parameters": int},
}
_SETTINGS: dict[str, Kind] = {
    "prepare": {"data": {"source": str, "split": str}},
    "tune": {"prepared": str, "method": str, "names": [str]},
    "factorize": {"prepared": str, "method": str, "config": {}},
    "sample": {"prepared": str, "rate": float},
    "train": {
        "prepared": str,
        "sample": (str, type(None)),
        "factors": (str, int),
        "model": [(str, {})],
        "k": int,
        "ranking": str,
        "max_users": int,
    },
    "evaluate": {"prepared": str, "scorer": str},
    COMPRESSED: {"config": {}},
}


def open_stage(path: pathlib.Path, verify: bool = False) -> Artifact:
    """Opens an artefact, and checks that its manifest holds what its stage writes.

    Args:
      path: its folder.
      verify: whether to compare the checksums of all files.

    Raises:
      ArtifactError: if it is damaged, or not what its stage writes.
    """
    found = artifacts.open_artifact(path, verify)
    stage = found.settings["stage"]
    try:
        check(found.settings, _SETTINGS.get(stage, {}), "settings")
        check(found.facts, _FACTS.get(stage, {}), "facts")
        if stage == "train" and not (found.facts["history"] and len(found.settings["model"]) == 2):
            raise ValueError("it has no history, or no network")
        if stage == COMPRESSED and min(found.facts["seconds"].values()) < 0:
            raise ValueError("facts.seconds has a negative number")
    except ValueError as error:
        raise ArtifactError(f"{path}: damaged ({NAME}: {error}); {ADVICE}") from None
    return found
