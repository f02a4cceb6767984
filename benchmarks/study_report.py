"""The study's report: one HTML file with tables and plots in it, from results.csv and artefacts."""

import collections
import dataclasses
import functools
import html
import io
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks import paired, selection
from benchmarks.paired import Interval
from cadc_jax import __version__
from cadc_jax.data.table import Table, open_table
from cadc_jax.runtime import artifacts

matplotlib.use("Agg")
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "study"  # the same ids in every report

K = 10  # cut-off of the rankings
NAMES = {
    "popularity": "popularity",
    "mf_alone": "MF alone",
    "ease": "EASE",
    "item_knn": "item neighbours",
    "full": "all rows, no factors",
    "random": "sample, no factors",
    "trainable": "CADC, trainable",
    "frozen": "CADC, frozen",
}
RULES = {
    "uniform": "uniform (CADC)",
    "per_user": "uniform per user",
    "popularity": "popular items likelier",
    "inverse_propensity": "rare items likelier",
    "recent": "most recent",
    "hardest": "hardest for MF (SVP-CF)",
}
COLOURS = {"random": "tab:gray", "trainable": "tab:orange", "frozen": "tab:blue"}
OTHER = {"mf_alone": "tab:green", "full": "tab:red", "popularity": "tab:brown"}
Row = Mapping[str, Any]
Key = tuple[str, str, str, float]  # arm, model, selection, rate


def primary(row: Row) -> str:
    """The metric by which a row is judged."""
    return "auc" if row.get("auc") not in (None, "") else "ndcg"


@dataclasses.dataclass
class Group:
    """The seeds of a cell.

    Attributes:
      key: arm, model, selection, rate.
      rows: of results.csv, by seed.
      values: [S, N] of each test row: its NDCG@K in the full ranking, or its score.
      few: [S, N'] of each test row its rank in the (1+K) ranking; None of clicks.
    """

    key: Key
    rows: list[Row]
    values: np.ndarray
    few: np.ndarray | None = None

    def of(self, name: str) -> np.ndarray:
        """A column's values over seeds, [S]; empty if there are none."""
        return np.array([float(row[name]) for row in self.rows if row.get(name) not in (None, "")])

    def mean(self, name: str) -> float:
        """The mean of a column over seeds; NaN if there is none."""
        found = self.of(name)
        return float(found.mean()) if len(found) else math.nan


@dataclasses.dataclass
class DataReport:
    """All of one data set.

    Attributes:
      name: of the data set.
      table: the prepared table.
      metric: 'ndcg' or 'auc'.
      places: [N] test rows that were scored.
      groups: by key.
      failed: rows without a result.
      truth: [N] click probabilities of the test rows, if they are known.
    """

    name: str
    table: Table
    metric: str
    places: np.ndarray
    groups: dict[Key, Group]
    failed: list[Row]
    truth: np.ndarray | None

    @property
    def models(self) -> list[str]:
        """Names of the models there are results of."""
        return list(dict.fromkeys(key[1] for key in self.groups if key[1]))

    @property
    def rates(self) -> list[float]:
        """Rates of the uniform samples, highest first."""
        return sorted({key[3] for key in self.groups if key[2] == "uniform"}, reverse=True)

    @property
    def compared(self) -> list[tuple[Key, Group]]:
        """All groups but those of other selections, in the order of the tables."""
        found = [(key, group) for key, group in self.groups.items() if key[2] in ("", "uniform")]
        return sorted(found, key=lambda pair: _order(pair[0]))

    @property
    def headline(self) -> float | None:
        """The rate nearest to a tenth."""
        return min(self.rates, key=lambda rate: abs(math.log(rate / 0.1)), default=None)

    def baseline(self, arm: str, model: str = "") -> Group | None:
        """The group of an arm that trains on all rows."""
        return self.groups.get((arm, model, "", 1.0))

    def sampled(self, arm: str, model: str, rate: float) -> Group | None:
        """The group of an arm on a uniform sample; all rows without factors at rate 1."""
        if arm == "random" and rate == 1:
            return self.baseline("full", model)
        return self.groups.get((arm, model, "uniform", rate))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[N] labels of the test rows."""
        return np.asarray(self.table.splits["test"]["label"])[self.places]

    def difference(self, ours: Group | None, theirs: Group | None) -> Interval | None:
        """How much better `ours` is."""
        if ours is None or theirs is None:
            return None
        if self.metric == "auc":
            return paired.over_rows(self.labels, ours.values, theirs.values)
        return paired.over_users(ours.values, theirs.values)

    def quality(self, group: Group, rows: np.ndarray) -> float:
        """The metric on some of the scored rows, [N] bool, mean over seeds."""
        if self.metric == "auc":
            return float(np.mean([paired.auc(self.labels[rows], v[rows]) for v in group.values]))
        return float(group.values[:, rows].mean())


def write(out: pathlib.Path, rows: Sequence[Row], machine: str, command: str) -> list[DataReport]:
    """Writes `report.html` into the study's folder `out`, and returns what it shows."""
    names = dict.fromkeys(row["data"] for row in rows)
    reports = [_gather(out, name, [row for row in rows if row["data"] == name]) for name in names]
    reports = [report for report in reports if report is not None]
    failed = [row for row in rows if row["status"] != "ok"]
    text = _page(reports, failed, len(rows), machine, command)
    temporary = out / ".report.html.tmp"
    temporary.write_text(text)
    temporary.replace(out / "report.html")
    return reports


