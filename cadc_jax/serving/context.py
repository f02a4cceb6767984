"""The features of a row in which users are scored, where a recommendation has no row.

Rows of clicks have features. A user is scored in the context of their last training row, or, if
they have none, of the last row of all; a user who is not in the data as id 0, all unknown ones.
"""

from collections.abc import Callable

import numpy as np

from cadc_jax.data.table import Table

ITEM_BLOCK = 1 << 14  # items scored at a time, at most
Context = Callable[[np.ndarray], dict[str, np.ndarray]]


def context_of(table: Table) -> Context:
    """Users [B] -> `dense` [B, F] and `categorical` [B, C] of a row of each user."""
    if table.schema.task == "ranking":  # its models have seen none
        return lambda users: {
            "dense": np.zeros((len(users), 0), np.float32),
            "categorical": np.zeros((len(users), 0), np.int32),
        }
    train = table.splits["train"]
    rows = np.arange(len(train["user"]))
    last = np.full(table.schema.num_users, -1)
    np.maximum.at(last, train["user"], rows)
    last[last < 0] = rows[-1]
    return lambda users: {name: train[name][last[users]] for name in ("dense", "categorical")}
