"""The plots of the report, as SVG."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.study_lib import paired
from benchmarks.study_lib.data_report import ARM_NAMES, METRIC_NAMES, DataReport, Group

matplotlib.use("Agg")
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "study"  # the same ids in every report

COLOURS = {
    "random": "tab:gray",
    "trainable": "tab:orange",
    "frozen": "tab:blue",
    "mf_alone": "tab:green",
    "full": "tab:red",
    "popularity": "tab:brown",
}
SAMPLED = ("random", "trainable", "frozen")  # arms with a result for each rate
_LINES = {"mf_alone": "--", "full": "-.", "popularity": ":"}
_LEAST_SECONDS = 0.05  # the axis of seconds is logarithmic


def quality_by_rate(report: DataReport) -> str:
    """Quality by the rate of the sample, with a band of one standard deviation over seeds."""
    figure, all_axes = _figure(report)
    for axes, model in zip(all_axes, report.models, strict=True):
        for arm in SAMPLED:
            found = [(rate, report.sampled(arm, model, rate)) for rate in report.rates]
            points = [(rate, group) for rate, group in found if group is not None]
            if not points:
                continue
            rates = [rate for rate, _ in points]
            spread = [paired.mean_and_sd(group.column(report.metric)) for _, group in points]
            mean, sd = np.nan_to_num(np.array(spread).T)
            colour = COLOURS[arm]
            axes.plot(rates, mean, marker="o", color=colour, label=ARM_NAMES[arm])
            axes.fill_between(rates, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        for arm, style in _LINES.items():
            group = report.baseline(arm, model if arm == "full" else "")
            if group is not None:
                quality = group.mean(report.metric)
                axes.axhline(quality, color=COLOURS[arm], linestyle=style, label=ARM_NAMES[arm])
        axes.set_xlabel("share of the training rows that is kept")
        axes.legend(fontsize=7)
    return _svg(figure)


def quality_by_seconds(report: DataReport) -> str:
    """Quality by the seconds of all stages after preparing; the numbers are rates."""
    figure, all_axes = _figure(report)
    for axes, model in zip(all_axes, report.models, strict=True):
        for arm in SAMPLED:
            found = [report.sampled(arm, model, rate) for rate in report.rates]
            groups = [g for g in found if g is not None and g.key[0] == arm]
            points = [(_seconds(g, arm != "random"), g.mean(report.metric)) for g in groups]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker="o", color=COLOURS[arm], label=ARM_NAMES[arm])
            style = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 7}
            for sampled, point in zip(groups, points, strict=True):
                axes.annotate(f"{sampled.key[3]:g}", point, **style)
        for arm in ("mf_alone", "full"):
            group = report.baseline(arm, model if arm == "full" else "")
            if group is not None:
                point = (_seconds(group, arm == "mf_alone"), group.mean(report.metric))
                style = {"marker": "*", "s": 90, "color": COLOURS[arm]}
                axes.scatter(*point, label=ARM_NAMES[arm], **style)
        axes.set_xlabel("seconds: factorise + sample + train")
        axes.legend(fontsize=7)
    return _svg(figure)


def _seconds(group: Group, factorized: bool) -> float:
    names = ("factorize_s", "sample_s", "train_s")[0 if factorized else 1 :]
    total = sum(group.mean(name) for name in names if len(group.column(name)))
    return max(total, _LEAST_SECONDS)


def _figure(report: DataReport) -> tuple[Figure, Any]:
    """A figure with axes for each model."""
    count = max(len(report.models), 1)
    figure = Figure(figsize=(5.6 * count, 4), layout="constrained")
    all_axes = figure.subplots(1, count, squeeze=False)[0]
    for axes, model in zip(all_axes, report.models or [""], strict=True):
        axes.set_xscale("log")
        axes.set_ylabel(f"{METRIC_NAMES[report.metric]} (test)")
        axes.set_title(f"{report.name}, {model}", fontsize=10)
        axes.grid(alpha=0.3)
    return figure, all_axes if report.models else []


def _svg(figure: Figure) -> str:
    """The <svg> element of a figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]
