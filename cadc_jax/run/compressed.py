"""The compressed data set: a folder to train from, elsewhere and without the raw log.

    manifest.json   configuration, facts and checksums, as in every artefact
    table/          a prepared table (`data/table.py`) whose `train/` holds the kept rows only;
                    `train/row.npy` [M] int64 are their numbers in the training split
    factors/        factors of all training rows: `user.npy` [U, D], `item.npy` [I, D] float32 and,
                    if logistic, `user_bias.npy` [U], `item_bias.npy` [I], `global_bias.npy` [];
                    with `factor_rows='unsampled'` the folder `unsampled/` has the factors of the
                    rows that are not kept, to train on the kept ones

All arrays are plain `.npy` files. Held-out rows are there in full. The ranking task also has each
user's training items (`table/known/`), which are not candidates.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax.configuration import default_config, validate
from cadc_jax.data.raw import SPLITS, TRAIN
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.artifacts import Artifact

STAGE = "compressed"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The artefacts that training starts from.

    Attributes:
      prepared: the prepared table.
      factors: factors of all training rows, and of the unsampled rows if they are used.
      sample: columns of the kept training rows.
    """

    prepared: Artifact
    factors: Artifact
    sample: Artifact


def write_compressed(
    out: pathlib.Path, config: ConfigDict, inputs: Inputs, raw_bytes: int
) -> Artifact:
    """Writes the compressed data set to the folder `out`, whole or not at all.

    Raises:
      ConfigError: if the folder is there already.
    """
    if out.exists():
        raise ConfigError(f"--out={out}: the folder exists; name another one, or delete it")
    found = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    settings = {
        "stage": STAGE,
        "format": artifacts.FORMAT,
        "config": config.to_dict(),
        "inputs": {name: made.fingerprint for name, made in found.items()},
    }

    def copy(folder: pathlib.Path) -> Mapping[str, Any]:
        table = folder / "table"
        train = SPLITS[TRAIN]
        manifest = shutil.ignore_patterns(artifacts.MANIFEST)
        for path in inputs.prepared.path.iterdir():
            if path.is_dir() and path.name != train:
                shutil.copytree(path, table / path.name)
            elif path.is_file() and path.name != artifacts.MANIFEST:
                table.mkdir(exist_ok=True)
                shutil.copy(path, table)
        shutil.copytree(inputs.sample.path, table / train, ignore=manifest)
        shutil.copytree(inputs.factors.path, folder / "factors", ignore=manifest)
        return {
            "raw_bytes": raw_bytes,
            "facts": {name: made.facts for name, made in found.items()},
            "seconds": {name: made.seconds for name, made in found.items()},
        }

    artifacts.write_artifact(out, settings, copy)
    return artifacts.open_artifact(out)


def open_inputs(path: pathlib.Path, verify: bool = True) -> tuple[ConfigDict, Inputs]:
    """The configuration and the inputs that a compressed data set holds.

    Raises:
      ArtifactError: if the folder is no compressed data set, or is damaged.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; make one with 'cadc compress'")
    artifact = artifacts.open_artifact(path, verify)
    settings = artifacts.settings_of(path)
    if settings["stage"] != STAGE:
        raise ArtifactError(f"{path}: not a compressed data set, but of stage {settings['stage']}")
    places = {"prepared": "table", "factors": "factors", "sample": f"table/{SPLITS[TRAIN]}"}
    inputs = {
        name: Artifact(
            path / place,
            settings["inputs"][name],
            artifact.facts["facts"][name],
            artifact.facts["seconds"][name],
            reused=True,
        )
        for name, place in places.items()
    }
    config = default_config()  # has fields that are newer than the data set
    try:
        config.update(_with_tuples(settings["config"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: its configuration cannot be used: {error}") from None
    validate(config)
    return config, Inputs(**inputs)


def sizes(artifact: Artifact) -> str:
    """A table of the bytes of each part, and their share of the raw log."""
    table = artifact.path / "table"
    kept = artifacts.size_of(table / SPLITS[TRAIN])
    held_out = sum(artifacts.size_of(table / split) for split in SPLITS if split != SPLITS[TRAIN])
    factors = artifacts.size_of(artifact.path / "factors")
    total = artifacts.size_of(artifact.path)
    raw = artifact.facts["raw_bytes"]
    parts = {
        "kept training rows": kept,
        "validation and test rows": held_out,
        "factors": factors,
        "vocabularies and the rest": total - kept - held_out - factors,
        "in all": total,
        "raw log": raw,
    }
    return "\n".join(
        f"{name:<26} {size / 1e6:>10,.1f} MB {size / raw:>8.1%}" for name, size in parts.items()
    )


def _with_tuples(value: Any) -> Any:
    """Lists, which JSON made of a configuration's tuples, as tuples again."""
    if isinstance(value, dict):
        return {name: _with_tuples(x) for name, x in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
