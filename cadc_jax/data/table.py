"""The prepared table: encoded columns and text as plain `.npy` files, memory-mapped.

    schema.json                       `Schema`
    train/ validation/ test/          a .npy file for each column; rows in the order of the source
    fold_in/                          with a split by users: the known rows of held-out users
    users/ items/                     content of each user or item id; `titles/` is text
    known/                            each user's training and fold-in items (ranking task only)
    vocabularies/                     raw values by id - 1 (id 0 is 'out of vocabulary'), integers
                                      as a file or text as a folder; empty if ids are hashed
    statistics.json                   mean and standard deviation by which each dense feature of
                                      rows is standardised (0 and 1 for flags)

Columns of a split: `user` [N] int32, `item` [N] int32, `label` [N] float32 (clicks) or `value` [N]
float32 (interactions), `dense` [N, F] float32, `categorical` [N, C] int32. Validation and test
rows of the ranking task also have `negatives` [N, K] int32, the items of the '1 + K' protocol.
Text is a folder of two arrays; see `write_text`.
"""

import contextlib
import dataclasses
import functools
import io
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from cadc_jax.data.columns import ColumnKind, check_columns, open_array
from cadc_jax.data.raw import PARTS, TEST, TRAIN, VALIDATION
from cadc_jax.errors import ArtifactError
from cadc_jax.runtime import durable, parts
from cadc_jax.runtime.manifest import ADVICE, check, read_json

Columns = Mapping[str, np.ndarray]
T = TypeVar("T")
KNOWN = "known"  # folder of the items that each user is known to have
TITLES = "titles"  # folder of text among the content of users or items
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


class Lazy(Mapping[str, T]):
    """A mapping whose values are opened when they are first asked for."""

    def __init__(self, names: Iterable[str], load: Callable[[str], T]):
        self._names, self._load = tuple(names), functools.cache(load)

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclasses.dataclass(frozen=True)
class Table:
    """An open prepared table. All arrays are memory-mapped and read-only.

    Files of rows are opened when they are asked for: what trains on a sample opens neither the
    rows of the training split nor `known`.

    Attributes:
      schema: what it holds.
      splits: split name -> columns; a table that was unpacked from a compressed set has no 'train'.
        Only a split by users has 'fold_in', the rows from which the vectors of held-out users are
        computed; these users have no training rows.
      users: content of users: `dense` [U, F] float32 and `categorical` [U, C] int32.
      items: content of items: `dense` [I, F] and `categorical` [I, C] as for users; with bags,
        `bags` [I, Cb, L] int32, the ids of each set of values, then -1; `count` [I] int64, training
        rows of each item; for clicks, `clicks` [I] int64, those with label 1.
      known: for the ranking task, `offsets` [U + 1] int64 and `items` [N] int32: the sorted items
        of the training rows of user u, or of the fold-in rows if u is held out, are
        `items[offsets[u] : offsets[u + 1]]`. They are no candidates when the user's items are
        ranked; nothing else may open them.
    """

    schema: Schema
    splits: Mapping[str, Columns]
    users: Columns
    items: Columns
    known: Columns

    def known_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """User and item of each training and fold-in row, sorted: [N] and [N] int32."""
        counts = np.diff(self.known["offsets"])
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts), self.known["items"]


def open_table(path: pathlib.Path, values: bool = False) -> Table:
    """Opens a table written by `prepare.write_table`; that of a compressed set has `train/row.npy`.

    Args:
      path: its folder.
      values: whether to check all values too, as for a folder from elsewhere. Names, dtypes and
        shapes are always checked.

    Raises:
      ArtifactError: if the folder is not a prepared table.
    """
    schema = open_schema(path)
    users, items = (read_columns(path / name) for name in ("users", "items"))

    def open_split(split: str) -> Columns:
        held_out = split in (PARTS[VALIDATION], PARTS[TEST])
        return open_rows(path / split, schema, held_out=held_out, values=values)

    @functools.cache
    def open_known() -> Columns:
        known = read_columns(path / KNOWN)
        _check_known(path / KNOWN, known, schema, values)
        return known

    splits = Lazy([name for name in PARTS if (path / name).is_dir()], open_split)
    names = ("offsets", "items") if schema.task == "ranking" else ()
    known = Lazy(names, lambda name: open_known()[name])
    sides = (("users", users, schema.num_users), ("items", items, schema.num_items))
    for side, columns, size in sides:
        check_columns(path / side, columns, content_kinds(schema, side), size, (), values)
        if values and (found := read_titles(path, side)) is not None and len(found) != size:
            raise ArtifactError(f"{path / side / TITLES}: {len(found)} titles of {size}; {ADVICE}")
    if values:
        _ = dict(splits), dict(known)  # opens and checks all of them
    return Table(schema, splits, users, items, known)


