"""Runs the cells of a study in worker processes, each on its own cores.

A pool of `concurrent.futures` would be shorter, but a study needs what it does not offer: a worker
that died says by its exit code why (-9: out of memory), and workers end with the study even if that
is killed by `kill -9`. Such a pool leaves its idle processes behind, and these hold memory.
"""

import collections
import contextlib
import multiprocessing
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from cadc_jax.errors import CadcError, StorageError
from cadc_jax.study import results
from cadc_jax.study.cells import Cell, SkipCell
from cadc_jax.study.grid import Pace, duration
from cadc_jax.study.results import Row

if TYPE_CHECKING:  # a worker imports JAX with its first cell
    from cadc_jax.study.settings import Study

RunCell = Callable[["Study", Cell, Callable[[str], None]], Row]


def run_cells(
    study: "Study", phases: Sequence[Sequence[Cell]], jobs: int, run: RunCell
) -> list[Row]:
    """Runs the cells that results.csv does not have yet.

    Args:
      study: the settings that all cells share.
      phases: see `grid.phases`; a phase starts when the one before it is done.
      jobs: number of worker processes.
      run: computes a cell; a function of a module, because its name is sent to the workers.

    Returns:
      The rows of all cells, in the order of `phases`.
    """
    path = study.out / "results.csv"
    (study.out / "logs").mkdir(parents=True, exist_ok=True)
    wanted = {cell: study.settings(cell) for phase in phases for cell in phase}
    rows = {
        results.cell_of(row): row
        for row in results.read_results(path)
        if wanted.get(results.cell_of(row)) == row["settings"]
    }
    done = {cell for cell, row in rows.items() if row["status"] in ("ok", "skipped")}
    left = [cell for cell in wanted if cell not in done]
    pace = Pace(rows.values(), jobs)
    time_left = f", about {duration(pace.seconds_for(left))} for the rest" if done and left else ""
    print(
        f"{len(wanted)} cells, {len(done)} of them done before{time_left}; {jobs} workers, whose "
        f"output is in {study.out / 'logs'}",
        flush=True,
    )

    def finish(cell: Cell, row: Row) -> None:
        results.append_result(path, row)
        with contextlib.suppress(StorageError):  # the next copy, or the last one, makes up for it
            study.copy()
        rows[cell] = row
        pace.add(row)
        left.remove(cell)
        count, time_left = len(wanted) - len(left), duration(pace.seconds_for(left))
        print(f"[{count}/{len(wanted)}, {time_left} left] {results.describe(row)}", flush=True)

    jobs = max(1, min(jobs, len(left)))
    workers = [_Worker(study, run, number, jobs) for number in range(jobs)]
    try:
        for phase in phases:
            _run_phase([cell for cell in phase if cell not in done], workers, finish)
    finally:
        for worker in workers:
            worker.stop()
    return [rows[cell] for cell in wanted if cell in rows]


def _run_phase(
    cells: Sequence[Cell], workers: Sequence["_Worker"], finish: Callable[[Cell, Row], None]
) -> None:
    """Gives each idle worker the next cell until all cells are done."""
    waiting, idle = collections.deque(cells), list(workers)
    busy: dict[Connection, tuple[_Worker, Cell]] = {}
    while waiting or busy:
        while waiting and idle:
            worker, cell = idle.pop(0), waiting.popleft()
            busy[worker.begin(cell)] = worker, cell
        ready = wait(list(busy))
        for connection in [connection for connection in busy if connection in ready]:
            worker, cell = busy.pop(connection)
            finish(cell, worker.result(cell))
            idle.append(worker)


class _Worker:
    """A worker process, which is replaced when it dies."""

    def __init__(self, study: "Study", run: RunCell, number: int, workers: int):
        self.study, self.run, self.number = study, run, number
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.cores = cores[number::workers] or cores[number % max(len(cores), 1) :][:1]
        self.process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection

    def begin(self, cell: Cell) -> Connection:
        """Sends a cell to the process. The connection is ready when it is done, or has died."""
        if self.process is None:
            self._start()
        with contextlib.suppress(OSError):  # it died while it was idle; `result` will see that
            self.connection.send(cell)
        return self.connection

    def result(self, cell: Cell) -> Row:
        """The row of the cell that `begin` was given, also if the process died."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            assert self.process is not None
            self.process.join()
            why = f"the worker process died with exit code {self.process.exitcode}"
            self.process = None
            return results.failure(cell, self.study.settings(cell), why)

    def stop(self) -> None:
        """Ends the process, also in the middle of a cell."""
        if self.process is not None:
            self.process.terminate()
            self.process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        log = self.study.out / "logs" / f"worker-{self.number}.log"
        arguments = (theirs, self.study, self.run, log, self.cores)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()


def _serve(
    connection: Connection,
    study: "Study",
    run: RunCell,
    log: pathlib.Path,
    cores: Sequence[int],
) -> None:
    """The worker process: receives cells and sends rows until the other end is closed."""
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX starts one thread for each core
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())

        def say(line: str) -> None:
            print(line, file=file)

        with contextlib.suppress(EOFError, BrokenPipeError):
            while True:
                connection.send(_row_of(study, connection.recv(), run, say))


def _row_of(study: "Study", cell: Cell, run: RunCell, say: Callable[[str], None]) -> Row:
    """The row of a cell, also if it fails: one broken cell must not end the study."""
    say(f"== {cell}")
    try:
        return run(study, cell, say)
    except SkipCell as error:
        return results.failure(cell, study.settings(cell), str(error), "skipped")
    except CadcError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001
        say(traceback.format_exc())
        why = f"{type(error).__name__}: {error}"
    return results.failure(cell, study.settings(cell), why)
