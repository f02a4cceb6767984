"""Reads any CSV, TSV or Parquet file whose columns one can name.

    columns = tabular.Columns(user="user_id", item="item_id", timestamp="time")
    table = tabular.read("data", "ratings.csv", columns)

Identifiers and categorical values may be numbers or text. A column is int64 if every value of it,
in every file that has it, is written as a plain integer (no leading zeros, at most 18 digits, and
not -1, which stands for a missing one); otherwise it is text.
"""

import codecs
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from cadc_jax.data import chunks, files, movielens, schema
from cadc_jax.errors import ConfigError, DataError

_TEXT = pa.string()
_HEAD_BYTES = 1 << 20
_LONGEST = (
    1_000  # characters of an id or categorical value: vocabularies are as wide as their widest
)
_EXAMPLES = 5  # malformed rows quoted in the report of a chunk


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
      bags: columns of text that hold a set of values, such as 'Comedy|Drama'; of items only.
      title: the column of what a person calls the user or item, or None.
      separator, header: as in `Columns`.
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


def source(
    folder: str | Path,
    train: str | Sequence[str],
    columns: Columns,
    *,
    validation: str | None = None,
    test: str | None = None,
    negatives: str | None = None,
    users: Content | None = None,
    items: Content | None = None,
    block_bytes: int = 1 << 23,
) -> chunks.Source:
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
    folds = [schema.TRAIN] * len(paths)
    for name, fold in ((validation, schema.VALIDATION), (test, schema.TEST)):
        if name:
            paths.append(folder / name)
            folds.append(fold)
    others = [negatives, users and users.file, items and items.file]
    confirm = files.unchanged_since_now(paths + [folder / name for name in others if name])

    names = [columns.user, columns.item, columns.label, columns.value, columns.timestamp]
    names = [name for name in (*names, *columns.dense, *columns.categorical) if name]
    opened = [_open(path, columns, list(dict.fromkeys(names))) for path in paths]
    fields = _row_fields(columns, opened)
    folds = folds if validation or test else [None] * len(paths)
    parts = [
        functools.partial(_tasks, file, fields, fold, block_bytes)
        for file, fold in zip(opened, folds, strict=True)
    ]
    return chunks.Source(
        ", ".join(map(str, paths)),
        parts,
        files.stored_size(paths),
        users=_read_content(folder, users, movielens.read_users),
        items=_read_content(folder, items, movielens.read_items),
        negatives=_read_negatives(folder / negatives, columns, parts[-1]()) if negatives else None,
        confirm=confirm,
    )


def read(
    folder: str | Path,
    train: str | Sequence[str],
    columns: Columns,
    *,
    max_malformed: float = 0.0,
    **more,
) -> schema.RawTable:
    """Reads `source` into memory.

    Args:
      folder, train, columns: as of `source`.
      max_malformed: the largest share of malformed rows to put up with, in [0, 1].
      **more: what else `source` takes.

    Returns:
      A table in which the ids of users, or items, have one type in rows, negatives and content.

    Raises:
      ConfigError, DataError: as `source`; too many rows are malformed.
    """
    table = chunks.collect(source(folder, train, columns, **more), max_malformed)
    user, user_ids = _one_kind(table.user, table.users and table.users.ids)
    item, item_ids, negatives = _one_kind(
        table.item, table.items and table.items.ids, table.negatives
    )
    return dataclasses.replace(
        table,
        user=user,
        item=item,
        negatives=negatives,
        users=table.users and dataclasses.replace(table.users, ids=user_ids),
        items=table.items and dataclasses.replace(table.items, ids=item_ids),
    )


# What columns become.


class _Fault(NamedTuple):
    """What is wrong with some values of a column."""

    rows: np.ndarray  # [N] bool, where it is
    what: str  # a template for `format`, which gets the value


class _Field(NamedTuple):
    """A column of a file, and what becomes of it."""

    name: str
    key: str  # its name in a chunk
    convert: Callable[[pa.Array], tuple[pa.Array, list[_Fault]]]


