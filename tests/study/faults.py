"""A stand-in for the study and its cells, which fail on demand; worker processes import it."""

import dataclasses
import os
import pathlib
import time

from cadc_jax.study.cells import SkipCell


@dataclasses.dataclass(frozen=True)
class Study:
    """A study whose cells have the same settings."""

    out: pathlib.Path

    def copy(self):
        """There is no store to copy to."""

    def settings(self, cell):
        del cell
        return "settings"


def run(study, cell, say):
    """On the first start, seed 1 fails and seed 2 ends its process; seed 3 is always skipped.

    Leaves a file with the cores it ran on, whose name has the seed and the process.
    """
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    (study.out / f"run-{cell.seed}-{os.getpid()}").write_text(cores)
    say(f"seed {cell.seed}")
    again = (study.out / "again").exists()
    if cell.seed == 1 and not again:
        raise ValueError("broken")
    if cell.seed == 2 and not again:
        os._exit(9)
    if cell.seed == 3:
        raise SkipCell("not here")
    done = {"settings": "settings", "status": "ok", "auc": 0.7, "cell_s": 1.0}
    done |= {"validation_metric": "logloss", "validation": 0.5}
    return dataclasses.asdict(cell) | done


def run_slowly(study, cell, say):
    """Leaves a file with the process in its name, and takes a second."""
    row = run(study, cell, say)
    time.sleep(1)
    return row
