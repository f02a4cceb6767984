"""Parquet files of rows, read by row groups."""

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
    """A Parquet file that is there and has the columns."""

    path: Path
    types: dict[str, pa.DataType]
    metadata: pyarrow.parquet.FileMetaData


def open_file(path: Path, names: Sequence[str] | None) -> ParquetFile:
    """Checks a Parquet file for the columns of these names (all if None), and for rows."""
    files.open_stream(path).close()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata, layout = file.metadata, file.schema_arrow
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        whole = sum(group.num_rows for group in groups) == metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    if not whole:
        raise _damaged(path, "its row groups do not add up")
    names = layout.names if names is None else names
    files.check_columns(path, names, layout.names)
    if not metadata.num_rows:
        raise files.no_rows(path)
    types = {name: layout.field(name).type for name in names}
    types = {
        name: kind.value_type if pa.types.is_dictionary(kind) else kind
        for name, kind in types.items()
    }
    return ParquetFile(path, types, metadata)


def read_parquet_rows(file: ParquetFile) -> Iterator[tuple[int, Callable[[], FileRows]]]:
    """Yields each row group's share of the bytes, by its rows, and how to read it."""
    size, rows = files.stored_size([file.path]), file.metadata.num_rows
    first = 0
    for number in range(file.metadata.num_row_groups):
        last = first + file.metadata.row_group(number).num_rows
        consumed = size * last // rows - size * first // rows
        yield consumed, functools.partial(_read_group, file, number, first + 1)
        first = last


def _read_group(file: ParquetFile, number: int, first: int) -> FileRows:
    """Reads a row group, of which the first row is number `first` of the file."""
    try:
        with pyarrow.parquet.ParquetFile(
            file.path, metadata=file.metadata, page_checksum_verification=True
        ) as opened:
            table = opened.read_row_group(number, list(file.types), use_threads=False)
        # Dictionaries become their values.
        table = table.select(list(file.types)).cast(pa.schema(file.types))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file.path, error) from error
    if len(table) != file.metadata.row_group(number).num_rows:
        raise _damaged(file.path, f"row group {number} has lost rows")
    return FileRows(table, f"{file.path}: row ", lambda row: first + row)


def _damaged(path: Path, error: object) -> DataError:
    text = " ".join(str(error).split())  # Arrow's may be of several lines
    return DataError(f"{path}: not a whole Parquet file ({text}); {files.HINT}")
