"""The report of a study: report.html, results.json, and its first tables as text."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2

from cadc_jax import __version__
from cadc_jax.run.arms import FULL, MF_ALONE
from cadc_jax.runtime import durable
from cadc_jax.runtime.text import aligned
from cadc_jax.study import comparisons, cost_tables, data_report, plots, tables
from cadc_jax.study.bootstrap import Interval
from cadc_jax.study.cells import FOLD_IN, OF_SAMPLES
from cadc_jax.study.choices import choices
from cadc_jax.study.comparisons import Comparison
from cadc_jax.study.data_report import DataReport
from cadc_jax.study.results import Row

_IN_SUMMARY = (tables.selection_table, cost_tables.cost_table, tables.sampled_table)
_PAGE = pathlib.Path(__file__).with_name("page.html")


def write(out: pathlib.Path, rows: Sequence[Row], machine: str, command: str) -> list[DataReport]:
    """Writes `report.html`, a page without other files, and `results.json`.

    Args:
      out: the folder.
      rows: of results.csv, also of failed cells.
      machine: the machine on which they were computed, for the reader.
      command: the command that computed them.

    Returns:
      What the page shows of each configuration and variant.
    """
    parts = dict.fromkeys((row["data"], row["variant"]) for row in rows)
    found = (
        data_report.gather(out, [row for row in rows if (row["data"], row["variant"]) == part])
        for part in parts
    )
    reports = [report for report in found if report is not None]
    durable.write_text(out / "report.html", page(reports, rows, machine, command))
    compared = comparisons.compare(reports)
    results = {
        "machine": machine,
        "command": command,
        "cells": [{name: x for name, x in row.items() if x not in ("", None)} for row in rows],
        "choices": [dataclasses.asdict(choice) for choice in choices(rows)],
        "comparisons": [_as_json(comparison) for comparison in compared],
        "rows": of_peers(reports),
    }
    durable.write_json(out / "results.json", finite(results))
    return reports


def finite(value: Any) -> Any:
    """A JSON-able value without numbers that JSON lacks, which become None."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page(reports: Sequence[DataReport], rows: Sequence[Row], machine: str, command: str) -> str:
    """The text of `report.html`; see `write`."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_PAGE.read_text()).render(
        version=__version__,
        machine=machine,
        command=command,
        cells=len(rows),
        failed=[row for row in rows if row["status"] != "ok"],
        reports=reports,
        choices=choice_tables(rows),
        comparisons=comparison_tables(reports),
        main_table=tables.main_table,
        interval_note=tables.interval_note,
        captions=tables.CAPTIONS,
        further_tables=tables.FURTHER,
        validated_by=tables.validated_by,
        quality_by_rate=plots.quality_by_rate,
        quality_by_seconds=plots.quality_by_seconds,
    )


def choice_tables(rows: Sequence[Row]) -> dict[str, tables.Table]:
    """By the name of a configuration, the variants of a sweep and their choice; often empty."""
    found = choices(rows)
    return {
        name: tables.choice_table([choice for choice in found if choice.data == name])
        for name in dict.fromkeys(choice.data for choice in found)
    }


def comparison_tables(reports: Sequence[DataReport]) -> dict[str, tables.Table]:
    """By the name of a report, its comparisons; names without any are left out."""
    found = comparisons.compare(reports)
    return {
        name: comparisons.table([comparison for comparison in found if comparison.data == name])
        for name in dict.fromkeys(comparison.data for comparison in found)
    }


def _as_json(comparison: Comparison) -> dict[str, Any]:
    mean, low, high, p, seeds = comparison.difference
    metric = {"ndcg": f"ndcg@{comparison.k}"}.get(comparison.metric, comparison.metric)
    found = {name: getattr(comparison, name) for name in ("data", "arm", "model", "rate", "peer")}
    found |= {"metric": metric, "difference": mean, "interval": [low, high]}
    found |= {"over": ["seeds", "users"] if seeds else ["users"], "p": p}
    return found | {"p_holm": comparison.holm, "verdict": comparison.verdict}


def summary(reports: Sequence[DataReport], rows: Sequence[Row]) -> str:
    """The first tables of each configuration as text; those among few items are last."""
    parts = [f"{name}\n{_text(lines)}" for name, lines in choice_tables(rows).items()]
    compared = comparison_tables(reports)
    for report in reports:
        parts.append(f"{report.name}\n{_text(tables.main_table(report))}")
        parts.append(tables.interval_note(report))
        if report.name in compared:
            parts.append(f"Comparisons, {report.name}\n{_text(compared[report.name])}")
        for title, make in tables.FURTHER.items():
            if make in _IN_SUMMARY and len(lines := make(report)) > 1:
                parts.append(f"{title}, {report.name}\n{_text(lines)}")
    return "\n\n".join(parts)


def of_peers(reports: Iterable[DataReport]) -> list[dict[str, Any]]:
    """The comparisons with MF alone and with all rows, in the form of the other benchmarks."""
    found = []
    for report in reports:
        name = "auc" if report.metric == "auc" else f"ndcg@{report.k}"
        for (arm, model, rule, rate), group in report.groups.items():
            if arm not in OF_SAMPLES or rule == FOLD_IN:
                continue
            peers = {
                MF_ALONE.label: report.baseline(MF_ALONE.name),
                FULL.label: report.baseline(FULL.name, model),
            }
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
                        "interval": _bounds(report.difference(group, peer)),
                    }
                )
    return found


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval[:3])


def _text(lines: tables.Table) -> str:
    """A table as text in columns."""
    names, *others = aligned(lines)
    return "\n".join([names, "-" * len(names), *others])
