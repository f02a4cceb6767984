"""Which variant of a sweep the validation split chooses, for each arm and of all."""

import collections
import dataclasses
from collections.abc import Sequence

from cadc_jax.study.results import Row, primary


@dataclasses.dataclass(frozen=True)
class Choice:
    """One variant in one arm.

    Attributes:
      data: name of the configuration.
      arm: its arm.
      model: its network; '' if it has none.
      selection: rule of its sample; '' if it has none.
      rate: of the sample.
      variant: name of the variant.
      seeds: how many seeds there are.
      metric: metric of the validation.
      validation: mean over seeds.
      tested: metric of the test.
      test: mean over seeds.
      best: whether no other variant validates better in this arm.
      best_of_all: whether nothing else of the data set validates better.
    """

    data: str
    arm: str
    model: str
    selection: str
    rate: float
    variant: str
    seeds: int
    metric: str
    validation: float
    tested: str
    test: float
    best: bool = False
    best_of_all: bool = False

    @property
    def key(self) -> tuple[str, str, str, str, float]:
        """What variants are compared within."""
        return self.data, self.arm, self.model, self.selection, self.rate

    @property
    def goodness(self) -> float:
        """Higher is better."""
        return -self.validation if self.metric == "logloss" else self.validation


def choices(rows: Sequence[Row]) -> list[Choice]:
    """The variants of each arm beside each other; only of arms that the variants make a difference.

    Args:
      rows: of results.csv; failed ones are left out.
    """
    seeds: dict[tuple, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row["status"] == "ok" and row.get("validation") not in (None, ""):
            names = ("data", "arm", "model", "selection", "rate", "variant")
            seeds[*(row[name] for name in names), row["validation_metric"]].append(row)
    groups: dict[tuple, list[Choice]] = collections.defaultdict(list)
    for (data, arm, model, selection, rate, variant, metric), found in seeds.items():
        tested = primary(found[0])
        validation, test = (_mean(found, name) for name in ("validation", tested))
        made = Choice(
            *(data, arm, model, selection, float(rate), variant),
            *(len(found), metric, validation, tested, test),
        )
        groups[*made.key, metric].append(made)
    compared = {key: x for key, x in groups.items() if len({y.validation for y in x}) > 1}
    marked: list[Choice] = []
    for variants in compared.values():
        best = max(x.goodness for x in variants)
        marked += (dataclasses.replace(x, best=x.goodness == best) for x in variants)
    top: dict[tuple[str, str], float] = {}
    for x in marked:
        top[x.data, x.metric] = max(x.goodness, top.get((x.data, x.metric), x.goodness))
    return [dataclasses.replace(x, best_of_all=x.goodness == top[x.data, x.metric]) for x in marked]


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(float(row[name]) for row in rows) / len(rows)
