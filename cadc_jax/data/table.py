"""The prepared table: encoded columns as plain `.npy` files, memory-mapped.

    schema.json                       `Schema`
    train/ validation/ test/          a .npy file for each column; rows in the order of the source
    users/ items/                     content of each user or item id
    known/                            each user's training items (ranking task only)
    vocabularies/                     raw values by id - 1 (id 0 is 'out of vocabulary'); empty if
                                      ids are hashed
    statistics.json                   mean and standard deviation by which each dense feature of
                                      rows is standardised (0 and 1 for flags)

Columns of a split: `user` [N] int32, `item` [N] int32, `label` [N] float32 (clicks) or `value` [N]
float32 (interactions), `dense` [N, F] float32, `categorical` [N, C] int32. Validation and test
rows of the ranking task also have `negatives` [N, K] int32, the items of the '1 + K' protocol.
"""

import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from cadc_jax.data.raw import SPLITS
from cadc_jax.errors import ArtifactError
from cadc_jax.runtime import durable

Columns = Mapping[str, np.ndarray]
_ROWS = 1 << 16  # rows that `write_rows` copies at a time


@dataclasses.dataclass(frozen=True)
class Features:
    """Names and sizes of a group of features.

    Attributes:
      dense: names of the F dense features.
      categorical: names of the C categorical features.
      vocabulary_sizes: [C] number of ids of each, id 0 (out of vocabulary) included.
      bags: names of the Cb features that hold a set of values; only items have any.
      bag_sizes: [Cb] number of ids of each, id 0 included.
    """

    dense: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    vocabulary_sizes: tuple[int, ...] = ()
    bags: tuple[str, ...] = ()
    bag_sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Schema:
    """What a prepared table holds.

    Attributes:
      task: 'click' (rows have labels) or 'ranking' (rows are positives, users rank items).
      num_users: number of user ids, id 0 (out of vocabulary) included.
      num_items: number of item ids, id 0 included.
      context: features of rows.
      user_content: features of users, in `users/`.
      item_content: features of items, in `items/`.
      user_features, item_features, log_dense: how raw rows were changed; see `encoding.Encoder`.
      hashed: name of each hashed vocabulary -> number of ids that its values are hashed to.
    """

    task: str
    num_users: int
    num_items: int
    context: Features
    user_content: Features
    item_content: Features
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()
    log_dense: bool = False
    hashed: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """An open prepared table. All arrays are memory-mapped and read-only.

    Attributes:
      schema: what it holds.
      splits: split name -> columns.
      users: content of users: `dense` [U, F] float32 and `categorical` [U, C] int32.
      items: content of items: `dense` [I, F] and `categorical` [I, C] as for users; with bags,
        `bags` [I, Cb, L] int32, the ids of each set of values, then -1; `count` [I] int64, training
        rows of each item; for clicks, `clicks` [I] int64, those with label 1.
      known: for the ranking task, `offsets` [U + 1] int64 and `items` [N] int32: the sorted items
        of the training rows of user u are `items[offsets[u] : offsets[u + 1]]`.
    """

    schema: Schema
    splits: Mapping[str, Columns]
    users: Columns
    items: Columns
    known: Columns

    def known_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """User and item of each training row of the ranking task, sorted: [N] and [N] int32."""
        counts = np.diff(self.known["offsets"])
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts), self.known["items"]


def open_table(path: pathlib.Path) -> Table:
    """Opens a table written by `prepare.write_table`.

    Raises:
      ArtifactError: if the folder is not a prepared table.
    """
    return Table(
        schema=open_schema(path),
        splits={split: read_columns(path / split) for split in SPLITS},
        users=read_columns(path / "users"),
        items=read_columns(path / "items"),
        known=read_columns(path / "known"),
    )


