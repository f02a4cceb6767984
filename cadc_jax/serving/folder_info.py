"""Explains a folder: an artefact, a compressed data set, an export or a work folder."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from cadc_jax.errors import ArtifactError
from cadc_jax.run import compressed
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.text import aligned
from cadc_jax.serving import export

_STAGES = {  # in the order of a run -> what their artefacts are
    "synthetic": "made-up rows in Criteo's format",
    "prepare": "a prepared table: encoded rows of all splits, vocabularies, content",
    "factorize": "user and item factors of all training rows",
    "sample": "the training rows that are kept",
    "train": "a trained model: the state that validated best",
    "evaluate": "test metrics",
    compressed.STAGE: "a compressed data set: train from it with cadc train --from=DIR",
    export.STAGE: "a trained model for other programs",
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
    if (path / artifacts.MANIFEST).exists():
        return _artifact(path, verify)
    if any((path / stage).is_dir() for stage in _STAGES):
        return _workdir(path, verify)
    within = next((up for up in path.resolve().parents if (up / artifacts.MANIFEST).exists()), None)
    hint = f"; it lies within {within}" if within else ""
    raise ArtifactError(
        f"{path}: neither a work folder nor an artefact (it has no {artifacts.MANIFEST}){hint}"
    )


def _artifact(path: pathlib.Path, verify: bool) -> str:
    manifest = _manifest(path)
    settings, facts, stage = manifest["settings"], manifest["facts"], manifest["settings"]["stage"]
    state = _state(path, verify)
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    lines = [
        f"{path}: {_STAGES.get(stage, f'an artefact of the stage {stage}')}",
        "",
        f"state     {state}",
        f"size      {_bytes(artifacts.size_of(path))} in {len(manifest['files']):,} files",
        f"made in   {manifest['seconds']:,.1f} s, by {versions}",
        f"rows      {_rows(facts)}",
    ]
    if stage == "train":
        best = max(entry["validation"] for entry in facts["history"])
        lines.append(f"model     {facts['model']}, {facts['arm']}")
        lines.append(f"best      validation {best:.4f} at step {facts['best_step']:,}")
    if stage == compressed.STAGE and state.startswith("whole"):
        lines += ["", compressed.sizes(artifacts.open_artifact(path))]
    shown = {name: x for name, x in settings.items() if name not in ("stage", "format")}
    lines += ["", "settings", *_pairs(shown)]
    lines += ["", "facts", *_pairs(facts)]
    return "\n".join(line for line in lines if not line.endswith("      -"))


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
        manifest = _manifest(folder)
        settings, facts = manifest["settings"], manifest["facts"]
        what = {
            "prepare": lambda: f"{settings['data']['source']}, {settings['data']['split']}",
            "factorize": lambda: settings["method"],
            "sample": lambda: f"rate {settings['rate']:g}",
            "train": lambda: f"{facts['model']}, {facts['arm']}",
            "evaluate": lambda: f"of {settings['scorer']}",
        }.get(settings["stage"], lambda: "-")()
        return [what, _rows(facts).split(" ")[0], f"{manifest['seconds']:,.1f}"]
    except (ArtifactError, KeyError, IndexError):  # the column 'state' says why
        return ["?", "-", "-"]


def _manifest(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads((path / artifacts.MANIFEST).read_text())
        manifest["settings"]["stage"], manifest["facts"], manifest["versions"], manifest["files"]
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: its {artifacts.MANIFEST} is damaged ({error!r})") from None


def _state(path: pathlib.Path, verify: bool) -> str:
    try:
        artifacts.open_artifact(path, verify)
    except ArtifactError as error:
        text = str(error).removesuffix("; delete the folder and run again")
        return "DAMAGED: " + text.removeprefix(f"{path}: ").removeprefix(f"{path}{os.sep}")
    return "whole" if verify else "whole by sizes"


def _rows(facts: Mapping[str, Any]) -> str:
    rows = facts.get("rows", facts.get("facts", {}).get("sample", {}).get("rows"))
    if isinstance(rows, Mapping):
        return ", ".join(f"{count:,} {split}" for split, count in rows.items())
    return "-" if rows is None else f"{rows:,}"


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
