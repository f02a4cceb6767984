"""Reads any CSV, TSV or Parquet file whose columns one can name.

    columns = tabular.ColumnNames(user="user_id", item="item_id", timestamp="time")
    table = tabular.read_rows("data", "ratings.csv", columns)

Identifiers and categorical values may be numbers or text. A column is int64 if every value of it,
in every file that has it, is written as a plain integer (no leading zeros, at most 18 digits, and
not -1, which stands for a missing one); otherwise it is text.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import raw
from cadc_jax.data.readers import files, movielens, tabular_parquet, tabular_rows, tabular_text
from cadc_jax.data.readers.tabular_parquet import ParquetFile
from cadc_jax.data.readers.tabular_rows import Field
from cadc_jax.data.readers.tabular_text import TextFile
from cadc_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """What the columns of the files of rows are called.

    Attributes:
      user: the column of user ids, or None.
      item: the column of item ids, or None.
      label: a column of 0 and 1 (clicks), or None: every row is a positive.
      value: the strength of the interaction (rating, count), or None: all are 1.
      timestamp: seconds, or None. Parquet timestamps are converted to seconds since 1970.
      dense: columns of numbers, features of the row. Empty is missing.
      categorical: columns of numbers or text, features of the row. Empty is missing.
      separator: of text files; '' is a tab for names like x.tsv and x.tsv.gz, else a comma.
      header: the names of all columns, for text files whose first row is data already.
    """

    user: str | None = None
    item: str | None = None
    label: str | None = None
    value: str | None = None
    timestamp: str | None = None
    dense: Sequence[str] = ()
    categorical: Sequence[str] = ()
    separator: str = ""
    header: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class ContentFile:
    """A file that describes the users, or the items: one row each.

    Attributes:
      file: its path, relative to the folder of the data.
      format: 'table', a CSV, TSV or Parquet file that the other attributes describe; or
        'movielens_1m', the users.dat or movies.dat of MovieLens 1M, which needs none of them.
      id: the column of ids, as they stand in the rows.
      dense, categorical: as in `ColumnNames`.
      bags: columns of text that hold a set of values, such as 'Comedy|Drama'; of items only.
      title: the column of what a person calls the user or item, or None.
      separator, header: as in `ColumnNames`.
    """

    file: str
    format: str = "table"
    id: str = "id"
    dense: Sequence[str] = ()
    categorical: Sequence[str] = ()
    bags: Sequence[str] = ()
    title: str | None = None
    separator: str = ""
    header: Sequence[str] = ()


def open_rows(
    folder: str | Path,
    train: str | Sequence[str],
    columns: ColumnNames,
    *,
    validation: str | None = None,
    test: str | None = None,
    negatives: str | None = None,
    users: ContentFile | None = None,
    items: ContentFile | None = None,
    block_bytes: int = 1 << 23,
) -> raw.RawData:
    """Rows by their columns, with the split, the negatives and the content they may bring.

    A row is malformed if it has too few or too many fields; if an id, a label, a value or a
    timestamp is missing or of the wrong kind; if an id or a categorical value is longer than 1,000
    characters or has a NUL character in it; or if it is not in UTF-8. It is left out, and
    `report.malformed` counts it. Blank lines are passed over.

    Args:
      folder: where the files are.
      train: the file of rows, or several, one after the other.
      columns: what is in them.
      validation: a file of validation rows, with the same columns. If it or `test` is given the
        data brings its own split (`fold`); otherwise it is left to the caller.
      test: a file of test rows, likewise.
      negatives: a file with a header, whose first column is a user id and the others are ids of
        items: those to rank the item of this user's test rows against.
      users: the content of the users.
      items: the content of the items.
      block_bytes: text decoded at a time. Of a Parquet file it is a row group.

    Returns:
      Chunks of the train, validation and test rows, in this order. Content and negatives are in
      memory. Reading raises DataError if a file is damaged, or a quoted field has no end.

    Raises:
      ConfigError: no column is named; negatives without a test file or a user column; an unknown
        content format; a separator that is not one character.
      DataError: a file is missing, empty or unreadable, or has no rows; a column is missing; a row
        of the content or the negatives is malformed; a test user has no negatives.
    """
    if negatives and not (test and columns.user and columns.item):
        raise ConfigError("evaluation negatives need a test file, a user and an item column")
    if (users and not columns.user) or (items and not columns.item):
        raise ConfigError("content of users (items) needs a user (an item) column in the rows")
    folder = Path(folder)
    paths = [folder / name for name in ([train] if isinstance(train, str) else train)]
    folds: list[int | None] = [raw.TRAIN] * len(paths)
    for name, fold in ((validation, raw.VALIDATION), (test, raw.TEST)):
        if name:
            paths.append(folder / name)
            folds.append(fold)
    others = [negatives, users and users.file, items and items.file]
    confirm = files.unchanged_since_now(paths + [folder / name for name in others if name])

    plain = (columns.user, columns.item, columns.label, columns.value, columns.timestamp)
    names = [name for name in (*plain, *columns.dense, *columns.categorical) if name]
    opened = [_open(path, columns, list(dict.fromkeys(names))) for path in paths]
    fields = _row_fields(columns, opened)
    folds = folds if validation or test else [None] * len(paths)
    parts = [
        functools.partial(_tasks, file, fields, fold, block_bytes)
        for file, fold in zip(opened, folds, strict=True)
    ]
    return raw.RawData(
        ", ".join(map(str, paths)),
        parts,
        files.stored_size(paths),
        users=_read_content(folder, users, movielens.read_users),
        items=_read_content(folder, items, movielens.read_items),
        negatives=_read_negatives(folder / negatives, columns, parts[-1]()) if negatives else None,
        confirm=confirm,
        sizes=[files.stored_size([path]) for path in paths],
    )


def read_rows(
    folder: str | Path,
    train: str | Sequence[str],
    columns: ColumnNames,
    *,
    max_malformed: float = 0.0,
    **more: Any,
) -> raw.RawTable:
    """Reads `open_rows` into memory.

    Args:
      folder, train, columns: as of `open_rows`.
      max_malformed: the largest share of malformed rows to put up with, in [0, 1].
      **more: what else `open_rows` takes.

    Returns:
      A table in which the ids of users, or items, have one type in rows, negatives and content.

    Raises:
      ConfigError, DataError: as `open_rows`; too many rows are malformed.
    """
    table = raw.collect(open_rows(folder, train, columns, **more), max_malformed)
    user, user_ids = _one_kind(table.user, table.users.ids if table.users else None)
    item, item_ids, negatives = _one_kind(
        table.item, table.items.ids if table.items else None, table.negatives
    )
    return dataclasses.replace(
        table,
        user=user,
        item=item,
        negatives=negatives,
        users=_with_ids(table.users, user_ids),
        items=_with_ids(table.items, item_ids),
    )


# ColumnNames of rows and of content.


def _row_fields(columns: ColumnNames, opened: Sequence[TextFile | ParquetFile]) -> list[Field]:
    """The fields of a row; ids and categorical values have one type in all files."""

    def kind(name: str) -> pa.DataType:
        types = [file.types[name] for file in opened]
        return pa.int64() if all(map(tabular_rows.fits_int64, types)) else pa.string()

    fields = [
        Field(name, key, functools.partial(tabular_rows.as_coded, kind=kind(name), required=True))
        for key, name in (("user", columns.user), ("item", columns.item))
        if name
    ]
    plain: dict[str, tabular_rows.Convert] = {
        "label": tabular_rows.as_labels,
        "value": tabular_rows.as_values,
        "timestamp": tabular_rows.as_seconds,
    }
    fields += [
        Field(getattr(columns, key), key, convert)
        for key, convert in plain.items()
        if getattr(columns, key)
    ]
    fields += _features(columns, kind)
    if not fields:
        raise ConfigError("no column is named: name those of the users, the items or the features")
    return fields


def _features(
    columns: ColumnNames | ContentFile,
    kind: Callable[[str], pa.DataType] = lambda name: pa.string(),
) -> list[Field]:
    fields = [Field(name, raw.DENSE + name, tabular_rows.as_dense) for name in columns.dense]
    for name in columns.categorical:
        convert = functools.partial(tabular_rows.as_coded, kind=kind(name))
        fields.append(Field(name, raw.CATEGORICAL + name, convert))
    return fields


# Files, and the chunks of their rows.


def _open(
    path: Path, columns: ColumnNames | ContentFile, names: Sequence[str] | None = None
) -> TextFile | ParquetFile:
    """Checks a file for the columns of these names (all if None), and for rows."""
    if path.suffix == ".parquet":
        return tabular_parquet.open_file(path, names)
    return tabular_text.open_file(path, columns.separator, columns.header, names)


def _tasks(
    file: TextFile | ParquetFile, fields: Sequence[Field], fold: int | None, block_bytes: int
) -> Iterator[raw.Task]:
    """The rows of a file, of which all belong to `fold` if it is given."""
    if isinstance(file, ParquetFile):
        pieces = tabular_parquet.read_parquet_rows(file)
    else:
        pieces = tabular_text.read_text_rows(file, block_bytes)

    def decode(tell: Callable[[], tabular_rows.FileRows]) -> raw.Chunk:
        return tabular_rows.chunk(file.path, tell(), fields, fold)

    for consumed, tell in pieces:
        yield raw.Task(consumed, functools.partial(decode, tell))


# Content and negatives, which are small.


def _read_whole(file: TextFile | ParquetFile, fields: Sequence[Field]) -> pa.Table:
    """All rows; raises DataError if one is malformed."""
    parts = [task.decode() for task in _tasks(file, fields, None, tabular_text.HEAD_BYTES)]
    report = raw.total([part.report for part in parts])
    if report.malformed:
        raise DataError(f"{report.examples[0]}; mend or remove the row")
    return pa.concat_tables([part.rows for part in parts])


def _read_content(
    folder: Path,
    content: ContentFile | None,
    read_movielens: Callable[[Path, str], raw.EntityTable],
) -> raw.EntityTable | None:
    if content is None:
        return None
    path = folder / content.file
    if content.format == "movielens_1m":
        return read_movielens(path, "1m")
    if content.format != "table":
        raise ConfigError(
            f"content format '{content.format}' of {content.file}: it must be 'table' or "
            "'movielens_1m'"
        )
    fields = [Field(content.id, "id", _ids), *_features(content)]
    fields += [Field(name, f"bag.{name}", tabular_rows.as_coded) for name in content.bags]
    if content.title:
        fields.append(Field(content.title, "title", tabular_rows.as_coded))
    file = _open(path, content, list(dict.fromkeys(field.name for field in fields)))
    table = _read_whole(file, fields)
    return raw.EntityTable(
        ids=raw.raw_values(_texts(table["id"])),
        dense={name: table[raw.DENSE + name].to_numpy() for name in content.dense},
        categorical={
            name: raw.raw_values(_texts(table[raw.CATEGORICAL + name]))
            for name in content.categorical
        },
        bags={name: np.asarray(_texts(table[f"bag.{name}"]), str) for name in content.bags},
        titles=np.asarray(_texts(table["title"]), str) if content.title else None,
    )


def _read_negatives(path: Path, columns: ColumnNames, test: Iterator[raw.Task]) -> np.ndarray:
    """The negatives of each test row: [number of TEST rows, K] raw item ids."""
    file = _open(path, dataclasses.replace(columns, header=()))
    users, *items = file.types
    if not items:
        raise DataError(f"{path}: no column of items; it has only '{users}'")
    table = _read_whole(file, [Field(name, name, _ids) for name in file.types])
    texts = [part for name in items for part in _texts(table[name]).chunks]
    item = raw.raw_values(pa.chunked_array(texts)).reshape(len(items), -1)
    wanted = pa.concat_tables([task.decode().rows.select(["user"]) for task in test])
    return item[
        :,
        _rows_of(
            np.asarray(_texts(table[users]), str), np.asarray(_texts(wanted["user"]), str), path
        ),
    ].T


_ids = functools.partial(tabular_rows.as_coded, required=True)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A coded column as text [N]."""
    return pc.cast(pc.cast(column, column.type.value_type), pa.string())


def _one_kind(*columns: np.ndarray | None) -> list[np.ndarray | None]:
    """Raw values as text, if some of them are."""
    if all(column is None or column.dtype.kind != "U" for column in columns):
        return list(columns)
    return [column if column is None else column.astype(str) for column in columns]


def _with_ids(content: raw.EntityTable | None, ids: np.ndarray | None) -> raw.EntityTable | None:
    return content if content is None or ids is None else dataclasses.replace(content, ids=ids)


def _rows_of(ids: np.ndarray, wanted: np.ndarray, path: Path) -> np.ndarray:
    """Returns where in `ids` each wanted id is; raises DataError if it is there never or twice."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    first = np.searchsorted(ordered, wanted, side="left")
    found = np.searchsorted(ordered, wanted, side="right") - first
    if (found != 1).any():
        row = int(np.argmax(found != 1))
        raise DataError(
            f"{path}: user {wanted[row]} of the test rows has {found[row]} rows of negatives; it "
            "must have one"
        )
    return order[first]