def with_training_rows(table: Table, path: pathlib.Path) -> Table:
    """The table with the rows in the folder `path`, such as a sample, as its training rows."""

    def open_split(split: str) -> Columns:
        return table.splits[split] if split != PARTS[TRAIN] else open_rows(path, table.schema)

    names = dict.fromkeys((PARTS[TRAIN], *table.splits))
    return dataclasses.replace(table, splits=Lazy(names, open_split))


def read_titles(path: pathlib.Path, side: str) -> pa.Array | None:
    """Titles of the 'users' or 'items' of the table in the folder `path`: [ids] text, if any."""
    folder = path / side / TITLES
    return read_text(folder) if folder.exists() else None


def open_rows(
    path: pathlib.Path, schema: Schema, held_out: bool = False, values: bool = False
) -> Columns:
    """Opens the columns of some rows of a table: a split, or a sample of the training rows.

    Args:
      path: their folder.
      schema: of the table.
      held_out: whether they are validation or test rows.
      values: whether to check all values.

    Raises:
      ArtifactError: if the folder does not hold such rows.
    """
    columns = read_columns(path)
    kinds = row_kinds(schema, held_out)
    optional = [] if held_out else ["row"]
    if not held_out:
        kinds["row"] = ColumnKind(np.int64)
    check_columns(path, columns, kinds, None, optional, values)
    if values and "row" in columns and np.any(np.diff(columns["row"]) <= 0):
        raise ArtifactError(f"{path / 'row.npy'}: the row numbers do not ascend; {ADVICE}")
    if values and schema.task == "click" and not np.isin(columns["label"], (0, 1)).all():
        raise ArtifactError(f"{path / 'label.npy'}: a label is neither 0 nor 1; {ADVICE}")
    return columns


def row_kinds(schema: Schema, held_out: bool = False) -> dict[str, ColumnKind]:
    """The columns of rows of a table: name -> what it has to be.

    Args:
      schema: of the table.
      held_out: whether they are validation or test rows.
    """
    ranking = schema.task == "ranking"
    kinds = {
        "user": ColumnKind(np.int32, (), 0, schema.num_users - 1),
        "item": ColumnKind(np.int32, (), 0, schema.num_items - 1),
        "value" if ranking else "label": ColumnKind(np.float32),
        **_feature_kinds(schema.context),
    }
    if ranking and held_out:
        kinds["negatives"] = ColumnKind(np.int32, (None,), 0, schema.num_items - 1)
    return kinds


def _feature_kinds(features: Features) -> dict[str, ColumnKind]:
    last = np.array(features.vocabulary_sizes, np.int64) - 1
    return {
        "dense": ColumnKind(np.float32, (len(features.dense),)),
        "categorical": ColumnKind(np.int32, (len(features.categorical),), 0, last),
    }


def content_kinds(schema: Schema, side: str) -> dict[str, ColumnKind]:
    """The columns of `users/` or `items/`: name -> what it has to be."""
    if side == "users":
        return _feature_kinds(schema.user_content)
    features = schema.item_content
    kinds = _feature_kinds(features) | {"count": ColumnKind(np.int64)}
    if schema.task == "click":
        kinds["clicks"] = ColumnKind(np.int64)
    if features.bags:
        last = np.array(features.bag_sizes, np.int64)[:, None] - 1
        kinds["bags"] = ColumnKind(np.int32, (len(features.bags), None), -1, last)
    return kinds


