"""Raw rows to a prepared table: splits first, then vocabularies and statistics, then encoding.

Whatever is learnt from rows (vocabularies, counts, means) is learnt from training rows only.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cadc_jax import artifacts
from cadc_jax.data import negatives, sampling, splits
from cadc_jax.data.schema import SPLITS, TEST, TRAIN, VALIDATION, EntityTable, RawTable
from cadc_jax.data.table import Features, Schema, write_columns, write_schema
from cadc_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How a raw table becomes a prepared one.

    Attributes:
      task: 'click' or 'ranking'.
      split: 'leave_one_out', 'order', 'time', 'random' or 'given'; see `splits.assign`.
      validation: share of all rows that validates, for 'order', 'time' and 'random'.
      test: share of all rows that tests, likewise.
      min_count: training rows a value needs to have an id of its own; rarer ones share id 0.
      user_features: categorical columns that name the user, in the place of a user id the source
        may have; more than one are crossed.
      item_features: likewise for items.
      log_dense: replace each dense feature of rows by log(1 + max(x, 0)), as the field does for
        Criteo's counts (negative values become 0).
      num_negatives: unseen items drawn for each held-out row ('1 + K' ranking protocol), where the
        data brings none.
      seed: of random splits and drawn negatives.
    """

    task: str
    split: str
    validation: float = 0.0
    test: float = 0.0
    min_count: int = 1
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()
    log_dense: bool = False
    num_negatives: int = 99
    seed: int = 0


def write(path: pathlib.Path, raw: RawTable, config: PrepareConfig) -> Mapping[str, Any]:
    """Writes the prepared table of `raw` into the folder `path`.

    Returns:
      Facts for the manifest: rows of each split, sizes, and what the reader met.

    Raises:
      ConfigError: if user or item features are missing or unknown, or too few items are unseen.
      DataError: if a split is empty, or content ids and row ids are of different types.
    """
    if config.task == "click" and raw.label is None:
        raise ConfigError("data.task='click' needs a label (0 or 1) in each row: name its column")
    if raw.negatives is not None and config.split != "given":
        raise ConfigError(
            "the data's own evaluation negatives belong to its own split: set data.split='given' "
            "or leave the negatives out"
        )
    raw = _with_users_and_items(raw, config)
    merged = 0
    if config.task == "ranking":
        rows = len(raw.user)
        raw = splits.merge_repeats(raw)
        merged = rows - len(raw.user)
    fold = splits.assign(raw, config.split, config.validation, config.test, config.seed)
    for number, name in enumerate(SPLITS):
        if not np.any(fold == number):
            raise DataError(
                f"the {name} split has no rows ({len(fold)} rows in all, split "
                f"'{config.split}'): use more data or another data.split"
            )
    rows_of = [np.flatnonzero(fold == number) for number in range(len(SPLITS))]
    train = rows_of[TRAIN]

    vocabularies = {
        "user": vocabulary(raw.user[train], config.min_count),
        "item": vocabulary(raw.item[train], config.min_count),
    }
    for kind, known in vocabularies.items():
        if not len(known):
            raise DataError(
                f"no {kind} has {config.min_count} training rows or more: lower data.min_count"
            )
    user = encode(raw.user, vocabularies["user"])
    item = encode(raw.item, vocabularies["item"])
    target = ("label", raw.label) if config.task == "click" else ("value", _values(raw))
    for name, rows in zip(SPLITS, rows_of, strict=True):
        columns = {"user": user[rows], "item": item[rows], target[0]: target[1][rows]}
        write_columns(path / name, columns)

    context = _write_context(path, raw, rows_of, config, vocabularies)
    contents = {}
    for kind, entities in (("user", raw.users), ("item", raw.items)):
        columns, contents[kind] = _content(kind, entities, vocabularies)
        write_columns(path / f"{kind}s", columns)
    if config.task == "ranking":
        _write_negatives(path, raw, fold, user, item, vocabularies["item"], config)
    names = {name: name.replace("/", "_") for name in vocabularies}  # they name files
    write_columns(path / "vocabularies", {names[name]: x for name, x in vocabularies.items()})
    schema = Schema(
        task=config.task,
        num_users=len(vocabularies["user"]) + 1,
        num_items=len(vocabularies["item"]) + 1,
        context=context,
        user_content=contents["user"],
        item_content=contents["item"],
    )
    write_schema(path, schema)
    return {
        "rows": dict(zip(SPLITS, map(len, rows_of), strict=True)),
        "num_users": schema.num_users - 1,
        "num_items": schema.num_items - 1,
        "merged_repeats": merged,
        "reader": dataclasses.asdict(raw.report),
    }


