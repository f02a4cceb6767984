"""Columns in little space: Parquet files, and back to the `.npy` files that training maps.

A feature of rows or ids is a Parquet column of its own, `dense.<name>` or `categorical.<name>`, so
any Parquet reader shows a table that people understand. Other columns [N, ...] are rows of bytes
(fixed-size binary, little-endian, C order). A column of width 0 is left out. The encoding of each
column is the one that makes the beginning of the file smallest; zstd comes on top.

A file may come from elsewhere: names and types have to be those that are expected. Values are
checked by `table.open_table`, after unpacking.
"""

import contextlib
import io
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cadc_jax.data.columns import ColumnKind
from cadc_jax.data.raw import TEXT, Values
from cadc_jax.data.table import Columns, ColumnWriter, Features, write_columns, write_text
from cadc_jax.errors import ArtifactError
from cadc_jax.runtime.text import one_line

ADVICE = "get a whole copy, or compress again"
VALUE = "value"  # the column of a file of text or numbers alone
_ROWS = 1 << 20  # of a row group
_READ_ROWS = 1 << 16
_LEVEL, _TRIAL_LEVEL = 12, 3  # of zstd
_DICTIONARY = "RLE_DICTIONARY"
_INTEGERS = (_DICTIONARY, "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT")
_FLOATS = (_DICTIONARY, "BYTE_STREAM_SPLIT")
_BYTES = ("PLAIN", "BYTE_STREAM_SPLIT")
_TEXT = ("PLAIN", "DELTA_BYTE_ARRAY")


def pack(file: pathlib.Path, columns: Columns, features: Features | None = None) -> None:
    """Writes columns, which may be larger than memory, as a Parquet file.

    Args:
      file: the file; its folder is made if needed.
      columns: name -> [N, ...].
      features: names of the features of `dense` [N, F] and `categorical` [N, C], if there are any.
    """
    (rows,) = {len(column) for column in columns.values()}

    def block(start: int) -> pa.Table:
        part = {name: np.asarray(x[start : start + _ROWS]) for name, x in columns.items()}
        return pa.table(dict(_arrow_columns(part, features or Features())))

    _write(file, rows, block)


def pack_values(file: pathlib.Path, values: Values) -> None:
    """Writes numbers or text as a Parquet file of one column."""
    whole = pa.table({VALUE: pa.array(values)})
    _write(file, len(whole), lambda start: whole.slice(start, _ROWS))


def unpack(
    file: pathlib.Path,
    folder: pathlib.Path,
    kinds: Mapping[str, ColumnKind],
    features: Features | None = None,
    rows: int | None = None,
) -> int:
    """Writes the columns of a Parquet file as `.npy` files.

    Args:
      file: what `pack` wrote.
      folder: made if needed.
      kinds: name -> what each column has to be.
      features: as for `pack`.
      rows: how many there are to be; None for any number.

    Returns:
      The number of rows.

    Raises:
      ArtifactError: if the file holds anything else.
    """
    features = features or Features()
    opened = _open(file)
    shapes = {name: _row_shape(opened, name, kind, features) for name, kind in kinds.items()}
    _check_types(file, opened, dict(_arrow_types(kinds, shapes, features)))
    found = opened.metadata.num_rows if opened.metadata.num_columns else rows or 0
    if rows not in (None, found):
        raise ArtifactError(f"{file}: {found:,} rows of {rows:,}; {ADVICE}")
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        name: ColumnWriter(folder / f"{name}.npy", kind.dtype, (found, *shapes[name]))
        for name, kind in kinds.items()
    }
    with contextlib.ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.file.close)
        for batch in _batches(file, opened):
            for name, kind in kinds.items():
                dtype = np.dtype(kind.dtype)
                writers[name].append(_numpy(batch, name, dtype, shapes[name], features))
        for name, writer in writers.items():
            if not math.prod(shapes[name]):  # a file may have no column at all, and then no rows
                writer.append(np.zeros((writer.missing, *shapes[name]), kinds[name].dtype))
            if writer.missing:
                raise ArtifactError(f"{file}: {writer.missing:,} rows are missing; {ADVICE}")
    return found


def unpack_values(file: pathlib.Path, folder: pathlib.Path, name: str) -> int:
    """Writes what `pack_values` wrote as `<name>.npy` int64, or text as the folder `name`.

    Returns:
      How many values there are.

    Raises:
      ArtifactError: if the file holds anything else.
    """
    values = read_values(file)
    if isinstance(values, np.ndarray):
        write_columns(folder, {name: values})
    else:
        write_text(folder / name, values)
    return len(values)


def read_values(file: pathlib.Path) -> Values:
    """Reads what `pack_values` wrote.

    Raises:
      ArtifactError: if the file holds anything else.
    """
    opened = _open(file)
    kind = opened.schema_arrow.field(0).type if len(opened.schema_arrow) else None
    _check_types(file, opened, {VALUE: kind if kind in (pa.int64(), pa.string()) else TEXT})
    values = pa.chunked_array([batch[VALUE] for batch in _batches(file, opened)], kind)
    return values.to_numpy() if kind == pa.int64() else values.cast(TEXT).combine_chunks()


def _features_of(features: Features) -> dict[str, tuple[str, ...]]:
    """The columns that are split into one for each feature, and the names of these."""
    return {"dense": features.dense, "categorical": features.categorical}


