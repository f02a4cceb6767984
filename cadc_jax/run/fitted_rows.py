"""What a factorisation is fitted to: rows of a prepared table, and users without such rows."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from cadc_jax.configuration import Factorization
from cadc_jax.data.columns import read_part
from cadc_jax.data.raw import FOLD_IN, PARTS, SPLITS, TRAIN
from cadc_jax.data.table import Table
from cadc_jax.factorization import fold_in, log_matrix, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.interactions import Extent, Interactions, scaled_values
from cadc_jax.runtime import distributed

# (from, to) -> [to - from] bool: which of the training rows from, ..., to - 1 are chosen.
Choice = Callable[[int, int], np.ndarray]


def is_explicit(config: Factorization) -> bool:
    """Whether the values of rows are what the factors have to meet."""
    return isinstance(config, ALSConfig) and config.feedback == "explicit"


def with_held_out_users(
    table: Table,
    config: Factorization,
    value_scale: str,
    factors: Factors,
    extent: Extent,
    mesh: Mesh,
) -> Factors:
    """The factors with vectors of the held-out users, if there are any, in place of zeros.

    Fold-in rows of items that no training row has say nothing and are left out; users without
    others stay 0.

    Args:
      table: the prepared table.
      config: the settings of the fit.
      value_scale: `data.value_scale`.
      factors: its result.
      extent: of the interactions it was fitted to.
      mesh: the devices.
    """
    rows = table.splits.get(PARTS[FOLD_IN])
    if rows is None:
        return factors
    there = np.flatnonzero(table.items["count"][rows["item"]])
    if not len(there):
        return factors
    users, user = np.unique(rows["user"][there], return_inverse=True)
    value = values_of(table, PARTS[FOLD_IN], config, value_scale, there)
    sizes = len(users), table.schema.num_items
    matrix = Interactions.from_rows(user, rows["item"][there], *sizes, value)
    folded_in = fold_in.solve(factors, matrix, config, extent=extent, mesh=mesh)
    found = {}
    for name, rows_of_users in zip(("user", "user_bias"), folded_in, strict=True):
        if rows_of_users is not None:
            found[name] = np.array(getattr(factors, name))
            found[name][users] = rows_of_users
    return dataclasses.replace(factors, **found)


def training_rows(table: Table, rows: slice | np.ndarray = slice(None)) -> sgd.TrainingRows:
    """Some of the training rows of a prepared table."""
    schema, train = table.schema, table.splits[SPLITS[TRAIN]]
    return sgd.TrainingRows(
        np.asarray(train["user"])[rows],
        np.asarray(train["item"])[rows],
        schema.num_users,
        schema.num_items,
        train["label"][rows] if schema.task == "click" else None,
    )


def values_of(
    table: Table, part: str, config: Factorization, value_scale: str, rows: slice | np.ndarray
) -> np.ndarray | None:
    """What some rows of a part of the table count for in the matrix; None: all 1.

    Values are the targets of explicit feedback, whatever the scale; clicks have none.
    """
    values = table.splits[part].get("value")
    if values is None:
        return None
    return scaled_values(values[rows], "linear" if is_explicit(config) else value_scale)


def ids_of(table: Table, choice: Choice | None) -> slice | np.ndarray:
    """The training rows of a choice; None: all."""
    if choice is None:
        return slice(None)
    size, block = len(table.splits[SPLITS[TRAIN]]["user"]), log_matrix.BLOCK_ROWS
    starts = range(0, size, block)
    ids = [x + np.flatnonzero(choice(x, min(x + block, size))) for x in starts]
    return np.concatenate(ids) if ids else np.zeros(0, np.int64)


def matrix_of(
    table: Table, config: Factorization, value_scale: str, choice: Choice | None = None
) -> Interactions:
    """The matrix of some of the training rows, which all processes of a run ask for together.

    Of several processes each reads what its devices solve. Of clicks, an impression without a click
    is no preference.

    Args:
      table: the prepared table.
      config: the settings of the fit.
      value_scale: `data.value_scale`.
      choice: which rows; None for all.
    """
    if distributed.count() > 1:
        return log_matrix.read(log_of(table, config, value_scale, choice))
    rows = ids_of(table, choice)
    chosen = training_rows(table, rows)
    value = values_of(table, SPLITS[TRAIN], config, value_scale, rows)
    users, items = positives(chosen.user, chosen.item, chosen.label)
    return Interactions.from_rows(users, items, chosen.num_users, chosen.num_items, value)


def log_of(
    table: Table, config: Factorization, value_scale: str, choice: Choice | None = None
) -> log_matrix.Log:
    """The rows of `matrix_of` as a log that is read in blocks."""
    schema, train = table.schema, table.splits[SPLITS[TRAIN]]
    scale = "linear" if is_explicit(config) else value_scale
    names = [name for name in ("user", "item", "label", "value") if name in train]

    def read(start: int, stop: int) -> log_matrix.Block:
        block = {name: read_part(train[name], start, stop) for name in names}
        if choice is not None:
            chosen = choice(start, stop)
            block = {name: x[chosen] for name, x in block.items()}
        value = block.get("value")
        user, item = positives(block["user"], block["item"], block.get("label"))
        return user, item, None if value is None else scaled_values(value, scale)

    return log_matrix.Log(len(train["user"]), schema.num_users, schema.num_items, read)


def positives(
    user: np.ndarray, item: np.ndarray, label: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of the rows that express a preference: of clicks, those with label 1."""
    if label is None:
        return user, item
    clicked = np.flatnonzero(label)
    return user[clicked], item[clicked]
