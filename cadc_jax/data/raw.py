"""Raw rows, as readers hand them on: in chunks, whatever the size of the data, or whole in memory.

Rows stay in the order of the source, which breaks the ties of every split by time.

A source has parts (mostly files), a part yields tasks (blocks that were read but not decoded), and
a task makes a chunk: an Arrow table of consecutive rows. A chunk has some of these columns:

    user, item           raw identifiers, dictionary-encoded by `coded`
    label                float32 in {0, 1}, for click logs; without it every row is a positive
    value                float32 strength of the interaction (rating, count); without it all are 1
    timestamp            int64 seconds
    fold                 int8 TRAIN / VALIDATION / TEST, where the data brings its own split
    dense/<name>         float32 features of the row (its context), NaN where missing
    categorical/<name>   raw values of the row, dictionary-encoded by `coded`

Every categorical column is a dictionary of the chunk's own distinct values, int64 or text, and
int32 codes into it. All that is costly about values (counting, hashing, looking up) is then done
once a distinct value and not once a row.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data.readers import files
from cadc_jax.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2  # values of `RawTable.fold`
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class EntityTable:
    """Content of users or of items: one row an entity.

    Attributes:
      ids: [n] raw identifiers, in the same type as the column of `RawTable` they describe.
      dense: name -> [n] float32.
      categorical: name -> [n] int64 or unicode.
      bags: name -> [n] unicode, sets of values such as genres, with '|' between them.
      titles: [n] unicode, what a person calls the entity, or None.
    """

    ids: np.ndarray
    dense: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    categorical: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    bags: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    titles: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What a reader met: shown to the user and kept in the manifest.

    Attributes:
      rows: data rows returned.
      padded: rows accepted after missing trailing fields were filled with 'missing'.
      malformed: rows left out, never more than the configured share.
      examples: a few 'file:line: what is wrong' strings, for the malformed rows.
    """

    rows: int
    padded: int = 0
    malformed: int = 0
    examples: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RawTable:
    """Raw rows of one data set.

    Attributes:
      user: [N] raw user identifiers, or None where the source names none (click logs).
      item: [N] raw item identifiers, or None likewise.
      label: [N] float32 in {0, 1} for click logs, None for interactions (all are positive).
      value: [N] float32 strength of the interaction (rating, count), or None (all 1).
      timestamp: [N] int64 seconds, or None if the source has none.
      dense: name -> [N] float32 features of the row (its context).
      categorical: name -> [N] raw values of the row.
      fold: [N] int8 of TRAIN / VALIDATION / TEST where the data brings its own split, else None.
      negatives: [number of TEST rows, K] raw item ids to rank each test row's item against, in the
        order of the TEST rows, where the data brings its own, else None.
      users: content of users, or None.
      items: content of items, or None.
      report: what the reader met.
    """

    report: ReadReport
    user: np.ndarray | None = None
    item: np.ndarray | None = None
    label: np.ndarray | None = None
    value: np.ndarray | None = None
    timestamp: np.ndarray | None = None
    dense: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    categorical: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fold: np.ndarray | None = None
    negatives: np.ndarray | None = None
    users: EntityTable | None = None
    items: EntityTable | None = None


