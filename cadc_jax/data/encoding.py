"""Raw rows to encoded columns, by what was learnt from training rows."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from cadc_jax.data import raw, vocabulary
from cadc_jax.data.table import open_schema
from cadc_jax.data.vocabulary import Vocabulary
from cadc_jax.errors import ConfigError, DataError

_BLOCK = 4096  # rows whose columns are laid side by side at a time, so that they stay in the cache


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Moments of a dense feature over rows, of which any two can be added.

    Attributes:
      count: values that are there.
      mean: of them.
      square: sum of their squared distances from the mean.
      flags: whether all are 0 or `one`.
    """

    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    flags: bool = True

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of the rows of both (Chan, Golub and LeVeque 1979)."""
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        return Statistics(
            count,
            self.mean + apart * other.count / count,
            self.square + other.square + apart**2 * self.count * other.count / count,
            self.flags and other.flags,
        )

    def scale(self, one: float) -> tuple[float, float]:
        """(shift, divisor) that standardise; flags, 0 and `one`, become 0 and 1."""
        if not self.count or self.flags:
            return 0.0, one
        return self.mean, math.sqrt(self.square / self.count) or 1.0


def statistics_of(values: np.ndarray, one: float = 1.0) -> Statistics:
    """Statistics of [N] float32, in float64; NaN is missing."""
    present = values[~np.isnan(values)]
    if not len(present):
        return Statistics()
    mean = float(present.mean(dtype=np.float64))
    square = float(np.square(present - mean, dtype=np.float64).sum())
    return Statistics(len(present), mean, square, bool(((present == 0) | (present == one)).all()))


def standardise(values: np.ndarray, shift: float, divisor: float) -> np.ndarray:
    """[N] float32 -> [N] float32; missing values (NaN) become 0, the mean."""
    return np.nan_to_num((values - np.float32(shift)) / np.float32(divisor), nan=0.0)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What turns raw rows into the columns of a prepared table.

    Attributes:
      user_features: columns that name the user, in the place of a user id the source may have; more
        than one are crossed.
      item_features: likewise for items.
      log_dense: replace each dense feature by log(1 + max(x, 0)).
      user: vocabulary of users.
      item: vocabulary of items.
      dense: name -> (shift, divisor) of each dense feature, in the order of the table's columns.
      categorical: name -> vocabulary of each categorical feature, likewise.
    """

    user_features: Sequence[str]
    item_features: Sequence[str]
    log_dense: bool
    user: Vocabulary
    item: Vocabulary
    dense: Mapping[str, tuple[float, float]]
    categorical: Mapping[str, Vocabulary]

    def encode(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """Columns of raw rows that went through `named` and `logged`.

        Returns:
          `user` [N] int32, `item` [N] int32, `dense` [N, F] float32, `categorical` [N, C] int32,
          and `label` [N] float32 where the rows have labels.
        """
        dense = np.empty((len(rows), len(self.dense)), np.float32)
        for place, (name, (shift, divisor)) in enumerate(self.dense.items()):
            values = rows[raw.DENSE + name].to_numpy()
            dense[:, place] = standardise(values, shift, divisor)
        categorical = np.empty((len(rows), len(self.categorical)), np.int32)
        columns = []
        for name, known in self.categorical.items():
            coded = column(rows, raw.CATEGORICAL + name)
            ids = known.ids(vocabulary.raw_of(coded.dictionary))
            columns.append((ids, coded.indices.to_numpy()))
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            for place, (ids, codes) in enumerate(columns):
                categorical[block, place] = ids[codes[block]]
        encoded = {
            "user": self.user.coded_ids(column(rows, "user")),
            "item": self.item.coded_ids(column(rows, "item")),
            "dense": dense,
            "categorical": categorical,
        }
        if "label" in rows.column_names:
            encoded["label"] = rows["label"].to_numpy()
        return encoded


def open_encoder(path: pathlib.Path) -> Encoder:
    """The encoder of the prepared table in the folder `path`, for new data."""
    schema = open_schema(path)
    statistics = json.loads((path / "statistics.json").read_text())

    def known(name: str) -> Vocabulary:
        file = path / "vocabularies" / f"{file_name(name)}.npy"
        return Vocabulary(np.load(file), schema.hashed.get(name, 0))

    return Encoder(
        user_features=schema.user_features,
        item_features=schema.item_features,
        log_dense=schema.log_dense,
        user=known("user"),
        item=known("item"),
        dense={name: tuple(statistics[name].values()) for name in schema.context.dense},
        categorical={name: known(f"row.{name}") for name in schema.context.categorical},
    )


def file_name(vocabulary_name: str) -> str:
    """The name of a vocabulary's file, without its ending."""
    return vocabulary_name.replace("/", "_")


def named(rows: pa.Table, user_features: Sequence[str], item_features: Sequence[str]) -> pa.Table:
    """Fills `user` and `item` from the configured columns.

    A column that alone is the user or the item is represented by its embedding: it does not stay a
    feature as well.

    Raises:
      ConfigError: if such a column is missing, or there is no user or item at all.
    """
    prefix = raw.CATEGORICAL
    found, used = {}, []
    for kind, names in (("user", user_features), ("item", item_features)):
        for name in names:
            if prefix + name not in rows.column_names:
                there = [x.removeprefix(prefix) for x in rows.column_names if x.startswith(prefix)]
                raise ConfigError(
                    f"data.{kind}_features: no categorical column '{name}'; "
                    f"there are: {', '.join(there) or 'none'}"
                )
        if names:
            found[kind] = vocabulary.cross_coded([column(rows, prefix + name) for name in names])
        elif kind not in rows.column_names:
            raise ConfigError(
                f"the data has no {kind} id: set data.{kind}_features to the column(s) to use"
            )
        used += [prefix + names[0]] if len(names) == 1 else []
    rows = rows.drop_columns([name for name in {*found, *used} if name in rows.column_names])
    for kind, values in found.items():
        rows = rows.append_column(kind, values)
    return rows


def logged(rows: pa.Table) -> pa.Table:
    """Replaces each dense feature x by log(1 + max(x, 0)), as the field does for counts."""
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


def column(rows: pa.Table, name: str) -> pa.DictionaryArray:
    """A coded column of a chunk, which is a single array."""
    chunked = rows[name]
    if chunked.num_chunks != 1:
        chunked = chunked.unify_dictionaries().combine_chunks()
    return chunked if isinstance(chunked, pa.DictionaryArray) else chunked.chunk(0)
