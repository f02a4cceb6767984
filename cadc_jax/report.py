"""The comparison of arms: results.json, a table and a picture for people."""

import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from cadc_jax.data.facts import describe_rows
from cadc_jax.data.raw import FOLD_IN, PARTS
from cadc_jax.run.arms import ARMS, MF_ALONE, MF_REFRESHED, POPULARITY, Arm
from cadc_jax.run.tune_text import describe
from cadc_jax.runtime import artifacts, durable
from cadc_jax.runtime.storage import AnyPath
from cadc_jax.runtime.text import aligned

# Columns, in order.
SECONDS = ("prepare", "tune", "factorize", "sample", "train", "evaluate", "total")
FILES = ("results.json", "report.md", "report.png")
BOUNDS = ("auc_error",)  # errors of other metrics: in results.json and a note, without a column
HEADLINE = ("ndcg", "recall")  # of the full ranking at the first cut-off; all others come second
HELD_OUT_USERS = (
    "Test users are in no training row: their vectors are computed from their fold_in rows, by the "
    "factorisation alone. Arms whose user vectors are not factors have none, and are left out."
)
_UNFIT = (
    ": the factorisation does not fit this log; search its settings (cadc tune --config=...), or "
    "try --config.factorization=autoencoder"
)
_BELOW = ": look at MF alone first, then at the learning rate and the number of evaluations"
_NO_GAIN = (
    "no step validates better than the start, so the network added nothing; try a lower "
    "train.learning_rate, another train.loss ('all_items' for rankings by two towers) or a higher "
    "rate, or use the factors alone"
)
_REFRESHED = (
    f"{MF_REFRESHED.label}: the factors that a frozen arm predicts with (factor_rows='unsampled'), "
    f"which start from those of the rows that are not kept. {MF_ALONE.label} is a factorisation of "
    "all rows by itself; it is made for this comparison, and no other row pays for it."
)
_INTERVAL = 1.96  # standard errors on each side of an interval of 95 %
Row = Mapping[str, Any]


def write_report(
    workdir: pathlib.Path,
    results: Mapping[str, Any],
    facts: Mapping[str, Any],
    shown: AnyPath | None = None,
) -> str:
    """Writes `results.json`, `report.md` and `report.png` into the run's own folder of reports.

    Runs with other settings have other folders. The work folder itself has copies of the newest.

    Args:
      workdir: folder of the run.
      results: `config`, `seed` and `rows`, the stable contract of `results.json`; `tuned` if 'auto'
        was searched: method -> facts of the stage `tune`.
      facts: of the prepared table.
      shown: the work folder as users know it, if they know another one.

    Returns:
      The table as text, with the places of the files under it.
    """
    rows = results["rows"]
    config = results["config"]
    name = own_name(config)
    folder = workdir / "reports" / name
    durable.make_folder(folder)
    durable.write_json(folder / "results.json", results)
    heading = f"{config['name']}, seed {results['seed']}, rate {config['rate']:g}"
    plot(folder / "report.png", rows, f"{heading}: {facts['rows']['train']:,} training rows")
    counts = describe_rows(facts["rows"])
    notes = [
        f"Rows: {counts}. Users {facts['num_users']:,}, items {facts['num_items']:,}.",
        *[describe(method, found) for method, found in results.get("tuned", {}).items()],
        *explain(rows),
        *([HELD_OUT_USERS] if facts["rows"][PARTS[FOLD_IN]] else []),
    ]
    loud = warnings(rows)
    tables = [lines for lines in (table(rows), further_table(rows)) if lines]
    markdown = [f"# {heading}", "", *(f"{line}\n" for line in loud), *notes, ""]
    for header, *body in tables:
        markdown += [_markdown(header), _markdown(["---"] * len(header))]
        markdown += [*map(_markdown, body), ""]
    markdown += ["![quality of the arms](report.png)", ""]
    durable.write_text(folder / "report.md", "\n".join(markdown))
    for file in FILES:
        with durable.replacing(workdir / file) as temporary:
            shutil.copyfile(folder / file, temporary)
    text = [heading, *notes, ""]
    for lines in tables:
        names, *others = aligned(lines, right=range(2, len(lines[0])))
        text += [names, "-" * len(names), *others, ""]
    known = shown or workdir
    text += [*loud, f"{known / 'report.md'}, report.png and results.json hold the same."]
    text.append(f"This run's own copies stay in {known / 'reports' / name}.")
    return "\n".join(text)


