"""Reads CSV, TSV, Parquet and Arrow files whose columns are known by name, and adjacency lists.

    columns = tabular.ColumnNames(user="user_id", item="item_id", timestamp="time")
    table = tabular.read_rows("data", "ratings.csv", columns)

Identifiers and categorical values may be numbers or text. A column is int64 if every value of it,
in every file that has the column, is written as a plain integer (no leading zeros, at most 18
digits, and not -1, which stands for a missing value). Otherwise it is text.

`tabular_text`, `tabular_parquet`, `tabular_arrow` and `tabular_adjacency` split files into rows,
and `tabular_rows` converts the values.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import raw
from cadc_jax.data.readers import (
    files,
    movielens,
    tabular_adjacency,
    tabular_arrow,
    tabular_parquet,
    tabular_rows,
    tabular_text,
)
from cadc_jax.data.readers.tabular_adjacency import AdjacencyFile
from cadc_jax.data.readers.tabular_arrow import ArrowFile
from cadc_jax.data.readers.tabular_parquet import ParquetFile
from cadc_jax.data.readers.tabular_rows import Field
from cadc_jax.data.readers.tabular_text import TextFile
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.runtime import storage
from cadc_jax.runtime.storage import AnyPath

TableFile = TextFile | ParquetFile | ArrowFile | AdjacencyFile
_MOST_NEGATIVES = 1 << 28  # of all test rows, in memory


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """Names of the columns in the files of rows.

    Attributes:
      user: the column of user ids, or None.
      item: the column of item ids, or None.
      label: a column of 0 and 1 (clicks), or None: every row is a positive.
      value: the strength of the interaction (rating, count), or None: all are 1.
      timestamp: seconds, or None. Dates such as '2017-07-14 02:40:00', and the times of Parquet
        and Arrow, are converted to seconds since 1970.
      dense: columns of numbers, features of the row. An empty field is missing.
      categorical: columns of numbers or text, features of the row. An empty field is missing.
      separator: of text files, a character or '::'; '' is a tab for names like x.tsv and x.tsv.gz,
        else a comma.
      header: names of all columns, for text files without a header.
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
    """A file that describes users or items, one row for each.

    Attributes:
      file: its path, relative to the folder of the data.
      format: 'table', a CSV, TSV or Parquet file that the other attributes describe; or
        'movielens_1m', the users.dat or movies.dat of MovieLens 1M, which needs none of them.
      id: the column of ids, the same as in the rows.
      dense, categorical: as in `ColumnNames`.
      bags: columns of text with a set of values, such as 'Comedy|Drama'; only for items.
      title: the column of names for people to read, or None.
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


@dataclasses.dataclass(frozen=True)
class TableFiles:
    """The files of a data set, with paths relative to its folder.

    Attributes:
      train: the file of rows, or several files, which are read one after the other.
      validation: a file of validation rows, several, or None. If this or `test` is given, the data
        brings its own split (`fold`).
      test: a file of test rows, several, or None.
      negatives: a file with a header, or None. Its first column is a user id; the others are ids of
        the items to rank against the items of the user's test rows.
      users: the content of the users, or None.
      items: the content of the items, or None.
      format: of the files of rows: 'table', or 'adjacency', whose lines are 'user item item ...'.
    """

    train: str | Sequence[str]
    validation: str | Sequence[str] | None = None
    test: str | Sequence[str] | None = None
    negatives: str | None = None
    users: ContentFile | None = None
    items: ContentFile | None = None
    format: str = "table"

    @property
    def row_files(self) -> list[tuple[str, int]]:
        """(file, TRAIN, VALIDATION or TEST) of each file of rows, in this order."""
        found = []
        for fold, named in enumerate((self.train, self.validation, self.test)):
            names = [named] if isinstance(named, str) else named or ()
            found += [(name, fold) for name in names]
        return found

    @property
    def other_files(self) -> list[str]:
        """The files of negatives and content."""
        content = [entity.file for entity in (self.users, self.items) if entity]
        return [self.negatives, *content] if self.negatives else content


def open_rows(
    folder: str | AnyPath, table_files: TableFiles, columns: ColumnNames, block_bytes: int = 1 << 23
) -> raw.RawData:
    """Opens a data set of table files.

    A row is malformed if it has too few or too many fields; if an id, a label, a value or a
    timestamp is missing or of the wrong kind; if an id or a categorical value is longer than 1,000
    characters or has a NUL character in it; or if it is not in UTF-8. It is left out, and
    `report.malformed` counts it. Blank lines are skipped.

    Args:
      folder: the folder of the files.
      table_files: the files.
      columns: the columns of the files of rows.
      block_bytes: text decoded at a time. Parquet files are decoded as in `tabular_parquet`.

    Returns:
      Chunks of the train, validation and test rows, in this order. Content and negatives are in
      memory, at most 1 GiB of each file and 2**28 negatives of all test rows. Reading raises
      DataError if a file is damaged, or a quoted field has no end.

    Raises:
      ConfigError: no column is named; negatives without a test file or a user column; an unknown
        content format; a separator that is not one character.
      DataError: a file is missing, empty or unreadable, or has no rows; a column is missing; a row
        of the content or the negatives is malformed; a test user has no negatives; content or
        negatives are too large for memory.
    """
    _check_arguments(table_files, columns)
    folder = storage.path_of(folder)
    paths = [folder / file for file, _ in table_files.row_files]
    confirm = files.unchanged_since_now(paths + [folder / file for file in table_files.other_files])
    opened: Sequence[TableFile]
    if table_files.format == "adjacency":
        columns = _adjacency_columns(columns)
        opened = [tabular_adjacency.open_file(path) for path in paths]
    else:
        plain = (columns.user, columns.item, columns.label, columns.value, columns.timestamp)
        names = [name for name in (*plain, *columns.dense, *columns.categorical) if name]
        opened = [_open(path, columns, list(dict.fromkeys(names))) for path in paths]
    fields = _row_fields(columns, opened)
    own_split = table_files.validation or table_files.test
    parts = [
        functools.partial(_tasks, file, fields, fold if own_split else None, block_bytes)
        for file, (_, fold) in zip(opened, table_files.row_files, strict=True)
    ]
    users, items = (
        None if content is None else read_content(folder / content.file, content, kind)
        for kind, content in (("user", table_files.users), ("item", table_files.items))
    )
    negatives = None
    if table_files.negatives:
        folds = [fold for _, fold in table_files.row_files]
        tests = [part for part, fold in zip(parts, folds, strict=True) if fold == raw.TEST]
        tasks = itertools.chain.from_iterable(part() for part in tests)
        negatives = _read_negatives(folder / table_files.negatives, columns, tasks)
    return raw.RawData(
        ", ".join(map(str, paths)),
        parts,
        files.stored_size(paths),
        users=users,
        items=items,
        negatives=negatives,
        confirm=confirm,
        sizes=[files.stored_size([path]) for path in paths],
    )


def read_rows(
    folder: str | AnyPath,
    train: str | Sequence[str],
    columns: ColumnNames,
    *,
    max_malformed: float = 0.0,
    **more: Any,
) -> raw.RawTable:
    """Reads a data set of table files into memory.

    Args:
      folder, columns: as for `open_rows`.
      train: as in `TableFiles`.
      max_malformed: the largest share of malformed rows to leave out, in [0, 1].
      **more: other attributes of `TableFiles`.

    Returns:
      A table in which the ids of users, or items, have one type in rows, negatives and content.

    Raises:
      ConfigError, DataError: as `open_rows`; too many rows are malformed.
    """
    source = open_rows(folder, TableFiles(train, **more), columns)
    table = raw.collect(source, max_malformed)
    user, user_ids = _in_one_type(table.user, table.users.ids if table.users else None)
    item, item_ids, negatives = _in_one_type(
        table.item,
        table.items.ids if table.items else None,
        table.negatives.items if table.negatives else None,
    )
    return dataclasses.replace(
        table,
        user=user,
        item=item,
        negatives=table.negatives and dataclasses.replace(table.negatives, items=negatives),
        users=_with_ids(table.users, user_ids),
        items=_with_ids(table.items, item_ids),
    )


def _check_arguments(table_files: TableFiles, columns: ColumnNames) -> None:
    if table_files.negatives and not (table_files.test and columns.user and columns.item):
        raise ConfigError("evaluation negatives need a test file, a user and an item column")
    if (table_files.users and not columns.user) or (table_files.items and not columns.item):
        raise ConfigError("content of users (items) needs a user (an item) column in the rows")


def _adjacency_columns(columns: ColumnNames) -> ColumnNames:
    """The columns of adjacency lists.

    Raises:
      ConfigError: if others are named than the user and the item.
    """
    named = (columns.label, columns.value, columns.timestamp, *columns.dense, *columns.categorical)
    if other := next(filter(None, named), None):
        raise ConfigError(
            f"data.columns: lines 'user item item ...' (data.format='adjacency') have no "
            f"'{other}'; leave it out"
        )
    return ColumnNames(tabular_adjacency.USER, tabular_adjacency.ITEM)


# Fields of rows and of content.


def _row_fields(columns: ColumnNames, opened: Sequence[TableFile]) -> list[Field]:
    """The fields of a row. Ids and categorical values get one type in all files."""

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
        raise ConfigError("no column is named: name the columns of users, items or features")
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


# Files and their rows.


def _open(
    path: AnyPath, columns: ColumnNames | ContentFile, names: Sequence[str] | None = None
) -> TextFile | ParquetFile | ArrowFile:
    """Opens a file, and checks that it has rows and these columns (None: any)."""
    if path.suffix == ".parquet":
        return tabular_parquet.open_file(path, names)
    if path.suffix == ".arrow":
        return tabular_arrow.open_file(path, names)
    return tabular_text.open_file(path, columns.separator, columns.header, names)


def _tasks(
    file: TableFile, fields: Sequence[Field], fold: int | None, block_bytes: int
) -> Iterator[raw.Task]:
    """The tasks of a file; all its rows belong to `fold`, unless it is None."""
    if isinstance(file, ParquetFile):
        blocks = tabular_parquet.read_parquet_rows(file)
    elif isinstance(file, ArrowFile):
        blocks = tabular_arrow.read_arrow_rows(file)
    elif isinstance(file, AdjacencyFile):
        blocks = tabular_adjacency.read_adjacency_rows(file, block_bytes)
    else:
        blocks = tabular_text.read_text_rows(file, block_bytes)

    def decode(parse: Callable[[], tabular_rows.FileRows]) -> raw.Chunk:
        return tabular_rows.chunk(file.path, parse(), fields, fold)

    for consumed, parse in blocks:
        yield raw.Task(consumed, functools.partial(decode, parse))


# Content and negatives, which are small enough for memory.


def _read_whole(file: TableFile, fields: Sequence[Field]) -> pa.Table:
    """All rows of a file; raises DataError if one is malformed, or there are too many."""
    parts, size = [], 0
    for task in _tasks(file, fields, None, tabular_text.HEAD_BYTES):
        part = task.decode()
        if part.report.malformed:
            raise DataError(f"{part.report.examples[0]}; mend or remove the row")
        size += sum(map(_text_bytes, part.rows.columns))
        if size > files.MOST_BYTES:
            raise files.too_large_error(file.path, f"{files.MOST_BYTES >> 30} GiB of rows")
        parts.append(part.rows)
    return pa.concat_tables(parts)


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a column in memory when its values are not shared."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    return sum(
        int(pc.binary_length(part.dictionary).to_numpy()[part.indices.to_numpy()].sum())
        + 8 * len(part)
        for part in column.chunks
    )


def read_content(path: AnyPath, content: ContentFile, kind: str) -> raw.EntityTable:
    """Reads the content of users or items.

    Args:
      path: the file.
      content: its format; where it lies is left out of account.
      kind: 'user' or 'item'.

    Raises:
      ConfigError, DataError: as `open_rows`.
    """
    if content.format == "movielens_1m":
        return movielens.read_content(kind, path, "1m")
    if content.format != "table":
        raise ConfigError(
            f"content format '{content.format}' of {content.file}: it must be 'table' or "
            "'movielens_1m'"
        )
    fields = [Field(content.id, "id", _as_ids), *_features(content)]
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
        bags={name: raw.as_values(_texts(table[f"bag.{name}"])) for name in content.bags},
        titles=raw.as_values(_texts(table["title"])) if content.title else None,
    )


def _read_negatives(path: AnyPath, columns: ColumnNames, test: Iterator[raw.Task]) -> raw.Negatives:
    """The negatives of each test row, K columns of items."""
    file = _open(path, dataclasses.replace(columns, header=()))
    user_column, *item_columns = file.types
    if not item_columns:
        raise DataError(f"{path}: no column of items; it has only '{user_column}'")
    table = _read_whole(file, [Field(name, name, _as_ids) for name in file.types])
    texts = [part for name in item_columns for part in _texts(table[name]).chunks]
    items = raw.coded(pa.chunked_array(texts))
    places = items.indices.to_numpy().reshape(len(item_columns), -1)  # [K, users]
    users = raw.coded(_texts(table[user_column]))
    rows_of = np.bincount(users.indices.to_numpy())  # of each distinct user
    row_of = np.zeros(len(rows_of), np.int64)
    row_of[users.indices.to_numpy()] = np.arange(len(users))
    rows, number = [np.zeros(0, np.int64)], 0
    for task in test:
        test_users = raw.coded(task.decode().rows["user"])
        known = pc.index_in(pc.cast(test_users.dictionary, pa.string()), users.dictionary)
        known = pc.fill_null(known, len(rows_of)).to_numpy()
        count = np.append(rows_of, 0)[known]
        if (count != 1).any():
            wrong = int(np.argmax(count != 1))
            raise DataError(
                f"{path}: user {test_users.dictionary[wrong]} of the test rows has {count[wrong]} "
                "rows of negatives; it must have one"
            )
        rows.append(row_of[known][test_users.indices.to_numpy()])
        number += len(test_users) * len(item_columns)
        if number > _MOST_NEGATIVES:
            raise files.too_large_error(path, f"{_MOST_NEGATIVES:,} negatives of all test rows")
    return raw.Negatives(raw.raw_values(items.dictionary), places[:, np.concatenate(rows)].T)


_as_ids = functools.partial(tabular_rows.as_coded, required=True)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary-encoded column [N] as plain text."""
    return pc.cast(pc.cast(column, column.type.value_type), pa.string())


def _in_one_type(*columns: raw.Values | None) -> list[raw.Values | None]:
    """Columns of raw values, all as text if one of them is text."""
    if all(column is None or isinstance(column, np.ndarray) for column in columns):
        return list(columns)
    return [column if column is None else pc.cast(column, raw.TEXT) for column in columns]


def _with_ids(content: raw.EntityTable | None, ids: raw.Values | None) -> raw.EntityTable | None:
    return content if content is None or ids is None else dataclasses.replace(content, ids=ids)