def _row_fields(columns: Columns, opened: Sequence["_TextFile | _ParquetFile"]) -> list[_Field]:
    """The fields of a row; ids and categorical values have one type in all files."""

    def kind(name: str) -> pa.DataType:
        types = [file.types[name] for file in opened]
        return pa.int64() if all(map(_fits_int64, types)) else pa.string()

    fields = [
        _Field(name, key, functools.partial(_coded, kind=kind(name), required=True))
        for key, name in (("user", columns.user), ("item", columns.item))
        if name
    ]
    plain = {"label": _labels, "value": _values, "timestamp": _seconds}
    fields += [
        _Field(getattr(columns, key), key, convert)
        for key, convert in plain.items()
        if getattr(columns, key)
    ]
    fields += _features(columns, kind)
    if not fields:
        raise ConfigError("no column is named: name those of the users, the items or the features")
    return fields


def _features(
    columns: Columns | Content, kind: Callable[[str], pa.DataType] = lambda name: pa.string()
) -> list[_Field]:
    fields = [_Field(name, chunks.DENSE + name, _dense) for name in columns.dense]
    for name in columns.categorical:
        convert = functools.partial(_coded, kind=kind(name))
        fields.append(_Field(name, chunks.CATEGORICAL + name, convert))
    return fields


def _fits_int64(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) and kind != pa.uint64()


def _coded(
    column: pa.Array, kind: pa.DataType = _TEXT, required: bool = False
) -> tuple[pa.DictionaryArray, list[_Fault]]:
    """Ids or categorical values [N], as `chunks.coded` has them, of type `kind`."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    values = _cast(column, kind)
    faults = [_Fault(_lost(column, values), "{!r} is not text in UTF-8")]
    if required:
        faults.append(_Fault(_missing(values), "the value is missing"))
    coded = chunks.coded(values)
    if kind == _TEXT:  # looked at once a distinct value
        texts, codes = coded.dictionary, coded.indices.to_numpy()
        long = pc.greater(pc.utf8_length(texts), _LONGEST)
        nul = pc.match_substring(texts, "\0")
        for bad, what in (
            (long, f"{{!r}}.. is longer than {_LONGEST:,} characters"),
            (nul, "{!r} has a NUL character in it"),
        ):
            faults.append(_Fault(bad.to_numpy(zero_copy_only=False)[codes], what))
    return coded, faults


def _numbers(
    column: pa.Array, good: Callable[[np.ndarray], np.ndarray], meaning: str, required: bool
) -> tuple[pa.Array, list[_Fault]]:
    """Numbers [N] f32, NaN where the value is missing, of which all have to be `good`."""
    numbers = _cast(column, pa.float32())
    values = pc.fill_null(numbers, np.nan).to_numpy()
    faults = [_Fault(_missing(column), "the value is missing")] if required else []
    faults.append(_Fault(_lost(column, numbers), "{!r} is not a number"))
    faults.append(_Fault(~good(values), f"{{}} is not {meaning}"))
    return pa.array(values), faults


_labels = functools.partial(
    _numbers, good=lambda values: (values == 0) | (values == 1), meaning="0 or 1", required=True
)
_values = functools.partial(_numbers, good=np.isfinite, meaning="a finite number", required=True)
_dense = functools.partial(
    _numbers, good=lambda values: ~np.isinf(values), meaning="a finite number", required=False
)


def _seconds(column: pa.Array) -> tuple[pa.Array, list[_Fault]]:
    """Seconds [N] i64, of integers, of times, or of numbers like 1.5e9."""
    faults = [_Fault(_missing(column), "the value is missing")]
    if pa.types.is_temporal(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("s"), safe=False), pa.int64())
    if _fits_int64(column.type):
        return pc.fill_null(pc.cast(column, pa.int64()), 0), faults
    numbers = _cast(column, pa.float64())
    values = pc.fill_null(numbers, np.nan).to_numpy()
    finite, good = np.isfinite(values), np.abs(values) < 2.0**63
    seconds = np.where(good, values, 0).astype(np.int64)
    if pa.types.is_string(column.type):  # a float64 would lose digits of large integers
        integers, plain = chunks.plain_integers(pc.fill_null(column, ""))
        seconds = np.where(plain, integers, seconds)
    faults.append(_Fault(_lost(column, numbers), "{!r} is not a number"))
    faults.append(_Fault(~finite, "{} is not a finite number"))
    faults.append(_Fault(~good, "{} is not a number of 64 bits"))
    return pa.array(seconds), faults


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column as another type, null where its value is missing or cannot be that."""
    try:
        return pc.cast(column, kind, safe=not pa.types.is_floating(kind))
    except pa.ArrowInvalid:
        middle = len(column) // 2
        if not middle:
            return pa.nulls(len(column), kind)
        return pa.concat_arrays([_cast(column[:middle], kind), _cast(column[middle:], kind)])


