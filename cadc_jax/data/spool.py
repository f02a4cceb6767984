"""Reads a source once, on all cores and in bounded memory, into Arrow files quick to read again.

Whatever has to be known of all rows before the first can be written (their number, vocabularies,
means) would otherwise take a second parse of the text. A chunk is a file; chunks are in order.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa

from cadc_jax.data import chunks
from cadc_jax.data.schema import ReadReport
from cadc_jax.progress import Progress

WORKERS = os.cpu_count() or 1

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class SpooledChunk:
    """A chunk on disk.

    Attributes:
      path: its file.
      start: place of its first row among all rows.
      rows: how many it has.
    """

    path: pathlib.Path
    start: int
    rows: int

    def read(self, names: Collection[str] | None = None) -> pa.Table:
        """Its rows: all columns, or those of `names` that there are.

        They are read and not mapped, as mapped pages stay in memory for as long as they may.
        """
        with pa.OSFile(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            if names is None:
                return reader.read_all()
            wanted = [i for i, name in enumerate(reader.schema.names) if name in names]
            if not wanted:
                return pa.table({})
            options = pa.ipc.IpcReadOptions(included_fields=wanted)
            return pa.ipc.open_file(file, options=options).read_all()


def write(
    folder: pathlib.Path,
    source: chunks.Source,
    max_malformed: float = 0.0,
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> tuple[list[SpooledChunk], ReadReport]:
    """Decodes all chunks of a source into files of `folder`.

    Args:
      folder: is made.
      source: what to read. Parts are read at the same time, chunks decoded on all cores.
      max_malformed: share of malformed rows to put up with.
      change: applied to the rows of each chunk before they are written.

    Returns:
      The chunks, in order, and the report of the whole.

    Raises:
      DataError: whatever the reader finds; too many malformed rows, or no row.
    """
    folder.mkdir(parents=True)
    stop = threading.Event()
    room = threading.Semaphore(WORKERS + 1)  # blocks in memory, for all parts together
    progress = Progress("prepare: read", source.size, "bytes")
    lock = threading.Lock()
    done = {"bytes": 0, "rows": 0}

    def decode(part: int, number: int, task: chunks.Task) -> tuple[pathlib.Path, ReadReport]:
        try:
            chunk = task.decode()
            path = folder / f"{part}.{number}.arrow"
            rows = change(chunk.rows)
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as out:
                out.write_table(rows)
        except BaseException:
            stop.set()
            raise
        finally:
            room.release()
        if chunk.report.malformed and not max_malformed:
            stop.set()  # it cannot get better
        with lock:
            done["bytes"] += task.consumed
            done["rows"] += len(rows)
            progress.update(done["bytes"], f"{done['rows']:,} rows")
        return path, chunk.report

    def read_part(part: int) -> list[concurrent.futures.Future]:
        futures = []
        try:
            for number, task in enumerate(source.parts[part]()):
                room.acquire()
                if stop.is_set():
                    room.release()
                    break
                futures.append(pool.submit(decode, part, number, task))
        except BaseException:
            stop.set()
            raise
        return futures

    with (
        concurrent.futures.ThreadPoolExecutor(WORKERS) as pool,
        concurrent.futures.ThreadPoolExecutor(min(WORKERS, len(source.parts))) as readers,
    ):
        parts = [readers.submit(read_part, part) for part in range(len(source.parts))]
        concurrent.futures.wait(parts)
        results, failed = [], None
        for part in parts:  # in order, so that of several faults the first is told
            if part.exception():
                failed = failed or part.exception()
                continue
            for future in part.result():
                if future.exception():
                    failed = failed or future.exception()
                else:
                    results.append(future.result())
    progress.close()
    report = chunks.total([report for _, report in results])
    source.confirm()  # first, as a change may be what is behind any other fault
    if report.malformed and not max_malformed:
        chunks.check(source.name, report, max_malformed)
    if failed:
        raise failed
    chunks.check(source.name, report, max_malformed)
    spooled, start = [], 0
    for path, part_report in results:
        spooled.append(SpooledChunk(path, start, part_report.rows))
        start += part_report.rows
    return spooled, report


def ordered_map(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`map` on all cores: results in order, and no more of them waiting than there are cores."""
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        waiting: list[concurrent.futures.Future] = []
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > WORKERS:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