def own_name(config: Mapping[str, Any]) -> str:
    """The name of a run's folder of reports: the same for the same configuration, and no other."""
    return f"rate-{config['rate']:g}-seed-{config['seed']}-{artifacts.hash_of(dict(config))}"


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The header and one line a row, as text: headline metrics, seconds, and a note.

    The first metric is that of the validation split by which choices are made; the others are of
    the test split. The best value of each has a *. The column of notes is there if any row has one.
    """
    metrics = headlines(rows)
    stages = [name for name in SECONDS if any(name in row["seconds"] for row in rows)]
    seconds = [*(f"{name} s" for name in stages), "compiling s", "evaluating s"]
    noted = any(map(_added_nothing, rows))
    reads = ["rows read", "pairs read", "MB"]
    chosen_by = [validation_metric(rows)] if validation_metric(rows) else []
    validated = (f"validation {label(name)}" for name in chosen_by)
    header = ["arm", "model", *reads, *validated, *map(label, metrics), *seconds]
    lines = [header + ["note"] * noted]
    columns = (_values(rows, chosen_by, "validation"), _values(rows, metrics))
    for row, *values in zip(rows, *columns, strict=True):
        megabytes = sum(row["bytes"].values()) / 1e6
        reads = [f"{row['rows_read']:,}", f"{row['pairs_read']:,}", f"{megabytes:,.2f}"]
        line = [*_names(row), *reads, *values[0], *values[1]]
        line += [f"{row['seconds'][s]:.1f}" if s in row["seconds"] else "-" for s in stages]
        line += [f"{row[name]:.1f}" for name in ("compile_seconds", "evaluation_seconds")]
        note = "the network added nothing" if _added_nothing(row) else ""
        lines.append(line + [note] * noted)
    return lines


def further_table(rows: Sequence[Row]) -> list[list[str]]:
    """The other metrics at the first cut-off; nothing if there are none."""
    shown = headlines(rows)
    cut_off = next((f"@{_cut_off(name)}" for name in shown if "@" in name), "")
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    metrics = [
        name
        for name in names
        if name not in (*BOUNDS, *shown) and f"@{_cut_off(name)}" in ("@", cut_off)
    ]
    if not metrics:
        return []
    lines = [["arm", "model", *map(label, metrics)]]
    for row, values in zip(rows, _values(rows, metrics), strict=True):
        lines.append([*_names(row), *values])
    return lines


def headlines(rows: Sequence[Row]) -> list[str]:
    """The metrics of the first table; of clicks, all of them. The first one judges an arm."""
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    found = [name for name in names if name.split("@")[0] in HEADLINE and "/" not in name]
    if not found:
        return [name for name in names if name not in BOUNDS]
    return [name for name in found if _cut_off(name) == _cut_off(found[0])]


def validation_metric(rows: Sequence[Row]) -> str:
    """The metric of the validation split that choices are made by; '' if there is none."""
    return next((next(iter(row["validation"])) for row in rows if row["validation"]), "")


def label(metric: str) -> str:
    """The name of a metric as tables show it, which says what a ranking's is a mean of."""
    name, _, protocol = metric.partition("/")
    if protocol:
        return f"{name} sampled {protocol}"
    kind = name.split("@")[0]
    if kind in (*HEADLINE, "hit", "map", "mrr"):
        return f"{name} per user"
    return f"{name} per row" if kind == "hr" else name


def warnings(rows: Sequence[Row]) -> list[str]:
    """A loud line for each row that is worse than popularity, or no better than its own start.

    Figures of the validation split decide where both rows have them.
    """
    lines = []
    for row in rows:
        name, compared = ", ".join(_names(row)).removesuffix(", -"), _beside_popularity(row, rows)
        if compared:
            advice = _UNFIT if ARMS[row["arm"]].is_factors else _BELOW
            lines.append(f"*** {name}: {compared}{advice} ***")
        if _added_nothing(row):
            lines.append(f"*** {name}: {_NO_GAIN} ***")
    return lines


def _beside_popularity(row: Row, rows: Sequence[Row]) -> str:
    """How much worse than popularity a row is; nothing if it is not."""
    popularity = next((x for x in rows if ARMS[x["arm"]] is POPULARITY), {})
    for split, place in (("validation", " on validation"), ("metrics", "")):
        own, others = row.get(split) or {}, popularity.get(split) or {}
        metric = next((name for name in headlines(rows) if name in own and name in others), None)
        if metric is None:
            continue
        value, least = own[metric], others[metric]
        if _goodness(metric, value) >= _goodness(metric, least):
            return ""
        return f"{label(metric)} {value:.4f}{place} is worse than popularity's {least:.4f}"
    return ""


