"""Which reader reads a configured source."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from cadc_jax.data import criteo, movielens, tabular
from cadc_jax.data.schema import RawTable
from cadc_jax.errors import DataError


def read(source: str, path: pathlib.Path, settings: Mapping[str, Any]) -> RawTable:
    """Reads a raw data set.

    Args:
      source: 'criteo', 'movielens' or 'tabular'.
      path: the file (criteo; a folder stands for all its files by name, day_2 before day_10) or
        the folder (others).
      settings: the section `data` of the configuration.

    Raises:
      DataError: if a file is missing, unreadable or malformed.
    """
    if source == "criteo":
        return criteo.read(raw_files(source, path, settings), settings["max_malformed"])
    if source == "movielens":
        return movielens.read(path, settings["variant"])
    return tabular.read(
        path,
        settings["train_file"],
        _filled(tabular.Columns, settings["columns"]),
        validation=settings["validation_file"] or None,
        test=settings["test_file"] or None,
        negatives=settings["negatives_file"] or None,
        users=_content(settings["user_content"]),
        items=_content(settings["item_content"]),
    )


def raw_files(source: str, path: pathlib.Path, settings: Mapping[str, Any]) -> list[pathlib.Path]:
    """The raw files of a source, for its reader and for its fingerprint.

    Raises:
      DataError: if there is none.
    """
    if source == "tabular":
        names = [
            settings[f"{split}_file"] for split in ("train", "validation", "test", "negatives")
        ]
        names += [settings["user_content"]["file"], settings["item_content"]["file"]]
        files = [path / name for name in names if name]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: no such file; set data.path to the folder that holds it"
            )
        return files
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and file.name[0] != "."]
        if not files:
            raise DataError(f"{path}: the folder holds no files; check data.path")
        return sorted(files, key=_natural_order)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; set data.path to the raw data, or the environment "
            "variable CADC_DATA_DIR to the folder of raw data sets"
        )
    return [path]


def _natural_order(file: pathlib.Path) -> list:
    """Sorts day_2 before day_10: numbers in names by value."""
    parts = re.split(r"(\d+)", file.name)
    return [int(part) if part.isdigit() else part for part in parts]


def _content(settings: Mapping[str, Any]) -> tabular.Content | None:
    return _filled(tabular.Content, settings) if settings["file"] else None


def _filled(cls: type, settings: Mapping[str, Any]):
    """A dataclass of the settings, where empty text means 'none'."""
    optional = {field.name for field in dataclasses.fields(cls) if field.default is None}
    return cls(
        **{
            name: None if name in optional and value == "" else value
            for name, value in settings.items()
        }
    )
