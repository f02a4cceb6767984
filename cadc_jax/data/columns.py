"""Arrays of a folder as plain `.npy` files, checked before anything else sees them.

A folder may come from elsewhere. `open_array` takes a plain file that is exactly as long as its
header says, of numbers alone, and maps it. `check_columns` then compares dtypes, shapes and, if
asked, every value with what the folder is to hold.
"""

import math
import mmap
import pathlib
import stat
from collections.abc import Mapping, Sequence
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cadc_jax.errors import ArtifactError
from cadc_jax.runtime.manifest import ADVICE

_MAPPED_BYTES = 4096  # a smaller file is read at once
_ROWS = 1 << 16  # rows whose values are checked at a time
# What a missing file and, in NumPy, a header that is no header raise.
_HEADER_FAULTS = (
    FileNotFoundError,
    ValueError,
    TypeError,
    SyntaxError,
    TokenError,
    RecursionError,
    OverflowError,
)


class ColumnKind(NamedTuple):
    """What a column has to be.

    Attributes:
      dtype: of its values. Floats have to be finite.
      row: shape of a row; None stands for any size.
      least: smallest integer allowed.
      most: largest integer allowed; an array has one for each place of a row's last axis.
    """

    dtype: DTypeLike
    row: Sequence[int | None] = ()
    least: int = 0
    most: ArrayLike = np.iinfo(np.int64).max


def open_array(file: pathlib.Path) -> np.ndarray:
    """Maps a `.npy` file, read-only.

    Raises:
      ArtifactError: if it is no plain file, holds anything but numbers in C order, or is not as
        long as its header says.
    """
    try:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no plain file")
        with open(file, "rb") as opened:
            if (version := np.lib.format.read_magic(opened)) != (1, 0):
                raise ValueError(f"its .npy version is {version}")
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(opened)
            start = opened.tell()
            size = dtype.itemsize * math.prod(shape)
            if dtype.kind not in "biuf" or fortran_order or min(shape, default=0) < 0:
                raise ValueError(f"it holds {dtype} in an order or shape that is not supported")
            if start + size != status.st_size:
                raise ValueError(f"it has {status.st_size:,} bytes, not {start + size:,}")
            if status.st_size < _MAPPED_BYTES:  # an empty array could not be mapped
                return np.frombuffer(opened.read(size), dtype).reshape(shape)
        return np.memmap(file, dtype, "r", start, shape)
    except _HEADER_FAULTS as error:
        raise ArtifactError(f"{file}: not an array of numbers ({error}); {ADVICE}") from None


def read_part(column: np.ndarray, start: int, stop: int) -> np.ndarray:
    """A copy of some rows. Of a mapped file it is read, so that its pages do not stay in memory."""
    stop = min(stop, len(column))
    base: object = column.base
    if not (isinstance(column, np.memmap) and isinstance(base, mmap.mmap)):  # or a part of it
        return np.array(column[start:stop])
    assert column.filename is not None
    row = column[:1].nbytes
    size = (stop - start) * row // column.itemsize
    found = np.fromfile(column.filename, column.dtype, size, offset=column.offset + start * row)
    return found.reshape(-1, *column.shape[1:])


def check_columns(
    folder: pathlib.Path,
    columns: Mapping[str, np.ndarray],
    kinds: Mapping[str, ColumnKind],
    rows: int | None = None,
    optional: Sequence[str] = (),
    values: bool = False,
) -> None:
    """Checks that a folder has the columns it is to have.

    Args:
      folder: where they come from, for messages.
      columns: name -> [N, ...].
      kinds: what each has to be.
      rows: N; None for any number that is the same for all columns.
      optional: names that may be missing.
      values: whether to read all values: integers in their ranges, floats finite.

    Raises:
      ArtifactError: if a column is missing, surplus, or not what it has to be.
    """
    for name in sorted(kinds.keys() - columns.keys() - set(optional)):
        raise ArtifactError(f"{folder}: no column '{name}'; {ADVICE}")
    for name, column in columns.items():
        if name not in kinds:
            raise ArtifactError(f"{folder}: a column '{name}' that does not belong here; {ADVICE}")
        fault = _fault_of_shape(column, kinds[name], rows)
        if not fault and values:
            fault = _fault_of_values(column, kinds[name])
        if fault:
            raise ArtifactError(f"{folder / name}.npy: {fault}; {ADVICE}")
        rows = len(column) if rows is None else rows


def _fault_of_shape(column: np.ndarray, kind: ColumnKind, rows: int | None) -> str | None:
    wanted = (rows, *kind.row)
    fits = column.ndim == len(wanted) and all(
        size in (None, found) for size, found in zip(wanted, column.shape, strict=True)
    )
    if fits and column.dtype == np.dtype(kind.dtype):
        return None
    sizes = ", ".join("any" if size is None else str(size) for size in wanted)
    return f"{column.dtype} of shape {column.shape} where {np.dtype(kind.dtype)} [{sizes}] belongs"


def _fault_of_values(column: np.ndarray, kind: ColumnKind) -> str | None:
    for start in range(0, len(column), _ROWS):
        block = column[start : start + _ROWS]
        if block.dtype.kind == "f":
            bad = ~np.isfinite(block)
        else:
            bad = (block < kind.least) | (block > kind.most)
        if bad.any():
            place = tuple(int(x) for x in np.argwhere(bad)[0])
            return f"row {start + place[0]}: the value {block[place]} is out of range"
    return None
