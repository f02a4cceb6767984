"""The comparisons of a study, which are fixed before any result is there, and their p-values.

With many comparisons some differ by chance. Holm (1979) multiplies the smallest of m p-values by m,
the next by m - 1, and so on: the probability of a single wrong 'better' or 'worse' in the whole
study is then at most 1 - LEVEL, however its comparisons depend on each other.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from cadc_jax.run.arms import CADC_FROZEN, CADC_TRAINABLE, FULL, MF_ALONE, SAMPLE
from cadc_jax.study.bootstrap import LEVEL, Interval
from cadc_jax.study.cells import EASE, LABELS
from cadc_jax.study.data_report import DataReport, Group, metric_name
from cadc_jax.study.formats import Table, interval, marked

MF_EASE = "mf_ease"  # scores of both, added up
# (arm, what it is compared with): of each network at each rate. Names may be missing in a study.
COMPARISONS = tuple(
    itertools.product(
        (CADC_FROZEN.name, CADC_TRAINABLE.name),
        (FULL.name, MF_ALONE.name, MF_EASE, EASE, SAMPLE.name),
    )
)
METRICS = {"ndcg": ("ndcg",), "auc": ("auc", "logloss")}  # by the metric that judges an arm
LOW_IS_GOOD = frozenset({"logloss"})
UNCLEAR = "not told apart"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison.

    Attributes:
      data: configuration and variant, see `DataReport.name`.
      arm: what is compared.
      model: its network.
      rate: of its sample.
      peer: the arm it is compared with.
      metric: one of `data_report.METRICS`.
      k: cut-off of the rankings.
      difference: how much larger the metric is than that of the peer.
      holm: p-value after Holm's correction; NaN if there is none.
    """

    data: str
    arm: str
    model: str
    rate: float
    peer: str
    metric: str
    k: int
    difference: Interval
    holm: float = math.nan

    @property
    def verdict(self) -> str:
        """'better', 'worse' or UNCLEAR, after Holm's correction."""
        if not self.holm < 1 - LEVEL:
            return UNCLEAR
        good = (self.difference.mean > 0) != (self.metric in LOW_IS_GOOD)
        return "better" if good else "worse"


def compare(reports: Sequence[DataReport]) -> list[Comparison]:
    """All comparisons of a study that have results; Holm's correction is over all of them."""
    found = [comparison for report in reports for comparison in _of(report)]
    adjusted = holm(np.array([comparison.difference.p for comparison in found]))
    return [
        dataclasses.replace(comparison, holm=float(p))
        for comparison, p in zip(found, adjusted, strict=True)
    ]


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values of [M] p-values; NaN, of which there is no test, stays NaN."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN is last
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted


def table(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons of one report."""
    header = ["arm", "model", "rate", "against", "metric", "difference", "over"]
    lines = [[*header, "p", "p (Holm)", "verdict"]]
    for x in comparisons:
        line = [LABELS[x.arm], x.model, f"{x.rate:g}", LABELS[x.peer], metric_name(x.metric, x.k)]
        line += [str(interval(x.difference)), "seeds and users" if x.difference.seeds else "users"]
        colour = "" if x.verdict == UNCLEAR else x.verdict
        lines.append([*line, _p(x.difference.p), _p(x.holm), marked(x.verdict, colour)])
    return lines


def _of(report: DataReport) -> Iterator[Comparison]:
    """The comparisons of one report, not corrected yet."""
    for (arm, model, rule, rate), group in report.compared:
        if rule != "uniform":
            continue
        for name in (peer for own, peer in COMPARISONS if own == arm):
            peer = _peer(report, name, model, rate)
            for metric in METRICS[report.metric]:
                found = report.difference(group, peer, metric)
                if found is not None:
                    place = (report.name, arm, model, rate, name, metric, report.k)
                    yield Comparison(*place, found)


def _peer(report: DataReport, name: str, model: str, rate: float) -> Group | None:
    """The group of an arm that others are compared with."""
    if name == SAMPLE.name:  # at rate 1 it is the arm on all rows, which is compared already
        return report.sampled(name, model, rate) if rate < 1 else None
    return report.baseline(name, model if name == FULL.name else "")


def _p(p: float) -> str:
    return "-" if math.isnan(p) else "<0.0001" if p < 0.0001 else f"{p:.4f}"
