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
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax.configuration import default_config, validate
from cadc_jax.data.encoding import open_encoder
from cadc_jax.data.raw import SPLITS, TRAIN
from cadc_jax.data.table import Table, open_table
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.run.factors import UNSAMPLED, is_crossed, open_factors
from cadc_jax.run.formats import COMPRESSED, open_stage
from cadc_jax.runtime import artifacts, manifest
from cadc_jax.runtime.artifacts import Artifact


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
    config = config.copy_and_resolve_references()
    config.data.path = ""  # where the raw log lies concerns nobody else
    settings = {"stage": COMPRESSED, "format": manifest.FORMAT, "config": config.to_dict()}

    def copy(folder: pathlib.Path) -> Mapping[str, Any]:
        table = folder / "table"
        train = SPLITS[TRAIN]
        no_manifest = shutil.ignore_patterns(manifest.NAME)
        for path in inputs.prepared.path.iterdir():
            if path.is_dir() and path.name != train:
                shutil.copytree(path, table / path.name)
            elif path.is_file() and path.name != manifest.NAME:
                table.mkdir(exist_ok=True)
                shutil.copy(path, table)
        shutil.copytree(inputs.sample.path, table / train, ignore=no_manifest)
        shutil.copytree(inputs.factors.path, folder / "factors", ignore=no_manifest)
        return {
            "raw_bytes": raw_bytes,
            "facts": {name: made.facts for name, made in found.items()},
            "seconds": {name: made.seconds for name, made in found.items()},
        }

    artifacts.write_artifact(out, settings, copy)
    return artifacts.open_artifact(out)


def open_inputs(path: pathlib.Path, verify: bool = True) -> tuple[ConfigDict, Inputs]:
    """The configuration and the inputs that a compressed data set holds.

    The folder may come from elsewhere: everything in it is checked before it is used. Fingerprints
    of the inputs come from the content of the whole folder, so that nothing that was made from
    another one is taken for theirs.

    Args:
      path: the folder.
      verify: whether to read all files, to compare their checksums and check each value.

    Raises:
      ArtifactError: if the folder is no compressed data set, or is damaged.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; make one with 'cadc compress'")
    made = open_stage(path, verify)
    if made.settings["stage"] != COMPRESSED:
        stage = made.settings["stage"]
        raise ArtifactError(f"{path}: not a compressed data set, but of stage {stage!r}")
    config = _config_of(made)
    places = {"prepared": "table", "factors": "factors", "sample": f"table/{SPLITS[TRAIN]}"}
    inputs = {
        name: Artifact(
            path=path / place,
            fingerprint=artifacts.hash_of([made.sha256, name]),
            facts=made.facts["facts"][name],
            seconds=made.facts["seconds"][name],
            reused=True,
        )
        for name, place in places.items()
    }
    _check_content(path, config, Inputs(**inputs), verify)
    return config, Inputs(**inputs)


def _config_of(made: Artifact) -> ConfigDict:
    config = default_config()  # has fields that are newer than the data set
    try:
        config.update(_with_tuples(made.settings["config"]))
        validate(config)
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(f"{made.path}: its configuration cannot be used: {error}") from None
    return config


def _check_content(path: pathlib.Path, config: ConfigDict, inputs: Inputs, values: bool) -> None:
    """Raises ArtifactError unless table, factors and facts are sound and belong together."""
    table = open_table(inputs.prepared.path, values)
    open_encoder(inputs.prepared.path)
    for fault in (*_row_faults(table, config, inputs), *_factor_faults(table, config, inputs)):
        raise ArtifactError(f"{path}: {fault}; get a whole copy, or compress again")
    for folder in _factor_folders(config, inputs):
        open_factors(folder, values)


def _row_faults(table: Table, config: ConfigDict, inputs: Inputs) -> Iterator[str]:
    kept, rows = table.splits[SPLITS[TRAIN]], inputs.prepared.facts["rows"]
    if table.schema.task != config.data.task:
        yield "the task of its table is not that of its configuration"
    if "row" not in kept or not len(kept["row"]):
        yield "its table has no kept rows, or not their numbers"
    elif len(kept["row"]) != inputs.sample.facts["rows"] or kept["row"][-1] >= rows["train"]:
        yield f"the numbers of its training rows are not those of its {manifest.NAME}"
    for split in ("validation", "test"):
        if not len(table.splits[split]["user"]) == rows[split] > 0:
            yield f"its {split} rows are not as many as its {manifest.NAME} says, or none"


def _factor_faults(table: Table, config: ConfigDict, inputs: Inputs) -> Iterator[str]:
    schema = table.schema
    biased = config.factorization == "sgd" or config.als.feedback == "explicit"
    if is_crossed(inputs.factors) != (config.factor_rows == "unsampled"):
        yield f"its factors do not go with factor_rows={config.factor_rows!r}"
    for folder in _factor_folders(config, inputs):
        factors = open_factors(folder)
        if (len(factors.user), len(factors.item)) != (schema.num_users, schema.num_items):
            yield f"{folder.name}/ has factors of other users or items than the table"
        if (factors.biases is not None) != biased:
            yield f"{folder.name}/ has biases that its factorisation does not make, or lacks them"


def _factor_folders(config: ConfigDict, inputs: Inputs) -> list[pathlib.Path]:
    first = inputs.factors.path
    return [first, first / UNSAMPLED] if config.factor_rows == "unsampled" else [first]


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