def open_schema(path: pathlib.Path) -> Schema:
    """Reads `schema.json` of the table in the folder `path`.

    Raises:
      ArtifactError: if the folder is not a prepared table.
    """
    try:
        fields = json.loads((path / "schema.json").read_text())
        for name in ("context", "user_content", "item_content"):
            fields[name] = Features(**{key: tuple(value) for key, value in fields[name].items()})
        for name in ("user_features", "item_features"):
            fields[name] = tuple(fields[name])
        return Schema(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a prepared table ({error!r})") from None


def write_schema(path: pathlib.Path, schema: Schema) -> None:
    """Writes `schema.json` of the table in the folder `path`."""
    durable.write_json(path / "schema.json", dataclasses.asdict(schema))


def read_columns(path: pathlib.Path) -> Columns:
    """Opens all `.npy` files of a folder by memory mapping: file stem -> array."""
    return {file.stem: _open_array(file) for file in sorted(path.glob("*.npy"))}


def write_columns(path: pathlib.Path, columns: Columns) -> None:
    """Writes each array as `<name>.npy` into the folder `path`, which is made if needed."""
    path.mkdir(parents=True, exist_ok=True)
    for name, array in columns.items():
        np.save(path / f"{name}.npy", array)


def write_rows(path: pathlib.Path, columns: Columns, ids: np.ndarray) -> None:
    """Writes some rows of columns that may be larger than memory, as `write_columns` does.

    Args:
      path: the folder, made if needed.
      columns: name -> [N, ...] array.
      ids: [M] the rows to write, ascending.
    """
    path.mkdir(parents=True, exist_ok=True)
    for name, column in columns.items():
        writer = ColumnWriter(path / f"{name}.npy", column.dtype, (len(ids), *column.shape[1:]))
        for start in range(0, len(ids), _ROWS):
            writer.append(column[ids[start : start + _ROWS]])
        writer.close()


class ColumnWriter:
    """Writes an array to a `.npy` file, some rows at a time."""

    def __init__(
        self,
        file: pathlib.Path,
        dtype: DTypeLike,
        shape: tuple[int, ...],
        rows: tuple[int, int] | None = None,
    ):
        """Opens the file, and writes its header if the rows begin at 0.

        Args:
          file: path of the file.
          dtype: dtype of the array.
          shape: shape of the whole array.
          rows: [from, to) that this writer writes while other writers write the rest of the same
            file; None for all rows.
        """
        first, last = (0, shape[0]) if rows is None else rows
        self.missing = last - first  # rows still to be written
        self.dtype, self.row = np.dtype(dtype), shape[1:]
        self.file = open(file, "wb", opener=None if rows is None else _open_shared)
        header = io.BytesIO()
        fields = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)
        if first:
            row_bytes = self.dtype.itemsize * math.prod(self.row)
            self.file.seek(len(header.getvalue()) + first * row_bytes)
        else:
            self.file.write(header.getvalue())

    def append(self, rows: np.ndarray) -> None:
        """Writes the next rows; raises ValueError if their dtype or shape is not the array's."""
        if rows.dtype != self.dtype or rows.shape[1:] != self.row:
            raise ValueError(f"{rows.dtype} {rows.shape} rows for {self.dtype} {self.row}")
        self.missing -= len(rows)
        self.file.write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        """Closes the file; raises ValueError unless all rows were written."""
        self.file.close()
        if self.missing:
            raise ValueError(f"{self.file.name}: {self.missing} rows are missing")


def _open_shared(file: str, flags: int) -> int:
    """Opens a file to write a part of it while others write other parts."""
    # O_DSYNC sends each write to the server. Without it NFS may later write back a whole page,
    # with stale bytes in place of other writers' rows.
    return os.open(file, flags & ~os.O_TRUNC | os.O_DSYNC, 0o666)


def _open_array(file: pathlib.Path) -> np.ndarray:
    small = file.stat().st_size < 4096  # read at once; an empty array could not be mapped
    return np.load(file, mmap_mode=None if small else "r")
