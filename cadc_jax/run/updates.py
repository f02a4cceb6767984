"""Adds a day's rows to a finished run: a new work folder, and nothing is started over.

`prepare` parses the new rows alone (`data.append`), the factors continue from those of the run, and
the sampling rule, which sees numbers of rows only, keeps every row it kept before. The new folder
is one like any other: training, compressing and further updates take it.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data import append
from cadc_jax.data.append import NewRows
from cadc_jax.data.readers import files, registry
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.run import factors, stages
from cadc_jax.run.compressed import with_tuples
from cadc_jax.run.context import Inputs, Run, make_stage
from cadc_jax.run.formats import COMPRESSED, open_stage
from cadc_jax.run.lineage import UPDATED, raw_size
from cadc_jax.runtime import artifacts, durable, manifest, storage
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.storage import AnyPath

_NO_ROWS = (
    "a compressed data set has thrown its rows away, and cannot be updated: name a work folder"
)


@dataclasses.dataclass(frozen=True)
class Before:
    """A finished run.

    Attributes:
      config: its configuration, as far as the stages up to `sample` depend on it.
      prepared: its prepared table.
      factors: its factors.
    """

    config: ConfigDict
    prepared: Artifact
    factors: factors.Before


def open_before(
    folder: pathlib.Path, config: ConfigDict | None = None, verify: bool = True
) -> Before:
    """Opens the run in a work folder.

    Args:
      folder: the work folder.
      config: chooses among several runs in the folder; None if there is one.
      verify: whether to compare the checksums of what is used.

    Raises:
      ArtifactError: if there is no finished run, or what it left is damaged.
      ConfigError: if there are several, or the folder has a compressed data set.
    """
    if (folder / manifest.NAME).exists() and open_stage(folder).settings["stage"] == COMPRESSED:
        raise ConfigError(f"--from={folder}: {_NO_ROWS}")
    wanted: dict[str, Any] = {} if config is None else stages.prepare_settings(config)
    prepared = _only(folder, "prepare", wanted)
    if "unpacked" in prepared.settings:
        raise ConfigError(f"--from={folder}: {_NO_ROWS}")
    wanted = {"prepared": prepared.fingerprint}
    if config is not None:
        alone = len(configuration.methods(config)) == 1
        rate = config.rate if alone and config.factor_rows == "unsampled" else None
        wanted |= {"bits": config.factor_bits, "unsampled_at": rate}
    whole = _only(folder, "factorize", wanted, config)
    parts = [open_stage(folder / "factorize" / name) for name in whole.settings.get("parts", ())]
    if config is None:
        sample = _only(folder, "sample", {"prepared": prepared.fingerprint})
        config = _configuration_of(prepared, whole, parts, sample)
    config = configuration.with_numbers_of(config, whole.settings)
    for made in (prepared, whole, *parts) if verify else ():
        artifacts.open_artifact(made.path, verify=True)
    return Before(config, prepared, factors.Before(whole, parts))


def _only(
    folder: pathlib.Path,
    stage: str,
    wanted: Mapping[str, Any],
    factorized: ConfigDict | None = None,
) -> Artifact:
    """The one artefact of a stage with these settings that is no part of another.

    Its factorisation is that of the configuration `factorized`, if there is one.
    """
    made = [open_stage(path) for path in sorted((folder / stage).glob("[!.]*"))]
    parts = {name for one in made for name in one.settings.get("parts", ())}
    wanted = artifacts.plain(wanted)
    found = [
        one
        for one in made
        if one.fingerprint not in parts
        and all(one.settings.get(name) == value for name, value in wanted.items())
        and (factorized is None or configuration.made_by(factorized, one.settings))
    ]
    if not found:
        raise ArtifactError(
            f"--from={folder}: no finished stage '{stage}' of such a run; name the work folder of "
            "a run, and with --config=... the configuration as it ran"
        )
    if len(found) > 1:
        raise ConfigError(
            f"--from={folder}: holds {len(found)} artefacts of the stage '{stage}'; choose by "
            "--config=... as it ran"
        )
    return found[0]


def _configuration_of(
    prepared: Artifact, whole: Artifact, parts: list[Artifact], sample: Artifact
) -> ConfigDict:
    """The configuration that artefacts were made with; other fields have their defaults."""
    config = configuration.default_config()
    methods = {
        one.settings["method"]: with_tuples(one.settings["config"]) for one in parts or [whole]
    }
    ranking = prepared.settings["data"]["task"] == "ranking"
    crossed = "unsampled_at" in (parts or [whole])[0].settings
    try:
        config.update(
            {
                "seed": prepared.settings["seed"],
                "rate": sample.settings["rate"],
                "data": {
                    **with_tuples(prepared.settings["data"]),
                    "value_scale": whole.settings.get("value_scale", "none"),
                },
                "factorization": whole.settings["method"],
                "factor_bits": whole.settings["bits"],
                "factor_rows": "unsampled" if crossed else "all",
                "train": {"negatives": int(ranking)},  # not used here, but checked with the task
                **methods,
            }
        )
        configuration.validate(config)
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(f"{prepared.path}: its settings cannot be used: {error}") from None
    return config


@dataclasses.dataclass(frozen=True)
class NewFiles:
    """What is added to a run.

    Attributes:
      rows: files of rows.
      content: 'user' or 'item' -> the file that describes them, where there is one.
      settings: of the prepared table that is to be made.
    """

    rows: list[AnyPath]
    content: Mapping[str, AnyPath]
    settings: Mapping[str, Any]


def open_new(run: Run, before: Before, log: AnyPath) -> NewFiles:
    """Finds the new rows, and the content of users and items: beside them, or where it was before.

    Raises:
      ConfigError: if the source has no files of rows.
      DataError: if there are no such files.
    """
    data = run.config.data.to_dict()
    rows = registry.added_files(data["source"], log, data)
    earlier = [storage.path_of(path) for path, *_ in before.prepared.settings["files"]]
    content = {}
    for kind, name in registry.content_files(data["source"], data).items():
        places = [log / name, *(path for path in earlier if path.name == pathlib.Path(name).name)]
        if there := [path for path in places if path.is_file()]:
            content[kind] = there[0]
    identity = artifacts.file_identity([*rows, *content.values()])
    settings = stages.prepare_settings(run.config)
    settings |= {UPDATED: before.prepared.fingerprint, "files": identity}
    return NewFiles(rows, content, settings)


def check_folder(run: Run, new: NewFiles) -> None:
    """Checks that the work folder is new, or holds this very update, which may be unfinished.

    Raises:
      ConfigError: if it is any other folder.
    """
    found = {path.name for path in run.workdir.glob("[!.]*")}
    prepared = run.workdir / "prepare"
    tables = {path.name for path in prepared.glob("[!.]*")} | run.mirror.names(prepared)
    own = {artifacts.fingerprint("prepare", artifacts.plain(new.settings))}
    if tables != own and (tables or found - {"prepare"}):
        durable.check_new(run.mirror.shown(run.workdir), flag="workdir")


def update(run: Run, before: Before, new: NewFiles) -> Inputs:
    """The stages `prepare`, `factorize` and `sample` of the run with the new rows.

    Raises:
      CadcError: an error that the user can fix.
    """
    prepared = _prepare(run, before, new)
    made = factors.update_factors(run, prepared, before.factors)
    return Inputs(prepared, made, stages.sample_stage(run, prepared))


def _prepare(run: Run, before: Before, new: NewFiles) -> Artifact:
    """The prepared table with the new rows, and lines about them."""
    data, earlier = run.config.data.to_dict(), before.prepared

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        content = {
            f"{kind}s": registry.read_content(data["source"], kind, path, data)
            for kind, path in new.content.items()
        }
        source = registry.open_added(data["source"], new.rows, data)
        rows = NewRows(source, own_negatives=bool(data["negatives_file"]), **content)
        config = configuration.prepare_config(run.config)
        made = append.append_rows(folder, earlier.path, earlier.facts, rows, config)
        sizes = files.stored_size(new.rows), files.unpacked_size(new.rows)
        return {**made, "raw_bytes": [sum(x) for x in zip(raw_size(earlier), sizes, strict=True)]}

    made = make_stage(run, "prepare", new.settings, write, "update")
    added = made.facts["added"]
    run.say(
        f"         {added['rows']:,} rows added; {added['users']:,} users and {added['items']:,} "
        "items are new"
    )
    if added["held_out"]:
        run.say(f"         {added['held_out']:,} rows left out: their pairs are held out")
    if added["known"]:
        run.say(f"         {added['known']:,} rows merged into earlier ones of the same pair")
    return made