def _check_known(path: pathlib.Path, known: Columns, schema: Schema, values: bool) -> None:
    """Checks `Table.known`: offsets that ascend from 0 to the number of items, items sorted."""
    kinds = {
        "offsets": (ColumnKind(np.int64), schema.num_users + 1),
        "items": (ColumnKind(np.int32, (), 0, schema.num_items - 1), None),
    }
    if known.keys() != kinds.keys():
        raise ArtifactError(f"{path}: holds {sorted(known)}, not {sorted(kinds)}; {ADVICE}")
    for name, (kind, rows) in kinds.items():
        check_columns(path, {name: known[name]}, {name: kind}, rows, (), values)
    offsets, items = known["offsets"], known["items"]
    _check_offsets(path / "offsets.npy", offsets, len(items))
    if values:
        starts = np.zeros(len(items) + 1, bool)
        starts[offsets] = True
        if np.any((np.diff(items) < 0) & ~starts[1:-1]):
            raise ArtifactError(f"{path / 'items.npy'}: a user's items are not sorted; {ADVICE}")


_FEATURES_KIND = {
    "dense": [str],
    "categorical": [str],
    "vocabulary_sizes": [int],
    "bags": [str],
    "bag_sizes": [int],
}
_SCHEMA_KIND = {
    "task": str,
    "num_users": int,
    "num_items": int,
    "context": _FEATURES_KIND,
    "user_content": _FEATURES_KIND,
    "item_content": _FEATURES_KIND,
    "user_features": [str],
    "item_features": [str],
    "log_dense": bool,
    "hashed": {str: int},
}


def open_schema(path: pathlib.Path) -> Schema:
    """Reads `schema.json` of the table in the folder `path`.

    Raises:
      ArtifactError: if the folder is not a prepared table.
    """
    try:
        fields = read_json(path / "schema.json")
        check(fields, _SCHEMA_KIND, "schema.json")
        groups = {
            name: Features(**{key: tuple(fields[name][key]) for key in _FEATURES_KIND})
            for name in ("context", "user_content", "item_content")
        }
        names = {name: tuple(fields[name]) for name in ("user_features", "item_features")}
        known = {name: fields[name] for name in _SCHEMA_KIND}
        schema = Schema(**(known | groups | names))
        _check_sizes(schema)
        return schema
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a prepared table ({error}); {ADVICE}") from None


def _check_sizes(schema: Schema) -> None:
    """Raises ValueError if sizes or names of a schema contradict each other."""
    if schema.task not in ("click", "ranking"):
        raise ValueError(f"task {schema.task!r}")
    sizes = [schema.num_users, schema.num_items]
    for group in (schema.context, schema.user_content, schema.item_content):
        for names, of_names in (
            (group.categorical, group.vocabulary_sizes),
            (group.bags, group.bag_sizes),
        ):
            if len(names) != len(of_names) or len(set(names)) != len(names):
                raise ValueError(
                    f"{len(names)} features and {len(of_names)} sizes, or a name twice"
                )
            sizes += of_names
    if not all(1 <= size < 1 << 31 for size in sizes) or min(sizes[:2]) < 2:
        raise ValueError("a number of ids is out of range")


def write_schema(path: pathlib.Path, schema: Schema) -> None:
    """Writes `schema.json` of the table in the folder `path`."""
    durable.write_json(path / "schema.json", dataclasses.asdict(schema))


def read_columns(path: pathlib.Path) -> Columns:
    """Opens all `.npy` files of a folder by memory mapping: file stem -> array."""
    return {file.stem: open_array(file) for file in sorted(path.glob("*.npy"))}


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


def write_blocks(path: pathlib.Path, blocks: Iterable[Columns]) -> int:
    """Writes columns that come in blocks of rows, as `write_columns` does.

    Args:
      path: the folder, made if needed.
      blocks: name -> [n, ...] array; at least one block.

    Returns:
      The number of rows.
    """
    path.mkdir(parents=True, exist_ok=True)
    writers: dict[str, ColumnWriter] = {}
    number = 0
    with contextlib.ExitStack() as files:
        for block in blocks:
            number += len(next(iter(block.values())))
            for name, rows in block.items():
                if name not in writers:
                    file, shape = path / f"{name}.npy", (0, *rows.shape[1:])
                    writers[name] = ColumnWriter(file, rows.dtype, shape, grows=True)
                    files.enter_context(writers[name].file)
                writers[name].append(rows)
        for writer in writers.values():
            writer.close()
    return number


