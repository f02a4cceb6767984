"""All results of one configuration, side by side: what the tables and plots of the report read."""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from cadc_jax.data.table import Table, open_table
from cadc_jax.metrics import UserRankings
from cadc_jax.run.arms import FULL, SAMPLE
from cadc_jax.runtime import artifacts
from cadc_jax.study import bootstrap, costs, paired
from cadc_jax.study.bootstrap import Figures, Interval
from cadc_jax.study.cells import LABELS, SEEDED
from cadc_jax.study.costs import Cost
from cadc_jax.study.results import Row, primary

# Of the full ranking first, and last those among few items.
METRICS = ("ndcg", "recall", "hr", "hr_sampled", "ndcg_sampled", "auc", "logloss", "calibration")
Key = tuple[str, str, str, float]  # arm, model, selection, rate


@dataclasses.dataclass
class Group:
    """The results of cells that differ by their seed alone.

    Attributes:
      key: arm, model, selection, rate.
      rows: S rows of results.csv, by seed.
      values: [S, N], for each ranked user the NDCG in the full ranking; of clicks, for each test
        row the score.
      gains: [S, M], for each test row of the ranked users its part of the NDCG, before it is
        divided by the ideal; None for clicks.
      few: [S, N'] int32, for each test row its rank in the ranking among few; None for clicks.
      costs: what each seed cost; empty without a network.
    """

    key: Key
    rows: list[Row]
    values: np.ndarray
    gains: np.ndarray | None = None
    few: np.ndarray | None = None
    costs: Sequence[Cost] = ()

    @property
    def seeds(self) -> tuple[int, ...] | None:
        """The seeds of the rows; None of an arm in which nothing is random."""
        found = tuple(int(row["seed"]) for row in self.rows)
        return found if self.key[0] in SEEDED or len(found) > 1 else None

    def column(self, name: str) -> np.ndarray:
        """The values of a column of results.csv, [S]; empty if there are none."""
        return np.array([float(row[name]) for row in self.rows if row.get(name) not in (None, "")])

    def mean(self, name: str) -> float:
        """The mean of a column over seeds; NaN if it has no values."""
        found = self.column(name)
        return float(found.mean()) if len(found) else math.nan