def _missing(column: pa.Array) -> np.ndarray:
    """Where a value is missing: [N] bool."""
    missing = pc.is_null(column, nan_is_null=True)
    if pa.types.is_string(column.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(column, ""), True))
    return missing.to_numpy(zero_copy_only=False)


def _lost(column: pa.Array, cast: pa.Array) -> np.ndarray:
    """Where there is a value that `_cast` could not convert: [N] bool."""
    return pc.and_(pc.is_null(cast), pc.is_valid(column)).to_numpy(zero_copy_only=False)


# Files, and the chunks of their rows.


class _TextFile(NamedTuple):
    """A CSV or TSV file that is there and has the columns."""

    path: Path
    types: dict[str, pa.DataType]  # of the columns to read
    separator: str
    names: list[str]  # of all columns
    has_header: bool


class _ParquetFile(NamedTuple):
    """A Parquet file that is there and has the columns."""

    path: Path
    types: dict[str, pa.DataType]
    metadata: pyarrow.parquet.FileMetaData


class _Rows(NamedTuple):
    """Rows of a file as they stand in it."""

    table: pa.Table
    where: str  # what goes before the number of a row to tell its place
    number: Callable[[int], int]  # of the row in the file, by its place in the table
    malformed: int = 0  # rows that could not even be told into columns
    examples: Sequence[tuple[int, str]] = ()  # their numbers and faults, the first few


def _open(
    path: Path, columns: Columns | Content, names: Sequence[str] | None = None
) -> _TextFile | _ParquetFile:
    """Checks a file for the columns of these names (all if None), and for rows."""
    if path.suffix == ".parquet":
        return _open_parquet(path, names)
    return _open_text(path, columns, names)


def _open_parquet(path: Path, names: Sequence[str] | None) -> _ParquetFile:
    files.open_stream(path).close()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata, layout = file.metadata, file.schema_arrow
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        whole = sum(group.num_rows for group in groups) == metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged_parquet(path, error) from error
    if not whole:
        raise _damaged_parquet(path, "its row groups do not add up")
    names = layout.names if names is None else names
    _check_names(path, names, layout.names)
    if not metadata.num_rows:
        raise _no_rows(path)
    types = {name: layout.field(name).type for name in names}
    types = {
        name: kind.value_type if pa.types.is_dictionary(kind) else kind
        for name, kind in types.items()
    }
    return _ParquetFile(path, types, metadata)


def _open_text(path: Path, columns: Columns | Content, names: Sequence[str] | None) -> _TextFile:
    separator = columns.separator or ("\t" if ".tsv" in path.suffixes else ",")
    if len(separator) != 1 or not separator.isascii() or separator in '"\r\n':
        raise ConfigError(
            f"separator {separator!r}: it must be a single character of ASCII, no quote or newline"
        )
    blocks = _whole_rows(path, separator, _HEAD_BYTES)
    rows = (row.group() for block in blocks for row in _rows(block.text, separator))
    header = list(columns.header) or _header(path, separator, next(rows, b""))
    names = header if names is None else names
    _check_names(path, names, header)
    if next(rows, None) is None:
        raise _no_rows(path)
    return _TextFile(path, dict.fromkeys(names, _TEXT), separator, header, not columns.header)


def _header(path: Path, separator: str, row: bytes) -> list[str]:
    if not row:
        raise _no_rows(path)
    if not _is_utf8(row):
        raise files.binary(path)
    layout = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    return pyarrow.csv.read_csv(pa.BufferReader(row), parse_options=layout).column_names


