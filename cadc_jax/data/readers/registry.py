"""Opens the raw data set that a configuration names, with the reader of its source."""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from cadc_jax.data import raw
from cadc_jax.data.raw import SPLITS, TEST, TRAIN, VALIDATION
from cadc_jax.data.readers import criteo, movielens, tabular, tfds_reader
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.runtime import storage
from cadc_jax.runtime.storage import AnyPath

_NO_TABLES = (".", "_", "readme", "license")  # how names begin
_TABLES = (".csv", ".tsv", ".txt", ".dat", ".data", ".parquet", ".arrow")  # ends of names
Place = TypeVar("Place", bound=AnyPath)
T = TypeVar("T", tabular.ColumnNames, tabular.ContentFile)


def open_raw_data(reader: str, path: AnyPath, settings: Mapping[str, Any]) -> raw.RawData:
    """Opens a raw data set, to be read in chunks.

    Args:
      reader: 'criteo', 'movielens', 'tabular' or 'tfds'.
      path: for criteo a file, or a folder of files (day_2 is read before day_10); for the others
        the folder of the files, which for tfds is the folder of prepared data sets.
      settings: the section `data` of the configuration.

    Raises:
      ConfigError: the settings do not fit together, or name files that do not exist.
      DataError: a file is missing, unreadable or malformed.
    """
    if reader == "criteo":
        paths = raw_files(reader, path, settings)
        folds = _folds(paths, settings) if settings["split"] == "given" else None
        return criteo.open_logs(paths, folds, settings["block_bytes"])
    if reader == "movielens":
        return raw.of_table(movielens.read_movielens(path, settings["variant"]))
    columns = _filled(tabular.ColumnNames, settings["columns"])
    if reader == "tfds":
        names = {fold: settings[f"{split}_file"] for fold, split in enumerate(SPLITS)}
        return tfds_reader.open_splits(
            settings["tfds_name"],
            {fold: name for fold, name in names.items() if name},
            columns,
            settings["path"] or None,
        )
    train, validation, test = _row_files(path, settings)
    files = tabular.TableFiles(
        train,
        validation=validation,
        test=test,
        negatives=settings["negatives_file"] or None,
        users=_content(settings["user_content"]),
        items=_content(settings["item_content"]),
        format=settings["format"],
    )
    return tabular.open_rows(path, files, columns, settings["block_bytes"])


def raw_files(reader: str, path: AnyPath, settings: Mapping[str, Any]) -> list[AnyPath]:
    """Returns the raw files, for the reader and for the fingerprint of the data.

    Args:
      reader, path, settings: as for `open_raw_data`.

    Raises:
      DataError: a file is missing, or the folder has no files.
    """
    if reader == "tabular":
        return _table_files(path, settings)
    if reader == "tfds":
        return [*tfds_reader.stored_files(settings["tfds_name"], settings["path"] or None)]
    if path.is_dir():
        entries = [entry for entry in path.iterdir() if entry.name[0] != "."]
        files = [entry for entry in entries if entry.is_file()]
        if reader == "criteo" and len(files) < len(entries):  # no day may be missed in silence
            other = min(set(entries) - set(files))
            what = "a broken link" if other.is_symlink() and not other.exists() else "no file"
            raise DataError(f"{other}: {what}; the folder may hold files of the log alone")
        if not files:
            raise DataError(f"{path}: the folder holds no files; check data.path")
        return sorted(files, key=_natural_order)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; set data.path to the raw data, or the environment "
            "variable CADC_DATA_DIR to the folder of raw data sets"
        )
    return [path]


def added_files(reader: str, path: AnyPath, settings: Mapping[str, Any]) -> list[AnyPath]:
    """The files of rows that are added to a data set.

    Args:
      reader, settings: as for `open_raw_data`, of the data set.
      path: a file of rows, or for criteo a folder of them. For the others a folder may hold one
        under the name that it has in the data set.

    Raises:
      ConfigError: a data set of this source has no such files.
      DataError: there is no such file.
    """
    if reader == "tfds":
        raise ConfigError(
            "data.source='tfds': only files of rows can be added; run the whole data set again"
        )
    if path.is_dir() and reader == "tabular":
        return [path / name for name in _matching(path, settings["train_file"])]
    if path.is_dir() and reader == "movielens":
        path = movielens.ratings_file(path, settings["variant"])
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; it has to hold the rows to add")
    return raw_files("criteo", path, settings) if reader == "criteo" else [path]


def open_added(reader: str, paths: Sequence[AnyPath], settings: Mapping[str, Any]) -> raw.RawData:
    """Opens files of rows that are added to a data set; none of them is held out.

    Args:
      reader, settings: as for `open_raw_data`.
      paths: what `added_files` returned.

    Raises:
      DataError: a file is unreadable or malformed.
    """
    if reader == "criteo":
        return criteo.open_logs(paths, None, settings["block_bytes"])
    if reader == "movielens":
        (path,) = paths
        return raw.of_table(movielens.read_ratings(path, settings["variant"]))
    columns = _filled(tabular.ColumnNames, settings["columns"])
    files = tabular.TableFiles([str(path) for path in paths], format=settings["format"])
    return tabular.open_rows("", files, columns, settings["block_bytes"])