def write_text(folder: pathlib.Path, values: pa.Array) -> None:
    """Writes text as two arrays, in which a long value does not widen the others.

    Text i is the bytes from `offsets[i]` to `offsets[i + 1]` of `utf8`.

    Args:
      folder: made for `offsets.npy` [N + 1] int64 and `utf8.npy` uint8.
      values: [N] large_string without nulls.
    """
    offsets, utf8 = np.zeros(1, np.int64), np.zeros(0, np.uint8)
    if len(values):
        _, starts, content = values.buffers()
        offsets = np.frombuffer(starts, np.int64)[values.offset : values.offset + len(values) + 1]
        if content is not None:
            utf8 = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]]
    write_columns(folder, {"offsets": offsets - offsets[0], "utf8": utf8})


def read_text(folder: pathlib.Path) -> pa.Array:
    """Maps what `write_text` wrote: [N] large_string.

    Raises:
      ArtifactError: if the folder holds anything else, or its text is not UTF-8.
    """
    offsets, utf8 = open_array(folder / "offsets.npy"), open_array(folder / "utf8.npy")
    check_columns(folder, {"offsets": offsets}, {"offsets": ColumnKind(np.int64)})
    check_columns(folder, {"utf8": utf8}, {"utf8": ColumnKind(np.uint8)})
    _check_offsets(folder / "offsets.npy", offsets, len(utf8))
    buffers = pa.py_buffer(offsets), pa.py_buffer(utf8)
    values = pa.LargeStringArray.from_buffers(len(offsets) - 1, *buffers)
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        raise ArtifactError(f"{folder / 'utf8.npy'}: the text is not UTF-8; {ADVICE}") from None
    return values


def _check_offsets(file: pathlib.Path, offsets: np.ndarray, end: int) -> None:
    """Raises ArtifactError unless offsets ascend from 0 to `end`."""
    ends = len(offsets) and offsets[0] == 0 and offsets[-1] == end
    if not ends or np.any(np.diff(offsets) < 0):
        raise ArtifactError(f"{file}: the offsets do not ascend from 0 to {end:,}; {ADVICE}")


class ColumnWriter:
    """Writes an array to a `.npy` file, some rows at a time."""

    def __init__(
        self,
        file: pathlib.Path,
        dtype: DTypeLike,
        shape: tuple[int, ...],
        rows: tuple[int, int] | None = None,
        part: int | None = None,
        grows: bool = False,
    ):
        """Opens the file, and writes its header if the rows begin at 0, or in part 0.

        Args:
          file: path of the file.
          dtype: dtype of the array.
          shape: shape of the whole array.
          rows: [from, to) that this writer writes while other writers write the rest of the same
            file; None for all rows.
          part: number of the part of the file (see `runtime.parts`) that these rows are; None if
            all writers write to the file itself.
          grows: whether `shape` is that of an array without rows, to which rows are appended.
        """
        first, last = (0, shape[0]) if rows is None else rows
        self.missing = last - first  # rows still to be written; below 0 if it grows
        self.dtype, self.row, self.grows = np.dtype(dtype), shape[1:], grows
        header = self._header(shape[0])
        if part is not None:
            self.file = open(parts.part_of(file, part), "wb")
            self.file.write(b"" if part else header)
            return
        self.file = open(file, "wb", opener=None if rows is None else _open_shared)
        if first:
            row_bytes = self.dtype.itemsize * math.prod(self.row)
            self.file.seek(len(header) + first * row_bytes)
        else:
            self.file.write(header)

    def append(self, rows: np.ndarray) -> None:
        """Writes the next rows; raises ValueError if their dtype or shape is not the array's."""
        if rows.dtype != self.dtype or rows.shape[1:] != self.row:
            raise ValueError(f"{rows.dtype} {rows.shape} rows for {self.dtype} {self.row}")
        self.missing -= len(rows)
        self.file.write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        """Closes the file; raises ValueError unless all rows were written."""
        if self.grows:
            self.file.seek(0)  # any number of rows fits: NumPy leaves room for its digits
            self.file.write(self._header(-self.missing))
            self.missing = 0
        self.file.close()
        if self.missing:
            raise ValueError(f"{self.file.name}: {self.missing} rows are missing")

    def _header(self, number: int) -> bytes:
        """The file's first bytes, if the array has this number of rows."""
        header = io.BytesIO()
        shape = number, *self.row
        fields = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()


def _open_shared(file: str, flags: int) -> int:
    """Opens a file to write a part of it while others write other parts."""
    # O_DSYNC sends each write to the server. Without it NFS may later write back a whole page,
    # with stale bytes in place of other writers' rows.
    return os.open(file, flags & ~os.O_TRUNC | os.O_DSYNC, 0o666)
