"""Worker processes: failures are noted, a dead process is replaced, results are reused."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from cadc_jax.study import results, workers
from cadc_jax.study.cells import Cell
from tests.study import faults

CELLS = [Cell("synthetic", "full", "dlrm", seed=seed) for seed in range(5)]


def started(folder):
    """Seeds that were run, and the processes that ran them; forgets them."""
    files = list(folder.glob("run-*"))
    for file in files:
        file.unlink()
    parts = [file.name.split("-") for file in files]
    return sorted(int(seed) for _, seed, _ in parts), {process for _, _, process in parts}


@pytest.fixture(scope="module")
def two_starts(tmp_path_factory):
    """(rows, seeds run, processes) of a first start and of a second, and the folder."""
    folder = tmp_path_factory.mktemp("study")
    study = faults.Study(folder)
    first = workers.run_cells(study, [CELLS[:1], CELLS[1:]], 1, faults.run), *started(folder)
    (folder / "again").touch()
    second = workers.run_cells(study, [CELLS], 1, faults.run), *started(folder)
    return first, second, folder


def test_a_failure_a_dead_process_and_a_skipped_cell_are_noted_and_the_others_continue(two_starts):
    rows, seeds, processes = two_starts[0]
    assert [row["seed"] for row in rows] == seeds == [0, 1, 2, 3, 4]
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "skipped", "ok"]
    errors = [row["error"] for row in rows[1:4]]
    why = "the worker process died with exit code 9"
    assert errors == ["ValueError: broken", why, "not here"]
    assert len(processes) == 2  # one until it died, and its replacement


def test_the_next_start_runs_only_the_failed_cells(two_starts):
    rows, seeds, _ = two_starts[1]
    assert seeds == [1, 2]
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "skipped", "ok"]


def test_each_row_is_in_results_csv_and_each_cell_in_the_log(two_starts):
    _, second, folder = two_starts
    found = {row["seed"]: row["status"] for row in results.read_results(folder / "results.csv")}
    assert found == {str(row["seed"]): row["status"] for row in second[0]}
    log = (folder / "logs" / "worker-0.log").read_text()
    assert log.count("seed 1\n") == 2 and log.count("seed 0\n") == 1
    assert "ValueError: broken" in log  # with its traceback


def test_results_of_other_settings_are_not_reused(two_starts, monkeypatch):
    folder = two_starts[2]
    monkeypatch.setattr(faults.Study, "settings", lambda self, cell: "others")
    rows = workers.run_cells(faults.Study(folder), [CELLS[:1]], 1, faults.run)
    assert started(folder)[0] == [0] and rows[0]["status"] == "ok"


def test_progress_is_shown(tmp_path, capsys):
    workers.run_cells(faults.Study(tmp_path), [[CELLS[0], CELLS[3]]], 1, faults.run)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("2 cells, 0 of them done before; 1 workers, ")
    assert second.startswith("[1/2, ") and second.endswith(
        "seed 0: validation logloss 0.5000, test auc 0.7000, 1 s"
    )
    assert third.startswith("[2/2, 0 s left] ") and third.endswith("SKIPPED: not here")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned")
def test_workers_share_the_cores_without_overlap(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("there is one core")
    cells = [Cell("synthetic", "full", "dlrm", seed=seed) for seed in range(10, 16)]
    workers.run_cells(faults.Study(tmp_path), [cells], 2, faults.run)
    used = {file.read_text() for file in tmp_path.glob("run-*")}
    assert used == {",".join(map(str, cores[part::2])) for part in range(2)}


PARENT = """
import pathlib, sys
from cadc_jax.study import workers
from cadc_jax.study.cells import Cell
from tests.study import faults

cells = [Cell("synthetic", "full", "dlrm", seed=seed) for seed in (10, 11)]
workers.run_cells(faults.Study(pathlib.Path(sys.argv[1])), [cells], 1, faults.run_slowly)
"""


def is_running(process):
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_worker_ends_after_its_cell_if_the_study_is_killed(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
    )
    while not (files := list(tmp_path.glob("run-*"))):
        assert parent.poll() is None
        time.sleep(0.05)
    worker = files[0].name.split("-")[-1]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(worker)
    assert len(list(tmp_path.glob("run-*"))) == 1  # the second cell was not begun
