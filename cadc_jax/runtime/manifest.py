"""The manifest of an artefact: what it is, how it was made, and the files it has.

A manifest may come from elsewhere, so it is only data. `read` bounds its size, takes strict JSON,
and checks the kind of its fields; what a stage keeps in them is in `run/formats.py`. `check_files`
makes sure that the folder has exactly the files that are listed, all of them plain ones. No name in
a manifest is ever used as a path.

The manifest's own SHA-256 is that of its canonical JSON without the field `sha256`: sorted keys, no
spaces, ASCII. It covers the checksums of all files, and so names the content of a whole folder.
"""

import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import stat
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cadc_jax import __version__
from cadc_jax.errors import ArtifactError
from cadc_jax.runtime import durable

FORMAT = 6  # of every artefact; raise it when a layout on disk changes
NAME = "manifest.json"
ADVICE = "delete the folder and run again"
_MAX_BYTES = 1 << 26
_MAX_DEPTH = 50
_READ_BYTES = 1 << 22

# What a value of JSON has to be: a type, [kind of each element], {name: kind} with at least these
# names, {str: kind} with any names, or a tuple of alternatives. An int is a count, 0 or more.
Kind = Any
Files = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
      settings: of the stage, with its name as `stage` and the format version as `format`.
      facts: what the stage reported about itself.
      seconds: wall time it took.
      versions: of the packages that made it.
      files: name relative to the folder -> its `bytes` and `sha256`, in hexadecimal digits.
      sha256: of the manifest.
    """

    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    seconds: float
    versions: Mapping[str, str]
    files: Files
    sha256: str

    @property
    def stage(self) -> str:
        """The stage that made the artefact."""
        return self.settings["stage"]


_KIND: Kind = {
    "settings": {"stage": str, "format": int},
    "facts": {},
    "seconds": float,
    "versions": {str: str},
    "files": {str: {"bytes": int, "sha256": str}},
    "sha256": str,
}


def read(folder: pathlib.Path) -> Manifest:
    """Reads the manifest of an artefact.

    Raises:
      ArtifactError: if there is none, it is damaged, or of another format version.
      PermissionError: if it must not be read.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder")
    if not os.path.lexists(folder / NAME):
        raise ArtifactError(
            f"{folder}: not a whole artefact, as it has no {NAME}; name another folder, or, if a "
            f"stage made this one, {ADVICE}"
        )
    try:
        fields = _parse(_read_plain_file(folder / NAME))
        check(fields, {"settings": {"stage": str, "format": int}}, "")
        if fields["settings"]["format"] != FORMAT:
            raise ArtifactError(f"{folder}: {_other_format(fields['settings'])}")
        _check_strict(fields, _MAX_DEPTH)  # manifests of older formats are not
        check(fields, _KIND, "")
        manifest = Manifest(**{field.name: fields[field.name] for field in _FIELDS})
        if manifest.seconds < 0:
            raise ValueError("seconds is negative")
        if _sha256(fields) != manifest.sha256:
            raise ValueError("it is not what its own SHA-256 was made of")
    except PermissionError:  # deleting the folder would be the wrong advice
        raise
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: not a whole artefact ({NAME}: {error}); {ADVICE}") from None
    return manifest


_FIELDS = dataclasses.fields(Manifest)


