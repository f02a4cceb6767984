"""Writes synthetic click logs in the format of Criteo, for runs without real data.

The columns are similar to the Criteo Kaggle logs in their long tails and missing fields, but have
at most a few thousand values each, not millions. Two columns stand for a user and an item: `USER`
and `ITEM`. In the real logs, too, they are never empty and have many values. A click is drawn with
probability sigmoid(intercept + content + taste):

  content: an effect of each value of the short categorical columns, and of the logarithm of each
    integer. The long columns have no effect.
  taste: <u, v>, the product of hidden vectors of the user and the item, of rank 8 and with falling
    weights, plus a small bias of each.

Rows are drawn independently of each other, so nothing changes with time. The intercept makes a
quarter of the rows clicks.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from cadc_jax.data.readers import criteo

USER, ITEM = "C7", "C11"
ROWS_PER_USER, ROWS_PER_ITEM = 100, 200  # on average
CLICK_RATE = 0.25

_RANK = 8
_WEIGHT_RATIO = 0.7  # of each dimension of the hidden vectors to the one before
_TASTE_SCALE, _BIAS_SCALE, _CONTENT_SCALE = 1.5, 0.2, 1.0  # standard deviations, in logits
_SHORT = 1000  # only columns of fewer values have effects

_MEDIANS = (1, 3, 6, 4, 2500, 30, 3, 8, 40, 0, 1, 0, 4)  # of I1..I13
_VALUES = (  # of C1..C26; 0: the user and the item
    *(1460, 583, 3000, 3000, 305, 24, 0, 633, 3, 3000, 0, 3000, 3000),
    *(27, 3000, 3000, 10, 3000, 2000, 4, 3000, 18, 15, 3000, 105, 3000),
)
_MISSING_INTEGERS = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.76, 0.22)
_MISSING_CATEGORICALS = (
    *(0, 0, 0.03, 0.03, 0, 0.12, 0, 0, 0, 0, 0, 0.03, 0),
    *(0, 0, 0.03, 0, 0, 0.44, 0.44, 0.03, 0.76, 0, 0.03, 0.44, 0.44),
)


class Truth(NamedTuple):
    """The distribution that each row was drawn from; no model can predict clicks better.

    Attributes:
      probability: [N] float32 probability of a click.
      content: [N] float32, the part of the logit from all columns but the user and the item.
      taste: [N] float32, the part of the logit from the user and the item.
    """

    probability: np.ndarray
    content: np.ndarray
    taste: np.ndarray


def write_criteo(path: str | Path, rows: int, seed: int) -> Truth:
    """Writes a log, which depends only on `rows` and `seed`, and returns its truth."""
    table, truth = _draw(rows, seed)
    layout = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    csv.write_csv(table, path, layout)
    return truth


def criteo_truth(rows: int, seed: int) -> Truth:
    """Returns the truth of the log that `write_criteo` would write."""
    return _draw(rows, seed)[1]


def _draw(rows: int, seed: int) -> tuple[pa.Table, Truth]:
    rng = np.random.default_rng([rows, seed])
    user = _long_tailed(rng, rows, max(rows // ROWS_PER_USER, 2), exponent=0.5)
    item = _long_tailed(rng, rows, max(rows // ROWS_PER_ITEM, 2), exponent=0.7)
    integers, integer_effect = _draw_integers(rng, rows)
    categoricals, categorical_effect = _draw_categoricals(rng, user, item)
    content = _scaled(0.6 * _scaled(integer_effect) + 0.8 * _scaled(categorical_effect))
    content *= _CONTENT_SCALE
    taste = _draw_taste(rng, user, item)
    logit = content + taste
    probability = _sigmoid(logit + _intercept(logit))
    label = pa.array((rng.random(rows) < probability).astype(np.int8))
    table = pa.table([label, *integers, *categoricals], names=criteo.FIELDS)
    return table, Truth(*(part.astype(np.float32) for part in (probability, content, taste)))


def _draw_integers(rng: np.random.Generator, rows: int) -> tuple[list[pa.Array], np.ndarray]:
    """Draws I1..I13, log-normal and null where missing; returns them and their joint effect [N]."""
    columns, effect = [], np.zeros(rows)
    for name, median, missing in zip(criteo.DENSE, _MEDIANS, _MISSING_INTEGERS, strict=True):
        size = np.log1p(median) + rng.standard_normal(rows)
        values = np.maximum(np.expm1(size), 0).astype(np.int64)
        absent = rng.random(rows) < missing
        effect += rng.standard_normal() * np.where(absent, 0, np.log1p(values) - np.log1p(median))
        values -= name == "I2"  # its least value in the real logs is -1
        columns.append(pa.array(values, mask=absent))
    return columns, effect


def _draw_categoricals(
    rng: np.random.Generator, user: np.ndarray, item: np.ndarray
) -> tuple[list[pa.Array], np.ndarray]:
    """Draws the other categorical columns.

    Returns:
      C1..C26, null where missing; and the joint effect [N] of the short columns.
    """
    rows = len(user)
    columns, effect = [], np.zeros(rows)
    drawn = {USER: user, ITEM: item}
    for column, name in enumerate(criteo.CATEGORICAL):
        if name in drawn:
            values, absent = drawn[name], np.zeros(rows, bool)
        else:
            values = _long_tailed(rng, rows, _VALUES[column], exponent=1.0)
            absent = rng.random(rows) < _MISSING_CATEGORICALS[column]
            if _VALUES[column] < _SHORT:
                effects = rng.standard_normal(_VALUES[column])
                effect += np.where(absent, 0, effects[values])
        words = _hash(np.arange(values.max() + 1) * len(criteo.CATEGORICAL) + column)
        columns.append(pa.array(words).take(pa.array(values, mask=absent)))
    return columns, effect


def _draw_taste(rng: np.random.Generator, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Draws hidden vectors and biases of users and items; returns the logit [N] they give a row."""
    weights = _WEIGHT_RATIO ** np.arange(_RANK)
    users = rng.standard_normal((user.max() + 1, _RANK)) * weights
    items = rng.standard_normal((item.max() + 1, _RANK))
    user_bias, item_bias = rng.standard_normal(len(users)), rng.standard_normal(len(items))
    taste = np.einsum("nk,nk->n", users[user], items[item])
    return _TASTE_SCALE * _scaled(taste) + _BIAS_SCALE * (user_bias[user] + item_bias[item])


