"""Raw rows as readers yield them: in chunks, for data of any size, or as one table in memory.

A source (`RawData`) has parts, mostly files. A part yields tasks: blocks that were read but not yet
decoded. A task makes a chunk: an Arrow table of consecutive rows. Rows keep the order of the
source, which breaks ties in splits by time. A chunk has some of these columns:

    user, item           raw identifiers, dictionary-encoded by `coded`
    label                float32 in {0, 1}, for click logs; without it every row is a positive
    value                float32 strength of the interaction (rating, count); without it all are 1
    timestamp            int64 seconds
    fold                 int8 TRAIN / VALIDATION / TEST, if the data brings its own split
    dense/<name>         float32 features of the row (its context), NaN if missing
    categorical/<name>   raw values of the row, dictionary-encoded by `coded`

A dictionary-encoded column has the distinct values of the chunk, int64 or text, and int32 codes
into them. Counting, hashing and looking up values then cost once per distinct value, not per row.

A column of raw values in memory (`Values`) is int64 in NumPy, or text in Arrow, where a long value
does not widen the others. Functions that take `Values` also take unicode arrays of NumPy.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data.readers import files
from cadc_jax.errors import DataError

Values: TypeAlias = np.ndarray | pa.Array  # [N] raw values: int64, or `TEXT`
TEXT = pa.large_string()  # a column of it may be larger than 2 GiB

TRAIN, VALIDATION, TEST = 0, 1, 2  # values of `RawTable.fold`
SPLITS = ("train", "validation", "test")
FOLD_IN = 3  # known rows of held-out users, in splits by users
PARTS = (*SPLITS, "fold_in")  # all that rows may be assigned to


@dataclasses.dataclass(frozen=True)
class EntityTable:
    """Content of users or of items, one row for each.

    Attributes:
      ids: [n] raw identifiers, in the same type as the column of `RawTable` they describe.
      dense: name -> [n] float32.
      categorical: name -> [n] raw values.
      bags: name -> [n] text, sets of values such as genres, with '|' between them.
      titles: [n] text, names for people to read, or None.
    """

    ids: Values
    dense: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    categorical: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    bags: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    titles: Values | None = None


@dataclasses.dataclass(frozen=True)
class Negatives:
    """Items to rank each test row's item against, in the order of the TEST rows.

    Attributes:
      items: [n] raw item identifiers.
      places: [number of TEST rows, K] integers, places in `items`.
    """

    items: Values
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What a reader found, for the user and the manifest.

    Attributes:
      rows: data rows returned.
      padded: rows accepted after missing trailing fields were filled with 'missing'.
      malformed: rows left out.
      below: rows left out because their value is below `PrepareConfig.min_value`.
      examples: a few 'file:line: what is wrong' strings, for the malformed rows.
    """

    rows: int
    padded: int = 0
    malformed: int = 0
    examples: tuple[str, ...] = ()
    below: int = 0


@dataclasses.dataclass(frozen=True)
class RawTable:
    """Raw rows of one data set, in memory.

    Attributes:
      report: what the reader found; its `rows` is N.
      user: [N] raw user identifiers, or None if the source names none (click logs).
      item: [N] raw item identifiers, or None if the source names none.
      label: [N] float32 in {0, 1} for click logs, None for interactions (all are positive).
      value: [N] float32 strength of the interaction (rating, count), or None (all 1).
      timestamp: [N] int64 seconds, or None if the source has none.
      dense: name -> [N] float32 features of the row (its context).
      categorical: name -> [N] raw values of the row.
      fold: [N] int8 of TRAIN / VALIDATION / TEST if the data brings its own split, else None.
      negatives: items to rank each test row's item against, if the data brings its own, else None.
      users: content of users, or None.
      items: content of items, or None.
    """

    report: ReadReport
    user: Values | None = None
    item: Values | None = None
    label: np.ndarray | None = None
    value: np.ndarray | None = None
    timestamp: np.ndarray | None = None
    dense: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    categorical: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    fold: np.ndarray | None = None
    negatives: Negatives | None = None
    users: EntityTable | None = None
    items: EntityTable | None = None


