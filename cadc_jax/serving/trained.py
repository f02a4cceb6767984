"""Trained models in a work folder: which there are, and one of them, ready to score."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cadc_jax import configuration, experiment
from cadc_jax.data.table import Table, open_table, read_columns
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.evaluation import evaluate
from cadc_jax.factorization.factors import Factors, with_bias_columns
from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Content, HostBatch, Tables
from cadc_jax.run import compressed, stages
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.training import step

BASELINES = ("popularity", "mf_alone")
ARMS = (*BASELINES, *configuration.ARMS)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Something that scores users' items, with the data it was made from.

    Attributes:
      arm: one of ARMS.
      model: name of the network; None of a baseline.
      path: the artefact it comes from.
      validation: its best result on the validation split, higher is better; None of a baseline.
      prepared: folder of the prepared table.
      source: `data.source` of the configuration.
      table: the prepared table, opened.
      network: the network, or None.
      params: its parameters, or None.
      tables: embedding tables on the host; of a factorisation with its biases as columns.
    """

    arm: str
    model: str | None
    path: pathlib.Path
    validation: float | None
    prepared: pathlib.Path
    source: str
    table: Table
    network: nn.Module | None
    params: Any
    tables: Mapping[str, np.ndarray]

    def __str__(self) -> str:
        if self.validation is None:
            return f"{self.arm} ({self.path})"
        return f"{self.model}, {self.arm}, validation {self.validation:.4f} ({self.path})"


@dataclasses.dataclass(frozen=True)
class _Shelf:
    """What a folder offers: name of an artefact -> artefact, and its settings."""

    prepared: Mapping[str, Artifact]
    factors: Mapping[str, Artifact]
    samples: Mapping[str, Artifact]
    models: Mapping[str, Artifact]
    settings: Mapping[str, Mapping[str, Any]]  # of all of them, by name
    source: Mapping[str, str]  # by name of the prepared table


def open_trained(
    source: pathlib.Path,
    workdir: pathlib.Path | None = None,
    config: ConfigDict | None = None,
    arm: str | None = None,
    model: str | None = None,
) -> Trained:
    """The model that validated best among those trained in a work folder.

    Args:
      source: a work folder, or a compressed data set.
      workdir: with a compressed data set, the work folder of what was trained from it; default:
        that of `cadc train --from=DIR`.
      config: only what was made with these settings.
      arm: only this arm, one of ARMS.
      model: only this network.

    Raises:
      ConfigError: if an arm or a model is unknown, or the choice is not clear.
      ArtifactError: if the folder is neither, or holds nothing of the kind.
    """
    if arm is not None and arm not in ARMS:
        raise ConfigError(f"--arm={arm}: must be one of {', '.join(ARMS)}")
    if model is not None and model not in configuration.MODELS:
        raise ConfigError(f"--model={model}: must be one of {', '.join(configuration.MODELS)}")
    shelf = _open(source, workdir)
    if arm in BASELINES:
        return _baseline(shelf, source, config, arm)
    found = [made for made in shelf.models.values() if _prepared(shelf, made) in shelf.prepared]
    if not found:
        if (source / artifacts.MANIFEST).exists():
            raise ArtifactError(
                f"{source}: no trained model yet: run 'cadc train --from={source}' first, or name "
                "by --workdir=DIR where it ran, or choose --arm=mf_alone or --arm=popularity"
            )
        if shelf.models:
            raise ArtifactError(
                f"{source}: the data that its models were trained on is not there; name the "
                "compressed data set: --from=DIR --workdir=" + str(source)
            )
        raise ArtifactError(
            f"{source}: no trained model yet: run 'cadc --config=...' first, or choose "
            "--arm=mf_alone or --arm=popularity"
        )
    there = {(_network(shelf, made), _arm(shelf, made)) for made in found}
    found = [
        made
        for made in found
        if arm in (None, _arm(shelf, made))
        and model in (None, _network(shelf, made))
        and (config is None or _made_by(shelf, made, config))
    ]
    if not found:
        raise ArtifactError(
            f"{source}: nothing trained with these settings; there are "
            + "; ".join(f"{network}, {name}" for network, name in sorted(there))
        )
    _check_one(
        source,
        {(_prepared(shelf, made), *_validated_by(shelf, made)) for made in found},
        "validation results that cannot be compared (other data, seeds or evaluation settings)",
    )
    return _load(shelf, max(found, key=_validation))


