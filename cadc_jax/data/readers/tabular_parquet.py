"""Reads Parquet files of rows, one row group at a time."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet

from cadc_jax.data.readers import files
from cadc_jax.data.readers.tabular_rows import FileRows
from cadc_jax.errors import DataError


class ParquetFile(NamedTuple):
    """A Parquet file that exists and has the wanted columns."""

    path: Path
    types: dict[str, pa.DataType]  # of the columns to read
    metadata: pyarrow.parquet.FileMetaData


def open_file(path: Path, names: Sequence[str] | None) -> ParquetFile:
    """Reads the metadata of a Parquet file, and checks its columns.

    Args:
      path: the file.
      names: columns to read; None: all.

    Raises:
      DataError: the file is missing or damaged, lacks a column, or has no rows.
    """
    files.open_stream(path).close()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(path, error) from error
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise _damaged_error(path, "its row groups do not add up")
    names = schema.names if names is None else names
    files.check_columns(path, names, schema.names)
    if not metadata.num_rows:
        raise files.no_rows_error(path)
    types = {name: schema.field(name).type for name in names}
    types = {
        name: kind.value_type if pa.types.is_dictionary(kind) else kind
        for name, kind in types.items()
    }
    return ParquetFile(path, types, metadata)


def read_parquet_rows(file: ParquetFile) -> Iterator[tuple[int, Callable[[], FileRows]]]:
    """Yields (bytes, function that reads the rows) of each row group.

    The bytes are the group's share of the file by its rows, for the progress.
    """
    size, rows = files.stored_size([file.path]), file.metadata.num_rows
    first = 0
    for group in range(file.metadata.num_row_groups):
        last = first + file.metadata.row_group(group).num_rows
        consumed = size * last // rows - size * first // rows
        yield consumed, functools.partial(_read_group, file, group, first + 1)
        first = last


def _read_group(file: ParquetFile, group: int, first: int) -> FileRows:
    """Reads a row group, whose first row is number `first` of the file."""
    try:
        with pyarrow.parquet.ParquetFile(
            file.path, metadata=file.metadata, page_checksum_verification=True
        ) as opened:
            table = opened.read_row_group(group, list(file.types), use_threads=False)
        # The cast replaces dictionaries by their values.
        table = table.select(list(file.types)).cast(pa.schema(file.types))
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(file.path, error) from error
    if len(table) != file.metadata.row_group(group).num_rows:
        raise _damaged_error(file.path, f"row group {group} has lost rows")
    return FileRows(table, f"{file.path}: row ", lambda row: first + row)


def _damaged_error(path: Path, error: object) -> DataError:
    text = " ".join(str(error).split())  # Arrow's messages may have several lines
    return DataError(f"{path}: not a whole Parquet file ({text}); {files.HINT}")