def vocabulary(values: np.ndarray, min_count: int) -> np.ndarray:
    """The sorted distinct values of at least `min_count` rows; a value's id is its place + 1."""
    distinct, counts = np.unique(values, return_counts=True)
    return distinct[counts >= min_count]


def encode(values: np.ndarray, vocab: np.ndarray) -> np.ndarray:
    """Ids of raw values: [N] raw -> [N] int32 in [0, len(vocab)], 0 for values not in `vocab`."""
    if not len(vocab):
        return np.zeros(len(values), np.int32)
    places = np.minimum(np.searchsorted(vocab, values), len(vocab) - 1)
    return np.where(vocab[places] == values, places + 1, 0).astype(np.int32)


def cross(columns: list[np.ndarray]) -> np.ndarray:
    """One int64 key >= 0 for each distinct combination of values: C columns [N] -> [N].

    A single column is returned as it is; several are hashed to 63 bits.
    """
    if len(columns) == 1:
        return columns[0]
    key = np.zeros(len(columns[0]), np.uint64)
    for seed, column in enumerate(columns):
        key = sampling.mix64(key ^ _hash(column), seed)
    return (key >> np.uint64(1)).astype(np.int64)


def _hash(column: np.ndarray) -> np.ndarray:
    if column.dtype.kind != "U":
        return column.astype(np.uint64)
    letters = np.ascontiguousarray(column).view(np.uint32).reshape(len(column), -1)
    key = np.zeros(len(column), np.uint64)
    for letter in letters.T:  # trailing zeros of short strings must not depend on the width
        key = np.where(letter == 0, key, sampling.mix64(key ^ letter.astype(np.uint64), 0))
    return key


def _with_users_and_items(raw: RawTable, config: PrepareConfig) -> RawTable:
    """Fills `user` and `item` from the configured columns where the source names none."""
    found = {"user": raw.user, "item": raw.item}
    for kind, names in (("user", config.user_features), ("item", config.item_features)):
        unknown = [name for name in names if name not in raw.categorical]
        if unknown:
            raise ConfigError(
                f"data.{kind}_features: no categorical column '{unknown[0]}'; "
                f"there are: {', '.join(raw.categorical) or 'none'}"
            )
        if names:
            found[kind] = cross([raw.categorical[name] for name in names])
        elif found[kind] is None:
            raise ConfigError(
                f"the data has no {kind} id: set data.{kind}_features to the column(s) to use"
            )
    # A column that is the user or the item is represented by its embedding, not once more beside.
    used = {n[0] for n in (config.user_features, config.item_features) if len(n) == 1}
    categorical = {name: column for name, column in raw.categorical.items() if name not in used}
    return dataclasses.replace(raw, **found, categorical=categorical)


def _values(raw: RawTable) -> np.ndarray:
    return np.ones(len(raw.user), np.float32) if raw.value is None else raw.value