def _check_names(path: Path, names: Sequence[str], present: Sequence[str]) -> None:
    for name in names:
        if present.count(name) != 1:
            fault = "two columns" if name in present else "no column"
            shown = [repr(other[:40])[1:-1] for other in present]  # there may be newlines in it
            raise DataError(
                f"{path}: {fault} '{name}'; there are {', '.join(shown)}"
                f"{files.nearest(name, shown)}"
            )


def _no_rows(path: Path) -> DataError:
    return DataError(f"{path}: no rows; {files.HINT}, or do not name the file")


def _damaged_parquet(path: Path, error: object) -> DataError:
    text = " ".join(str(error).split())  # Arrow's may be of several lines
    return DataError(f"{path}: not a whole Parquet file ({text}); {files.HINT}")


def _tasks(
    file: _TextFile | _ParquetFile, fields: Sequence[_Field], fold: int | None, block_bytes: int
) -> Iterator[chunks.Task]:
    """The rows of a file, of which all belong to `fold` if it is given."""
    if isinstance(file, _ParquetFile):
        pieces = _parquet_pieces(file)
    else:
        pieces = _text_pieces(file, block_bytes)
    for consumed, rows in pieces:
        yield chunks.Task(consumed, lambda rows=rows: _chunk(file.path, rows(), fields, fold))


def _chunk(path: Path, rows: _Rows, fields: Sequence[_Field], fold: int | None) -> chunks.Chunk:
    """Converts the columns, and leaves out rows of which a value is bad."""
    columns, faults = {}, []
    for field in fields:
        try:
            columns[field.key], found = field.convert(rows.table[field.name].combine_chunks())
        except pa.ArrowNotImplementedError as error:
            kind = rows.table[field.name].type
            what = field.key.split("/")[0]
            raise DataError(
                f"{path}: column '{field.name}' holds {kind}, which cannot be read as {what}; "
                "convert it or name another"
            ) from error
        faults += [(field.name, fault) for fault in found if fault.rows.any()]
    examples, malformed = list(rows.examples), rows.malformed
    if faults:
        bad = np.logical_or.reduce([fault.rows for _, fault in faults])
        malformed += np.count_nonzero(bad)
        for row in np.flatnonzero(bad)[:_EXAMPLES].tolist():
            name, fault = next((name, fault) for name, fault in faults if fault.rows[row])
            value = rows.table[name][row].as_py()
            value = value[:40] if isinstance(value, str | bytes) else value
            examples.append((rows.number(row), f"{name}: {fault.what.format(value)}"))
        good = pa.array(~bad)
        columns = {key: _only(column, good) for key, column in columns.items()}
    table = pa.table(columns)
    if fold is not None:
        table = table.append_column("fold", pa.array(np.full(len(table), fold, np.int8)))
    quoted = [f"{rows.where}{number}: {what}" for number, what in sorted(examples)[:_EXAMPLES]]
    return chunks.Chunk(
        table, schema.ReadReport(len(table), malformed=int(malformed), examples=tuple(quoted))
    )


def _only(column: pa.Array, good: pa.Array) -> pa.Array:
    column = column.filter(good)
    # Coded anew, as what is bad must not stay among the distinct values.
    return chunks.coded(column) if pa.types.is_dictionary(column.type) else column


def _parquet_pieces(file: _ParquetFile) -> Iterator[tuple[int, Callable[[], _Rows]]]:
    """Each row group's share of the bytes, by its rows, and how to read it."""
    size, rows = files.stored_size([file.path]), file.metadata.num_rows
    first = 0
    for number in range(file.metadata.num_row_groups):
        last = first + file.metadata.row_group(number).num_rows
        consumed = size * last // rows - size * first // rows
        yield consumed, functools.partial(_read_group, file, number, first + 1)
        first = last