def plot(path: pathlib.Path, rows: Sequence[Row], title: str = "") -> None:
    """A bar an arm, by the first metric, with its interval; a line at the factors' own figure.

    Args:
      path: the PNG file.
      rows: as in `results.json`.
      title: what was run.
    """
    figure = draw(rows, title)
    with durable.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def draw(rows: Sequence[Row], title: str = "") -> Figure:
    """The figure of `plot`."""
    metric = next(iter(headlines(rows)), "quality")
    shown = [row for row in rows if math.isfinite(row["metrics"].get(metric, math.nan))]
    values = [row["metrics"][metric] for row in shown]
    figure = Figure(figsize=(7, 1.6 + 0.45 * len(shown)), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    errors = [_INTERVAL * row.get("standard_errors", {}).get(metric, 0) for row in shown]
    colours = [_colour(ARMS[row["arm"]]) for row in shown]
    bars = axes.barh(places, values, xerr=errors, color=colours, ecolor="0.3")
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # where the line would cross them
    axes.bar_label(bars, [f"{x:.4f}" for x in values], padding=3, fontsize=9, bbox=white)
    axes.set_yticks(places, [_with_rows(row) for row in shown], fontsize=9)
    axes.invert_yaxis()  # the first row of the table on top
    own = {ARMS[row["arm"]].name: value for row, value in zip(shown, values, strict=True)}
    for value in [own[arm.name] for arm in (MF_ALONE, MF_REFRESHED) if arm.name in own][:1]:
        axes.axvline(value, color="0.3", linewidth=1, linestyle="--", zorder=0)
    low, high = min(values, default=0), max(values, default=1)
    # An AUC of 0.5 is a coin's, and bars from 0 would all look alike.
    start = 0.5 if metric == "auc" and low > 0.5 else min(0.0, low)
    axes.set_xlim(start, high + max(errors, default=0) + 0.15 * ((high - start) or 1))
    interval = ", with 95 % intervals over test data" if any(errors) else ""
    axes.set_xlabel(f"{label(metric)} (test{interval})")
    figure.suptitle(title, fontsize=10, x=0.01, horizontalalignment="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _colour(arm: Arm) -> str:
    """Blue for a network on the sample with factors, grey for what it is compared with."""
    return "tab:blue" if arm.takes_sample and arm.takes_factors else "0.7"


def _with_rows(row: Row) -> str:
    """The name of an arm, and of its network with the share of rows that it trains on."""
    network = f"\n{row['model']}, {100 * row['rate']:.3g} % of the rows" if row["model"] else ""
    return ARMS[row["arm"]].label + network


def explain(rows: Sequence[Row]) -> list[str]:
    """Notes that a reader of the tables needs, a line each."""
    metrics = {name for row in rows for name in row["metrics"]}
    lines = [
        "Stopping and other choices by the validation split, whose figure has a column of its own; "
        "the other figures are of the test split."
    ]
    if any(name.startswith("hr@") for name in metrics):
        lines += _explain_rankings(rows)
    lines.append(
        "Seconds include compiling, whose share has a column of its own: programs that an earlier "
        "run or arm has compiled are found again (--compilation_cache). 'evaluating' is the part "
        "of 'train' that went into choosing the best step. 'rows read' and 'pairs read' (of a user "
        "and an item) are what the model trains on; the factors of MF and CADC come from all "
        "training rows, once. 'MB' are these rows, the factors and the content of ids in the work "
        "folder, before 'cadc compress' packs them. * marks the best of a column."
    )
    if any(ARMS[row["arm"]] is MF_REFRESHED for row in rows):
        lines.append(_REFRESHED)
    if "logloss" in metrics and "auc" not in metrics:
        lines.append("auc: undefined, as all test rows have the same label.")
    if "calibration" in metrics:
        lines.append("calibration: mean prediction over click rate; 1 is right on average.")
    error = max(row["metrics"].get("auc_error", 0) for row in rows)
    if error:
        lines.append(f"auc: from a histogram of the scores; its error is at most {error:.1e}.")
    for row in rows:
        if _added_nothing(row):
            lines.append(
                f"{ARMS[row['arm']].label} ({row['model']}): the network added nothing: no "
                "training step bettered the validation result of the start, whose figures these "
                "are."
            )
    return lines


def _explain_rankings(rows: Sequence[Row]) -> list[str]:
    users = next(row["test_users"] for row in rows if "test_users" in row)
    whom = f"all {users['all']:,} test users"
    if users["ranked"] < users["all"]:
        whom = f"{users['ranked']:,} of {users['all']:,} test users, drawn at random"
    return [
        f"per user: means over {whom}, whose test items are looked for among all items that they "
        "had not seen. Ties count against the model.",
        "per row: means over held-out items, so that a user with more of them counts more. "
        "sampled 1+K: per row too, the held-out item among K drawn items only; not to be compared "
        "with the full ranking.",
    ]


def _names(row: Row) -> list[str]:
    return [ARMS[row["arm"]].label, row["model"] or "-"]


def _added_nothing(row: Row) -> bool:
    """Whether training did not better the start."""
    return row.get("best_step") == 0


def _cut_off(metric: str) -> str:
    """'10' of 'ndcg@10' and 'hr@10/1+99', '' of 'mrr'."""
    return metric.partition("@")[2].partition("/")[0]


def _values(rows: Sequence[Row], metrics: Sequence[str], split: str = "metrics") -> list[list[str]]:
    """The values of metrics as text, a list for each row; the best of a metric has a *."""
    columns = []
    for name in metrics:
        values = [row[split].get(name) for row in rows]
        best = max((x for x in values if x is not None), key=lambda x: _goodness(name, x))
        columns.append(
            ["-" if x is None else f"{x:.4f}" + ("*" if x == best else " ") for x in values]
        )
    return [list(line) for line in zip(*columns, strict=True)] or [[] for _ in rows]


def _goodness(name: str, value: float) -> float:
    """Higher is better, whichever the metric."""
    if math.isnan(value):
        return -math.inf
    if name == "logloss":
        return -value
    return -abs(value - 1) if name == "calibration" else value


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.strip() for cell in cells) + " |"
