"""Rows of a table file as they stand in it, and what becomes of their columns."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import raw
from cadc_jax.errors import DataError

EXAMPLES = 5  # malformed rows quoted in the report of a chunk
_TEXT = pa.string()
_LONGEST = (
    1_000  # characters of an id or categorical value: vocabularies are as wide as their widest
)


class FileRows(NamedTuple):
    """Rows of a file as they stand in it."""

    table: pa.Table
    where: str  # what goes before the number of a row to tell its place
    number: Callable[[int], int]  # of the row in the file, by its place in the table
    malformed: int = 0  # rows that could not even be told into columns
    examples: Sequence[tuple[int, str]] = ()  # their numbers and faults, the first few


class _Fault(NamedTuple):
    """What is wrong with some values of a column."""

    rows: np.ndarray  # [N] bool, where it is
    what: str  # a template for `format`, which gets the value


Convert = Callable[[pa.Array], tuple[pa.Array, list[_Fault]]]


class Field(NamedTuple):
    """A column of a file, and what becomes of it."""

    name: str
    key: str  # its name in a chunk
    convert: Convert


def chunk(path: Path, rows: FileRows, fields: Sequence[Field], fold: int | None) -> raw.Chunk:
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
        malformed += int(np.count_nonzero(bad))
        for row in np.flatnonzero(bad)[:EXAMPLES].tolist():
            name, fault = next((name, fault) for name, fault in faults if fault.rows[row])
            value = rows.table[name][row].as_py()
            value = value[:40] if isinstance(value, str | bytes) else value
            examples.append((rows.number(row), f"{name}: {fault.what.format(value)}"))
        good = pa.array(~bad)
        columns = {key: _only(column, good) for key, column in columns.items()}
    table = pa.table(columns)
    if fold is not None:
        table = table.append_column("fold", pa.array(np.full(len(table), fold, np.int8)))
    quoted = [f"{rows.where}{number}: {what}" for number, what in sorted(examples)[:EXAMPLES]]
    return raw.Chunk(table, raw.ReadReport(len(table), malformed=malformed, examples=tuple(quoted)))


def _only(column: pa.Array, good: pa.Array) -> pa.Array:
    column = column.filter(good)
    # Coded anew, as what is bad must not stay among the distinct values.
    return raw.coded(column) if pa.types.is_dictionary(column.type) else column


def fits_int64(kind: pa.DataType) -> bool:
    """Whether every value of a type is one of int64."""
    return pa.types.is_integer(kind) and kind != pa.uint64()


def as_coded(
    column: pa.Array, kind: pa.DataType = _TEXT, required: bool = False
) -> tuple[pa.DictionaryArray, list[_Fault]]:
    """Ids or categorical values [N], as `raw.coded` has them, of type `kind`."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    values = _cast(column, kind)
    faults = [_Fault(_lost(column, values), "{!r} is not text in UTF-8")]
    if required:
        faults.append(_Fault(_missing(values), "the value is missing"))
    coded = raw.coded(values)
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


as_labels = functools.partial(
    _numbers, good=lambda values: (values == 0) | (values == 1), meaning="0 or 1", required=True
)
as_values = functools.partial(_numbers, good=np.isfinite, meaning="a finite number", required=True)
as_dense = functools.partial(
    _numbers, good=lambda values: ~np.isinf(values), meaning="a finite number", required=False
)


def as_seconds(column: pa.Array) -> tuple[pa.Array, list[_Fault]]:
    """Seconds [N] i64, of integers, of times, or of numbers like 1.5e9."""
    faults = [_Fault(_missing(column), "the value is missing")]
    if pa.types.is_temporal(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("s"), safe=False), pa.int64())
    if fits_int64(column.type):
        return pc.fill_null(pc.cast(column, pa.int64()), 0), faults
    numbers = _cast(column, pa.float64())
    values = pc.fill_null(numbers, np.nan).to_numpy()
    finite, good = np.isfinite(values), np.abs(values) < 2.0**63
    seconds = np.where(good, values, 0).astype(np.int64)
    if pa.types.is_string(column.type):  # a float64 would lose digits of large integers
        integers, plain = raw.plain_integers(pc.fill_null(column, ""))
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
