"""The prepared table: encoded columns as plain `.npy` files, memory-mapped.

    schema.json                       Schema below
    train/ validation/ test/          one .npy a column (rows of the split, in source order)
    users/ items/                     content of each user or item id, where the data has any
    known/                            of the ranking task, each user's training items
    vocabularies/                     raw values by id - 1 (id 0 is 'out of vocabulary'); empty if
                                      ids are hashed
    statistics.json                   mean and standard deviation of each dense feature of rows, as
                                      subtracted and divided by (0 and 1 for flags)

Columns of a split: `user` [N] int32, `item` [N] int32, `label` [N] float32 (clicks) or `value` [N]
float32 (interactions), `dense` [N, F] float32, `categorical` [N, C] int32; validation and test of
a ranking task also have `negatives` [N, K] int32, the items of the '1 + K' protocol.
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
from cadc_jax.runtime import artifacts

Columns = Mapping[str, np.ndarray]
_ROWS = 1 << 16  # copied at a time


@dataclasses.dataclass(frozen=True)
class Features:
    """Names and sizes of a group of features.

    Attributes:
      dense: names of the F dense features.
      categorical: names of the C categorical features.
      vocabulary_sizes: [C] number of ids of each, id 0 (out of vocabulary) included.
      bags: names of the Cb features that have a set of values (items alone have such).
      bag_sizes: [Cb] number of ids of each, likewise.
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
      num_items: likewise for items.
      context: features of rows.
      user_content: features of users, one row of `users/` an id.
      item_content: features of items, likewise.
      user_features, item_features, log_dense: how raw rows were changed; see `encoding.Encoder`.
      hashed: name of a vocabulary -> number of ids its values are hashed to, where it is.
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
    """A prepared table, opened. All arrays are memory-mapped and read-only.

    Attributes:
      schema: what it holds.
      splits: split name -> columns.
      users: `dense` [U, F] and `categorical` [U, C] content of users.
      items: likewise of items, `bags` [I, Cb, L] int32, the ids of each set of values, then -1, and
        `count` [I] int64, training rows of each item (of labelled rows also `clicks` [I] int64).
      known: of the ranking task, the items of each user's training rows: those of user u, sorted,
        are `items[offsets[u] : offsets[u + 1]]`; `offsets` [U + 1] int64, `items` int32.
    """

    schema: Schema
    splits: Mapping[str, Columns]
    users: Columns
    items: Columns
    known: Columns

    def known_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """User and item of each training row of the ranking task: [N], [N] int32, in order."""
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
    """Reads `schema.json` of the table's folder; raises ArtifactError as `open_table`."""
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
    """Writes `schema.json` into the table's folder."""
    artifacts.write_json(path / "schema.json", dataclasses.asdict(schema))


def read_columns(path: pathlib.Path) -> Columns:
    """All `.npy` files of a folder, memory-mapped: file stem -> array."""
    return {file.stem: _open_array(file) for file in sorted(path.glob("*.npy"))}


def write_columns(path: pathlib.Path, columns: Columns) -> None:
    """Writes each array as `<name>.npy` into `path`, which is made if needed."""
    path.mkdir(parents=True, exist_ok=True)
    for name, array in columns.items():
        np.save(path / f"{name}.npy", array)


def write_rows(path: pathlib.Path, columns: Columns, ids: np.ndarray) -> None:
    """Writes the rows `ids` [M], ascending, of columns that may be larger than memory."""
    path.mkdir(parents=True, exist_ok=True)
    for name, column in columns.items():
        writer = ColumnWriter(path / f"{name}.npy", column.dtype, (len(ids), *column.shape[1:]))
        for start in range(0, len(ids), _ROWS):
            writer.append(column[ids[start : start + _ROWS]])
        writer.close()


class ColumnWriter:
    """Writes an array as a `.npy` file, some rows at a time."""

    def __init__(
        self,
        file: pathlib.Path,
        dtype: DTypeLike,
        shape: tuple[int, ...],
        rows: tuple[int, int] | None = None,
    ):
        """Begins `file`, which will hold an array of `dtype` and `shape`.

        Args:
          file: its name.
          dtype, shape: of the whole array.
          rows: [from, to) that this writer writes, while others write the rest of the same file;
            None: all. The one whose rows are from 0 writes the header.
        """
        first, last = (0, shape[0]) if rows is None else rows
        self.left = last - first
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
        """Writes the next rows."""
        if rows.dtype != self.dtype or rows.shape[1:] != self.row:
            raise ValueError(f"{rows.dtype} {rows.shape} rows for {self.dtype} {self.row}")
        self.left -= len(rows)
        self.file.write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        """Ends the file; raises ValueError if it has not got all its rows."""
        self.file.close()
        if self.left:
            raise ValueError(f"{self.file.name}: {self.left} rows are missing")


def _open_shared(file: str, flags: int) -> int:
    """Opens a file for writing in which others write at the same time, elsewhere."""
    # O_DSYNC: NFS may write a page back whole, and with it what it takes for the rows of others
    # there, unless every write goes through to the server.
    return os.open(file, flags & ~os.O_TRUNC | os.O_DSYNC, 0o666)


def _open_array(file: pathlib.Path) -> np.ndarray:
    small = file.stat().st_size < 4096  # an array of no elements cannot be mapped
    return np.load(file, mmap_mode=None if small else "r")
