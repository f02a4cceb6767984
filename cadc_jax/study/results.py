"""The results of a study on disk: results.csv, with one row for each cell that was tried."""

import csv
import dataclasses
import io
import os
import pathlib
from typing import Any

from cadc_jax.errors import ConfigError
from cadc_jax.study.cells import Cell

IDENTITY = tuple(field.name for field in dataclasses.fields(Cell))
METRICS = ("hr", "ndcg", "recall", "hr_sampled", "ndcg_sampled", "auc", "logloss", "calibration")
SECONDS = ("prepare_s", "factorize_s", "sample_s", "train_s", "evaluate_s", "cell_s", "cpu_s")
BYTES = ("train_bytes", "sample_bytes", "factors_bytes", "state_bytes")
COLUMNS = (
    *(*IDENTITY, "settings", "status", "validation_metric", "validation", "cut_off", *METRICS),
    *("rows_used", "best_step", "converged"),
    *(*SECONDS, *BYTES, "prepared", "evaluation", "chosen", "error"),
)
_NUMBERS = frozenset(
    (*METRICS, *SECONDS, *BYTES, "validation", "rate", "rows_used", "best_step", "converged")
)

Row = dict[str, Any]  # of COLUMNS


def cell_of(row: Row) -> Cell:
    """The cell of a row."""
    fields = {name: row[name] for name in IDENTITY}
    return Cell(**fields | {"rate": float(row["rate"]), "seed": int(row["seed"])})


def primary(row: Row) -> str:
    """The metric that judges a row: 'auc' for clicks, 'ndcg' for rankings."""
    return "auc" if row.get("auc") not in (None, "") else "ndcg"


def failure(cell: Cell, settings: str, why: str, status: str = "failed") -> Row:
    """The row of a cell without a result.

    Args:
      cell: the cell.
      settings: fingerprint of its configuration.
      why: the reason.
      status: 'failed' if the next start tries it again, or 'skipped'.
    """
    row = dataclasses.asdict(cell) | {"settings": settings}
    return row | {"status": status, "error": why, "cell_s": 0}


def describe(row: Row) -> str:
    """A row as one line of text."""
    kept = f"{row['selection']} {row['rate']:g}" if row["selection"] else ""
    parts = (row["data"], row["variant"], row["arm"], row["model"], kept)
    name = ", ".join(filter(None, parts))
    name += f", seed {row['seed']}"
    if row["status"] != "ok":
        return f"{name}: {row['status'].upper()}: {row['error']}"
    metric = primary(row)
    validated = f"validation {row['validation_metric']} {row['validation']:.4f}"
    return f"{name}: {validated}, test {metric} {row[metric]:.4f}, {row['cell_s']:.0f} s"


def read_results(path: pathlib.Path) -> list[Row]:
    """The rows of results.csv. If a cell has several rows of the same settings, the last one.

    If the study was killed while it wrote a line, the incomplete line is cut off the file.

    Raises:
      ConfigError: if the file has other columns.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    rows = {}
    lines = csv.DictReader(io.StringIO(whole.decode(), newline=""))
    if whole and tuple(lines.fieldnames or ()) != COLUMNS:
        raise ConfigError(
            f"{path}: its columns are not those of this version; name another folder by --out=DIR"
        )
    for line in lines:
        row = {
            name: float(value) if value and name in _NUMBERS else value
            for name, value in line.items()
        }
        rows[cell_of(row), row["settings"]] = row
    return list(rows.values())


def append_result(path: pathlib.Path, row: Row) -> None:
    """Adds a row to results.csv in one write, which is on disk when this returns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writeheader()
    row = {name: " ".join(x.split()) if isinstance(x, str) else x for name, x in row.items()}
    writer.writerow(row)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, text.getvalue().encode())
        os.fsync(file)
    finally:
        os.close(file)
