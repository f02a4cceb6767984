"""What a factorisation is fitted to: rows of a prepared table, and users without such rows."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from cadc_jax.configuration import Factorization
from cadc_jax.data.raw import FOLD_IN, PARTS, SPLITS, TRAIN
from cadc_jax.data.table import Table
from cadc_jax.factorization import fold_in, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.interactions import Extent, Interactions


def is_explicit(config: Factorization) -> bool:
    """Whether the values of rows count, not only that there are rows."""
    return isinstance(config, ALSConfig) and config.feedback == "explicit"


def with_held_out_users(
    table: Table, config: Factorization, factors: Factors, extent: Extent, mesh: Mesh
) -> Factors:
    """The factors with vectors of the held-out users, if there are any, in place of zeros.

    Fold-in rows of items that no training row has say nothing and are left out; users without
    others stay 0.

    Args:
      table: the prepared table.
      config: the settings of the fit.
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
    value = rows["value"][there] if is_explicit(config) else None
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


def matrix_of(
    table: Table, config: Factorization, rows: slice | np.ndarray = slice(None)
) -> Interactions:
    """The matrix of some of the training rows.

    Values count for explicit feedback alone: of implicit feedback it counts that it happened, not
    how it was rated. Of clicks, an impression without a click is no preference.
    """
    chosen, value = training_rows(table, rows), None
    if is_explicit(config) and chosen.label is None:
        value = table.splits[SPLITS[TRAIN]]["value"][rows]
    users, items = positives(chosen.user, chosen.item, chosen.label)
    return Interactions.from_rows(users, items, chosen.num_users, chosen.num_items, value)


def positives(
    user: np.ndarray, item: np.ndarray, label: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of the rows that express a preference: of clicks, those with label 1."""
    if label is None:
        return user, item
    clicked = np.flatnonzero(label)
    return user[clicked], item[clicked]