def _gather(out: pathlib.Path, name: str, rows: Sequence[Row]) -> DataReport | None:
    good = [row for row in rows if row["status"] == "ok"]
    if not good:
        return None
    work = out / "work" / name
    prepared = work / "prepare" / good[0]["prepared"]
    table = open_table(prepared)
    metric = primary(good[0])
    places = np.arange(len(table.splits["test"]["user"]))
    if metric == "ndcg":
        places = np.flatnonzero(_kept(work, good[0], "ranks_full") >= 0)
    by_key = collections.defaultdict(list)
    for row in good:
        key = (row["arm"], row["model"], row["selection"], float(row["rate"]))
        by_key[key].append(row)
    groups = {}
    for key, of_key in by_key.items():
        of_key.sort(key=lambda row: int(row["seed"]))
        if metric == "auc":
            groups[key] = Group(key, of_key, np.stack([_kept(work, r, "scores") for r in of_key]))
            continue
        values = np.stack([ndcg(_kept(work, row, "ranks_full")[places]) for row in of_key])
        few = np.stack([_kept(work, row, "ranks_sampled") for row in of_key])
        groups[key] = Group(key, of_key, values, few)
    truth = None
    total = sum(artifacts.open_artifact(prepared).facts["rows"].values())
    for path in sorted(work.glob("synthetic/*/truth.npy")):
        found = np.load(path)
        if len(found) == total:
            truth = found[-len(places) :]  # split by order: the last rows test
    failed = [row for row in rows if row["status"] != "ok"]
    return DataReport(name, table, metric, places, groups, failed, truth)


def _kept(work: pathlib.Path, row: Row, name: str) -> np.ndarray:
    return np.load(work / "evaluate" / row["evaluation"] / f"{name}.npy")


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """NDCG@K of each held-out item, from its rank, the first being 0."""
    return np.where(ranks < K, 1 / np.log2(ranks + 2.0), 0.0)


def hit(ranks: np.ndarray) -> np.ndarray:
    """HR@K of each held-out item: 1 if it is among the first K, else 0."""
    return (ranks < K).astype(np.float64)


