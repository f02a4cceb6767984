"""Reads Parquet files of rows: small row groups in parallel, large ones in batches, one by one.

A small file may hold any number of rows, and a dictionary page any number of repeats of a large
value. So text stays dictionary-encoded, and at most `_GROUP_BYTES` of rows are decoded at a time,
by the sizes that the file states. Only a page, of at most 2 GiB, is unpacked as a whole.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from cadc_jax.data.readers import files
from cadc_jax.data.readers.tabular_rows import FileRows
from cadc_jax.errors import DataError
from cadc_jax.runtime.storage import AnyPath
from cadc_jax.runtime.text import one_line

_GROUP_BYTES = 1 << 27  # a row group of more decoded bytes is read in batches
_BATCH_BYTES = 1 << 24  # decoded bytes of a batch
_LEAST_ROWS = 64  # of a batch
_BUFFER_BYTES = 1 << 20  # of each column that are read from the file at once


class ParquetFile(NamedTuple):
    """A Parquet file that exists and has the wanted columns."""

    path: AnyPath
    types: dict[str, pa.DataType]  # of the columns to read
    metadata: pyarrow.parquet.FileMetaData


def open_file(path: AnyPath, names: Sequence[str] | None) -> ParquetFile:
    """Reads the metadata of a Parquet file, and checks its columns.

    Args:
      path: the file.
      names: columns to read; None: all.

    Raises:
      DataError: the file is missing or damaged, lacks a column, has no rows, or holds lists or
        other nested values in a column to read.
    """
    try:
        with (
            files.open_stream(path, ahead=False) as source,
            pyarrow.parquet.ParquetFile(source) as file,
        ):
            metadata, schema = file.metadata, file.schema_arrow
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(path, error) from error
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise _damaged_error(path, "its row groups do not add up")
    return ParquetFile(path, column_types(path, schema, names, metadata.num_rows > 0), metadata)


def column_types(
    path: AnyPath, schema: pa.Schema, names: Sequence[str] | None, has_rows: bool
) -> dict[str, pa.DataType]:
    """The type of the values of each column to read; of a dictionary, that of its values.

    Args:
      path: the file.
      schema: of the file.
      names: columns to read; None: all.
      has_rows: whether the file has any.

    Raises:
      DataError: the file lacks a column, has no rows, or holds lists or other nested values in a
        column to read.
    """
    names = schema.names if names is None else names
    files.check_columns(path, names, schema.names)
    if not has_rows:
        raise files.no_rows_error(path)
    types = {name: schema.field(name).type for name in names}
    types = {
        name: kind.value_type if pa.types.is_dictionary(kind) else kind
        for name, kind in types.items()
    }
    for name, kind in types.items():
        if pa.types.is_nested(kind):
            raise DataError(
                f"{path}: column '{name}' holds {kind}, which cannot be read as single values; "
                "convert it or name another"
            )
    return types


def read_parquet_rows(file: ParquetFile) -> Iterator[tuple[int, Callable[[], FileRows]]]:
    """Yields (bytes, function that reads the rows) of each row group, or each batch of a large one.

    Numbers come as they are, text as a dictionary and codes. The bytes are the share of the file by
    its rows, for the progress.
    """
    size, rows = files.stored_size([file.path]), file.metadata.num_rows
    first = 0

    def consumed(count: int) -> int:
        return size * (first + count) // rows - size * first // rows

    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        row_bytes = _row_bytes(file, group)
        if count * row_bytes <= _GROUP_BYTES:
            yield consumed(count), functools.partial(_read_group, file, group, first + 1)
            first += count
            continue
        for table in _read_batches(file, group, max(_LEAST_ROWS, _BATCH_BYTES // row_bytes)):
            yield consumed(len(table)), functools.partial(_numbered, file, table, first + 1)
            first += len(table)


def _row_bytes(file: ParquetFile, group: int) -> int:
    """About how many bytes a row of a row group takes in memory, at most."""
    metadata = file.metadata.row_group(group)
    kinds = (kind for kind in file.types.values() if not _is_text(kind) and kind != pa.null())
    fixed = 8 * len(file.types) + sum(kind.bit_width // 8 for kind in kinds)
    # This counts other columns, too. Sizes of single columns crash on damaged metadata.
    return fixed + max(0, metadata.total_byte_size) // max(1, metadata.num_rows)


def _read_group(file: ParquetFile, group: int, first: int) -> FileRows:
    """Reads a row group, whose first row is number `first` of the file."""
    rows = max(1, file.metadata.row_group(group).num_rows)
    tables = list(_read_batches(file, group, rows))
    return _numbered(file, pa.concat_tables(tables), first)


def _read_batches(file: ParquetFile, group: int, rows: int) -> Iterator[pa.Table]:
    """Yields the rows of a row group in tables of at most so many rows."""
    texts = [name for name, kind in file.types.items() if _is_text(kind)]
    types = {name: kind for name, kind in file.types.items() if name not in texts}
    found = 0
    try:
        source = files.open_stream(file.path, ahead=False)
        with (
            source,
            pyarrow.parquet.ParquetFile(
                source,
                metadata=file.metadata,
                read_dictionary=texts,
                page_checksum_verification=True,
                buffer_size=_BUFFER_BYTES,
            ) as opened,
        ):
            for batch in opened.iter_batches(rows, [group], list(file.types), use_threads=False):
                # The cast replaces dictionaries of numbers by their values.
                columns = {name: pc.cast(batch[name], kind) for name, kind in types.items()}
                columns |= {name: batch[name] for name in texts}
                yield pa.table({name: columns[name] for name in file.types})
                found += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(file.path, error) from error
    if found != file.metadata.row_group(group).num_rows:
        raise _damaged_error(file.path, f"row group {group} has lost rows")


def _numbered(file: ParquetFile, table: pa.Table, first: int) -> FileRows:
    """Rows of a file, beginning with its row number `first`."""
    return FileRows(table, f"{file.path}: row ", lambda row: first + row)


def _is_text(kind: pa.DataType) -> bool:
    """Whether values are text or bytes of any length."""
    tests = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    )
    return any(test(kind) for test in tests)


def _damaged_error(path: AnyPath, error: object) -> DataError:
    return DataError(f"{path}: not a whole Parquet file ({one_line(error)}); {files.HINT}")
