"""Reads any CSV, TSV or Parquet file whose columns one can name.

    columns = tabular.Columns(user="user_id", item="item_id", timestamp="time")
    table = tabular.read("data", "ratings.csv", columns)

Identifiers and categorical values may be numbers or text. A column is int64 if every value of it,
in every file that has it, is written as a plain integer (no leading zeros); otherwise it is text.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from cadc_jax.data import files, movielens, schema
from cadc_jax.errors import ConfigError, DataError

_HEAD_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Columns:
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
class Content:
    """A file that describes the users, or the items: one row each.

    Attributes:
      file: its path, relative to the folder of the data.
      format: 'table', a CSV, TSV or Parquet file that the other attributes describe; or
        'movielens_1m', the users.dat or movies.dat of MovieLens 1M, which needs none of them.
      id: the column of ids, as they stand in the rows.
      dense, categorical: as in `Columns`.
      title: the column of what a person calls the user or item, or None.
      separator, header: as in `Columns`.
    """

    file: str
    format: str = "table"
    id: str = "id"
    dense: Sequence[str] = ()
    categorical: Sequence[str] = ()
    title: str | None = None
    separator: str = ""
    header: Sequence[str] = ()


def read(
    folder: str | Path,
    train: str | Sequence[str],
    columns: Columns,
    *,
    validation: str | None = None,
    test: str | None = None,
    negatives: str | None = None,
    users: Content | None = None,
    items: Content | None = None,
) -> schema.RawTable:
    """Reads rows by their columns, with the split, the negatives and the content they may bring.

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

    Returns:
      A table of the train, validation and test rows, in this order.

    Raises:
      ConfigError: negatives without a test file or a user column; an unknown content format.
      DataError: a file is missing, empty or unreadable; a column is missing; a row has too few or
        too many fields; an id, a label, a value or a timestamp is missing or of the wrong kind; a
        test user has no negatives. The text names file and line.
    """
    if negatives and not (test and columns.user and columns.item):
        raise ConfigError("evaluation negatives need a test file, a user and an item column")
    if (users and not columns.user) or (items and not columns.item):
        raise ConfigError("content of users (items) needs a user (an item) column in the rows")
    folder = Path(folder)
    parts = [(file, schema.TRAIN) for file in ([train] if isinstance(train, str) else train)]
    parts += [(validation, schema.VALIDATION)] if validation else []
    parts += [(test, schema.TEST)] if test else []
    names = [columns.user, columns.item, columns.label, columns.value, columns.timestamp]
    names = [name for name in (*names, *columns.dense, *columns.categorical) if name]
    sources = [_open(folder / file, columns, names) for file, _ in parts]
    fold = np.repeat(
        np.array([fold for _, fold in parts], np.int8), [len(s.table) for s in sources]
    )

    def convert(function, name):
        return np.concatenate([function(source, name) for source in sources]) if name else None

    def ids(name):
        return [_present(source, name) for source in sources] if name else []

    negative_user, negative_item = _open_negatives(folder, negatives, columns)
    user_id, user_content = _open_content(folder, users, movielens.read_users)
    item_id, item_content = _open_content(folder, items, movielens.read_items)
    user, negative_user, user_id = _raw_values(ids(columns.user), negative_user, user_id)
    item, negative_item, item_id = _raw_values(ids(columns.item), negative_item, item_id)
    if negatives:
        negative_item = negative_item.reshape(-1, len(negative_user)).T
        place = _rows_of(negative_user, user[fold == schema.TEST], folder / negatives)
        negative_item = negative_item[place]
    return schema.RawTable(
        report=schema.ReadReport(rows=len(fold)),
        user=user,
        item=item,
        label=convert(_labels, columns.label),
        value=convert(_values, columns.value),
        timestamp=convert(_seconds, columns.timestamp),
        dense={name: convert(_numbers, name) for name in columns.dense},
        categorical={
            name: _raw_values([source.table[name] for source in sources])[0]
            for name in columns.categorical
        },
        fold=fold if validation or test else None,
        negatives=negative_item,
        users=user_content and dataclasses.replace(user_content, ids=user_id),
        items=item_content and dataclasses.replace(item_content, ids=item_id),
    )


class _Source(NamedTuple):
    """A file that was read."""

    path: Path
    table: pa.Table  # of a text file, all columns as text
    separator: str  # '' for Parquet
    header_rows: int

    def error(self, row: int, what: str) -> DataError:
        """Returns the error for a row of the table, counted from 0."""
        place = f": row {row + 1}"
        if self.separator:
            place = f":{_records(self.path, self.separator)[self.header_rows + row][0]}"
        return DataError(f"{self.path}{place}: {what}; mend or remove the row")


def _open(path: Path, columns: Columns | Content, names: Sequence[str] | None = None) -> _Source:
    """Reads the columns of these names, or all; `columns` tells the layout of text files."""
    source = (_open_parquet if path.suffix == ".parquet" else _open_text)(path, columns, names)
    if not len(source.table):
        raise DataError(f"{path}: no rows; {files.HINT}, or do not name the file")
    return source


def _open_parquet(path: Path, columns: Columns | Content, names: Sequence[str] | None) -> _Source:
    files.open_stream(path).close()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_names(path, names or (), file.schema_arrow.names)
            table = file.read(names)
        plain = [
            pa.field(field.name, getattr(field.type, "value_type", field.type))
            for field in table.schema
        ]
        table = table.cast(pa.schema(plain))  # dictionaries become their values
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); {files.HINT}") from error
    return _Source(path, table, "", 0)


def _open_text(path: Path, columns: Columns | Content, names: Sequence[str] | None) -> _Source:
    separator = columns.separator or ("\t" if ".tsv" in path.suffixes else ",")
    if len(separator) != 1:
        raise ConfigError(f"separator '{separator}': it must be a single character")
    _, head = next(files.read_blocks(path, _HEAD_BYTES))
    first = head[: head.index(b"\n")].decode("utf-8")
    header = list(columns.header) or next(csv.reader([first], delimiter=separator))
    _check_names(path, names or (), header)
    try:
        with files.open_stream(path) as stream:
            table = pyarrow.csv.read_csv(
                stream,
                pyarrow.csv.ReadOptions(column_names=header, skip_rows=0 if columns.header else 1),
                pyarrow.csv.ParseOptions(delimiter=separator),
                pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.string()),
                    include_columns=names,
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
    except pa.ArrowInvalid as error:
        for line, fields in _records(path, separator):
            if fields != len(header):
                raise DataError(
                    f"{path}:{line}: {fields} fields, where a row has {len(header)}; mend or "
                    "remove the row"
                ) from error
        raise DataError(f"{path}: {error}; mend the file") from error
    except OSError as error:
        raise files.damaged(path, error) from error
    return _Source(path, table, separator, 0 if columns.header else 1)


def _check_names(path: Path, names: Sequence[str], present: Sequence[str]) -> None:
    for name in names:
        if present.count(name) != 1:
            fault = "two columns" if name in present else "no column"
            raise DataError(
                f"{path}: {fault} '{name}'; there are {', '.join(present)}"
                f"{files.nearest(name, present)}"
            )


def _records(path: Path, separator: str) -> list[tuple[int, int]]:
    """Returns (line, number of fields) of every row: slow, for the text of errors."""
    lines = csv.reader(
        io.StringIO(files.read_text(path).decode("utf-8", "replace"), newline=""),
        delimiter=separator,
    )
    return [(lines.line_num, len(fields)) for fields in lines if fields]


def _open_negatives(folder: Path, file: str | None, columns: Columns):
    """Returns the column of user ids and those of item ids, as two lists."""
    if not file:
        return [], []
    source = _open(folder / file, dataclasses.replace(columns, header=()))
    user, *items = [_present(source, name) for name in source.table.column_names]
    return [user], items


def _open_content(
    folder: Path, content: Content | None, read_movielens: Callable
) -> tuple[list[pa.ChunkedArray], schema.EntityTable | None]:
    """Returns the column of ids, as a list, and the content with its ids yet to be set."""
    if content is None:
        return [], None
    path = folder / content.file
    if content.format == "movielens_1m":
        entities = read_movielens(path, "1m")
        return [pa.chunked_array([entities.ids])], entities
    if content.format != "table":
        raise ConfigError(
            f"content format '{content.format}' of {content.file}: it must be 'table' or "
            "'movielens_1m'"
        )
    titles = [content.title] if content.title else []
    source = _open(path, content, [content.id, *content.dense, *content.categorical, *titles])
    return [_present(source, content.id)], schema.EntityTable(
        ids=np.empty(0),
        dense={name: _numbers(source, name) for name in content.dense},
        categorical={name: _raw_values([source.table[name]])[0] for name in content.categorical},
        titles=_text(source.table[content.title]) if content.title else None,
    )


def _present(source: _Source, name: str) -> pa.ChunkedArray:
    """Returns a column of which no value may be missing."""
    column = source.table[name]
    missing = pc.index(pc.is_null(column, nan_is_null=True), True).as_py()
    if missing >= 0:
        raise source.error(missing, f"{name}: the value is missing")
    return column


def _raw_values(*groups: Sequence[pa.ChunkedArray]) -> list[np.ndarray | None]:
    """Joins the columns of each group; all are int64 if all values are integers, else text.

    Missing values are -1 or ''; a group without columns is None.
    """
    integers = [[_integers(column) for column in group] for group in groups]
    if any(column is None for group in integers for column in group):
        arrays = [[_text(column) for column in group] for group in groups]
    else:
        arrays = [[pc.fill_null(column, -1).to_numpy() for column in group] for group in integers]
    return [np.concatenate(group) if group else None for group in arrays]


def _integers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Returns the column as int64, or None if that would lose how a value is written."""
    try:
        integers = pc.cast(column, pa.int64())
    except pa.ArrowException:
        return None
    if pa.types.is_integer(column.type):
        return integers
    same = pc.equal(pc.cast(integers, pa.string()), pc.cast(column, pa.string()))
    return integers if pc.all(same).as_py() is not False else None


