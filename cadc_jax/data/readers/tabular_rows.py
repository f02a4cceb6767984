"""Converts the columns of a table file to the columns of a chunk, and finds malformed values.

A file's parser yields `FileRows`. `chunk` converts them field by field with one of the functions
`as_...`, each of which returns the converted column and the faults of its values.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import raw
from cadc_jax.data.readers import files
from cadc_jax.errors import DataError
from cadc_jax.runtime.storage import AnyPath

EXAMPLES = 5  # malformed rows quoted in the report of a chunk

_MAX_LENGTH = 1_000  # characters of an id or categorical value; more are hardly one
_TEXT = pa.string()

# Text that Arrow takes for a floating-point number.
_NUMBER = r"(?i)^[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|inf(inity)?|nan(\([0-9a-z_]*\))?)$"
# Dates that Arrow takes, and a few that it does not, such as 30 February.
_ZONE = "(Z|[+-][0-9]{2}:?[0-9]{2})$"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?"
_DATE = rf"^[0-9]{{4}}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])([ T]{_TIME}{_ZONE[:-1]}?)?$"


class FileRows(NamedTuple):
    """Rows of a file before conversion."""

    table: pa.Table  # text may be dictionary-encoded
    where: str  # precedes the number of a row in messages
    number: Callable[[int], int]  # index of a row in `table` -> its number in the file
    malformed: int = 0  # rows that could not be split into the columns; not in `table`
    examples: Sequence[tuple[int, str]] = ()  # number and fault of the first of these rows


class _Fault(NamedTuple):
    """A fault of some values of a column."""

    rows: np.ndarray  # [N] bool: which values have it
    template: str  # for `str.format`, which gets the value


Convert = Callable[[pa.Array], tuple[pa.Array, list[_Fault]]]


class Field(NamedTuple):
    """A column of a file and its conversion."""

    name: str  # in the file
    key: str  # name of the column in a chunk
    convert: Convert


def chunk(path: AnyPath, rows: FileRows, fields: Sequence[Field], fold: int | None) -> raw.Chunk:
    """Converts the rows, and leaves out those with a malformed value.

    Args:
      path: the file, for messages.
      rows: rows of the file.
      fields: the columns to convert.
      fold: TRAIN, VALIDATION or TEST for all rows, or None for a chunk without folds.

    Raises:
      DataError: a column has a type that cannot be converted.
    """
    columns, faults = {}, []
    for field in fields:
        columns[field.key], found = _convert(path, rows.table[field.name], field)
        faults += [(field.name, fault) for fault in found if fault.rows.any()]
    examples, malformed = list(rows.examples), rows.malformed
    if faults:
        bad = np.logical_or.reduce([fault.rows for _, fault in faults])
        malformed += int(np.count_nonzero(bad))
        for row in np.flatnonzero(bad)[:EXAMPLES].tolist():
            name, fault = next((name, fault) for name, fault in faults if fault.rows[row])
            examples.append((rows.number(row), _describe(name, fault, rows.table[name][row])))
        good = pa.array(~bad)
        columns = {key: _filter(column, good) for key, column in columns.items()}
    table = pa.table(columns)
    if fold is not None:
        table = table.append_column("fold", pa.array(np.full(len(table), fold, np.int8)))
    quoted = [f"{rows.where}{number}: {fault}" for number, fault in sorted(examples)[:EXAMPLES]]
    return raw.Chunk(table, raw.ReadReport(len(table), malformed=malformed, examples=tuple(quoted)))


def _convert(path: AnyPath, column: pa.ChunkedArray, field: Field) -> tuple[pa.Array, list[_Fault]]:
    encoded = pa.types.is_dictionary(column.type)
    try:
        if encoded:
            return _convert_distinct(column, field.convert)
        return field.convert(column.combine_chunks())
    except pa.ArrowNotImplementedError as error:
        kind = column.type.value_type if encoded else column.type
        raise DataError(
            f"{path}: column '{field.name}' holds {kind}, which cannot be read as "
            f"{field.key.split('/')[0]}; convert it or name another"
        ) from error


def _convert_distinct(column: pa.ChunkedArray, convert: Convert) -> tuple[pa.Array, list[_Fault]]:
    """Converts each distinct value of a dictionary-encoded column once."""
    encoded = raw.one_chunk(column)
    codes, values = encoded.indices, encoded.dictionary
    if codes.null_count:
        codes = pc.fill_null(codes, len(values))
        values = pa.concat_arrays([values, pa.nulls(1, values.type)])
    converted, faults = convert(values)
    rows = codes.to_numpy()
    return converted.take(codes), [_Fault(fault.rows[rows], fault.template) for fault in faults]


def _describe(name: str, fault: _Fault, value: pa.Scalar) -> str:
    """Describes the fault of a value in column `name`."""
    value = value.as_py()
    shown = value[:40] if isinstance(value, str | bytes) else value
    return f"{name}: {fault.template.format(shown)}"


def _filter(column: pa.Array, good: pa.Array) -> pa.Array:
    column = column.filter(good)
    # Encoded again, because the dictionary must not keep malformed values.
    return raw.coded(column) if pa.types.is_dictionary(column.type) else column


def fits_int64(kind: pa.DataType) -> bool:
    """Whether int64 has every value of a type."""
    return pa.types.is_integer(kind) and kind != pa.uint64()


def as_coded(
    column: pa.Array, kind: pa.DataType = _TEXT, required: bool = False
) -> tuple[pa.DictionaryArray, list[_Fault]]:
    """Converts ids or categorical values.

    Args:
      column: [N] numbers, text or bytes.
      kind: int64 or string.
      required: whether a missing value is a fault.

    Returns:
      [N], dictionary-encoded as by `raw.coded`; and the faults.
    """
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    values = _cast(column, kind)
    faults = [_Fault(_not_converted(column, values), "{!r} is not text in UTF-8")]
    if required:
        faults.append(_Fault(_missing(values), "the value is missing"))
    coded = raw.coded(values)
    if kind == _TEXT:  # checked once per distinct value
        texts, codes = coded.dictionary, coded.indices.to_numpy()
        too_long = pc.greater(pc.utf8_length(texts), _MAX_LENGTH)
        has_nul = pc.match_substring(texts, "\0")
        for bad, template in (
            (too_long, f"{{!r}}.. is longer than {_MAX_LENGTH:,} characters"),
            (has_nul, "{!r} has a NUL character in it"),
        ):
            faults.append(_Fault(bad.to_numpy(zero_copy_only=False)[codes], template))
    return coded, faults


def _as_numbers(
    column: pa.Array, good: Callable[[np.ndarray], np.ndarray], meaning: str, required: bool
) -> tuple[pa.Array, list[_Fault]]:
    """Converts numbers.

    Args:
      column: [N] numbers or text.
      good: [N] float32 -> [N] bool: which values are valid.
      meaning: describes valid values, for messages.
      required: whether a missing value is a fault.

    Returns:
      [N] float32, NaN where the value is missing or no number; and the faults.
    """
    numbers = _cast(column, pa.float32())
    values = pc.fill_null(numbers, np.nan).to_numpy()
    faults = [_Fault(_missing(column), "the value is missing")] if required else []
    faults.append(_Fault(_not_converted(column, numbers), "{!r} is not a number"))
    faults.append(_Fault(~good(values), f"{{}} is not {meaning}"))
    return pa.array(values), faults


as_labels = functools.partial(
    _as_numbers, good=lambda values: (values == 0) | (values == 1), meaning="0 or 1", required=True
)
as_values = functools.partial(
    _as_numbers, good=np.isfinite, meaning="a finite number", required=True
)
as_dense = functools.partial(
    _as_numbers, good=lambda values: ~np.isinf(values), meaning="a finite number", required=False
)


def as_seconds(column: pa.Array) -> tuple[pa.Array, list[_Fault]]:
    """Converts timestamps.

    Args:
      column: [N] Arrow times, numbers, or text such as '1500000000', '1.5e9', '2017-07-14' or
        '2017-07-14 02:40:00'; with 'Z' or '+02:00' at its end a time has a zone, without it is UTC.

    Returns:
      [N] int64 seconds; and the faults.
    """
    faults = [_Fault(_missing(column), "the value is missing")]
    if pa.types.is_temporal(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("s"), safe=False), pa.int64())
    if fits_int64(column.type):
        return pc.fill_null(pc.cast(column, pa.int64()), 0), faults
    if pa.types.is_string(column.type):
        column = _with_seconds(column)
    numbers = _cast(column, pa.float64())
    values = pc.fill_null(numbers, np.nan).to_numpy()
    finite, good = np.isfinite(values), np.abs(values) < 2.0**63
    seconds = np.where(good, values, 0).astype(np.int64)
    if pa.types.is_string(column.type):  # float64 would lose digits of large integers
        integers, plain = raw.plain_integers(pc.fill_null(column, ""))
        seconds = np.where(plain, integers, seconds)
    faults.append(_Fault(_not_converted(column, numbers), "{!r} is not a number"))
    faults.append(_Fault(~finite, "{} is not a finite number"))
    faults.append(_Fault(~good, "{} is not a number of 64 bits"))
    return pa.array(seconds), faults


def _with_seconds(column: pa.Array) -> pa.Array:
    """Text [N] in which seconds since 1970, as text, stand in place of dates."""
    is_date = pc.fill_null(pc.match_substring_regex(column, _DATE), False)
    if not pc.any(is_date).as_py():
        return column
    has_zone = pc.match_substring_regex(column, _ZONE)
    seconds = pa.nulls(len(column), pa.int64())
    for chosen, zone in ((pc.invert(has_zone), None), (has_zone, "UTC")):
        dates = pc.if_else(pc.and_(is_date, chosen), column, None)
        times = _cast(dates, pa.timestamp("us", zone))
        whole = pc.cast(times, pa.timestamp("s", zone), safe=False)
        seconds = pc.coalesce(seconds, pc.cast(whole, pa.int64()))
    return pc.coalesce(pc.cast(seconds, pa.string()), column)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column as another type; null where a value is missing or cannot be converted."""
    try:
        return _cast_all(column, kind)
    except pa.ArrowInvalid:
        return _cast_any(pc.if_else(_may_be(column, kind), column, None), kind)


