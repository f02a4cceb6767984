"""The report of a study: report.html, its first tables as text, and the rows for --json."""

import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2

from benchmarks.study_lib import data_report, plots, tables
from benchmarks.study_lib.data_report import DataReport, K
from benchmarks.study_lib.results import Row
from cadc_jax import __version__

_PAGE = pathlib.Path(__file__).with_name("page.html")


def write(out: pathlib.Path, rows: Sequence[Row], machine: str, command: str) -> list[DataReport]:
    """Writes `report.html`, a page without other files, into the folder of the study.

    Args:
      out: the folder.
      rows: of results.csv, also of failed cells.
      machine: the machine on which they were computed, for the reader.
      command: the command that computed them.

    Returns:
      What the page shows of each data set.
    """
    names = dict.fromkeys(row["data"] for row in rows)
    found = (
        data_report.gather(out, name, [row for row in rows if row["data"] == name])
        for name in names
    )
    reports = [report for report in found if report is not None]
    temporary = out / ".report.html.tmp"
    temporary.write_text(page(reports, rows, machine, command))
    temporary.replace(out / "report.html")
    return reports


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
        K=K,
        main_table=tables.main_table,
        further_tables=tables.FURTHER,
        quality_by_rate=plots.quality_by_rate,
        quality_by_seconds=plots.quality_by_seconds,
    )


def summary(reports: Iterable[DataReport]) -> str:
    """The first tables of each data set as text."""
    parts = []
    for report in reports:
        parts.append(f"{report.name}\n{_text(tables.main_table(report))}")
        for make in (tables.sampled_table, tables.selection_table):
            if len(lines := make(report)) > 1:
                parts.append(_text(lines))
    return "\n\n".join(parts)


def json_rows(reports: Iterable[DataReport]) -> list[dict[str, Any]]:
    """The comparisons with MF alone and with all rows, in the form of the other benchmarks."""
    found = []
    for report in reports:
        name = "auc" if report.metric == "auc" else f"ndcg@{K}"
        for (arm, model, rule, rate), group in report.groups.items():
            if arm not in plots.SAMPLED or rule == "fold_in":
                continue
            peers = {
                "MF alone": report.baseline("mf_alone"),
                "all rows, no factors": report.baseline("full", model),
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
                        "interval": report.difference(group, peer),
                    }
                )
    return found


def _text(lines: tables.Table) -> str:
    """A table as text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
