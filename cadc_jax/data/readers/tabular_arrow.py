"""Reads Arrow IPC files of rows, streams and files, such as a data set that was saved to disk.

A file is only data: nothing but its schema and its record batches is read. A batch is unpacked as a
whole, and small ones are joined.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data.readers import files
from cadc_jax.data.readers.tabular_parquet import column_types
from cadc_jax.data.readers.tabular_rows import FileRows
from cadc_jax.errors import DataError
from cadc_jax.runtime.storage import AnyPath
from cadc_jax.runtime.text import one_line

_ROWS = 1 << 16  # of the small batches that are joined, at most
_BYTES = 1 << 24
_FILE_MAGIC = b"ARROW1"  # a stream begins with the length of its schema


class ArrowFile(NamedTuple):
    """An Arrow file that exists and has the wanted columns."""

    path: AnyPath
    types: dict[str, pa.DataType]  # of the columns to read


def schema_of(path: AnyPath) -> pa.Schema:
    """The schema of an Arrow file.

    Raises:
      DataError: the file is missing or damaged.
    """
    schema, _, _ = next(_batches(path))
    return schema


def open_file(path: AnyPath, names: Sequence[str] | None) -> ArrowFile:
    """Reads the schema of an Arrow file, and checks its columns.

    Args:
      path: the file.
      names: columns to read; None: all.

    Raises:
      DataError: the file is missing or damaged, lacks a column, has no rows, or holds lists or
        other nested values in a column to read.
    """
    batches = _batches(path)
    schema, _, _ = next(batches)
    has_rows = any(batch is not None and batch.num_rows for _, batch, _ in batches)
    return ArrowFile(path, column_types(path, schema, names, has_rows))


def read_arrow_rows(file: ArrowFile) -> Iterator[tuple[int, Callable[[], FileRows]]]:
    """Yields (bytes, function that reads the rows) of each large batch, or of some small ones."""
    waiting: list[pa.RecordBatch] = []
    first, consumed = 1, 0
    for _, batch, size in _batches(file.path):
        consumed += size
        if batch is None:
            continue
        waiting.append(batch.select(list(file.types)))
        rows, held = sum(x.num_rows for x in waiting), sum(x.nbytes for x in waiting)
        if rows >= _ROWS or held >= _BYTES:
            yield consumed, functools.partial(_joined, file, waiting, first)
            first, consumed, waiting = first + rows, 0, []
    if waiting:
        yield consumed, functools.partial(_joined, file, waiting, first)


def _batches(path: AnyPath) -> Iterator[tuple[pa.Schema, pa.RecordBatch | None, int]]:
    """Yields the schema, and then with it each batch and the bytes that were read for it."""
    with files.open_stream(path) as source:
        is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        source.seek(0)
        try:
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            for field in reader.schema:
                _ = field.name, str(field.type)  # decodes names, which may be damaged
            yield reader.schema, None, 0
            before = 0
            for number in range(reader.num_record_batches) if is_file else iter(int, 1):
                try:
                    batch = reader.get_batch(number) if is_file else reader.read_next_batch()
                except StopIteration:
                    return
                batch.validate(full=True)
                here = source.tell()
                yield reader.schema, batch, max(0, here - before)
                before = here
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{path}: not a whole Arrow file ({one_line(error)}); {files.HINT}"
            ) from error


def _joined(file: ArrowFile, batches: Sequence[pa.RecordBatch], first: int) -> FileRows:
    """Rows of consecutive batches, the first of which is row number `first` of the file."""
    table = pa.Table.from_batches(batches).unify_dictionaries()
    columns = {}
    for name, kind in file.types.items():
        column = table[name]
        if pa.types.is_dictionary(column.type) and not pa.types.is_string(kind):
            column = pc.cast(column, kind)
        columns[name] = column
    return FileRows(pa.table(columns), f"{file.path}: row ", lambda row: first + row)
