"""A stand-in for the study's cells that fails on demand; worker processes import it."""

import dataclasses
import os

from benchmarks import study


def run(of, cell, say):
    """Of the first run cell 1 fails, cell 2 takes the process with it, and cell 3 is no use."""
    del say
    (of.out / f"run-{cell.seed}-{os.getpid()}").touch()
    again = (of.out / "again").exists()
    if cell.seed == 1 and not again:
        raise ValueError("broken")
    if cell.seed == 2 and not again:
        os._exit(9)
    if cell.seed == 3:
        raise study.SkipCell("not here")
    done = {"settings": of.settings(cell), "status": "ok", "auc": 0.7, "cell_s": 1.0}
    return dataclasses.asdict(cell) | done
