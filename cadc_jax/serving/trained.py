"""Trained models in a work folder: an index of what there is, and one model, ready to score."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data.raw import SPLITS, TRAIN
from cadc_jax.data.table import Table, open_table, with_training_rows
from cadc_jax.errors import ArtifactError, ConfigError, check_choice
from cadc_jax.evaluation import scorers
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.factorization.factors import with_bias_columns
from cadc_jax.models import embeddings
from cadc_jax.run import compressed, stages
from cadc_jax.run.arms import (
    ARMS,
    BASELINES,
    MF_ALONE,
    MF_REFRESHED,
    POPULARITY,
    TRAINED,
    Arm,
)
from cadc_jax.run.context import Run
from cadc_jax.run.factor_files import is_crossed, open_factors, tables_to_train_on
from cadc_jax.run.factors import PLAIN
from cadc_jax.run.formats import open_stage
from cadc_jax.runtime import artifacts, manifest
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.training import assemble


@dataclasses.dataclass(frozen=True)
class Trained:
    """Something that scores users' items, with the data it was made from.

    Attributes:
      arm: the arm it was trained in, or a baseline.
      model: name of the network; None of a baseline.
      path: the artefact it comes from.
      validation: its best result on the validation split, higher is better; None of a baseline.
      prepared: folder of the prepared table.
      source: `data.source` of the configuration.
      table: the prepared table, opened.
      network: the network, or None.
      params: its parameters, or None.
      tables: embedding tables on the host; those of a factorisation have its biases as columns.
      factors: the factors that its user and item tables are; None if these were trained.
      user_scale: what these were divided by to be its user table.
    """

    arm: Arm
    model: str | None
    path: pathlib.Path
    validation: float | None
    prepared: pathlib.Path
    source: str
    table: Table
    network: nn.Module | None
    params: Any
    tables: Mapping[str, np.ndarray]
    factors: Artifact | None = None
    user_scale: float = 1.0

    def __str__(self) -> str:
        if self.validation is None:
            return f"{self.arm.name} ({self.path})"
        return f"{self.model}, {self.arm.name}, validation {self.validation:.4f} ({self.path})"


def make_scorer(trained: Trained) -> Scorer:
    """The scorer of a trained model: logits of a network, dot products, or popularity."""
    if trained.arm is POPULARITY:
        return scorers.popularity(trained.table)
    if trained.network is None:
        return scorers.factors(trained.tables["user"], trained.tables["item"], calibrated=False)
    content = embeddings.content_of(trained.table)
    tables = jax.device_put(trained.tables)
    return scorers.network(trained.network, trained.params, tables, content)


def open_trained(
    source: pathlib.Path,
    workdir: pathlib.Path | None = None,
    config: ConfigDict | None = None,
    arm: str | None = None,
    model: str | None = None,
) -> Trained:
    """The model with the best validation result among the trained ones in a work folder.

    Args:
      source: a work folder, or a compressed data set.
      workdir: with a compressed data set, the work folder of its training; default: the one of
        `cadc train --from=DIR`.
      config: only what was made with these settings.
      arm: only this arm, one of ARMS.
      model: only this network.

    Raises:
      ConfigError: if an arm or a model is unknown, or the choice is not clear.
      ArtifactError: if the folder is neither, or holds nothing of the kind.
    """
    if arm is not None:
        check_choice("--arm", arm, ARMS)
    if model is not None:
        check_choice("--model", model, configuration.MODELS)
    index = _open(source, workdir)
    if arm in BASELINES:
        return _baseline(index, source, config, BASELINES[arm])
    found = [made for made in index.models.values() if index.prepared_of(made) in index.prepared]
    if not found:
        raise ArtifactError(_no_model(source, index))
    there = {(made.facts["model"], made.facts["arm"]) for made in found}
    found = [
        made
        for made in found
        if arm in (None, made.facts["arm"])
        and model in (None, made.facts["model"])
        and (config is None or _made_by(index, made, config))
    ]
    if not found:
        raise ArtifactError(
            f"{source}: nothing trained with these settings; there are "
            + "; ".join(f"{network}, {name}" for network, name in sorted(there))
        )
    _check_one(
        source,
        {(index.prepared_of(made), *_validated_by(index, made)) for made in found},
        "validation results that cannot be compared (other data, seeds or evaluation settings)",
    )
    return _load(index, max(found, key=_validation))


@dataclasses.dataclass(frozen=True)
class WorkfolderIndex:
    """The finished artefacts of a work folder, or of a compressed data set and its work folder.

    Attributes:
      prepared: prepared tables by fingerprint.
      factors: factors, by fingerprint.
      samples: samples, by fingerprint.
      models: trained models, by fingerprint.
      settings: settings of all of them, by fingerprint.
      sources: `data.source` by fingerprint of the prepared table.
    """

    prepared: Mapping[str, Artifact]
    factors: Mapping[str, Artifact]
    samples: Mapping[str, Artifact]
    models: Mapping[str, Artifact]
    settings: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, str]

    def prepared_of(self, made: Artifact) -> str:
        """Fingerprint of the prepared table that factors or a model come from."""
        return self.settings[made.fingerprint]["prepared"]


def _no_model(source: pathlib.Path, index: WorkfolderIndex) -> str:
    """Why no trained model can be used, and what to do."""
    baselines = f"choose --arm={MF_ALONE.name} or --arm={POPULARITY.name}"
    if (source / manifest.NAME).exists():
        return (
            f"{source}: no trained model yet: run 'cadc train --from={source}' first, or name by "
            f"--workdir=DIR where it ran, or {baselines}"
        )
    if index.models:
        return (
            f"{source}: the data that its models were trained on is not there; name the "
            f"compressed data set: --from=DIR --workdir={source}"
        )
    return f"{source}: no trained model yet: run 'cadc --config=...' first, or {baselines}"


def _open(source: pathlib.Path, workdir: pathlib.Path | None) -> WorkfolderIndex:
    """Indexes a folder; raises ArtifactError if it is no work folder and no compressed data set."""
    if not source.is_dir():
        raise ArtifactError(f"{source}: no such folder")
    if (source / manifest.NAME).exists():
        given = compressed.open_compressed(source)
        models = workdir or pathlib.Path("workdir") / configuration.folder_name(given.config)
        inputs = compressed.unpack(Run(given.config, models, say=lambda line: None), given)
        made = (inputs.prepared, inputs.factors, inputs.sample)
        prepared, factors, samples = ({x.fingerprint: x} for x in made)
    else:
        prepared, factors, samples = (
            _stage(source, stage) for stage in ("prepare", "factorize", "sample")
        )
        factors |= _stage(source / PLAIN, "factorize")
        models = source
        if not prepared and not _stage(source, "train"):
            raise ArtifactError(
                f"{source}: neither a work folder with a prepared table nor a compressed data set"
            )
    trained = _stage(models, "train")
    read = [made for stage in (prepared, factors, samples, trained) for made in stage.values()]
    settings = {made.fingerprint: made.settings for made in read}
    sources = {name: settings[name]["data"]["source"] for name in prepared}
    return WorkfolderIndex(prepared, factors, samples, trained, settings, sources)


def _stage(workdir: pathlib.Path, stage: str) -> dict[str, Artifact]:
    """The finished artefacts of a stage, by fingerprint."""
    folders = sorted(path for path in (workdir / stage).glob("[!.]*") if path.is_dir())
    found = {path.name: open_stage(path) for path in folders}
    for made in found.values():
        if made.settings["stage"] != stage:
            raise ArtifactError(f"{made.path}: not of stage '{stage}'; {manifest.ADVICE}")
    return found


def _load(index: WorkfolderIndex, made: Artifact) -> Trained:
    settings = index.settings[made.fingerprint]
    prepared = index.prepared[index.prepared_of(made)]
    arm, network = network_of(made)
    factors = index.factors.get(settings["factors"])
    if arm.frozen and factors is None:
        raise ArtifactError(f"{made.path}: the factors it was trained with are gone; run again")
    _check_whole(made, factors, prepared)
    table = _table_of(index, prepared)
    params, tables = stages.restore(made, arm, factors, network, table)
    return Trained(
        arm=arm,
        model=made.facts["model"],
        path=made.path,
        validation=_validation(made),
        prepared=prepared.path,
        source=index.sources[prepared.fingerprint],
        table=table,
        network=network,
        params=params,
        tables=tables,
        factors=factors if arm.frozen else None,
        user_scale=_user_scale(made, factors) if arm.frozen and factors is not None else 1.0,
    )


def _user_scale(made: Artifact, factors: Artifact) -> float:
    return assemble.divisors(tables_to_train_on(factors), stages.starts_from_logits(made))[0]


def network_of(made: Artifact) -> tuple[Arm, nn.Module]:
    """The arm and the network of a trained model, as its manifest names them."""
    (name, fields), facts = made.settings["model"], made.facts
    try:
        arm = TRAINED[facts["arm"]]
        if name != facts["model"]:
            raise ValueError(f"its model is {name!r} and {facts['model']!r}")
        fields = {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
        return arm, configuration.MODELS[name](**fields)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(
            f"{made.path}: damaged ({manifest.NAME}: no network of this version: {error}); "
            f"{manifest.ADVICE}"
        ) from None


def _table_of(index: WorkfolderIndex, prepared: Artifact) -> Table:
    """The prepared table, all values checked, with the kept rows if it was unpacked without all."""
    table = open_table(prepared.path, values=True)
    if SPLITS[TRAIN] in table.splits:
        return table
    (sample,) = (
        made
        for name, made in index.samples.items()
        if index.settings[name]["prepared"] == prepared.fingerprint
    )
    return with_training_rows(table, sample.path)


def _baseline(
    index: WorkfolderIndex, source: pathlib.Path, config: ConfigDict | None, arm: Arm
) -> Trained:
    stage, tables = "prepare", {}
    found = dict(index.prepared)
    if config is not None:
        found = {name: x for name, x in found.items() if _same_data(index, name, config)}
    if arm.is_factors:
        stage = "factorize"
        found = {
            name: made
            for name, made in index.factors.items()
            if index.prepared_of(made) in found
            and is_crossed(made) == (arm is MF_REFRESHED)
            and (config is None or _same_factorization(index, name, config))
        }
        if config is None:  # factorisations side by side are parts of one
            parts = {x for made in found.values() for x in made.settings.get("parts", ())}
            found = {name: made for name, made in found.items() if name not in parts}
    if not found:
        other = MF_REFRESHED if arm is MF_ALONE else MF_ALONE
        advice = f"; try --arm={other.name}" if arm.is_factors and index.factors else ""
        raise ArtifactError(f"{source}: no finished stage '{stage}' with these settings{advice}")
    _check_one(source, set(found), f"artefacts of the stage '{stage}'")
    (name, made), *_ = found.items()
    if arm.is_factors:
        _check_whole(made)
        pair = with_bias_columns(jax.tree.map(np.asarray, open_factors(made.path, values=True)))
        tables = {side: np.asarray(x) for side, x in zip(("user", "item"), pair, strict=True)}
        name = index.prepared_of(made)
    _check_whole(index.prepared[name])
    prepared = index.prepared[name]
    return Trained(
        arm=arm,
        model=None,
        path=made.path,
        validation=None,
        prepared=prepared.path,
        source=index.sources[name],
        table=_table_of(index, prepared),
        network=None,
        params=None,
        tables=tables,
        factors=made if arm.is_factors else None,
    )


def _check_whole(*used: Artifact | None) -> None:
    """Compares the checksums of artefacts."""
    for made in used:
        if made is not None:
            artifacts.open_artifact(made.path, verify=True)


def _check_one(source: pathlib.Path, found: set, what: str) -> None:
    if len(found) > 1:
        raise ConfigError(f"{source}: holds {len(found)} {what}; choose by --config=... as it ran")


def _validated_by(index: WorkfolderIndex, made: Artifact) -> tuple[int, str, int]:
    """Cut-off, kind and number of users of the ranking that chose the best step."""
    settings = index.settings[made.fingerprint]
    return settings["k"], settings["ranking"], settings["max_users"]


def _validation(made: Artifact) -> float:
    return max(entry["validation"] for entry in made.facts["history"])


def _made_by(index: WorkfolderIndex, made: Artifact, config: ConfigDict) -> bool:
    """Whether a model was trained with the settings of `config`."""
    settings = index.settings[made.fingerprint]
    name = settings["model"][0]
    own = artifacts.plain(stages.train_settings(config, name))
    sample = index.settings.get(settings["sample"])
    return (
        all(settings.get(key) == value for key, value in own.items())
        and (sample is None or sample["rate"] == config.rate)
        and _same_data(index, settings["prepared"], config)
        and (
            settings["factors"] not in index.factors
            or _same_factorization(index, settings["factors"], config)
        )
    )


def _same_data(index: WorkfolderIndex, name: str, config: ConfigDict) -> bool:
    own = artifacts.plain(stages.prepare_settings(config))
    return all(index.settings[name][key] == value for key, value in own.items())


def _same_factorization(index: WorkfolderIndex, name: str, config: ConfigDict) -> bool:
    return configuration.made_by(config, index.settings[name])