def _read_group(file: _ParquetFile, number: int, first: int) -> _Rows:
    """Reads a row group, of which the first row is number `first` of the file."""
    try:
        with pyarrow.parquet.ParquetFile(
            file.path, metadata=file.metadata, page_checksum_verification=True
        ) as opened:
            table = opened.read_row_group(number, list(file.types), use_threads=False)
        # Dictionaries become their values.
        table = table.select(list(file.types)).cast(pa.schema(file.types))
    except (pa.ArrowException, OSError) as error:
        raise _damaged_parquet(file.path, error) from error
    if len(table) != file.metadata.row_group(number).num_rows:
        raise _damaged_parquet(file.path, f"row group {number} has lost rows")
    return _Rows(table, f"{file.path}: row ", lambda row: first + row)


def _text_pieces(file: _TextFile, block_bytes: int) -> Iterator[tuple[int, Callable[[], _Rows]]]:
    """Each block's bytes and how to tell it into columns."""
    header = file.has_header
    for line, text, consumed in _whole_rows(file.path, file.separator, block_bytes):
        if header and (row := next(_rows(text, file.separator), None)):
            line += text.count(b"\n", 0, row.end())
            text, header = text[row.end() :], False
        yield consumed, functools.partial(_tell, file, line, text)


def _tell(file: _TextFile, line: int, text: bytes) -> _Rows:
    """Tells rows, of which the first begins on this line, into columns.

    Arrow does it if all have the right number of fields. If not, those that have not are found one
    by one, and Arrow gets the others.
    """
    wrong: dict[int, int] = {}  # where malformed rows begin and end
    table = _parse(file, text)
    if table is None:
        rows = _rows(text, file.separator)
        wrong = {row.start(): row.end() for row in rows if _fault(file, row.group())}
        cuts = [0, *itertools.chain(*wrong.items()), len(text)]
        good = zip(cuts[::2], cuts[1::2], strict=True)
        table = _parse(file, b"".join(text[start:end] for start, end in good))

    def line_of(start: int) -> int:
        return line + text.count(b"\n", 0, start)

    def number(row: int) -> int:
        starts = (row.start() for row in _rows(text, file.separator) if row.start() not in wrong)
        return line_of(next(itertools.islice(starts, row, None)))

    first = itertools.islice(wrong.items(), _EXAMPLES)
    examples = [(line_of(start), _fault(file, text[start:end])) for start, end in first]
    return _Rows(table, f"{file.path}:", number, len(wrong), examples)