def _write_context(path, raw, rows_of, config, vocabularies) -> Features:
    """Writes dense and categorical features of rows, one column in memory at a time."""
    out = [
        {
            "dense": _new_array(
                path / split / "dense.npy", (len(rows), len(raw.dense)), np.float32
            ),
            "categorical": _new_array(
                path / split / "categorical.npy", (len(rows), len(raw.categorical)), np.int32
            ),
        }
        for split, rows in zip(SPLITS, rows_of, strict=True)
    ]
    train = rows_of[TRAIN]
    statistics = {}
    for place, (name, values) in enumerate(raw.dense.items()):
        if np.isinf(values).any():
            raise DataError(f"dense feature '{name}' holds an infinite value: remove or cap it")
        if config.log_dense:
            values = np.log1p(np.maximum(values, 0))
        statistics[name] = _statistics(values[train])
        scaled = _standardise(values, *statistics[name])
        for arrays, rows in zip(out, rows_of, strict=True):
            arrays["dense"][:, place] = scaled[rows]
    sizes = []
    for place, (name, values) in enumerate(raw.categorical.items()):
        known = vocabularies[f"row.{name}"] = vocabulary(values[train], config.min_count)
        sizes.append(len(known) + 1)
        ids = encode(values, known)
        for arrays, rows in zip(out, rows_of, strict=True):
            arrays["categorical"][:, place] = ids[rows]
    artifacts.write_json(
        path / "statistics.json",
        {name: {"mean": mean, "std": std} for name, (mean, std) in statistics.items()},
    )
    return Features(tuple(raw.dense), tuple(raw.categorical), tuple(sizes))


def _new_array(file: pathlib.Path, shape: tuple[int, int], dtype) -> np.ndarray:
    if 0 in shape:
        np.save(file, np.zeros(shape, dtype))
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def _statistics(values: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of the values that are there; for flags (0 / 1), 0 and 1: they stay."""
    present = values[~np.isnan(values)].astype(np.float64)
    if not len(present) or np.isin(present, (0, 1)).all():
        return 0.0, 1.0
    return float(present.mean()), float(present.std()) or 1.0


def _standardise(values: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Missing values become 0, the mean."""
    return np.nan_to_num((values - np.float32(mean)) / np.float32(std), nan=0.0)


def _content(kind: str, entities: EntityTable | None, vocabularies):
    """Content of each user or item id, as `Table.users` / `Table.items`, and its features.

    Row 0 and ids without content hold zeros: the mean of dense features, id 0 of categorical ones.
    """
    ids = vocabularies[kind]
    if entities is None:
        entities = EntityTable(ids=ids[:0])
    if entities.ids.dtype.kind != ids.dtype.kind:
        raise DataError(
            f"{kind} ids in the rows ({ids.dtype}) and in the {kind} content "
            f"({entities.ids.dtype}) are of different types: write both as integers or as text"
        )
    order = np.argsort(entities.ids, kind="stable")
    place = encode(ids, entities.ids[order])  # 0 where there is no content
    rows = np.flatnonzero(place)
    source = order[place[rows] - 1]
    dense = np.zeros((len(ids) + 1, len(entities.dense)), np.float32)
    for column, values in enumerate(entities.dense.values()):
        values = values[source]
        dense[rows + 1, column] = _standardise(values, *_statistics(values))
    categorical = np.zeros((len(ids) + 1, len(entities.categorical)), np.int32)
    sizes = []
    for column, (name, values) in enumerate(entities.categorical.items()):
        values = values[source]
        known = vocabularies[f"{kind}.{name}"] = vocabulary(values, 1)
        sizes.append(len(known) + 1)
        categorical[rows + 1, column] = encode(values, known)
    columns = {"dense": dense, "categorical": categorical}
    if entities.titles is not None:
        titles = np.full(len(ids) + 1, "", entities.titles.dtype)
        titles[rows + 1] = entities.titles[source]
        columns["titles"] = titles
    return columns, Features(tuple(entities.dense), tuple(entities.categorical), tuple(sizes))


def _write_negatives(path, raw, fold, user, item, item_vocabulary, config) -> None:
    """Writes the items that each held-out row's item is ranked against in the 1 + K protocol."""
    num_items = len(item_vocabulary) + 1
    seen = np.unique(negatives.pair_keys(user, item, num_items))
    for number in (VALIDATION, TEST):
        if number == TEST and raw.negatives is not None:
            items = encode(raw.negatives.ravel(), item_vocabulary).reshape(raw.negatives.shape)
        else:
            items = negatives.draw_for_evaluation(
                user[fold == number], seen, num_items, config.num_negatives, config.seed + number
            )
        write_columns(path / SPLITS[number], {"negatives": items})
