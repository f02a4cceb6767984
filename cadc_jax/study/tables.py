"""The tables of the report, as lists of lines of text; the first line is the header.

A table with a header alone has nothing to show for this data set.
"""

import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from cadc_jax.run.arms import BASELINES, CADC_TRAINABLE, FULL, MF_ALONE, POPULARITY, SAMPLE, TRAINED
from cadc_jax.study import bins, bootstrap, cost_tables, paired, selection
from cadc_jax.study.cells import FOLD_IN, LABELS, OF_SAMPLES, SEARCHED
from cadc_jax.study.choices import Choice
from cadc_jax.study.comparisons import LOW_IS_GOOD
from cadc_jax.study.comparisons import METRICS as COMPARED
from cadc_jax.study.data_report import METRICS, DataReport, Group, Key, metric_name
from cadc_jax.study.formats import Table, interval, spread

RULE_NAMES = {
    "uniform": "uniform (CADC)",
    "per_user": "uniform per user",
    "popular": "popular items more likely",
    "inverse_propensity": "rare items more likely",
    "recent": "most recent",
    "hardest": "hardest for MF (SVP-CF)",
}


def main_table(report: DataReport) -> Table:
    """Quality of each arm, and its differences from the baselines."""
    metrics = [name for name in METRICS if _has(report, name)]
    compared = COMPARED[report.metric]
    header = ["arm", "model", "rate", "rows", "seeds", f"validation {validated_by(report)}"]
    header += [metric_name(name, report.k) for name in metrics]
    for name in compared:
        kind = f"{metric_name(name, report.k)} " if len(compared) > 1 else ""
        header += [f"{kind}against {peer}" for peer in ("MF alone", "all rows", "the sample alone")]
    header += ["train s", "not converged", "start is best"]
    lines = [header]
    for (arm, model, _, rate), group in report.compared:
        with_factors = arm in TRAINED and TRAINED[arm].takes_factors
        alone = report.sampled(SAMPLE.name, model, rate) if with_factors else None
        peers = (report.baseline(MF_ALONE.name), report.baseline(FULL.name, model), alone)
        train, converged = group.mean("train_s"), group.column("converged")
        line = [LABELS[arm], model or "-", f"{rate:g}", f"{group.mean('rows_used'):,.0f}"]
        line += [str(len(group.rows)), spread(group, "validation")]
        line += [spread(group, name) for name in metrics]
        for name in compared:
            found = (report.difference(group, peer, name) for peer in peers)
            line += [interval(difference, name in LOW_IS_GOOD) for difference in found]
        line.append("-" if math.isnan(train) else f"{train:.1f}")
        for flags in (converged, group.column("best_step")):
            line.append(str(int(np.sum(flags == 0))) if len(flags) else "-")
        lines.append(line)
    return lines


def validated_by(report: DataReport) -> str:
    """The metric of the validation split that choices are made by."""
    rows = (row for group in report.groups.values() for row in group.rows)
    return next((str(row["validation_metric"]) for row in rows if row["validation_metric"]), "")


def choice_table(found: Sequence[Choice]) -> Table:
    """The variants of a sweep beside each other, and which one the validation split chooses."""
    lines = [["arm", "model", "rate", "variant", "seeds", "validation", "test", "chosen"]]
    for x in sorted(found, key=lambda x: (x.model, *x.key, -x.goodness)):
        chosen = "best of all" if x.best_of_all else "best of these" if x.best else ""
        kept = f"{x.rate:g}" if x.selection in ("", "uniform") else f"{x.selection} {x.rate:g}"
        line = [LABELS[x.arm], x.model or "-", kept, x.variant, str(x.seeds)]
        validated = f"{x.validation:.4f} ({x.metric})"
        lines.append([*line, validated, f"{x.test:.4f} ({x.tested})", chosen])
    return lines


def sampled_table(report: DataReport) -> Table:
    """Differences in the ranking among K items, paired over all test users."""
    header = ["arm", "model", "rate"]
    for name in ("MF alone", "all rows"):
        shown = (metric_name(metric, report.k) for metric in ("hr_sampled", "ndcg_sampled"))
        header += [f"{metric} against {name}" for metric in shown]
    lines = [header]
    for (arm, model, _, rate), group in report.compared:
        if group.few is None:
            continue
        line = [LABELS[arm], model or "-", f"{rate:g}"]
        for peer in (report.baseline(MF_ALONE.name), report.baseline(FULL.name, model)):
            for metric in ("hr_sampled", "ndcg_sampled"):
                line.append(interval(report.difference(group, peer, metric)))
        lines.append(line)
    return lines