def scorer(trained: Trained) -> evaluate.Score:
    """Scores of batches: logits of a network, dot products, or popularity."""
    if trained.arm == "popularity":
        return experiment.popularity(trained.table)
    tables = jax.device_put(trained.tables)
    content = embeddings.content_of(trained.table)
    return jax.jit(functools.partial(score, trained.network, trained.params, tables, content))


def score(
    network: nn.Module | None, params: Any, tables: Tables, content: Content, batch: HostBatch
) -> jax.Array:
    """Scores [B, G] of a batch, as a pure function; without a network those of the factors."""
    if network is not None:
        return step.predict(network, params, tables, content, batch)
    user, item = tables["user"][batch["user"]], tables["item"][batch["item"]]
    return user @ item[0].T if len(item) == 1 else jnp.einsum("bd,bgd->bg", user, item)


def _open(source: pathlib.Path, workdir: pathlib.Path | None) -> _Shelf:
    """Raises ArtifactError if the folder is neither a work folder nor a compressed data set."""
    if not source.is_dir():
        raise ArtifactError(f"{source}: no such folder")
    if (source / artifacts.MANIFEST).exists():
        config, inputs = compressed.open_inputs(source, verify=False)
        made = {name: getattr(inputs, name) for name in ("prepared", "factors", "sample")}
        prepared, factors, samples = ({x.fingerprint: x} for x in made.values())
        models = workdir or pathlib.Path("workdir") / config.name
        settings: dict[str, Mapping[str, Any]] = {
            inputs.prepared.fingerprint: {"data": json.loads(json.dumps(config.data.to_dict()))},
            inputs.factors.fingerprint: {
                "prepared": inputs.prepared.fingerprint,
                "method": config.factorization,
                "config": json.loads(json.dumps(config[config.factorization].to_dict())),
            },
            inputs.sample.fingerprint: {"rate": config.rate},
        }
    else:
        prepared, factors, samples = (
            _stage(source, stage) for stage in ("prepare", "factorize", "sample")
        )
        models, settings = source, {}
        if not prepared and not _stage(source, "train"):
            raise ArtifactError(
                f"{source}: neither a work folder with a prepared table nor a compressed data set"
            )
    trained = _stage(models, "train")
    read = [made for stage in (prepared, factors, samples, trained) for made in stage.values()]
    settings |= {
        made.fingerprint: artifacts.settings_of(made.path)
        for made in read
        if made.fingerprint not in settings
    }
    sources = {name: settings[name]["data"]["source"] for name in prepared}
    return _Shelf(prepared, factors, samples, trained, settings, sources)


def _stage(workdir: pathlib.Path, stage: str) -> dict[str, Artifact]:
    """The finished artefacts of a stage, by fingerprint."""
    folders = sorted(path for path in (workdir / stage).glob("[!.]*") if path.is_dir())
    return {path.name: artifacts.open_artifact(path) for path in folders}