DENSE, CATEGORICAL = "dense/", "categorical/"  # prefixes of feature columns
CODED = ("user", "item")  # dictionary-encoded, as all categorical features
PLAIN = {  # other columns, with their types
    "label": pa.float32(),
    "value": pa.float32(),
    "timestamp": pa.int64(),
    "fold": pa.int8(),
}
CHUNK_ROWS = 1 << 16  # rows of a chunk of data that is in memory


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive rows, and what the reader found in them."""

    rows: pa.Table
    report: ReadReport


@dataclasses.dataclass(frozen=True)
class Task:
    """A piece of a source that was read but not decoded.

    Attributes:
      consumed: bytes of the source it took (or rows, if `RawData.size` counts rows).
      decode: makes its rows; called once, on any thread.
    """

    consumed: int
    decode: Callable[[], Chunk]


@dataclasses.dataclass(frozen=True)
class RawData:
    """A raw data set, to be read in chunks.

    Attributes:
      name: its name in messages.
      parts: each yields the tasks of a part in order; several may be read at the same time.
      size: bytes (or rows) of all parts, for the progress.
      users: content of users, or None.
      items: content of items, or None.
      negatives: items to rank each test row's item against, if the data brings its own, else None.
      confirm: called after everything was read; raises DataError if the data changed meanwhile.
      sizes: size of each part, in the unit of `size`, by which hosts share them; None: about equal.
    """

    name: str
    parts: Sequence[Callable[[], Iterator[Task]]]
    size: int
    users: EntityTable | None = None
    items: EntityTable | None = None
    negatives: Negatives | None = None
    confirm: Callable[[], None] = lambda: None
    sizes: Sequence[int] | None = None


def as_values(values: np.ndarray | pa.Array | pa.ChunkedArray) -> Values:
    """A column [N] without nulls, of integers or of any kind of text, as `Values`."""
    if isinstance(values, np.ndarray):
        return pa.array(values.tolist(), TEXT) if values.dtype.kind == "U" else values
    if pa.types.is_integer(values.type):
        return pc.cast(values, pa.int64()).to_numpy()
    values = pc.cast(values, TEXT)
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def take(values: Values, places: np.ndarray) -> Values:
    """The values at these places: [N] -> [n]."""
    values = as_values(values)
    return values[places] if isinstance(values, np.ndarray) else values.take(pa.array(places))


def coded(values: np.ndarray | pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    """Dictionary-encodes a column: its distinct values, in order of appearance, and int32 codes.

    Args:
      values: [N] integers or text. Null, and NaN among text, is missing.

    Returns:
      [N], values int64 or string, without nulls: missing integers are -1, missing text is ''.
    """
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if pa.types.is_dictionary(array.type):
        array = one_chunk(array)
        codes = pc.dictionary_encode(array.indices, null_encoding="encode")
        codes, dictionary = codes.indices, array.dictionary.take(codes.dictionary)
    else:
        array = one_chunk(pc.dictionary_encode(array, null_encoding="encode"))
        codes, dictionary = array.indices, array.dictionary
    kind = pa.int64() if pa.types.is_integer(dictionary.type) else pa.string()
    missing = -1 if kind == pa.int64() else ""
    return distinct(codes, pc.fill_null(pc.cast(dictionary, kind), missing))


def one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    """A dictionary-encoded column as a single array."""
    if isinstance(column, pa.ChunkedArray) and column.num_chunks == 1:
        return column.chunk(0)
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # it has no chunks
        nothing = pa.array([], column.type.value_type)
        column = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), nothing)
    return column


def distinct(codes: pa.Array, dictionary: pa.Array) -> pa.DictionaryArray:
    """The same column with a dictionary of distinct values.

    Args:
      codes: [N] int32.
      dictionary: values, some of which may occur more than once.
    """
    if pc.count_distinct(dictionary).as_py() == len(dictionary):
        return pa.DictionaryArray.from_arrays(codes, dictionary)
    again = pc.dictionary_encode(dictionary)
    return pa.DictionaryArray.from_arrays(pc.take(again.indices, codes), again.dictionary)


def table_of(columns: Mapping[str, Values]) -> pa.Table:
    """The rows of a chunk, from arrays of raw values under the column names of a chunk."""
    arrays = {}
    for name, values in columns.items():
        if name in CODED or name.startswith(CATEGORICAL):
            arrays[name] = values if isinstance(values, pa.DictionaryArray) else coded(values)
        else:
            kind = PLAIN.get(name, pa.float32())
            arrays[name] = pa.array(np.asarray(values, kind.to_pandas_dtype()))
    return pa.table(arrays)


def of_table(table: RawTable) -> RawData:
    """A table in memory as a source of chunks of `CHUNK_ROWS` rows."""
    columns = {name: getattr(table, name) for name in (*CODED, *PLAIN)}
    columns |= {DENSE + name: values for name, values in table.dense.items()}
    columns |= {CATEGORICAL + name: values for name, values in table.categorical.items()}
    columns = {name: values for name, values in columns.items() if values is not None}
    rows = table.report.rows

    def chunk(start: int) -> Chunk:
        count = min(CHUNK_ROWS, rows - start)
        # The first chunk carries the report on the whole table.
        report = dataclasses.replace(table.report, rows=count) if start == 0 else ReadReport(count)
        part = {name: values[start : start + count] for name, values in columns.items()}
        return Chunk(table_of(part), report)

    def tasks() -> Iterator[Task]:
        for start in range(0, rows, CHUNK_ROWS):
            yield Task(min(CHUNK_ROWS, rows - start), functools.partial(chunk, start))

    return RawData("the table", [tasks], rows, table.users, table.items, table.negatives)


def collect(source: RawData, max_malformed: float = 0.0) -> RawTable:
    """Reads the whole source into memory; a text column of plain integers becomes int64.

    Args:
      source: what to read.
      max_malformed: largest share of malformed rows to leave out.

    Raises:
      DataError: if the reader finds a fault, too many rows are malformed, or there are none.
    """
    chunks = []
    for chunk in (task.decode() for part in source.parts for task in part()):
        chunks.append(chunk)
        if chunk.report.malformed and not max_malformed:
            break  # the check below fails already
    report = total([chunk.report for chunk in chunks])
    source.confirm()  # first, because a change may be the cause of any other fault
    check_report(source.name, report, max_malformed)
    rows = pa.concat_tables([chunk.rows for chunk in chunks], promote_options="permissive")

    def column(name: str) -> Values:
        values = rows[name]
        if pa.types.is_dictionary(values.type):
            return raw_values(pc.cast(values, values.type.value_type))
        return values.to_numpy()

    def features(prefix: str) -> dict[str, Values]:
        names = [name for name in rows.column_names if name.startswith(prefix)]
        return {name.removeprefix(prefix): column(name) for name in names}

    return RawTable(
        report=report,
        **{name: column(name) for name in (*CODED, *PLAIN) if name in rows.column_names},
        dense=features(DENSE),
        categorical=features(CATEGORICAL),
        negatives=source.negatives,
        users=source.users,
        items=source.items,
    )


def total(reports: Sequence[ReadReport], examples: int = 5) -> ReadReport:
    """The report of consecutive chunks together, with at most that many examples."""
    quoted = [example for report in reports for example in report.examples]
    return ReadReport(
        rows=sum(report.rows for report in reports),
        padded=sum(report.padded for report in reports),
        malformed=sum(report.malformed for report in reports),
        below=sum(report.below for report in reports),
        examples=tuple(quoted[:examples]),
    )


def check_report(name: str, report: ReadReport, max_malformed: float) -> None:
    """Checks the report of a whole source.

    Args:
      name: name of the source.
      report: what its reader found.
      max_malformed: largest share of malformed rows to leave out.

    Raises:
      DataError: if a larger share of the rows is malformed, or there are no rows.
    """
    rows = report.rows + report.malformed + report.below
    if report.malformed > max_malformed * rows:
        raise DataError(
            f"{report.examples[0]} ({report.malformed} of the {rows} rows read are malformed); "
            f"mend or remove such rows, or raise `data.max_malformed` (now {max_malformed:g})"
        )
    if not report.rows and report.below:
        raise DataError(
            f"{name}: the values of all {report.below:,} rows are below data.min_value; lower it"
        )
    if not report.rows:
        raise DataError(f"{name}: no rows; {files.HINT}")


def raw_values(values: pa.Array | pa.ChunkedArray) -> Values:
    """A column of raw values in memory: int64 if all are integers, else text.

    Text becomes int64 if every value is a plain integer (`plain_integers`) or missing, and none is
    '-1', because -1 stands for a missing integer.

    Args:
      values: [N] int64, or string ('' is missing).
    """
    if not pa.types.is_integer(values.type):
        integers, plain = plain_integers(values)
        if plain.all() and not pc.any(pc.equal(values, "-1")).as_py():
            return integers
    return as_values(values)


def plain_integers(values: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Text as integers where a number would be written in exactly these characters.

    Plain integers have no plus sign, no leading zero and at most 18 digits. Missing ('') is -1.

    Args:
      values: [N] string or large_string.

    Returns:
      [N] int64, -1 for other text; and [N] bool, whether it is a plain integer or missing.
    """
    plain = pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]{0,17}|)$")
    text = pc.if_else(pc.and_(plain, pc.not_equal(values, "")), values, "-1")
    integers = pc.cast(text, pa.int64())
    return integers.to_numpy(zero_copy_only=False), plain.to_numpy(zero_copy_only=False)