def _long_tailed(rng: np.random.Generator, rows: int, values: int, exponent: float) -> np.ndarray:
    """Draws [rows] integers below `values`, the r-th most popular as often as r^-exponent."""
    cumulative = np.cumsum(np.arange(1, values + 1) ** -exponent)
    return np.searchsorted(cumulative, rng.random(rows) * cumulative[-1], side="right")


def _hash(numbers: np.ndarray) -> np.ndarray:
    """Eight hexadecimal digits for each number, all different (the finaliser of MurmurHash3)."""
    mixed: np.ndarray = numbers.astype(np.uint32)
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(multiplier)
    return np.array([f"{value:08x}" for value in (mixed ^ (mixed >> 16)).tolist()])


def _scaled(values: np.ndarray) -> np.ndarray:
    """Shifts and scales to mean 0 and standard deviation 1 (or 0, where all are equal)."""
    return (values - values.mean()) / (values.std() or 1)


def _intercept(logit: np.ndarray) -> float:
    """The intercept [] for which the mean probability of a click is `CLICK_RATE`."""
    intercept = 0.0
    for _ in range(20):  # Newton's method
        probability = _sigmoid(logit + intercept)
        slope = (probability * (1 - probability)).mean()
        intercept -= (probability.mean() - CLICK_RATE) / slope
    return intercept


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))
