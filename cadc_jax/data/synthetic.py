"""Writes click logs in the format of Criteo, with a planted taste, for runs without any data.

The columns have about the number of values, the long tails and the missing fields of the Criteo
Kaggle logs (up to a few thousand values each, not millions). Two columns stand for a user and an
item: `USER` and `ITEM`, which in the real logs, too, are never empty and have many values. A click
is drawn with probability sigmoid(intercept + content + taste):

  content: an effect of every value of the short categorical columns, and of every integer's
    logarithm; the long columns say nothing.
  taste: <u, v> of the user's and the item's hidden vectors, of rank 8 and falling weight, plus a
    small bias of each.

Rows are drawn independently of each other, so nothing changes with time. The intercept makes a
quarter of the rows clicks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

USER, ITEM = "C7", "C11"
ROWS_PER_USER, ROWS_PER_ITEM = 100, 200  # on average
CLICK_RATE = 0.25

_RANK = 8
_WEIGHT_FALL = 0.7  # of one dimension of the hidden vectors to the next
_TASTE_SCALE, _BIAS_SCALE, _CONTENT_SCALE = 1.5, 0.2, 1.0  # standard deviations, in logits
_SHORT = 1000  # columns of fewer values have effects

_MEDIANS = (1, 3, 6, 4, 2500, 30, 3, 8, 40, 0, 1, 0, 4)  # of I1..I13
_VALUES = (
    *(1460, 583, 3000, 3000, 305, 24, None, 633, 3, 3000, None, 3000, 3000),  # of C1..C26
    *(27, 3000, 3000, 10, 3000, 2000, 4, 3000, 18, 15, 3000, 105, 3000),
)
_MISSING_INTEGERS = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.76, 0.22)
_MISSING_CATEGORICALS = (
    *(0, 0, 0.03, 0.03, 0, 0.12, 0, 0, 0, 0, 0, 0.03, 0),
    *(0, 0, 0.03, 0, 0, 0.44, 0.44, 0.03, 0.76, 0, 0.03, 0.44, 0.44),
)


class Truth(NamedTuple):
    """What the rows were drawn from, in their order; no model can predict clicks better.

    Attributes:
      probability: [N] f32 of a click.
      content: [N] f32, the part of the logit that all columns but the user and the item explain.
      taste: [N] f32, the part that the user and the item explain.
    """

    probability: np.ndarray
    content: np.ndarray
    taste: np.ndarray


def write_criteo(path: str | Path, rows: int, seed: int) -> Truth:
    """Writes a log of `rows` rows, which are a function of (rows, seed), and returns its truth."""
    table, truth = _draw(rows, seed)
    layout = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    csv.write_csv(table, path, layout)
    return truth


def criteo_truth(rows: int, seed: int) -> Truth:
    """Returns the truth of the log that `write_criteo` writes, without writing it."""
    return _draw(rows, seed)[1]


def _draw(rows: int, seed: int) -> tuple[pa.Table, Truth]:
    rng = np.random.default_rng([rows, seed])
    integers, integers_effect = _draw_integers(rng, rows)
    categoricals, categoricals_effect, user, item = _draw_categoricals(rng, rows)
    content = _scaled(
        _scaled(integers_effect, 0.6) + _scaled(categoricals_effect, 0.8), _CONTENT_SCALE
    )
    taste = _draw_taste(rng, user, item)
    logit = content + taste
    logit += _intercept(logit)
    probability = 1 / (1 + np.exp(-logit))
    label = (rng.random(rows) < probability).astype(np.int8)
    table = pa.table([pa.array(label), *integers, *categoricals], _names())
    return table, Truth(*(part.astype(np.float32) for part in (probability, content, taste)))