def content_files(reader: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Names, in the folder of a data set, of the files that describe the 'user' and the 'item'."""
    if reader == "movielens":
        return movielens.content_files(settings["variant"])
    if reader != "tabular":
        return {}
    names = {kind: settings[f"{kind}_content"]["file"] for kind in ("user", "item")}
    return {kind: name for kind, name in names.items() if name}


def read_content(
    reader: str, kind: str, path: AnyPath, settings: Mapping[str, Any]
) -> raw.EntityTable:
    """Reads the content of all users or items.

    Args:
      reader, settings: as for `open_raw_data`.
      kind: 'user' or 'item'.
      path: the file, one of `content_files`.

    Raises:
      DataError: the file is unreadable or malformed.
    """
    if reader == "movielens":
        return movielens.read_content(kind, path, settings["variant"])
    format = _filled(tabular.ContentFile, settings[f"{kind}_content"])
    return tabular.read_content(path, format, kind)


def _table_files(path: AnyPath, settings: Mapping[str, Any]) -> list[AnyPath]:
    names = [name for of_split in _row_files(path, settings) for name in of_split]
    names.append(settings["negatives_file"])
    names += [settings["user_content"]["file"], settings["item_content"]["file"]]
    files = [path / name for name in names if name]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such file; set data.path to the folder that holds it")
    return files


def _row_files(path: AnyPath, settings: Mapping[str, Any]) -> list[list[str]]:
    """Files of training, validation and test rows, relative to the folder `path`.

    A validation or test file is no training file, even if the pattern of these matches it.
    """
    named = [settings[f"{split}_file"] for split in SPLITS]
    train, *held_out = [_matching(path, name) if name else [] for name in named]
    others = set().union(*held_out)
    return [[name for name in train if name not in others] or train, *held_out]


def _matching(path: AnyPath, name: str) -> list[str]:
    """The files in the folder `path` that a name means: a file, a folder of files, or a pattern.

    Raises:
      DataError: there is no such file, or a folder has files of several splits.
    """
    place = path / name
    if place.is_dir():
        files = [file for file in place.iterdir() if file.is_file() and is_table(file.name)]
        splits = {split_of(file.name) for file in files}
        if len(splits) > 1 and splits != {None, "train"}:
            raise DataError(
                f"{place}: a folder of several splits ({', '.join(sorted(filter(None, splits)))}); "
                f"name each, such as data.train_file='{name}/train*' and "
                f"data.test_file='{name}/test*'"
            )
    elif place.exists() or not set(name) & set("*?["):
        return [name]  # whoever opens it reports that it is missing
    else:
        files = [file for file in path.glob(name) if file.is_file() and file.name[0] != "."]
    if not files:
        raise DataError(f"{place}: no such file of rows; check data.path and the name")
    return [storage.relative(file, path) for file in in_natural_order(files)]


def in_natural_order(files: Iterable[Place]) -> list[Place]:
    """Files by their names, in which numbers count by value: day_2 comes before day_10."""
    return sorted(files, key=_natural_order)


def is_table(name: str) -> bool:
    """Whether a file may hold rows, by its name."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    return plain.endswith(_TABLES) and not name.lower().startswith(_NO_TABLES)


def split_of(name: str) -> str | None:
    """The split that the name of a file begins with, or None."""
    found = re.match(r"(train|validation|valid|val|dev|test)(?![a-z])", name, re.IGNORECASE)
    return found[1].lower() if found else None


def _folds(paths: Sequence[AnyPath], settings: Mapping[str, Any]) -> list[int]:
    """The split of each file, by the names of the validation and test files."""
    folds = dict.fromkeys(paths, TRAIN)
    for split, fold in (("validation", VALIDATION), ("test", TEST)):
        pattern = settings[f"{split}_file"]
        found = [path for path in paths if fnmatch.fnmatch(path.name, pattern)]
        if not found:
            raise ConfigError(
                f"data.{split}_file={pattern!r}: data.split='given' needs a file of that name (* "
                f"stands for anything); there are {', '.join(path.name for path in paths)}"
            )
        folds |= dict.fromkeys(found, fold)
    return list(folds.values())


def _natural_order(file: AnyPath) -> list:
    """Sort key that puts day_2 before day_10: numbers in names count by value."""
    parts = re.split(r"(\d+)", file.name)
    return [int(part) if part.isdigit() else part for part in parts]


def _content(settings: Mapping[str, Any]) -> tabular.ContentFile | None:
    return _filled(tabular.ContentFile, settings) if settings["file"] else None


def _filled(cls: type[T], settings: Mapping[str, Any]) -> T:
    """A dataclass with the values of the settings, in which '' stands for None."""
    optional = {field.name for field in dataclasses.fields(cls) if field.default is None}
    filled: dict[str, Any] = {
        name: None if name in optional and value == "" else value
        for name, value in settings.items()
    }
    return cls(**filled)