def among_few(report: DataReport) -> list[list[str]]:
    """Differences in the (1+K) ranking, paired over all test users."""
    header = ["arm", "model", "rate"]
    for peer in ("MF alone", "all rows"):
        header += [f"HR@{K} (1+K) against {peer}", f"NDCG@{K} (1+K) against {peer}"]
    lines = [header]
    for (arm, model, _, rate), group in report.compared:
        if group.few is None:
            continue
        line = [NAMES[arm], model or "-", f"{rate:g}"]
        for peer in (report.baseline("mf_alone"), report.baseline("full", model)):
            for of in (hit, ndcg):
                known = peer is not None and peer is not group
                found = paired.over_users(of(group.few), of(peer.few)) if known else None
                line.append(_interval(found))
        lines.append(line)
    return lines


# What is shown elsewhere than in the page.


def json_rows(reports: Iterable[DataReport]) -> list[dict[str, Any]]:
    """The comparisons with MF alone and with all rows, in the form of the other benchmarks."""
    found = []
    for report in reports:
        name = "auc" if report.metric == "auc" else f"ndcg@{K}"
        for (arm, model, rule, rate), group in report.groups.items():
            if arm not in COLOURS or rule == "fold_in":
                continue
            peers = {"MF alone": report.baseline("mf_alone")}
            peers["all rows, no factors"] = report.baseline("full", model)
            for peer_name, peer in peers.items():
                if peer is None:
                    continue
                ours, theirs = group.mean(report.metric), peer.mean(report.metric)
                found.append(
                    {
                        "case": f"{report.name}, {model}, {arm}, {rule} {rate:g}",
                        "metric": f"{name}, mean of {len(group.rows)} seeds (larger is better)",
                        "ours": ours,
                        "peer": theirs,
                        "peer_name": peer_name,
                        "ratio": ours / theirs if theirs else math.nan,
                        "interval": report.difference(group, peer),
                    }
                )
    return found


def summary(reports: Iterable[DataReport]) -> str:
    """The first tables of each data set as text."""
    parts = []
    for report in reports:
        parts.append(f"{report.name}\n{_text(_main_table(report))}")
        for make in (among_few, _selection_table):
            if len(lines := make(report)) > 1:
                parts.append(_text(lines))
    return "\n\n".join(parts)