@dataclasses.dataclass
class DataReport:
    """All results of one configuration, in one variant of a sweep.

    Attributes:
      data: name of the configuration.
      variant: name of the variant; '' without a sweep.
      k: cut-off of the rankings.
      table: the prepared table.
      metric: 'ndcg' or 'auc'.
      places: [M], the test rows that were scored.
      users: [N], the user of each value of a group: every ranked user once; of clicks, the user of
        each row.
      groups: by their key.
      truth: [N], click probabilities of the test rows; None if they are not known.
      figures: what `figures_of` has computed.
    """

    data: str
    variant: str
    k: int
    table: Table
    metric: str
    places: np.ndarray
    users: np.ndarray
    groups: dict[Key, Group]
    truth: np.ndarray | None
    figures: dict[tuple[Key, str], Figures] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the configuration, and of the variant."""
        return f"{self.data}: {self.variant}" if self.variant else self.data

    @property
    def models(self) -> list[str]:
        """Names of the models with results."""
        return list(dict.fromkeys(key[1] for key in self.groups if key[1]))

    @property
    def rates(self) -> list[float]:
        """Rates of the uniform samples, highest first."""
        return sorted({key[3] for key in self.groups if key[2] == "uniform"}, reverse=True)

    @property
    def headline(self) -> float | None:
        """The rate of a uniform sample nearest to a tenth; None if there are none."""
        return min(self.rates, key=lambda rate: abs(math.log(rate / 0.1)), default=None)

    @property
    def compared(self) -> list[tuple[Key, Group]]:
        """The groups on all rows or on uniform samples, in the order of the tables."""

        def order(key: Key) -> tuple:
            arm, model, _, rate = key
            place = list(LABELS).index(arm)
            return model, -rate if model else place, place, -rate

        found = [(key, group) for key, group in self.groups.items() if key[2] in ("", "uniform")]
        return sorted(found, key=lambda pair: order(pair[0]))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[N], labels of the scored test rows."""
        return np.asarray(self.table.splits["test"]["label"])[self.places]

    def test_column(self, name: str) -> np.ndarray:
        """[N], a column of the scored test rows."""
        return np.asarray(self.table.splits["test"][name])[self.places]

    @property
    def rows_of_users(self) -> np.ndarray:
        """[N], training rows of the user of each value."""
        train = np.asarray(self.table.splits["train"]["user"])
        return np.bincount(train, minlength=self.table.schema.num_users)[self.users]

    @property
    def rows_of_items(self) -> np.ndarray:
        """[M], training rows of the item of each scored test row."""
        return np.asarray(self.table.items["count"])[self.test_column("item")]

    def baseline(self, arm: str, model: str = "") -> Group | None:
        """The group of an arm on all rows."""
        return self.groups.get((arm, model, "", 1.0))

    def sampled(self, arm: str, model: str, rate: float) -> Group | None:
        """The group of an arm on a uniform sample. That of all rows is the arm on all rows."""
        if arm == SAMPLE.name and rate == 1:
            return self.baseline(FULL.name, model)
        return self.groups.get((arm, model, "uniform", rate))

    def difference(
        self, ours: Group | None, theirs: Group | None, metric: str = ""
    ) -> Interval | None:
        """How much larger a metric of `ours` is, over seeds and users; None if one has none.

        Args:
          ours: a group.
          theirs: what it is compared with.
          metric: one of METRICS; by default the one that judges an arm.
        """
        if ours is None or theirs is None or ours is theirs:
            return None
        mine, other = (self.figures_of(group, metric or self.metric) for group in (ours, theirs))
        return None if mine is None or other is None else bootstrap.difference(mine, other)

    def figures_of(self, group: Group, metric: str) -> Figures | None:
        """A metric of a group with each seed, and of the users that replicates draw."""
        if (group.key, metric) not in self.figures:
            found = _figures(self, group, metric)
            if found is None:
                return None
            self.figures[group.key, metric] = found
        return self.figures[group.key, metric]

    def difference_within(
        self, ours: Group, theirs: Group, chosen: np.ndarray, by_row: bool = False
    ) -> Interval:
        """`difference` on some of the users [N] bool, or on some of the scored rows [M] bool.

        Of rankings, rows are judged by their gain.
        """
        sides = []
        for group in (ours, theirs):
            if self.metric == "auc":
                labels, scores = self.labels[chosen], group.values[:, chosen]
                found = bootstrap.aucs(labels, scores, self.users[chosen], group.seeds)
            elif by_row and group.gains is not None:
                user = self.test_column("user")[chosen]
                found = bootstrap.means(group.gains[:, chosen], user, group.seeds)
            else:
                found = bootstrap.means(group.values[:, chosen], self.users[chosen], group.seeds)
            sides.append(found)
        return bootstrap.difference(*sides)

    def quality(self, group: Group, chosen: np.ndarray) -> float:
        """The metric on some of the users, or of the rows of clicks, [N] bool; mean over seeds."""
        if self.metric == "auc":
            values = [paired.auc(self.labels[chosen], v[chosen]) for v in group.values]
            return float(np.mean(values))
        return float(group.values[:, chosen].mean())

    def quality_of_rows(self, group: Group, rows: np.ndarray) -> float:
        """The metric on some of the scored rows, [M] bool; of rankings, their mean gain."""
        if group.gains is None:
            return self.quality(group, rows)
        return float(group.gains[:, rows].mean())


def _figures(report: DataReport, group: Group, metric: str) -> Figures | None:
    if metric == "auc":
        return bootstrap.aucs(report.labels, group.values, report.users, group.seeds)
    if metric == "logloss":
        if not len(group.column("logloss")):
            return None  # its scores are not logits
        losses = np.logaddexp(0, np.where(report.labels > 0, -1, 1) * group.values)
        return bootstrap.means(losses, report.users, group.seeds)
    if metric == "ndcg":
        return bootstrap.means(group.values, report.users, group.seeds)
    if group.few is None:
        return None
    user = np.asarray(report.table.splits["test"]["user"])
    values = {"hr_sampled": hit, "ndcg_sampled": ndcg}[metric](group.few, report.k)
    return bootstrap.means(values, user, group.seeds)