def write(
    folder: pathlib.Path, settings: Mapping[str, Any], facts: Mapping[str, Any], seconds: float
) -> None:
    """Writes the manifest of a folder whose files are all there.

    Args:
      folder: the folder.
      settings: of the stage, with `stage` and `format`; JSON-able.
      facts: what the stage reports about itself; JSON-able.
      seconds: wall time it took.

    Raises:
      ValueError: if a number is not finite, which JSON does not have.
    """
    fields = {
        "settings": settings,
        "facts": facts,
        "seconds": round(seconds, 3),
        "versions": {
            "cadc_jax": __version__,
            "jax": importlib.metadata.version("jax"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "files": checksums(folder),
    }
    fields = json.loads(json.dumps(fields, default=list, allow_nan=False))  # as it will be read
    durable.write_json(folder / NAME, fields | {"sha256": _sha256(fields)})


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file that may come from elsewhere: a plain file of bounded size, strict JSON.

    Raises:
      ValueError: if it is anything else.
      OSError: if it cannot be read.
    """
    value = _parse(_read_plain_file(path))
    _check_strict(value, _MAX_DEPTH)
    return value


def _read_plain_file(path: pathlib.Path) -> bytes:
    if path.is_symlink():
        raise ValueError("a link, not a plain file")
    # A FIFO or a device is opened without waiting, and then refused.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no plain file")
        if status.st_size > _MAX_BYTES:
            raise ValueError(f"{status.st_size:,} bytes, more than the {_MAX_BYTES:,} allowed")
        return file.read(_MAX_BYTES)


def check(value: Any, kind: Kind, where: str) -> None:
    """Checks the kind of a value that came from JSON; see `Kind`.

    Args:
      value: the value.
      kind: what it has to be.
      where: its name in the error, such as 'facts.rows'.

    Raises:
      ValueError: if it is anything else.
    """
    if isinstance(kind, tuple):
        faults = [_fault(value, one, where) for one in kind]
        fault = None if None in faults else faults[0]
    else:
        fault = _fault(value, kind, where)
    if fault:
        raise ValueError(fault)


def _fault(value: Any, kind: Kind, where: str) -> str | None:
    if isinstance(kind, type):
        return None if _is(value, kind) else f"{where} is no {_KIND_NAMES[kind]}"
    inside = kind
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        inside, value = dict.fromkeys(range(len(value)), kind[0]), dict(enumerate(value))
    elif not isinstance(value, dict):
        return f"{where or 'the manifest'} is no JSON object"
    elif str in kind:
        inside = dict.fromkeys(value, kind[str])
    for name, one in inside.items():
        place = f"{where}.{name}" if where else str(name)
        if name not in value:
            return f"{place} is missing"
        try:
            check(value[name], one, place)
        except ValueError as error:
            return str(error)
    return None


_KIND_NAMES = {int: "count", float: "number", str: "text", bool: "truth value", type(None): "null"}


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and 0 <= value < 1 << 63
    return isinstance(value, kind)


def check_files(folder: pathlib.Path, files: Files, contents: bool) -> None:
    """Checks that a folder has exactly the files that its manifest lists.

    Args:
      folder: the folder.
      files: `Manifest.files`.
      contents: whether to read all files and compare their checksums. Sizes are always compared.

    Raises:
      ArtifactError: if a file is missing, surplus, no plain file, or damaged.
    """
    found = _plain_files(folder)
    for name in sorted(found.keys() - files.keys() - {NAME}):
        raise ArtifactError(
            f"{folder / name}: {NAME} does not list this file; move it elsewhere, or {ADVICE}"
        )
    for name, listed in files.items():
        if found.get(name) != listed["bytes"]:
            fault = "is missing"
            if name in found:
                fault = f"has {found[name]} bytes instead of {listed['bytes']}"
            raise ArtifactError(f"{folder / name}: the file {fault}; {ADVICE}")
    if not contents:
        return
    for name, now in checksums(folder, files).items():
        if now != files[name]:
            raise ArtifactError(
                f"{folder / name}: the file is damaged (its SHA-256 is {now['sha256'][:12]}... "
                f"instead of {files[name]['sha256'][:12]}...); {ADVICE}"
            )


def checksums(
    folder: pathlib.Path, names: Iterable[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Sizes and checksums of the files in a folder and below it.

    Args:
      folder: the folder.
      names: files to read, relative to it; all files by default.

    Returns:
      Name -> `bytes` and `sha256`, in hexadecimal digits.

    Raises:
      ArtifactError: if one of all files is no plain file.
    """
    names = sorted(_plain_files(folder)) if names is None else list(names)

    def checksum(name: str) -> dict[str, Any]:
        size, digest = 0, hashlib.sha256()
        with open(folder / name, "rb") as file:
            while block := file.read(_READ_BYTES):
                size += len(block)
                digest.update(block)
        return {"bytes": size, "sha256": digest.hexdigest()}

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(checksum, names), strict=True))


def _plain_files(folder: pathlib.Path) -> dict[str, int]:
    """Sizes of all files in a folder and below it, by name; nothing else may be there."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = pathlib.Path(root, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found[path.relative_to(folder).as_posix()] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise ArtifactError(f"{path}: no plain file (a link or a device); {ADVICE}")
    return found


def _parse(text: bytes) -> Any:
    """JSON in which each name of an object occurs once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(value := dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice in an object")
        return value

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _check_strict(value: Any, depth: int) -> None:
    """Raises ValueError if a number is not finite, or objects and lists are nested too deeply."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError("nested too deeply")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_strict(inner, depth - 1)


def _sha256(fields: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in fields.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _other_format(settings: Mapping[str, Any]) -> str:
    """What an artefact of another format is, and what to do."""
    found = f"artefact format {settings['format']}, this version reads {FORMAT}"
    if settings["format"] > FORMAT:
        return f"{found}: update cadc_jax"
    again = "compress" if settings["stage"] == "compressed" else "run"
    return f"{found}: delete the folder and {again} again with this version"