DENSE, CATEGORICAL = "dense/", "categorical/"
CODED = ("user", "item")  # and all categorical columns
PLAIN = {
    "label": pa.float32(),
    "value": pa.float32(),
    "timestamp": pa.int64(),
    "fold": pa.int8(),
}
CHUNK_ROWS = 1 << 16  # of data that is in memory


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive rows, and what the reader met in them."""

    rows: pa.Table
    report: ReadReport


@dataclasses.dataclass(frozen=True)
class Task:
    """A piece of a source that was read, but not decoded.

    Attributes:
      consumed: bytes of the source it took (or rows, if `RawData.size` counts rows).
      decode: makes its rows; called once, on any thread.
    """

    consumed: int
    decode: Callable[[], Chunk]


@dataclasses.dataclass(frozen=True)
class RawData:
    """A raw data set.

    Attributes:
      name: what to call it in messages.
      parts: each yields the tasks of a part in order; several may be read at the same time.
      size: bytes (or rows) in all, for the progress.
      users: content of users, or None.
      items: content of items, or None.
      negatives: [number of TEST rows, K] raw item ids to rank each test row's item against, in the
        order of the TEST rows, where the data brings its own, else None.
      confirm: called when all was read; raises DataError if the data has changed meanwhile.
      sizes: of each part, in the unit of `size`, for hosts that share them; None: about equal.
    """

    name: str
    parts: Sequence[Callable[[], Iterator[Task]]]
    size: int
    users: EntityTable | None = None
    items: EntityTable | None = None
    negatives: np.ndarray | None = None
    confirm: Callable[[], None] = lambda: None
    sizes: Sequence[int] | None = None


def coded(values: np.ndarray | pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    """Dictionary of the distinct values, in order of appearance, and int32 codes.

    Args:
      values: [N] integers or text. Null, and NaN among text, is missing.

    Returns:
      [N], values int64 or string, without nulls: missing integers are -1, missing text is ''.
    """
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if pa.types.is_dictionary(array.type):
        array = pc.cast(array, array.type.value_type)
    kind = pa.int64() if pa.types.is_integer(array.type) else pa.string()
    if array.type != kind:
        array = pc.cast(array, kind)
    array = pc.dictionary_encode(array, null_encoding="encode")
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # of no chunks
            array = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], kind))
    missing = -1 if kind == pa.int64() else ""
    return distinct(array.indices, pc.fill_null(array.dictionary, missing))


def distinct(codes: pa.Array, dictionary: pa.Array) -> pa.DictionaryArray:
    """Codes [N] into a dictionary in which values may be there twice, without that."""
    if pc.count_distinct(dictionary).as_py() == len(dictionary):
        return pa.DictionaryArray.from_arrays(codes, dictionary)
    again = pc.dictionary_encode(dictionary)
    return pa.DictionaryArray.from_arrays(pc.take(again.indices, codes), again.dictionary)


def table_of(columns: Mapping[str, np.ndarray | pa.Array]) -> pa.Table:
    """The rows of a chunk, from arrays of raw values under the names a chunk has."""
    arrays = {}
    for name, values in columns.items():
        if name in CODED or name.startswith(CATEGORICAL):
            arrays[name] = values if isinstance(values, pa.DictionaryArray) else coded(values)
        else:
            kind = PLAIN.get(name, pa.float32())
            arrays[name] = pa.array(np.asarray(values, kind.to_pandas_dtype()))
    return pa.table(arrays)


def of_table(raw: RawTable) -> RawData:
    """A table in memory as a source."""
    columns = {"user": raw.user, "item": raw.item, **{name: getattr(raw, name) for name in PLAIN}}
    columns |= {DENSE + name: values for name, values in raw.dense.items()}
    columns |= {CATEGORICAL + name: values for name, values in raw.categorical.items()}
    columns = {name: values for name, values in columns.items() if values is not None}
    rows = raw.report.rows

    def chunk(start: int) -> Chunk:
        count = min(CHUNK_ROWS, rows - start)
        # What the reader met belongs to the whole; it goes with the first rows.
        report = dataclasses.replace(raw.report, rows=count) if start == 0 else ReadReport(count)
        part = {name: values[start : start + count] for name, values in columns.items()}
        return Chunk(table_of(part), report)

    def tasks() -> Iterator[Task]:
        for start in range(0, rows, CHUNK_ROWS):
            yield Task(min(CHUNK_ROWS, rows - start), functools.partial(chunk, start))

    return RawData("the table", [tasks], rows, raw.users, raw.items, raw.negatives)


def collect(source: RawData, max_malformed: float = 0.0) -> RawTable:
    """The whole source in memory; text that is all plain integers becomes int64.

    Raises:
      DataError: as `check`; whatever the reader finds.
    """
    chunks = []
    for chunk in (task.decode() for part in source.parts for task in part()):
        chunks.append(chunk)
        if chunk.report.malformed and not max_malformed:
            break  # it cannot get better
    report = total([chunk.report for chunk in chunks])
    source.confirm()  # first, as a change may be what is behind any other fault
    check(source.name, report, max_malformed)
    table = pa.concat_tables([chunk.rows for chunk in chunks], promote_options="permissive")

    def column(name: str) -> np.ndarray:
        values = table[name]
        if pa.types.is_dictionary(values.type):
            return raw_values(pc.cast(values, values.type.value_type))
        return values.to_numpy()

    def columns(prefix: str) -> dict[str, np.ndarray]:
        found = [name for name in table.column_names if name.startswith(prefix)]
        return {name.removeprefix(prefix): column(name) for name in found}

    return RawTable(
        report=report,
        **{name: column(name) for name in (*CODED, *PLAIN) if name in table.column_names},
        dense=columns(DENSE),
        categorical=columns(CATEGORICAL),
        negatives=source.negatives,
        users=source.users,
        items=source.items,
    )


def total(reports: Sequence[ReadReport], examples: int = 5) -> ReadReport:
    """One report of consecutive chunks."""
    quoted = [example for report in reports for example in report.examples]
    return ReadReport(
        rows=sum(report.rows for report in reports),
        padded=sum(report.padded for report in reports),
        malformed=sum(report.malformed for report in reports),
        examples=tuple(quoted[:examples]),
    )


def check(name: str, report: ReadReport, max_malformed: float) -> None:
    """Checks the report of a whole source, which is called `name`.

    Raises:
      DataError: if more than the share `max_malformed` of the rows is malformed, or there is none.
    """
    rows = report.rows + report.malformed
    if report.malformed > max_malformed * rows:
        raise DataError(
            f"{report.examples[0]} ({report.malformed} of the {rows} rows read are malformed); "
            f"mend or remove such rows, or raise `data.max_malformed` (now {max_malformed:g})"
        )
    if not report.rows:
        raise DataError(f"{name}: no rows; {files.HINT}")


def raw_values(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Raw values as NumPy holds them: int64 if all are integers, else unicode.

    Text becomes int64 if every value is a plain integer (`plain_integers`) or missing, and none is
    '-1', which is how a missing integer is written.

    Args:
      values: [N] int64, or string ('' is missing).
    """
    if pa.types.is_integer(values.type):
        return pc.cast(values, pa.int64()).to_numpy()
    integers, plain = plain_integers(values)
    if plain.all() and not pc.any(pc.equal(values, "-1")).as_py():
        return integers
    return np.asarray(values.to_numpy(zero_copy_only=False), str)


def plain_integers(values: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Text [N] as [N] int64, and [N] bool: which of it is an integer, in just those characters.

    Plain integers have no plus sign, no leading zero and at most 18 digits. Missing ('') is -1.
    """
    plain = pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]{0,17}|)$")
    text = pc.if_else(pc.and_(plain, pc.not_equal(values, "")), values, "-1")
    integers = pc.cast(text, pa.int64())
    return integers.to_numpy(zero_copy_only=False), plain.to_numpy(zero_copy_only=False)
