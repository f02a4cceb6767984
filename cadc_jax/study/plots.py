"""The plots of the report, as SVG."""

import io
import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from cadc_jax.run.arms import CADC_FROZEN, CADC_TRAINABLE, FULL, MF_ALONE, POPULARITY, SAMPLE
from cadc_jax.study import paired
from cadc_jax.study.cells import LABELS, OF_SAMPLES
from cadc_jax.study.data_report import DataReport, Group, metric_name

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "study",
    "font.size": 8,
}  # the same ids always
_SIZE = (3.75, 3.3)  # inches: 360 pixels of the page, as wide as a phone has
COLOURS = {
    SAMPLE.name: "tab:gray",
    CADC_TRAINABLE.name: "tab:orange",
    CADC_FROZEN.name: "tab:blue",
    MF_ALONE.name: "tab:green",
    FULL.name: "tab:red",
    POPULARITY.name: "tab:brown",
}
_LINES = {MF_ALONE.name: "--", FULL.name: "-.", POPULARITY.name: ":"}
_LEAST_SECONDS = 0.05  # the axis of seconds is logarithmic


def quality_by_rate(report: DataReport, model: str) -> str:
    """Quality by the rate of the sample, with a band of one standard deviation over seeds."""
    figure, axes = _figure(report, model)
    for arm in OF_SAMPLES:
        found = [(rate, report.sampled(arm, model, rate)) for rate in report.rates]
        points = [(rate, group) for rate, group in found if group is not None]
        if all(group.key[0] != arm for _, group in points):
            continue  # nothing of its own: the sample of all rows is the arm on all rows
        rates = [rate for rate, _ in points]
        spread = [paired.mean_and_sd(group.column(report.metric)) for _, group in points]
        mean, sd = np.nan_to_num(np.array(spread).T)
        colour = COLOURS[arm]
        axes.plot(rates, mean, marker="o", color=colour, label=LABELS[arm])
        axes.fill_between(rates, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
    for arm, style in _LINES.items():
        group = report.baseline(arm, model if arm == FULL.name else "")
        if group is not None:
            quality = group.mean(report.metric)
            axes.axhline(quality, color=COLOURS[arm], linestyle=style, label=LABELS[arm])
    axes.set_xticks(report.rates, [f"{100 * rate:g} %" for rate in report.rates])
    axes.tick_params("x", rotation=45 if len(report.rates) > 4 else 0)
    axes.set_xlabel("share of the training rows that is kept")
    return _svg(figure)


def quality_by_seconds(report: DataReport, model: str) -> str:
    """Quality by the seconds of all stages after preparing; larger marks are higher rates."""
    figure, axes = _figure(report, model)
    for arm in OF_SAMPLES:
        found = [report.sampled(arm, model, rate) for rate in report.rates]
        groups = [g for g in found if g is not None and g.key[0] == arm]
        points = [(_seconds(g, arm != SAMPLE.name), g.mean(report.metric)) for g in groups]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=COLOURS[arm], linewidth=1)
            sizes = [20 + 60 * math.sqrt(group.key[3]) for group in groups]
            axes.scatter(x, y, sizes, color=COLOURS[arm], label=LABELS[arm])
    for arm in (MF_ALONE.name, FULL.name):
        group = report.baseline(arm, model if arm == FULL.name else "")
        if group is not None:
            point = (_seconds(group, arm == MF_ALONE.name), group.mean(report.metric))
            axes.scatter(*point, 90, marker="*", color=COLOURS[arm], label=LABELS[arm])
    low, high = axes.get_xlim()
    axes.set_xlim(low / 2, 2 * high)
    digits = (1, 2, 5) if high / low < 100 else (1,)  # more would cover each other
    axes.xaxis.set_major_locator(LogLocator(subs=digits))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds: factorise + sample + train")
    return _svg(figure)


def _seconds(group: Group, factorized: bool) -> float:
    names = ("factorize_s", "sample_s", "train_s")[0 if factorized else 1 :]
    total = sum(group.mean(name) for name in names if len(group.column(name)))
    return max(total, _LEAST_SECONDS)


def _figure(report: DataReport, model: str) -> tuple[Figure, Axes]:
    """A figure with logarithmic axes for a model."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"{metric_name(report.metric, report.k)} (test)")
    axes.set_title(model)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The <svg> element of a figure, whose legend is below the axes."""
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]
