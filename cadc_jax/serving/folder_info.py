"""Explains a folder: an artefact, a compressed data set, an export or a work folder.

What it says of a folder needs no JAX, which takes long to import. Only the values of a compressed
data set, and whether a network is one of this version, are checked by modules that do.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from cadc_jax.data.encoding import open_encoder
from cadc_jax.data.facts import describe_rows
from cadc_jax.data.table import open_table
from cadc_jax.errors import ArtifactError
from cadc_jax.run import compressed_sizes
from cadc_jax.run.factor_columns import UNSAMPLED, read_factors
from cadc_jax.run.formats import COMPRESSED, EXPORT, UNPACKED, open_stage
from cadc_jax.runtime import artifacts, manifest
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.text import aligned

_STAGES = {  # in the order of a run -> what their artefacts are
    "synthetic": "made-up rows in Criteo's format",
    "prepare": "a prepared table: encoded rows of all splits, vocabularies, content",
    "tune": "a search for settings of a factorisation, by the validation split",
    "factorize": "user and item factors of all training rows",
    "sample": "the training rows that are kept",
    "train": "a trained model: the state that validated best",
    "evaluate": "test metrics",
    COMPRESSED: "a compressed data set: train from it with cadc train --from=DIR",
    UNPACKED: "a compressed data set as plain .npy files for other programs",
    EXPORT: "a trained model for other programs",
}
_LONGEST = 100  # characters of a value that are shown
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def explain(path: pathlib.Path, verify: bool = True) -> str:
    """What a folder is and how it was made, for people.

    Args:
      path: the folder.
      verify: whether to read all files and compare their checksums; sizes are always compared.

    Raises:
      ArtifactError: if there is no such folder, or this program did not write it.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder")
    if (path / manifest.NAME).exists():
        return _artifact(path, verify)
    if any((path / stage).is_dir() for stage in _STAGES):
        return _workdir(path, verify)
    within = next((up for up in path.resolve().parents if (up / manifest.NAME).exists()), None)
    hint = f"; it lies within {within}" if within else ""
    raise ArtifactError(
        f"{path}: neither a work folder nor an artefact (it has no {manifest.NAME}){hint}"
    )


def _artifact(path: pathlib.Path, verify: bool) -> str:
    found = manifest.read(path)
    facts, stage, state = found.facts, found.stage, _state(path, verify)
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    lines = [
        f"{path}: {_STAGES.get(stage, f'an artefact of the stage {stage}')}",
        "",
        f"state     {state}",
        f"size      {_bytes(artifacts.size_of(path))} in {len(found.files):,} files",
        f"SHA-256   {found.sha256}",
        f"made in   {found.seconds:,.1f} s, by {versions}",
    ]
    if state.startswith("whole"):
        lines += _content(path, stage, facts)
    shown = {name: x for name, x in found.settings.items() if name not in ("stage", "format")}
    lines += ["", "settings", *_pairs(shown)]
    lines += ["", "facts", *_pairs(facts)]
    return "\n".join(line for line in lines if not line.endswith("      -"))


def _content(path: pathlib.Path, stage: str, facts: Mapping[str, Any]) -> list[str]:
    """What an artefact that is whole holds."""
    lines = [f"rows      {_rows(stage, facts)}"]
    if stage == "train":
        best = max(entry["validation"] for entry in facts["history"])
        lines.append(f"model     {facts['model']}, {facts['arm']}")
        lines.append(f"best      validation {best:.4f} at step {facts['best_step']:,}")
    if stage == COMPRESSED:
        lines += ["", compressed_sizes.describe(artifacts.open_artifact(path))]
    return lines


