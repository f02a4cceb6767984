"""The prepared table: encoded columns as plain `.npy` files, memory-mapped.

    schema.json                       Schema below
    train/ validation/ test/          one .npy a column (rows of the split, in source order)
    users/ items/                     content of each user or item id, where the data has any
    vocabularies/                     raw values by id - 1 (id 0 is 'out of vocabulary')
    statistics.json                   mean and standard deviation of each dense feature of rows

Columns of a split: `user` [N] int32, `item` [N] int32, `label` [N] float32 (clicks) or `value` [N]
float32 (interactions), `dense` [N, F] float32, `categorical` [N, C] int32; validation and test of
a ranking task also have `negatives` [N, K] int32, the items of the '1 + K' protocol.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from cadc_jax import artifacts
from cadc_jax.data.schema import SPLITS
from cadc_jax.errors import ArtifactError

Columns = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Features:
    """Names and sizes of a group of features.

    Attributes:
      dense: names of the F dense features.
      categorical: names of the C categorical features.
      vocabulary_sizes: [C] number of ids of each, id 0 (out of vocabulary) included.
    """

    dense: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    vocabulary_sizes: tuple[int, ...] = ()


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
    """

    task: str
    num_users: int
    num_items: int
    context: Features
    user_content: Features
    item_content: Features


@dataclasses.dataclass(frozen=True)
class Table:
    """A prepared table, opened. All arrays are memory-mapped and read-only.

    Attributes:
      schema: what it holds.
      splits: split name -> columns.
      users: `dense` [U, F] and `categorical` [U, C] content of users.
      items: likewise of items.
    """

    schema: Schema
    splits: Mapping[str, Columns]
    users: Columns
    items: Columns


def open_table(path: pathlib.Path) -> Table:
    """Opens a table written by `prepare.write`.

    Raises:
      ArtifactError: if the folder is not a prepared table.
    """
    try:
        fields = json.loads((path / "schema.json").read_text())
        for name in ("context", "user_content", "item_content"):
            fields[name] = Features(**{key: tuple(value) for key, value in fields[name].items()})
        schema = Schema(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a prepared table ({error!r})") from None
    return Table(
        schema=schema,
        splits={split: read_columns(path / split) for split in SPLITS},
        users=read_columns(path / "users"),
        items=read_columns(path / "items"),
    )


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


def _open_array(file: pathlib.Path) -> np.ndarray:
    small = file.stat().st_size < 4096  # an array of no elements cannot be mapped
    return np.load(file, mmap_mode=None if small else "r")