def _arrow_columns(columns: Columns, features: Features) -> Iterator[tuple[str, pa.Array]]:
    """The Arrow columns of a block of rows."""
    split = _features_of(features)
    for name, column in columns.items():
        if name in split:
            for place, feature in enumerate(split[name]):
                yield f"{name}.{feature}", pa.array(np.ascontiguousarray(column[:, place]))
        elif column.ndim == 1:
            yield name, pa.array(column)
        elif width := math.prod(column.shape[1:]) * column.itemsize:
            data = pa.py_buffer(np.ascontiguousarray(column))
            kind = pa.binary(width)
            yield name, pa.FixedSizeBinaryArray.from_buffers(kind, len(column), [None, data])


def _arrow_types(
    kinds: Mapping[str, ColumnKind], shapes: Mapping[str, tuple[int, ...]], features: Features
) -> Iterator[tuple[str, pa.DataType]]:
    """The Arrow columns of columns whose rows have these shapes."""
    split = _features_of(features)
    for name, kind in kinds.items():
        dtype = np.dtype(kind.dtype)
        if name in split:
            for feature in split[name]:
                yield f"{name}.{feature}", pa.from_numpy_dtype(dtype)
        elif not kind.row:
            yield name, pa.from_numpy_dtype(dtype)
        elif width := math.prod(shapes[name]) * dtype.itemsize:
            yield name, pa.binary(width)


def _row_shape(
    opened: parquet.ParquetFile, name: str, kind: ColumnKind, features: Features
) -> tuple[int, ...]:
    """The shape of a row of a column; the size that `kind` leaves open comes from the file."""
    split = _features_of(features)
    if name in split:
        return (len(split[name]),)
    place = opened.schema_arrow.get_field_index(name)
    found = opened.schema_arrow.field(place).type if place >= 0 else None
    width = found.byte_width if isinstance(found, pa.FixedSizeBinaryType) else 0
    known = math.prod(size for size in kind.row if size is not None)
    left = width // (known * np.dtype(kind.dtype).itemsize) if known else 0
    return tuple(left if size is None else size for size in kind.row)


def _numpy(
    batch: pa.RecordBatch,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    features: Features,
) -> np.ndarray:
    """A column of a batch: [n, *shape]."""
    split = _features_of(features)
    if name in split:
        whole = np.empty((len(batch), *shape), dtype)
        for place, feature in enumerate(split[name]):
            whole[:, place] = batch[f"{name}.{feature}"].to_numpy()
        return whole
    if not shape:
        return batch[name].to_numpy()
    count, column = len(batch) * math.prod(shape), np.zeros(0, dtype)
    if count:  # a column of width 0 is not there
        data = batch[name]
        start = data.offset * math.prod(shape) * dtype.itemsize
        column = np.frombuffer(data.buffers()[1], dtype, count, start)
    return column.reshape(len(batch), *shape)


def _open(file: pathlib.Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(
            f"{file}: not a Parquet file ({one_line(error)[:200]}); {ADVICE}"
        ) from None


def _check_types(
    file: pathlib.Path, opened: parquet.ParquetFile, wanted: Mapping[str, pa.DataType]
) -> None:
    """Raises ArtifactError unless the file has exactly these columns."""
    found = opened.schema_arrow
    types = dict(zip(found.names, found.types, strict=True))
    if len(found.names) != len(wanted) or types != dict(wanted):
        names = sorted({x for x in types.keys() | wanted.keys() if types.get(x) != wanted.get(x)})
        name = names[0] if names else "twice"
        raise ArtifactError(
            f"{file}: column '{name}' is {types.get(name, 'not there')} where "
            f"{wanted.get(name, 'none')} belongs; {ADVICE}"
        )


def _batches(file: pathlib.Path, opened: parquet.ParquetFile) -> Iterator[pa.RecordBatch]:
    """The rows, some at a time; nothing is missing in them."""
    try:
        for batch in opened.iter_batches(_READ_ROWS):
            if any(column.null_count for column in batch.columns):
                raise ArtifactError(f"{file}: a value is missing; {ADVICE}")
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{file}: damaged ({one_line(error)[:200]}); {ADVICE}") from None


def _write(file: pathlib.Path, rows: int, block: Callable[[int], pa.Table]) -> None:
    first = block(0)
    options = _options({name: _smallest(first.select([name])) for name in first.column_names})
    file.parent.mkdir(parents=True, exist_ok=True)
    with parquet.ParquetWriter(file, first.schema, **options, compression_level=_LEVEL) as writer:
        for start in range(0, max(rows, 1), _ROWS):
            writer.write_table(block(start) if start else first, row_group_size=_ROWS)


def _smallest(column: pa.Table) -> str:
    """The encoding that makes a table of one column smallest."""
    kind = column.schema.types[0]
    choices: tuple[str, ...]
    if pa.types.is_integer(kind):
        choices = _INTEGERS
    elif pa.types.is_floating(kind):
        choices = _FLOATS
    else:
        choices = _BYTES if pa.types.is_fixed_size_binary(kind) else _TEXT
    (name,) = column.column_names

    def size(encoding: str) -> int:
        written = io.BytesIO()
        options = _options({name: encoding})
        parquet.write_table(column, written, **options, compression_level=_TRIAL_LEVEL)
        return written.tell()

    return min(choices, key=size)


def _options(encodings: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of a Parquet writer for the encoding of each column."""
    return {
        "compression": "zstd",
        "use_dictionary": [name for name, x in encodings.items() if x == _DICTIONARY],
        "column_encoding": {name: x for name, x in encodings.items() if x != _DICTIONARY} or None,
        "write_statistics": False,
        "store_schema": False,
    }