def _text(lines: Sequence[Sequence[str]]) -> str:
    plain = [[_plain(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in plain
    )


# The page.

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1150px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.7em 0 1.4em;font-size:13px}
th,td{padding:2px 9px;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th{border-bottom:2px solid #888}td:first-child,th:first-child{text-align:left}
.better{color:#0a6b1f}.worse{color:#a51d1d}.note{color:#555;font-size:13px}
h2{border-bottom:1px solid #aaa;margin-top:2em}svg{max-width:100%;height:auto}
""".strip()


class _Cell(str):
    """Text of a table with a class of CSS."""

    kind: str = ""


def _page(
    reports: Sequence[DataReport],
    failed: Sequence[Row],
    cells: int,
    machine: str,
    command: str,
) -> str:
    done = cells - len(failed)
    parts = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>CADC: the study</title><style>{_STYLE}</style></head><body>",
        "<h1>CADC: what a sample and factors of all rows give</h1>",
        f"<p>{done} of {cells} cells have a result. {html.escape(machine)}; cadc_jax "
        f"{__version__}.<br><code>{html.escape(command)}</code></p>",
        _method(),
    ]
    for report in reports:
        parts.append(_section(report))
    if failed:
        parts.append("<h2>Cells without a result</h2>")
        lines = [["cell", "", "why"]]
        for row in failed:
            name = ", ".join(
                str(row[part]) for part in ("data", "arm", "model", "selection") if row[part]
            )
            name += f", rate {float(row['rate']):g}, seed {row['seed']}"
            lines.append([name, row["status"], row["error"]])
        parts.append(_table(lines))
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _method() -> str:
    return f"""<h2>How to read this</h2><ul>
<li><b>Arms.</b> <i>all rows, no factors</i>: the network from a random start, on every training
row, until validation got no better. <i>sample, no factors</i>: the same on the kept rows.
<i>CADC</i>: the kept rows, user and item embeddings from a factorisation of all rows, frozen or as
a start. <i>MF alone</i>: that factorisation's own score, without a network: what a network has to
better to be worth its training.</li>
<li><b>Metrics.</b> Rankings: NDCG@{K} and hit rate of the held-out item among <i>all</i> items its
user had not seen; (1+K) among K unseen ones, which gives larger numbers. Clicks: AUC and log loss
of later rows. Choices (the best step, rivals' settings) are made on the validation split; the
networks' settings are those of the configuration, for all arms alike, and were not tuned anew for
each of them.</li>
<li><b>&plusmn;</b> is the standard deviation over seeds (of sample, training and factorisation);
data and splits stay the same.</li>
<li><b>Differences</b> are paired: the same test users or rows, results averaged over seeds first.
In brackets the 95&nbsp;% interval: of rankings Student's over users, of clicks DeLong's over rows,
which takes the rows of one user to be independent. The interval holds for the seeds as they were
drawn; how far another seed may be off is what &plusmn; shows. Green or red: it leaves 0 out. There
are many comparisons here; one of twenty would do so by chance alone.</li>
<li><b>Seconds</b> are wall time on the machine named above, compilation included, other work of
the study going on beside it. <i>not converged</i> counts seeds in which training hit its limit of
evaluations, <i>start is best</i> those in which no step bettered the validation result of the
start, which is then what is tested: of CADC on a two-tower network that is MF alone.</li></ul>"""


def _section(report: DataReport) -> str:
    rows = {split: len(columns["user"]) for split, columns in report.table.splits.items()}
    counts = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    scored = (
        "" if len(report.places) == rows["test"] else f" ({len(report.places):,} of them drawn)"
    )
    schema = report.table.schema
    parts = [
        f"<h2>{html.escape(report.name)}</h2>",
        f"<p class='note'>Rows: {counts}{scored}; {schema.num_users - 1:,} users, "
        f"{schema.num_items - 1:,} items.</p>",
        _table(_main_table(report)),
    ]
    if len(report.rates) > 1:
        parts.append(_quality_by_rate(report))
    parts.append(_quality_by_seconds(report))
    sections: list[tuple[str, Callable[[DataReport], list[list[str]]]]] = [
        ("Among K unseen items only: (1+K)", among_few),
        ("Other ways to choose as many rows", _selection_table),
        ("How the rivals were set", _rival_table),
        ("By activity of the user (deciles of training rows)", _activity_table),
        ("By popularity of the item (deciles of training rows)", _popularity_table),
        ("Users the factorisation did not see", _fold_in_table),
        ("What it costs", _cost_table),
        ("Against the truth the rows were drawn from", _truth_table),
    ]
    for title, make in sections:
        lines = make(report)
        if len(lines) > 1:
            parts += [f"<h3>{title}</h3>", _table(lines)]
    return "\n".join(parts)


def _main_table(report: DataReport) -> list[list[str]]:
    """All groups but those of other selections."""
    metrics = [name for name in _metrics(report) if name != "calibration"]
    header = ["arm", "model", "rate", "rows", "seeds", *(_METRIC_NAMES[name] for name in metrics)]
    header += ["against MF alone", "against all rows", "against the sample alone"]
    header += ["train s", "not converged", "start is best"]
    lines = [header]
    for (arm, model, _, rate), group in report.compared:
        mf, full = report.baseline("mf_alone"), report.baseline("full", model)
        line = [NAMES[arm], model or "-", f"{rate:g}", f"{group.mean('rows_used'):,.0f}"]
        line += [str(len(group.rows)), *(_spread(group, name) for name in metrics)]
        line.append(_interval(None if group is mf else report.difference(group, mf)))
        line.append(_interval(None if group is full else report.difference(group, full)))
        alone = report.sampled("random", model, rate) if arm in ("frozen", "trainable") else None
        line.append(_interval(report.difference(group, alone)))
        train, converged = group.mean("train_s"), group.of("converged")
        line.append("-" if math.isnan(train) else f"{train:.1f}")
        for count in (converged, group.of("best_step")):
            line.append(str(int(np.sum(count == 0))) if len(count) else "-")
        lines.append(line)
    return lines


def _selection_table(report: DataReport) -> list[list[str]]:
    name = _METRIC_NAMES[report.metric]
    lines = [["rows kept", "model", "arm", "rate", "seeds", name, "uniform, less this"]]
    rates = {key[3] for key in report.groups if key[2] in RULES and key[2] != "uniform"}
    for (arm, model, rule, rate), group in sorted(
        report.groups.items(),
        key=lambda pair: (
            (-pair[0][3], pair[0][1], pair[0][0], list(RULES).index(pair[0][2]))
            if pair[0][2] in RULES
            else ()
        ),
    ):
        if rule not in RULES or rate not in rates or arm == "trainable":
            continue
        uniform = report.sampled(arm, model, rate)
        difference = None if group is uniform else report.difference(uniform, group)
        line = [RULES[rule], model, NAMES[arm], f"{rate:g}", str(len(group.rows))]
        lines.append([*line, _spread(group, report.metric), _interval(difference)])
    return lines


def _rival_table(report: DataReport) -> list[list[str]]:
    lines = [["rival", "chosen on the validation split", "seconds, all candidates"]]
    for arm in ("ease", "item_knn"):
        group = report.baseline(arm)
        if group is not None:
            row = group.rows[0]
            lines.append([NAMES[arm], str(row["chosen"]), f"{float(row['evaluate_s']):.1f}"])
    return lines


def _activity_table(report: DataReport) -> list[list[str]]:
    user = np.asarray(report.table.splits["test"]["user"])[report.places]
    train = np.asarray(report.table.splits["train"]["user"])
    return _by_size(report, np.bincount(train, minlength=report.table.schema.num_users)[user])


def _popularity_table(report: DataReport) -> list[list[str]]:
    item = np.asarray(report.table.splits["test"]["item"])[report.places]
    return _by_size(report, np.asarray(report.table.items["count"])[item])


def _by_size(report: DataReport, size: np.ndarray) -> list[list[str]]:
    """A line a decile of `size` [N], and one for those of a single training row."""
    shown: dict[str, Group | None] = {
        NAMES[arm]: report.baseline(arm) for arm in ("popularity", "mf_alone", "ease", "item_knn")
    }
    for model in report.models:
        shown[f"{NAMES['full']}, {model}"] = report.baseline("full", model)
        for arm in COLOURS if report.headline else ():
            shown[f"{NAMES[arm]}, {model}, {report.headline:g}"] = report.sampled(
                arm, model, report.headline
            )
    groups = {name: group for name, group in shown.items() if group is not None}
    lines = [["training rows", "test rows", *groups]]
    parts = [("none", size == 0), ("1", size == 1)]
    decile = paired.deciles(size)
    for nth in np.unique(decile):
        inside = decile == nth
        low, high = size[inside].min(), size[inside].max()
        parts.append((f"{low:,}" if low == high else f"{low:,} to {high:,}", inside))
    seen: set[bytes] = set()
    for name, inside in parts:
        if inside.any() and inside.tobytes() not in seen:  # a decile may be just that group
            seen.add(inside.tobytes())
            values = [f"{report.quality(group, inside):.4f}" for group in groups.values()]
            lines.append([name, f"{inside.sum():,}", *values])
    return lines


def _fold_in_table(report: DataReport) -> list[list[str]]:
    name = _METRIC_NAMES[report.metric]
    header = ["arm", "model", "rate", "hidden users", f"{name}, folded in", f"{name}, seen"]
    lines = [[*header, "folded in, less seen", "folded in, less popularity"]]
    user = np.asarray(report.table.splits["test"]["user"])[report.places]
    popularity = report.baseline("popularity")
    for (arm, model, rule, rate), group in report.groups.items():
        if rule != "fold_in":
            continue
        seen = report.sampled(arm, model, rate) if model else report.baseline(arm)
        if seen is None:
            continue
        of_seed = {int(row["seed"]): v for row, v in zip(seen.rows, seen.values, strict=True)}
        folded, known, popular = [], [], []
        for row, values in zip(group.rows, group.values, strict=True):
            if int(row["seed"]) not in of_seed:
                continue
            hidden = selection.hidden_users(report.table.schema.num_users, int(row["seed"]))[user]
            folded.append(values[hidden])
            known.append(of_seed[int(row["seed"])][hidden])
            popular.append(popularity.values[0][hidden])
        if not folded:
            continue
        ours, theirs, popular = (np.concatenate(x)[None] for x in (folded, known, popular))
        line = [NAMES[arm], model or "-", f"{rate:g}", f"{ours.size:,}"]
        line += [f"{ours.mean():.4f}", f"{theirs.mean():.4f}"]
        line.append(_interval(paired.over_users(ours, theirs)))
        lines.append([*line, _interval(paired.over_users(ours, popular))])
    return lines


def _cost_table(report: DataReport) -> list[list[str]]:
    header = ["arm", "model", "rate", "all rows MB", "kept rows MB", "factors MB", "model MB"]
    header += ["factorise s", "sample s", "train s", "all rows: train s", "paid back after"]
    lines = [header]
    for (arm, model, rule, rate), group in report.compared:
        full = report.baseline("full", model)
        if rule != "uniform" or arm == "random" or full is None:
            continue
        sizes = (
            f"{group.mean(f'{name}_bytes') / 1e6:.2f}"
            for name in ("train", "sample", "factors", "state")
        )
        seconds = [group.mean(f"{name}_s") for name in ("factorize", "sample", "train")]
        full_seconds = full.mean("train_s")
        trainings = paired.break_even(seconds[0], full_seconds, seconds[2])
        paid = "never" if math.isinf(trainings) else f"{trainings:.2f} trainings"
        line = [NAMES[arm], model, f"{rate:g}", *sizes, *(f"{s:.1f}" for s in seconds)]
        lines.append([*line, f"{full_seconds:.1f}", paid])
    return lines


def _truth_table(report: DataReport) -> list[list[str]]:
    if report.truth is None:
        return []
    expected = paired.bayes_auc(report.truth)
    reached = paired.auc(report.labels, report.truth)
    lines = [["scorer", "model", "rate", "AUC", "share of (AUC - 0.5)"]]
    lines.append(["true probabilities, to expect", "", "", f"{expected:.4f}", ""])
    lines.append(["true probabilities, these labels", "", "", f"{reached:.4f}", "100.0 %"])
    for (arm, model, _, rate), group in report.compared:
        share = (group.mean("auc") - 0.5) / (reached - 0.5)
        line = [NAMES[arm], model or "-", f"{rate:g}", _spread(group, "auc")]
        lines.append([*line, f"{share:.1%}"])
    return lines


# Plots.


def _quality_by_rate(report: DataReport) -> str:
    figure, all_axes = _figure(report)
    for axes, model in zip(all_axes, report.models, strict=True):
        for arm, colour in COLOURS.items():
            found = [(rate, report.sampled(arm, model, rate)) for rate in report.rates]
            found = [(rate, group) for rate, group in found if group is not None]
            if not found:
                continue
            rates = [rate for rate, _ in found]
            spread = [paired.mean_and_sd(group.of(report.metric)) for _, group in found]
            mean, sd = np.nan_to_num(np.array(spread).T)
            axes.plot(rates, mean, marker="o", color=colour, label=NAMES[arm])
            axes.fill_between(rates, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        for arm, style in (("mf_alone", "--"), ("full", "-."), ("popularity", ":")):
            group = report.baseline(arm, model if arm == "full" else "")
            if group is not None:
                axes.axhline(
                    group.mean(report.metric), color=OTHER[arm], linestyle=style, label=NAMES[arm]
                )
        axes.set_xlabel("share of the training rows that is kept")
        axes.legend(fontsize=7)
    return _svg(figure, "Quality by rate; the band is one standard deviation over seeds.")


def _quality_by_seconds(report: DataReport) -> str:
    figure, all_axes = _figure(report)
    for axes, model in zip(all_axes, report.models, strict=True):
        for arm, colour in COLOURS.items():
            groups = [report.sampled(arm, model, rate) for rate in report.rates]
            groups = [g for g in groups if g is not None and g.key[0] == arm]
            points = [(_seconds(g, arm != "random"), g.mean(report.metric)) for g in groups]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=NAMES[arm])
            for group, point in zip(groups, points, strict=True):
                axes.annotate(
                    f"{group.key[3]:g}",
                    point,
                    xytext=(3, 3),
                    textcoords="offset points",
                    fontsize=7,
                )
        for arm in ("mf_alone", "full"):
            group = report.baseline(arm, model if arm == "full" else "")
            if group is not None:
                seconds = _seconds(group, arm == "mf_alone")
                quality = group.mean(report.metric)
                axes.scatter(seconds, quality, marker="*", s=90, color=OTHER[arm], label=NAMES[arm])
        axes.set_xlabel("seconds: factorise + sample + train")
        axes.legend(fontsize=7)
    return _svg(figure, "Quality by all the time spent after preparing; numbers are rates.")


def _seconds(group: Group, factorized: bool) -> float:
    names = ("factorize_s", "sample_s", "train_s")[0 if factorized else 1 :]
    total = sum(group.mean(name) for name in names if len(group.of(name)))
    return max(total, 0.05)


def _figure(report: DataReport):
    count = max(len(report.models), 1)
    figure = Figure(figsize=(5.6 * count, 4), layout="constrained")
    all_axes = figure.subplots(1, count, squeeze=False)[0]
    for axes, model in zip(all_axes, report.models or [""], strict=True):
        axes.set_xscale("log")
        axes.set_ylabel(f"{_METRIC_NAMES[report.metric]} (test)")
        axes.set_title(f"{report.name}, {model}", fontsize=10)
        axes.grid(alpha=0.3)
    return figure, all_axes if report.models else []


def _svg(figure: Figure, caption: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    return f"<figure>{drawing}<figcaption class='note'>{caption}</figcaption></figure>"


# Texts.

_METRIC_NAMES = {
    "hr": f"HR@{K}",
    "ndcg": f"NDCG@{K}",
    "hr_sampled": f"HR@{K} (1+K)",
    "ndcg_sampled": f"NDCG@{K} (1+K)",
    "auc": "AUC",
    "logloss": "log loss",
    "calibration": "calibration",
}


def _metrics(report: DataReport) -> list[str]:
    groups = report.groups.values()
    return [name for name in _METRIC_NAMES if any(len(group.of(name)) for group in groups)]


def _order(key: Key) -> tuple:
    arm, model, _, rate = key
    return model, list(NAMES).index(arm) if not model else -rate, list(NAMES).index(arm)


def _spread(group: Group, name: str) -> str:
    values = group.of(name)
    if not len(values):
        return "-"
    mean, sd = paired.mean_and_sd(values)
    return f"{mean:.4f}" + ("" if math.isnan(sd) else f" ± {sd:.4f}")


def _interval(difference: Interval | None) -> str:
    if difference is None:
        return "-"
    mean, low, high = difference
    text = _Cell(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    text.kind = {"=": ""}.get(difference.verdict, difference.verdict)
    return text


def _plain(cell: str) -> str:
    return str(cell)


def _table(lines: Sequence[Sequence[str]]) -> str:
    header, *body = lines
    parts = ["<table><tr>", *(f"<th>{html.escape(cell)}</th>" for cell in header), "</tr>"]
    for line in body:
        cells = (
            f"<td class='{cell.kind}'>{html.escape(cell)}</td>"
            if isinstance(cell, _Cell) and cell.kind
            else f"<td>{html.escape(str(cell))}</td>"
            for cell in line
        )
        parts += ["<tr>", *cells, "</tr>"]
    return "".join([*parts, "</table>"])
