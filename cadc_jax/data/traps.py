"""Finds splits that are not what their name promises, for a line of warning each.

A run on such a split ends in a report, whose figures mean little.
"""

from collections.abc import Mapping

import numpy as np

from cadc_jax.data.raw import TEST, RawTable

_MOST = 0.5  # share above which something odd is told


def of_split(keys: RawTable, fold: np.ndarray, rule: str) -> list[str]:
    """What is odd about a split, from the columns that it depends on.

    Args:
      keys: N rows.
      fold: [N] int8, the split of each row.
      rule: one of `splits.RULES`.

    Returns:
      A line for each finding.
    """
    found = []
    if rule in ("time", "leave_one_out", "last_share") and keys.timestamp is not None:
        times, counts = np.unique(keys.timestamp, return_counts=True)
        share = counts.max(initial=0) / max(1, len(keys.timestamp))
        if share > _MOST:
            found.append(
                f"data.split='{rule}': {share:.0%} of the rows have the time "
                f"{times[counts.argmax()]}, so their order in the source decides"
            )
    if rule in ("leave_one_out", "last_share") and keys.user is not None:
        user = np.asarray(keys.user)
        users, tested = len(np.unique(user)), len(np.unique(user[fold == TEST]))
        untested = (users - tested) / max(1, users)
        if untested > _MOST:
            found.append(
                f"data.split='{rule}': {untested:.0%} of the {users:,} users have too few rows "
                "to be tested; the others alone make the figures"
            )
    return found


def of_test_rows(test: Mapping[str, np.ndarray]) -> list[str]:
    """What is odd about encoded test rows.

    Args:
      test: `user` [N] and `item` [N], ids; 0 stands for values that training rows do not name.
    """
    found = []
    for kind in ("user", "item"):
        unknown = float(np.mean(np.asarray(test[kind]) == 0)) if len(test[kind]) else 0.0
        if unknown > _MOST:
            found.append(
                f"{unknown:.0%} of the test rows have {_ARTICLE[kind]} without training rows (or "
                "with fewer than data.min_count); look at data.split, and at how the log is sorted"
            )
    return found


_ARTICLE = {"user": "a user", "item": "an item"}
