"""The comparison of arms: results.json, a table for people, a plot of quality against time."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from cadc_jax.run.arms import ARMS
from cadc_jax.runtime import durable
from cadc_jax.runtime.text import aligned

SECONDS = ("prepare", "factorize", "sample", "train", "evaluate", "total")  # columns, in order
BOUNDS = ("auc_error",)  # errors of other metrics: in results.json and a note, without a column
Row = Mapping[str, Any]


def write_report(
    workdir: pathlib.Path, results: Mapping[str, Any], facts: Mapping[str, Any]
) -> str:
    """Writes `results.json`, `report.md` and `report.png` into `workdir`.

    Args:
      workdir: folder of the run.
      results: `config`, `seed` and `rows`, the stable contract of `results.json`.
      facts: of the prepared table.

    Returns:
      The table as text, with the places of the files under it.
    """
    rows = results["rows"]
    config = results["config"]
    durable.write_json(workdir / "results.json", results)
    plot(workdir / "report.png", rows)
    heading = f"{config['name']}, seed {results['seed']}, rate {config['rate']:g}"
    counts = ", ".join(f"{count:,} {split}" for split, count in facts["rows"].items())
    notes = [
        f"Rows: {counts}. Users {facts['num_users']:,}, items {facts['num_items']:,}.",
        *explain(rows, config),
    ]
    header, *body = table(rows)
    markdown = [f"# {heading}", "", *notes, "", _markdown(header), _markdown(["---"] * len(header))]
    markdown += [_markdown(line) for line in body]
    markdown += ["", "![quality against wall time](report.png)", ""]
    durable.write_text(workdir / "report.md", "\n".join(markdown))
    names, *others = aligned([header, *body], right=range(2, len(header)))
    lines = [heading, *notes, "", names, "-" * len(names), *others, ""]
    lines.append(f"{workdir / 'report.md'}, report.png and results.json hold the same.")
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The header and one line a row, as text. The best value of each metric of an arm has a *."""
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    metrics = [name for name in names if name not in BOUNDS]
    stages = [name for name in SECONDS if any(name in row["seconds"] for row in rows)]
    best = {}
    for name in metrics:
        values = [row["metrics"][name] for row in rows if name in row["metrics"]]
        best[name] = max(values, key=lambda value: _goodness(name, value))
    lines = [["arm", "model", "rows used", *metrics, *(f"{name} s" for name in stages)]]
    for row in rows:
        line = [ARMS[row["arm"]].label, row["model"] or "-", f"{row['rows_used']:,}"]
        for name in metrics:
            value = row["metrics"].get(name)
            star = "*" if value == best[name] else " "
            line.append("-" if value is None else f"{value:.4f}{star}")
        line += [f"{row['seconds'][s]:.1f}" if s in row["seconds"] else "-" for s in stages]
        lines.append(line)
    return lines


def plot(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Quality (the first metric) against the seconds it took to get there, after `prepare`."""
    metric = next((name for row in rows[::-1] for name in row["metrics"]), "quality")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    models = list(dict.fromkeys(row["model"] for row in rows))
    for row in rows:
        if metric not in row["metrics"]:
            continue
        seconds = sum(row["seconds"].get(name, 0) for name in ("factorize", "sample", "train"))
        marker = "os^D"[models.index(row["model"])]
        point = (max(seconds, 0.1), row["metrics"][metric])
        axes.scatter(*point, marker=marker, s=60)
        label = ARMS[row["arm"]].label + (f" ({row['model']})" if row["model"] else "")
        axes.annotate(label, point, xytext=(6, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("seconds: factorise + sample + train")
    axes.set_ylabel(f"{metric} (test)")
    axes.margins(x=0.25, y=0.1)
    axes.grid(alpha=0.3)
    with durable.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def explain(rows: Sequence[Row], config: Mapping[str, Any]) -> list[str]:
    """Notes that a reader of the table needs, a line each."""
    metrics = {name for row in rows for name in row["metrics"]}
    lines = ["Stopping and other choices by the validation split; figures are of the test split."]
    if any(name.startswith("hr@") for name in metrics):
        limit = config["evaluation"]["max_users"]
        whom = f"{limit:,} users drawn at random" if limit else "all test users"
        lines.append(
            f"hr, ndcg: {whom}, every item not seen before as a candidate; with '/1+K': the test "
            "item among K unseen items only. Ties count against the model."
        )
    lines.append(
        "Seconds include compiling. 'rows used' are those the model trains on; the factors of MF "
        "and CADC come from all training rows. * marks the best of a column."
    )
    if "logloss" in metrics and "auc" not in metrics:
        lines.append("auc: undefined, as all test rows have the same label.")
    if "calibration" in metrics:
        lines.append("calibration: mean prediction over click rate; 1 is right on average.")
    error = max(row["metrics"].get("auc_error", 0) for row in rows)
    if error:
        lines.append(f"auc: from a histogram of the scores; its error is at most {error:.1e}.")
    for row in rows:
        if row.get("best_step") == 0:
            lines.append(
                f"{ARMS[row['arm']].label} ({row['model']}): no training step bettered the "
                "validation result of the start; the figures are of the start."
            )
    return lines


def _goodness(name: str, value: float) -> float:
    """Higher is better, whichever the metric."""
    if math.isnan(value):
        return -math.inf
    if name == "logloss":
        return -value
    return -abs(value - 1) if name == "calibration" else value


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.strip() for cell in cells) + " |"