def _cast_all(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return pc.cast(column, kind, safe=not pa.types.is_floating(kind))


def _may_be(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Which values may be converted: all that can be, and hardly another if there are many."""
    if pa.types.is_binary(column.type) and kind == _TEXT:
        return pa.array([value is None or files.is_utf8(value) for value in column.to_pylist()])
    if pa.types.is_string(column.type) and pa.types.is_floating(kind):
        return pc.match_substring_regex(column, _NUMBER)
    return pa.array(np.ones(len(column), bool))


def _cast_any(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """`_cast` for columns with few values that cannot be converted."""
    try:
        return _cast_all(column, kind)
    except pa.ArrowInvalid:  # names only one of them, so halve the column to find all
        middle = len(column) // 2
        if not middle:
            return pa.nulls(len(column), kind)
        return pa.concat_arrays(
            [_cast_any(column[:middle], kind), _cast_any(column[middle:], kind)]
        )


def _missing(column: pa.Array) -> np.ndarray:
    """Where a value is missing: [N] bool."""
    missing = pc.is_null(column, nan_is_null=True)
    if pa.types.is_string(column.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(column, ""), True))
    return missing.to_numpy(zero_copy_only=False)


def _not_converted(column: pa.Array, converted: pa.Array) -> np.ndarray:
    """Where `_cast` could not convert a value: [N] bool."""
    return pc.and_(pc.is_null(converted), pc.is_valid(column)).to_numpy(zero_copy_only=False)
