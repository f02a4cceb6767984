"""The rivals whose settings are searched: what each one is fitted by, and what it needs."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from cadc_jax.data.raw import SPLITS, TRAIN
from cadc_jax.data.table import Table
from cadc_jax.study import cells
from cadc_jax.study.rivals import clicks, item_weights, rankings
from cadc_jax.study.rivals.given import Fit, Given
from cadc_jax.study.rivals.item_weights import WEIGHTINGS
from cadc_jax.tuning.space import Axis, choice
from cadc_jax.tuning.trials import Trial

EASE_ITEMS = 12_000  # a float64 matrix of items x items is inverted: 1.2 GB for so many
SLIM_ITEMS = 5_000  # a regression an item: about two minutes on a core for 3,706 items
CLICK_ROWS = 5_000_000  # training rows that are encoded in memory at once


@dataclasses.dataclass(frozen=True)
class Rival:
    """A recommender whose settings are chosen on the validation split.

    Attributes:
      axes: the settings to search; the first value of each grid is tried first.
      open: makes what fits it, from the training rows; it computes once what trials share.
      whole: names of settings that are whole numbers.
      words: names of settings that are words, and these; the axis has their places.
      library: the module that it needs, from the extra `bench`.
      most_items: number of items above which it is left out; 0 for no limit.
      most_rows: the same of training rows.
      takes_factors: whether it needs factors.
    """

    axes: tuple[Axis, ...]
    open: Callable[[Given], Fit]
    whole: frozenset[str] = frozenset()
    words: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    library: str = ""
    most_items: int = 0
    most_rows: int = 0
    takes_factors: bool = False

    def settings(self, trial: Trial) -> dict[str, Any]:
        """The settings that a trial stands for."""
        found: dict[str, Any] = {}
        for axis, value in zip(self.axes, trial, strict=True):
            if axis.name in self.words:
                found[axis.name] = self.words[axis.name][int(value)]
            else:
                found[axis.name] = round(value) if axis.name in self.whole else value
        return found

    def why_not(self, table: Table) -> str:
        """Why it cannot be fitted to a table, or on this machine; '' if it can."""
        if self.library and importlib.util.find_spec(self.library) is None:
            return f"the library {self.library} is not installed: pip install -e '.[bench]'"
        sizes = (
            ("items", table.schema.num_items, self.most_items),
            ("training rows", len(table.splits[SPLITS[TRAIN]]["user"]), self.most_rows),
        )
        for name, size, most in sizes:
            if 0 < most < size:
                return f"{size:,} {name} are more than {most:,}, the most that it is fitted to"
        return ""


_PENALTY = Axis("regularization", (300.0,), 10**0.5, 1e-2, 1e6, (10.0, 3000.0))
_KEPT = Axis("neighbours", (200,), 2.0, 5, 5000, (20, 800))
_STEP = 10**0.5

RIVALS: Mapping[str, Rival] = {
    cells.EASE: Rival((_PENALTY,), rankings.by_weights(item_weights.ease), most_items=EASE_ITEMS),
    cells.ITEM_KNN: Rival(
        (
            dataclasses.replace(_KEPT, name="number", grid=(100,)),
            choice("weighting", range(len(WEIGHTINGS))),
        ),
        rankings.by_weights(item_weights.neighbours),
        whole=frozenset({"number"}),
        words={"weighting": tuple(WEIGHTINGS)},
        library="implicit",
    ),
    cells.SLIM: Rival(
        (
            Axis("l1", (3.0,), _STEP, 1e-2, 1e3, (0.3, 30.0)),
            Axis("l2", (300.0,), _STEP, 1e-1, 1e5, (10.0, 3000.0)),
        ),
        rankings.by_weights(item_weights.slim),
        library="sklearn",
        most_items=SLIM_ITEMS,
    ),
    cells.RP3BETA: Rival(
        (
            Axis("alpha", (1.0,), 0.2, 0.2, 2.0, (0.4, 1.6), linear=True),
            Axis("beta", (0.4,), 0.15, 0.0, 1.5, (0.0, 1.0), linear=True),
            _KEPT,
        ),
        rankings.by_weights(item_weights.rp3beta),
        whole=frozenset({"neighbours"}),
    ),
    cells.MF_EASE: Rival(
        (_PENALTY, Axis("weight", (1.0,), 2.0, 2**-8, 2**8, (0.125, 8.0))),
        rankings.factors_and_ease,
        most_items=EASE_ITEMS,
        takes_factors=True,
    ),
    cells.LOGISTIC: Rival(
        (
            Axis("id_penalty", (3.0,), _STEP, 1e-3, 1e4, (0.3, 100.0)),
            Axis("penalty", (3.0,), _STEP, 1e-3, 1e4, (0.3, 100.0)),
        ),
        clicks.logistic,
        library="sklearn",
        most_rows=CLICK_ROWS,
    ),
    cells.FM: Rival(
        (
            choice("factors", (16, 8, 32)),
            Axis("penalty", (3.0,), _STEP, 1e-3, 1e3, (0.3, 30.0)),
            Axis("learning_rate", (0.1,), 2.0, 1e-3, 1.0, (0.02, 0.3)),
        ),
        clicks.factorization_machine,
        whole=frozenset({"factors"}),
        most_rows=CLICK_ROWS,
    ),
    cells.LIGHTGBM: Rival(
        (
            Axis("learning_rate", (0.05,), 2.0, 5e-3, 0.5, (0.02, 0.2)),
            Axis("num_leaves", (31,), 2.0, 3, 1023, (7, 127)),
            Axis("min_data_in_leaf", (30,), 2.0, 1, 5000, (10, 300)),
            Axis("lambda_l2", (1.0,), _STEP, 1e-3, 1e4, (0.1, 100.0)),
            Axis("feature_fraction", (0.8,), 0.2, 0.2, 1.0, (0.4, 1.0), linear=True),
        ),
        clicks.boosted_trees,
        whole=frozenset({"num_leaves", "min_data_in_leaf"}),
        library="lightgbm",
        most_rows=CLICK_ROWS,
    ),
}
