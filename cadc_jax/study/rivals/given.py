"""What rivals are fitted to, and what fits one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cadc_jax.data.raw import SPLITS, TEST
from cadc_jax.data.table import Lazy, Table
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.training.assemble import Pair

Settings = Mapping[str, Any]
Fit = Callable[[Settings], Scorer]


class Given(NamedTuple):
    """What a rival may read.

    Attributes:
      table: training rows, content, and the validation split.
      factors: user [U, D] and item [I, D] factors of the training rows; None for most rivals.
    """

    table: Table
    factors: Pair | None = None


def without_test(table: Table) -> Table:
    """The table without its test split: what is not there is not read."""
    names = [name for name in table.splits if name != SPLITS[TEST]]
    return dataclasses.replace(table, splits=Lazy(names, table.splits.__getitem__))