def gather(out: pathlib.Path, rows: Sequence[Row]) -> DataReport | None:
    """Reads what the report of a configuration, in one variant, needs.

    Args:
      out: folder of the study.
      rows: its rows in results.csv.

    Returns:
      None if no row has a result.
    """
    good = [row for row in rows if row["status"] == "ok"]
    if not good:
        return None
    data, variant, k = good[0]["data"], good[0]["variant"], int(good[0]["cut_off"])
    work = out / "work" / data
    prepared = work / "prepare" / good[0]["prepared"]
    table = open_table(prepared)
    metric = primary(good[0])
    users = np.asarray(table.splits["test"]["user"])
    places = np.arange(len(users))
    if metric == "ndcg":
        ranked = _rankings(work, good[0], table)
        places, users = np.sort(ranked.rows), ranked.users
    by_key: dict[Key, list[Row]] = collections.defaultdict(list)
    for row in good:
        by_key[row["arm"], row["model"], row["selection"], float(row["rate"])].append(row)
    groups = {key: _group(work, key, found, table, k) for key, found in by_key.items()}
    truth = _truth(work, prepared, len(places))
    return DataReport(data, variant, k, table, metric, places, users, groups, truth)


def metric_name(name: str, k: int) -> str:
    """The name of a column of results.csv for people."""
    cut = {"hr": f"HR@{k}", "ndcg": f"NDCG@{k}", "recall": f"recall@{k}"}
    if name in cut:
        return cut[name] + " (rows)" * (name == "hr")
    if name.endswith("_sampled"):
        return f"{cut[name.removesuffix('_sampled')]} (1+K)"
    return {"auc": "AUC", "logloss": "log loss"}.get(name, name)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of each test row by itself, from its rank; the first rank is 0."""
    return np.where(ranks < k, 1 / np.log2(ranks + 2.0), 0.0)


def hit(ranks: np.ndarray, k: int) -> np.ndarray:
    """HR@k of each test row: 1 if it is among the first k, else 0."""
    return (ranks < k).astype(np.float64)


def _group(work: pathlib.Path, key: Key, rows: Sequence[Row], table: Table, k: int) -> Group:
    rows = sorted(rows, key=lambda row: int(row["seed"]))
    found = (costs.of(work, row["evaluation"]) for row in rows if key[1])
    spent = [cost for cost in found if cost is not None]
    if primary(rows[0]) == "auc":
        scores = np.stack([_evaluated(work, row, "scores") for row in rows])
        return Group(key, rows, scores, costs=spent)
    rankings = [_rankings(work, row, table) for row in rows]
    values = np.stack([ranking.ndcg(k) for ranking in rankings])
    gains = np.stack([ranking.gain(k)[np.argsort(ranking.rows)] for ranking in rankings])
    few = np.stack([_evaluated(work, row, "ranks_sampled") for row in rows])
    return Group(key, rows, values, gains, few, spent)


def _rankings(work: pathlib.Path, row: Row, table: Table) -> UserRankings:
    """The places of the test items in the full rankings of a cell."""
    test, ranks = table.splits["test"], _evaluated(work, row, "ranks_full")
    return UserRankings.of_ranks(ranks, test["user"], test["item"], table.schema.num_items)


def _evaluated(work: pathlib.Path, row: Row, name: str) -> np.ndarray:
    """An array of the artefact in which the test of a cell is."""
    return np.load(work / "evaluate" / row["evaluation"] / f"{name}.npy")


def _truth(work: pathlib.Path, prepared: pathlib.Path, test_rows: int) -> np.ndarray | None:
    """Click probabilities of the test rows, if the prepared table is of a synthetic log."""
    total = sum(artifacts.open_artifact(prepared).facts["rows"].values())
    for path in sorted(work.glob("synthetic/*/truth.npy"), reverse=True):
        found = np.load(path)
        if len(found) == total:
            return found[-test_rows:]  # the split is by order: the last rows test
    return None