def _text(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.cast(column, pa.string()), "").to_numpy().astype(str)


def _numbers(source: _Source, name: str) -> np.ndarray:
    """Returns [n] f32, NaN where the value is missing."""
    return pc.fill_null(_cast(source, name, pa.float32()), np.nan).to_numpy()


def _values(source: _Source, name: str) -> np.ndarray:
    _present(source, name)
    values = _numbers(source, name)
    return _checked(source, name, values, np.isfinite(values), "a finite number")


def _labels(source: _Source, name: str) -> np.ndarray:
    _present(source, name)
    labels = _numbers(source, name)
    return _checked(source, name, labels, (labels == 0) | (labels == 1), "0 or 1")


def _seconds(source: _Source, name: str) -> np.ndarray:
    """Returns [n] i64."""
    column = _present(source, name)
    if pa.types.is_temporal(column.type):
        column = pc.cast(column, pa.timestamp("s"), safe=False)
    try:
        return pc.cast(column, pa.int64()).to_numpy()
    except pa.ArrowException:  # then it may be 1.5e9
        seconds = _cast(source, name, pa.float64()).to_numpy()
    finite = np.isfinite(seconds)
    return _checked(source, name, seconds, finite, "a finite number").astype(np.int64)


def _checked(
    source: _Source, name: str, values: np.ndarray, good: np.ndarray, meaning: str
) -> np.ndarray:
    """Returns the values; raises DataError for the first that is not good."""
    if not good.all():
        row = int(np.argmin(good))
        raise source.error(row, f"{name}: {source.table[name][row]} is not {meaning}")
    return values


def _cast(source: _Source, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """Returns a column as numbers; raises DataError for the first value that is none."""
    column = source.table[name]
    try:
        return pc.cast(column, kind, safe=False)
    except pa.ArrowException as error:
        row, end = 0, len(column)  # the first value that fails is in column[row:end]
        while end - row > 1:
            middle = (row + end) // 2
            try:
                pc.cast(column[row:middle], kind, safe=False)
                row = middle
            except pa.ArrowException:
                end = middle
        raise source.error(row, f"{name}: '{column[row]}' is not a number") from error


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