def selection_table(report: DataReport) -> Table:
    """Rules that choose as many rows, each against the uniform rule."""
    name = metric_name(report.metric, report.k)
    lines = [["rows kept", "model", "arm", "rate", "seeds", name, "uniform, less this"]]
    rates = {rate for _, _, rule, rate in report.groups if rule in selection.RULES}
    shown = [
        key
        for key in report.groups
        if key[2] in RULE_NAMES and key[3] in rates and key[0] != CADC_TRAINABLE.name
    ]

    def order(key: Key) -> tuple:
        arm, model, rule, rate = key
        return -rate, model, arm, list(RULE_NAMES).index(rule)

    for arm, model, rule, rate in sorted(shown, key=order):
        group = report.groups[arm, model, rule, rate]
        difference = report.difference(report.sampled(arm, model, rate), group)
        line = [RULE_NAMES[rule], model, LABELS[arm], f"{rate:g}", str(len(group.rows))]
        lines.append([*line, spread(group, report.metric), interval(difference)])
    return lines


def settings_table(report: DataReport) -> Table:
    """The settings that were searched, and how many were tried."""
    lines = [["arm", "model", "rate", "trials", "chosen on the validation split"]]
    for (arm, model, _, rate), group in report.compared:
        if group.rows[0].get("chosen"):
            chosen = json.loads(group.rows[0]["chosen"])
            settings = ", ".join(f"{name} {value}" for name, value in chosen["settings"].items())
            lines.append([LABELS[arm], model or "-", f"{rate:g}", str(chosen["trials"]), settings])
    return lines


def activity_table(report: DataReport) -> Table:
    """Quality by the number of training rows of the user."""
    return _by_size(report, report.rows_of_users, report.quality)


def popularity_table(report: DataReport) -> Table:
    """Quality by the number of training rows of the item, a value for each test row."""
    return _by_size(report, report.rows_of_items, report.quality_of_rows)


def fold_in_table(report: DataReport) -> Table:
    """Quality for users whom the factorisation did not see, against the same users seen."""
    name = metric_name(report.metric, report.k)
    header = ["arm", "model", "rate", "hidden users", f"{name}, folded in", f"{name}, seen"]
    lines = [[*header, "folded in, less seen", "folded in, less popularity"]]
    for (arm, model, rule, rate), group in report.groups.items():
        seen = report.sampled(arm, model, rate) if model else report.baseline(arm)
        if rule != FOLD_IN or seen is None:
            continue
        seeds = [seed for seed in _seeds(group) if seed in _seeds(seen)]
        popularity = report.baseline(POPULARITY.name)
        sides = [_of_hidden_users(report, side, seeds) for side in (group, seen, popularity)]
        ours, theirs, popular = sides
        if ours is None or theirs is None:
            continue
        line = [LABELS[arm], model or "-", f"{rate:g}", f"{_hidden(report, seeds).sum():,}"]
        line += [f"{side.found.mean():.4f}" for side in (ours, theirs)]
        line.append(interval(bootstrap.difference(ours, theirs)))
        lines.append([*line, interval(popular and bootstrap.difference(ours, popular))])
    return lines


def truth_table(report: DataReport) -> Table:
    """AUC of each arm as a share of the AUC of the true click probabilities."""
    lines = [["scorer", "model", "rate", "AUC", "share of (AUC - 0.5)"]]
    if report.truth is None:
        return lines
    expected = paired.bayes_auc(report.truth)
    reached = paired.auc(report.labels, report.truth)
    lines.append(["true probabilities, expected", "", "", f"{expected:.4f}", ""])
    lines.append(["true probabilities, these labels", "", "", f"{reached:.4f}", "100.0 %"])
    for (arm, model, _, rate), group in report.compared:
        share = (group.mean("auc") - 0.5) / (reached - 0.5)
        line = [LABELS[arm], model or "-", f"{rate:g}", spread(group, "auc")]
        lines.append([*line, f"{share:.1%}"])
    return lines


