"""A part of a log, for searches on logs of which the whole would take too long."""

import dataclasses

import numpy as np

from cadc_jax.data import sampling
from cadc_jax.data.raw import SPLITS, TEST, TRAIN, VALIDATION
from cadc_jax.data.table import Columns, Table

_SEED = 1  # of the draw of users; 0 draws those that are ranked


def of_users(table: Table, most_rows: int) -> Table:
    """The table with the rows of some users, drawn at random, in the splits that a search needs.

    Ids and content stay. All rows of a user are there or none: a part of them would be the log of
    less active users, which other settings suit.

    Args:
      table: a prepared table.
      most_rows: training rows to keep at most. Users are drawn until the next has no room.

    Returns:
      The table itself if it has no more rows, or if no drawn user has a row that validates.
    """
    train, validation = (table.splits[SPLITS[part]] for part in (TRAIN, VALIDATION))
    if len(train["user"]) <= most_rows:
        return table
    order = np.argsort(sampling.mix64(np.arange(table.schema.num_users), _SEED))
    rows = np.bincount(train["user"], minlength=table.schema.num_users)
    chosen = np.zeros(table.schema.num_users, bool)
    chosen[order[: np.searchsorted(np.cumsum(rows[order]), most_rows, side="right")]] = True
    if not chosen[validation["user"]].any():
        return table
    names = [name for name in table.splits if name != SPLITS[TEST]]
    return dataclasses.replace(
        table, splits={name: _rows_of(chosen, table.splits[name]) for name in names}
    )


def _rows_of(chosen: np.ndarray, columns: Columns) -> Columns:
    places = np.flatnonzero(chosen[columns["user"]])
    return {name: np.asarray(column)[places] for name, column in columns.items()}
