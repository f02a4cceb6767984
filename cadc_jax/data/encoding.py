"""Encodes raw rows as ids and standardised numbers, with what was learnt from training rows.

`Statistics` measure a dense feature. An `Encoder` holds the vocabularies and statistics of a table
and encodes the rows of a chunk. `write_table` makes one from training rows; `open_encoder` reads it
back for new data. Before encoding, rows go through `add_user_and_item` and, if the table asks for
it, `log_transform`.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import raw, vocabulary
from cadc_jax.data.columns import ColumnKind, check_columns, open_array
from cadc_jax.data.table import open_schema, read_text, write_columns, write_text
from cadc_jax.data.vocabulary import Vocabulary
from cadc_jax.errors import ArtifactError, ConfigError, DataError
from cadc_jax.runtime.manifest import ADVICE, check, read_json

_BLOCK = 4096  # rows of `categorical` filled at a time: they stay in the cache


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Moments of a dense feature over some rows. Sums of two are the moments over all their rows.

    Attributes:
      count: number of values that are not missing.
      mean: their mean.
      squares: sum of their squared distances from the mean.
      only_flags: whether every value is a flag, 0 or `one` of `statistics_of`.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    only_flags: bool = True

    def __add__(self, other: "Statistics") -> "Statistics":
        """Statistics of the rows of both (Chan, Golub and LeVeque 1979)."""
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        distance = other.mean - self.mean
        return Statistics(
            count,
            self.mean + distance * other.count / count,
            self.squares + other.squares + distance**2 * self.count * other.count / count,
            self.only_flags and other.only_flags,
        )

    def scale(self, one: float) -> tuple[float, float]:
        """(shift, divisor) for `standardise`: mean and deviation; flags 0 and `one` become 0 and 1.

        The divisor of a constant feature is 1.
        """
        if not self.count or self.only_flags:
            return 0.0, one
        return self.mean, math.sqrt(self.squares / self.count) or 1.0


def statistics_of(values: np.ndarray, one: float = 1.0) -> Statistics:
    """Statistics of one dense feature; distances from the mean are float32, sums float64.

    Args:
      values: [N] float32; NaN is missing.
      one: value of a flag that is set.
    """
    present = values[~np.isnan(values)]
    if not len(present):
        return Statistics()
    mean = float(present.mean(dtype=np.float64))
    squares = float(np.square(present - mean, dtype=np.float64).sum())
    return Statistics(len(present), mean, squares, bool(((present == 0) | (present == one)).all()))


def standardise(values: np.ndarray, shift: float, divisor: float) -> np.ndarray:
    """(values - shift) / divisor: [N] float32 -> [N] float32. Missing values (NaN) become 0."""
    return np.nan_to_num((values - np.float32(shift)) / np.float32(divisor), nan=0.0)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes raw rows as the columns of a prepared table.

    Attributes:
      user_features: columns that name the user and replace a user id of the source; several are
        crossed.
      item_features: columns that name the item, in the same way.
      log_dense: whether each dense feature is replaced by log(1 + max(x, 0)).
      user: vocabulary of users.
      item: vocabulary of items.
      dense: name -> (shift, divisor) of each dense feature, in the order of the table's columns.
      categorical: name -> vocabulary of each categorical feature, in the order of the table's
        columns.
    """

    user_features: Sequence[str]
    item_features: Sequence[str]
    log_dense: bool
    user: Vocabulary
    item: Vocabulary
    dense: Mapping[str, tuple[float, float]]
    categorical: Mapping[str, Vocabulary]

    def encode(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """Encodes rows of a chunk.

        Args:
          rows: N rows after `add_user_and_item` and, with `log_dense`, after `log_transform`.

        Returns:
          `user` [N] int32, `item` [N] int32, `dense` [N, F] float32, `categorical` [N, C] int32,
          and `label` [N] float32 if the rows have labels.
        """
        dense = np.empty((len(rows), len(self.dense)), np.float32)
        for place, (name, (shift, divisor)) in enumerate(self.dense.items()):
            values = rows[raw.DENSE + name].to_numpy()
            dense[:, place] = standardise(values, shift, divisor)
        encoded = {
            "user": self.user.coded_ids(coded_column(rows, "user")),
            "item": self.item.coded_ids(coded_column(rows, "item")),
            "dense": dense,
            "categorical": self._categorical(rows),
        }
        if "label" in rows.column_names:
            encoded["label"] = rows["label"].to_numpy()
        return encoded

    def _categorical(self, rows: pa.Table) -> np.ndarray:
        """Ids of the categorical features: [N, C] int32."""
        columns = []
        for name, known in self.categorical.items():
            coded = coded_column(rows, raw.CATEGORICAL + name)
            ids = known.ids(raw.as_values(coded.dictionary))
            columns.append((ids, coded.indices.to_numpy()))
        categorical = np.empty((len(rows), len(columns)), np.int32)
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            for place, (ids, codes) in enumerate(columns):
                categorical[block, place] = ids[codes[block]]
        return categorical


def open_encoder(path: pathlib.Path) -> Encoder:
    """Opens the encoder of the prepared table in the folder `path`, for new data.

    Raises:
      ArtifactError: if the folder is not a prepared table.
    """
    schema = open_schema(path)
    scales = _read_statistics(path, schema.context.dense)
    sizes = {"user": schema.num_users, "item": schema.num_items}
    context = zip(schema.context.categorical, schema.context.vocabulary_sizes, strict=True)
    sizes |= {f"row.{name}": size for name, size in context}
    known = {name: read_vocabulary(path, name, schema.hashed.get(name, 0)) for name in sizes}
    for name, size in sizes.items():
        _check_vocabulary(path / "vocabularies" / name, known[name], size)
    return Encoder(
        user_features=schema.user_features,
        item_features=schema.item_features,
        log_dense=schema.log_dense,
        user=known["user"],
        item=known["item"],
        dense=scales,
        categorical={name: known[f"row.{name}"] for name in schema.context.categorical},
    )


def _read_statistics(path: pathlib.Path, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each dense feature."""
    try:
        found = read_json(path / "statistics.json")
        check(found, {name: {"mean": float, "std": float} for name in names}, "statistics.json")
        if any(found[name]["std"] <= 0 for name in names):
            raise ValueError("a standard deviation is not positive")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a prepared table ({error}); {ADVICE}") from None
    return {name: (found[name]["mean"], found[name]["std"]) for name in names}


def _check_vocabulary(place: pathlib.Path, known: Vocabulary, size: int) -> None:
    """Raises ArtifactError unless a vocabulary has `size` ids, and its values are distinct."""
    values = known.values
    if isinstance(values, np.ndarray):
        distinct = len(np.unique(values))
    else:
        distinct = pc.count_distinct(values).as_py()
    if known.size != size or distinct < len(values) or (known.hashed and len(values)):
        raise ArtifactError(
            f"{place}: {len(values):,} values that are not distinct or do not belong to {size:,} "
            f"ids; {ADVICE}"
        )


def write_vocabulary(path: pathlib.Path, name: str, known: Vocabulary) -> None:
    """Writes a vocabulary of the table in the folder `path`: a `.npy` file, or a folder for text.

    Args:
      path: the folder of the table.
      name: 'user', 'item', or 'user.', 'item.' or 'row.' and the name of a feature.
      known: the vocabulary.
    """
    folder, stem = path / "vocabularies", name.replace("/", "_")
    if isinstance(known.values, np.ndarray):
        write_columns(folder, {stem: known.values})
    else:
        write_text(folder / stem, known.values)


def read_vocabulary(path: pathlib.Path, name: str, hashed: int = 0) -> Vocabulary:
    """Reads a vocabulary.

    Args:
      path, name: as for `write_vocabulary`.
      hashed: `Vocabulary.hashed`.

    Raises:
      ArtifactError: if there is no such vocabulary, or its file holds anything else.
    """
    folder, stem = path / "vocabularies", name.replace("/", "_")
    if (folder / stem).is_dir():
        return Vocabulary(read_text(folder / stem), hashed)
    values = open_array(folder / f"{stem}.npy")
    check_columns(folder, {stem: values}, {stem: ColumnKind(np.int64)})
    return Vocabulary(values, hashed)


def add_user_and_item(
    rows: pa.Table, user_features: Sequence[str], item_features: Sequence[str]
) -> pa.Table:
    """Fills the columns `user` and `item` from the configured features.

    A single feature that names the user or the item is dropped from the features: its embedding is
    that of the user or item. Crossed features stay.

    Args:
      rows: rows of a chunk.
      user_features: features to cross into the user; empty if the rows have a `user` column.
      item_features: features to cross into the item, in the same way.

    Raises:
      ConfigError: if a feature is missing, or the rows have no user or no item.
    """
    filled, used = {}, []
    for kind, names in (("user", user_features), ("item", item_features)):
        _check_features(rows, kind, names)
        if names:
            columns = [coded_column(rows, raw.CATEGORICAL + name) for name in names]
            filled[kind] = vocabulary.cross_coded(columns)
        if len(names) == 1:
            used.append(raw.CATEGORICAL + names[0])
    rows = rows.drop_columns([name for name in {*filled, *used} if name in rows.column_names])
    for kind, column in filled.items():
        rows = rows.append_column(kind, column)
    return rows


def log_transform(rows: pa.Table) -> pa.Table:
    """Replaces each dense feature x by log(1 + max(x, 0)), which is customary for counts."""
    for place, name in enumerate(rows.column_names):
        if name.startswith(raw.DENSE):
            values = np.log1p(np.maximum(rows[name].to_numpy(), 0))
            rows = rows.set_column(place, name, pa.array(values))
    return rows


def check_finite(rows: pa.Table) -> None:
    """Raises DataError if a dense feature is infinite."""
    for name in rows.column_names:
        if name.startswith(raw.DENSE) and np.isinf(rows[name].to_numpy()).any():
            feature = name.removeprefix(raw.DENSE)
            raise DataError(f"dense feature '{feature}' holds an infinite value: remove or cap it")


def coded_column(rows: pa.Table, name: str) -> pa.DictionaryArray:
    """A dictionary-encoded column of a chunk, as a single array."""
    return raw.one_chunk(rows[name])


def _check_features(rows: pa.Table, kind: str, names: Sequence[str]) -> None:
    """Raises ConfigError unless the rows have the features, or the id `kind` if there are none."""
    prefix = raw.CATEGORICAL
    known = [name.removeprefix(prefix) for name in rows.column_names if name.startswith(prefix)]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"data.{kind}_features: no categorical column '{name}'; "
                f"there are: {', '.join(known) or 'none'}"
            )
    if not names and kind not in rows.column_names:
        raise ConfigError(
            f"the data has no {kind} id: set data.{kind}_features to the column(s) to use"
        )
