"""The network against its own factors, for items and users with few and with many training rows.

A network that is no better than its factors in all may still be where these know little.
"""

import numpy as np

from cadc_jax.run.arms import CADC_FROZEN, CADC_TRAINABLE, MF_ALONE, MF_REFRESHED
from cadc_jax.study.cells import LABELS
from cadc_jax.study.comparisons import MF_EASE
from cadc_jax.study.data_report import DataReport, Group
from cadc_jax.study.formats import Table, interval

COLD, RARE = 5, 50  # training rows at most
OF_ITEMS = (
    "Differences of the mean gain (for clicks: of the AUC) on test rows whose item has at most "
    f"{COLD} training rows, at most {RARE}, or more; by terciles if one of these parts is empty. "
    "Intervals as above."
)
OF_USERS = "The same by the training rows of the user; of rankings, differences of the NDCG."
NAMES = ("cold", "rare", "warm")


def item_table(report: DataReport) -> Table:
    """By the training rows of the item, for each test row."""
    return _table(report, report.rows_of_items, by_row=True)


def user_table(report: DataReport) -> Table:
    """By the training rows of the user."""
    return _table(report, report.rows_of_users, by_row=False)


def bins(size: np.ndarray) -> list[np.ndarray]:
    """Three parts of [N] sizes: at most COLD, at most RARE, and more; [N] bool each.

    If one of them is empty, the parts are bounded by the terciles of the sizes instead.
    """
    low, high = COLD, RARE
    found = [size <= low, (size > low) & (size <= high), size > high]
    if all(part.any() for part in found):
        return found
    low, high = np.quantile(size, [1 / 3, 2 / 3], method="inverted_cdf")
    return [size <= low, (size > low) & (size <= high), size > high]


def _table(report: DataReport, size: np.ndarray, by_row: bool) -> Table:
    parts = [part for part in zip(NAMES, bins(size), strict=True) if part[1].any()]
    header = ["arm", "model", "rate", "against"]
    for name, inside in parts:
        low, high = size[inside].min(), size[inside].max()
        header.append(f"{name}: {low:,} to {high:,} rows ({inside.sum():,} tested)")
    lines = [header]
    for (arm, model, rule, rate), group in report.compared:
        if rule != "uniform" or arm not in (CADC_FROZEN.name, CADC_TRAINABLE.name):
            continue
        for name, peer in _peers(report, rate):
            found = [report.difference_within(group, peer, inside, by_row) for _, inside in parts]
            lines.append([LABELS[arm], model, f"{rate:g}", LABELS[name], *map(interval, found)])
    return lines


def _peers(report: DataReport, rate: float) -> list[tuple[str, Group]]:
    """The factors by themselves, those that a frozen arm of this rate predicts with, and EASE's."""
    found = {
        MF_ALONE.name: report.baseline(MF_ALONE.name),
        MF_REFRESHED.name: report.sampled(MF_REFRESHED.name, "", rate),
        MF_EASE: report.baseline(MF_EASE),
    }
    return [(name, group) for name, group in found.items() if group is not None]