_OF_FACTORS = "The network against its own factors, by training rows of the "
_SECONDS = "Seconds: CADC / all rows"
_LAST = "Among K unseen items only: (1+K)"

# The tables below the main one, by their titles. Those of the full ranking are first.
FURTHER: dict[str, Callable[[DataReport], Table]] = {
    f"{_OF_FACTORS}item": bins.item_table,
    f"{_OF_FACTORS}user": bins.user_table,
    "Other rules that choose as many rows": selection_table,
    "Settings that were searched": settings_table,
    "By activity of the user (deciles of training rows)": activity_table,
    "By popularity of the item (deciles of training rows)": popularity_table,
    "Users whom the factorisation did not see": fold_in_table,
    _SECONDS: cost_tables.cost_table,
    "Sizes, and when a factorisation pays": cost_tables.size_table,
    "Against the probabilities that the rows were drawn from": truth_table,
    _LAST: sampled_table,
}
# What a reader needs to know of a table, by its title.
CAPTIONS = {
    f"{_OF_FACTORS}item": bins.OF_ITEMS,
    f"{_OF_FACTORS}user": bins.OF_USERS,
    _SECONDS: cost_tables.OF_SECONDS,
    _LAST: "Each test item among K drawn ones: larger numbers, which can order models differently. "
    "Not to be compared with the full ranking.",
}


def interval_note(report: DataReport) -> str:
    """What the intervals of a report hold for."""
    seeds = max((len(group.rows) for group in report.groups.values() if group.seeds), default=1)
    if seeds == 1:
        return (
            "Intervals are over users alone: with one seed nothing is known of others. Run more "
            "(--seeds) before believing a difference."
        )
    return (
        f"Intervals are over {seeds} seeds and users, both drawn anew; over users alone where one "
        "side has a single seed."
    )


def _has(report: DataReport, metric: str) -> bool:
    return any(len(group.column(metric)) for group in report.groups.values())


def _by_size(
    report: DataReport, size: np.ndarray, quality: Callable[[Group, np.ndarray], float]
) -> Table:
    """A line for each decile of `size` [N], and for the users or rows where it is 0 or 1."""
    shown: dict[str, Group | None] = {
        LABELS[arm]: report.baseline(arm) for arm in (*BASELINES, *SEARCHED)
    }
    for model in report.models:
        shown[f"{FULL.label}, {model}"] = report.baseline(FULL.name, model)
        if (rate := report.headline) is not None:
            for arm in OF_SAMPLES:
                name = f"{LABELS[arm]}, {model}, {rate:g}"
                shown[name] = report.sampled(arm, model, rate)
    groups = {name: group for name, group in shown.items() if group is not None}
    lines = [["training rows", "tested", *groups]]
    parts = [("none", size == 0), ("1", size == 1)]
    decile = paired.deciles(size)
    for nth in np.unique(decile):
        inside = decile == nth
        low, high = size[inside].min(), size[inside].max()
        parts.append((f"{low:,}" if low == high else f"{low:,} to {high:,}", inside))
    seen: set[bytes] = set()
    for name, inside in parts:
        if inside.any() and inside.tobytes() not in seen:  # a decile may be the rows of size 0 or 1
            seen.add(inside.tobytes())
            values = [f"{quality(group, inside):.4f}" for group in groups.values()]
            lines.append([name, f"{inside.sum():,}", *values])
    return lines


def _seeds(group: Group) -> list[int]:
    return [int(row["seed"]) for row in group.rows]


def _hidden(report: DataReport, seeds: list[int]) -> np.ndarray:
    """The ranked users whom each seed hides, [S, N] bool."""
    num_users = report.table.schema.num_users
    return np.array([selection.hidden_users(num_users, seed)[report.users] for seed in seeds])


def _of_hidden_users(
    report: DataReport, group: Group | None, seeds: list[int]
) -> bootstrap.Figures | None:
    """Quality of a group for the users whom each seed hides; None without such users.

    Popularity has one result for all seeds.
    """
    if group is None or not (hidden := _hidden(report, seeds)).any():
        return None
    values = dict(zip(_seeds(group), group.values, strict=True))
    found = np.stack([values.get(seed, group.values[0]) for seed in seeds])
    inside = hidden.any(axis=0)
    found = np.where(hidden, found, np.nan)[:, inside]
    return bootstrap.means(found, report.users[inside], tuple(seeds))