def _load(shelf: _Shelf, made: Artifact) -> Trained:
    settings = shelf.settings[made.fingerprint]
    prepared = shelf.prepared[_prepared(shelf, made)]
    arm, (name, fields) = _arm(shelf, made), settings["model"]
    factors = shelf.factors.get(settings["factors"])
    if arm == "cadc_frozen" and factors is None:
        raise ArtifactError(f"{made.path}: the factors it was trained with are gone; run again")
    _check_whole(made, factors)
    params, tables = stages.restore(arm, made, factors)
    fields = {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
    return Trained(
        arm=arm,
        model=name,
        path=made.path,
        validation=_validation(made),
        prepared=prepared.path,
        source=shelf.source[prepared.fingerprint],
        table=open_table(prepared.path),
        network=configuration.MODELS[name](**fields),
        params=params,
        tables=tables,
    )


def _baseline(shelf: _Shelf, source: pathlib.Path, config: ConfigDict | None, arm: str) -> Trained:
    stage, tables = "prepare", {}
    found = dict(shelf.prepared)
    if config is not None:
        found = {name: x for name, x in found.items() if _same_data(shelf, name, config)}
    if arm == "mf_alone":
        stage = "factorize"
        found = {
            name: made
            for name, made in shelf.factors.items()
            if _prepared(shelf, made) in found
            and (config is None or _same_factorization(shelf, name, config))
        }
    if not found:
        raise ArtifactError(f"{source}: no finished stage '{stage}' with these settings")
    _check_one(source, set(found), f"artefacts of the stage '{stage}'")
    (name, made), *_ = found.items()
    if arm == "mf_alone":
        _check_whole(made)
        factors = Factors(**{key: np.asarray(x) for key, x in read_columns(made.path).items()})
        pair = with_bias_columns(factors)
        tables = {side: np.asarray(x) for side, x in zip(("user", "item"), pair, strict=True)}
        name = _prepared(shelf, made)
    prepared = shelf.prepared[name].path
    return Trained(
        arm=arm,
        model=None,
        path=made.path,
        validation=None,
        prepared=prepared,
        source=shelf.source[name],
        table=open_table(prepared),
        network=None,
        params=None,
        tables=tables,
    )


def _check_whole(*used: Artifact | None) -> None:
    """Compares the checksums of what is loaded; factors of a compressed data set have none."""
    for made in used:
        if made is not None and (made.path / artifacts.MANIFEST).exists():
            artifacts.open_artifact(made.path, verify=True)


def _check_one(source: pathlib.Path, found: set, what: str) -> None:
    if len(found) > 1:
        raise ConfigError(f"{source}: holds {len(found)} {what}; choose by --config=... as it ran")


def _prepared(shelf: _Shelf, made: Artifact) -> str:
    return shelf.settings[made.fingerprint]["prepared"]


def _network(shelf: _Shelf, made: Artifact) -> str:
    return shelf.settings[made.fingerprint]["model"][0]


def _arm(shelf: _Shelf, made: Artifact) -> str:
    return arm_of(shelf.settings[made.fingerprint])


def arm_of(settings: Mapping[str, Any]) -> str:
    """The arm of a trained model, by the settings of its artefact."""
    if settings["sample"] is None:
        return "full"
    return "sample" if settings["embeddings"] == "random" else f"cadc_{settings['embeddings']}"


def _validated_by(shelf: _Shelf, made: Artifact) -> tuple[int, str]:
    """Cut-off and kind of the ranking that chose the best step."""
    settings = shelf.settings[made.fingerprint]
    return settings["k"], settings.get("ranking", "sampled")


def _validation(made: Artifact) -> float:
    return max(entry["validation"] for entry in made.facts["history"])


def _made_by(shelf: _Shelf, made: Artifact, config: ConfigDict) -> bool:
    """Whether a model was trained with the settings of `config`."""
    settings = shelf.settings[made.fingerprint]
    name = settings["model"][0]
    own = json.loads(json.dumps(stages.train_settings(config, name)))
    sample = shelf.settings.get(settings["sample"])
    return (
        all(settings.get(key) == value for key, value in own.items())
        and (sample is None or sample["rate"] == config.rate)
        and _same_data(shelf, settings["prepared"], config)
        and (
            settings["factors"] not in shelf.factors
            or _same_factorization(shelf, settings["factors"], config)
        )
    )


def _same_data(shelf: _Shelf, name: str, config: ConfigDict) -> bool:
    given, own = (
        {key: x for key, x in data.items() if key not in ("path", "folder")}
        for data in (shelf.settings[name]["data"], json.loads(json.dumps(config.data.to_dict())))
    )
    return given == own


def _same_factorization(shelf: _Shelf, name: str, config: ConfigDict) -> bool:
    settings = shelf.settings[name]
    own = json.loads(json.dumps(config[config.factorization].to_dict()))
    return settings["method"] == config.factorization and settings["config"] == own