def _parse(file: _TextFile, text: bytes) -> pa.Table | None:
    """The columns to read of whole rows, as text; None if a row is malformed."""
    if not text.strip(b"\r\n"):
        return pa.schema(file.types).empty_table()
    if not _is_utf8(text):
        return None
    quoted = b'"' in text
    if text.startswith(codecs.BOM_UTF8):  # Arrow would drop it, wherever in the file the text is
        text = b"\n" + text
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(text),
            pyarrow.csv.ReadOptions(
                column_names=file.names, block_size=len(text), use_threads=False
            ),
            pyarrow.csv.ParseOptions(
                delimiter=file.separator,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
            ),
            pyarrow.csv.ConvertOptions(
                column_types=file.types,
                include_columns=list(file.types),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        return None


def _fault(file: _TextFile, row: bytes) -> str | None:
    """What is wrong with the fields of a row, if anything."""
    fields = len(_grammar(file.separator).field.findall(row))
    if fields != len(file.names):
        return f"{fields} fields, where a row has {len(file.names)}"
    return None if _is_utf8(row) else "the row is not in UTF-8"


def _is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False


# Where rows and fields end.


class _Grammar(NamedTuple):
    r"""Patterns of text whose quoted fields may hold separators, newlines and doubled quotes.

    A field is quoted if it begins with a quote; a quote further on is a letter like any other, as
    it is for Arrow. A row ends with '\n', or with '\r'.
    """

    field: re.Pattern[bytes]  # with the separator or newline that ends it
    row: re.Pattern[bytes]
    rows: re.Pattern[bytes]


@functools.cache
def _grammar(separator: str) -> _Grammar:
    cut = re.escape(separator.encode())
    rest = rb"[^%b\r\n]*+" % cut
    field = rb'(?:"(?:[^"]++|"")*+"%b|[^"%b\r\n]%b|)' % (rest, cut, rest)
    row = rb"(?:%b%b)*+%b[\r\n]" % (field, cut, field)
    patterns = (rb"%b[%b\r\n]" % (field, cut), row, rb"(?:%b)*+" % row)
    return _Grammar(*map(re.compile, patterns))


def _rows(text: bytes, separator: str) -> Iterator[re.Match[bytes]]:
    """The rows of whole rows, without blank lines."""
    return (row for row in _grammar(separator).row.finditer(text) if len(row.group()) > 1)


def _whole_rows(path: Path, separator: str, block_bytes: int) -> Iterator[files.Block]:
    """`files.read_blocks`, but no row, whatever newlines are quoted in it, is in two blocks."""
    line, rest, consumed = 1, b"", 0
    for block in files.read_blocks(path, block_bytes):
        text = rest + block.text
        consumed += block.consumed
        end = _grammar(separator).rows.match(text).end() if b'"' in text else len(text)
        if end:
            yield files.Block(line, text[:end], consumed)
            line += text.count(b"\n", 0, end)
            consumed = 0
        rest = text[end:]
        if len(rest) > block_bytes:
            break
    if rest:
        raise DataError(
            f"{path}:{line}: a quoted field of this row has no end within {len(rest)} bytes; add "
            "the quote that ends it, or remove the one it begins with"
        )


# Content and negatives, which are small.


def _read_whole(file: _TextFile | _ParquetFile, fields: Sequence[_Field]) -> pa.Table:
    """All rows; raises DataError if one is malformed."""
    parts = [task.decode() for task in _tasks(file, fields, None, _HEAD_BYTES)]
    report = chunks.total([part.report for part in parts])
    if report.malformed:
        raise DataError(f"{report.examples[0]}; mend or remove the row")
    return pa.concat_tables([part.rows for part in parts])


def _read_content(
    folder: Path, content: Content | None, read_movielens: Callable
) -> schema.EntityTable | None:
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
    fields = [_Field(content.id, "id", _ids), *_features(content)]
    fields += [_Field(name, f"bag.{name}", _coded) for name in content.bags]
    if content.title:
        fields.append(_Field(content.title, "title", _coded))
    file = _open(path, content, list(dict.fromkeys(field.name for field in fields)))
    table = _read_whole(file, fields)
    return schema.EntityTable(
        ids=chunks.raw_values(_texts(table["id"])),
        dense={name: table[chunks.DENSE + name].to_numpy() for name in content.dense},
        categorical={
            name: chunks.raw_values(_texts(table[chunks.CATEGORICAL + name]))
            for name in content.categorical
        },
        bags={name: np.asarray(_texts(table[f"bag.{name}"]), str) for name in content.bags},
        titles=np.asarray(_texts(table["title"]), str) if content.title else None,
    )


def _read_negatives(path: Path, columns: Columns, test: Iterator[chunks.Task]) -> np.ndarray:
    """The negatives of each test row: [number of TEST rows, K] raw item ids."""
    file = _open(path, dataclasses.replace(columns, header=()))
    users, *items = file.types
    if not items:
        raise DataError(f"{path}: no column of items; it has only '{users}'")
    table = _read_whole(file, [_Field(name, name, _ids) for name in file.types])
    texts = [part for name in items for part in _texts(table[name]).chunks]
    item = chunks.raw_values(pa.chunked_array(texts)).reshape(len(items), -1)
    wanted = pa.concat_tables([task.decode().rows.select(["user"]) for task in test])
    return item[
        :,
        _rows_of(
            np.asarray(_texts(table[users]), str), np.asarray(_texts(wanted["user"]), str), path
        ),
    ].T


_ids = functools.partial(_coded, required=True)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A coded column as text [N]."""
    return pc.cast(pc.cast(column, column.type.value_type), _TEXT)


def _one_kind(*columns: np.ndarray | None) -> list[np.ndarray | None]:
    """Raw values as text, if some of them are."""
    if all(column is None or column.dtype.kind != "U" for column in columns):
        return list(columns)
    return [column if column is None else column.astype(str) for column in columns]


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