def _workdir(path: pathlib.Path, verify: bool) -> str:
    header = ["stage", "fingerprint", "what", "rows", "seconds", "size", "state"]
    lines, total, left = [], 0, []
    for stage in _STAGES:
        for folder in sorted((path / stage).glob("*")):
            if folder.name.startswith("."):
                left.append(folder)
            elif folder.is_dir():
                size = artifacts.size_of(folder)
                total += size
                lines.append([stage, folder.name, *_summary(folder), _bytes(size)])
                lines[-1].append(_state(folder, verify))
    text = [f"{path}: a work folder, {len(lines)} artefacts, {_bytes(total)}", ""]
    text += aligned([header, *lines], right=(3, 4, 5))
    for folder in left:
        text.append(f"{folder}: unfinished; the next run removes it, unless a run is writing it")
    report = path / "report.md"
    if report.exists():
        text += ["", f"The comparison of the last run: {report}"]
    text.append(f"Details of an artefact: cadc info {path / 'STAGE' / 'FINGERPRINT'}")
    return "\n".join(text)


def _summary(folder: pathlib.Path) -> list[str]:
    """Kind, rows and seconds of an artefact in a work folder."""
    try:
        made = open_stage(folder)
    except ArtifactError:  # the column 'state' says why
        return ["?", "-", "-"]
    settings, facts, stage = made.settings, made.facts, made.settings["stage"]
    what = {
        "prepare": lambda: f"{settings['data']['source']}, {settings['data']['split']}",
        "tune": lambda: settings["method"],
        "factorize": lambda: settings["method"],
        "sample": lambda: f"rate {settings['rate']:g}",
        "train": lambda: f"{facts['model']}, {facts['arm']}",
        "evaluate": lambda: f"of {settings['scorer']}",
    }.get(stage, lambda: "-")()
    return [what, _rows(stage, facts).split(" ")[0], f"{made.seconds:,.1f}"]


def _state(path: pathlib.Path, verify: bool) -> str:
    try:
        _check(path, verify)
    except ArtifactError as error:
        text = str(error).removesuffix(f"; {manifest.ADVICE}")
        return "DAMAGED: " + text.removeprefix(f"{path}: ").removeprefix(f"{path}{os.sep}")
    return "whole" if verify else "whole by sizes"


def check_artifact(path: pathlib.Path, verify: bool = True) -> str:
    """Checks an artefact of any stage as far as it can be checked by itself.

    Args:
      path: its folder.
      verify: whether to read all files, to compare their checksums and check each value.

    Returns:
      SHA-256 of its manifest.

    Raises:
      ArtifactError: if it is not what its stage writes.
    """
    made = _check(path, verify)
    if made.settings["stage"] == "train":
        from cadc_jax.serving.trained import network_of

        network_of(made)
    return made.sha256


def _check(path: pathlib.Path, verify: bool) -> Artifact:
    """Checks an artefact, but not the network of a trained model."""
    made = open_stage(path, verify)
    stage = made.settings["stage"]
    if stage not in (*_STAGES, UNSAMPLED):
        raise ArtifactError(f"{path}: of a stage {stage!r} that this version does not know")
    if stage == COMPRESSED and verify:
        from cadc_jax.run import compressed

        # Its checksums are compared above.
        compressed.check(compressed.open_compressed(path, verify=False))
    elif stage == "prepare":
        open_table(path, verify)
        open_encoder(path)
    elif stage in ("factorize", UNSAMPLED):
        read_factors(path, verify)
    return made


def _rows(stage: str, facts: Mapping[str, Any]) -> str:
    rows = facts.get("rows")
    if stage == COMPRESSED:
        rows = facts["facts"]["sample"]["rows"]
    if stage == "prepare":
        return describe_rows(facts["rows"])
    return f"{rows:,}" if isinstance(rows, int) else "-"


def _pairs(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """One line a value, named by its path; the longest ones are cut."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _pairs(value, f"{prefix}{name}.")
            continue
        text = str(value)
        if len(text) > _LONGEST:
            count = f" ({len(value):,} in all)" if isinstance(value, list) else ""
            text = text[:_LONGEST] + " ..." + count
        yield f"  {prefix}{name} = {text}"


def _bytes(size: float) -> str:
    unit, divisor = next((pair for pair in _UNITS if size >= pair[1]), _UNITS[-1])
    return f"{size / divisor:,.1f} {unit}"
