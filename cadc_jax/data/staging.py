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
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from cadc_jax.data import raw
from cadc_jax.data.hosts import ALONE, Hosts, exchange, share_of
from cadc_jax.data.raw import ReadReport
from cadc_jax.errors import DataError
from cadc_jax.runtime.progress import Progress

WORKERS = os.cpu_count() or 1

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class StagedChunk:
    """A chunk on disk.

    Attributes:
      path: its file.
      start: place of its first row among all rows.
      rows: how many it has.
      host: which host has read it, and goes on with it.
    """

    path: pathlib.Path
    start: int
    rows: int
    host: int = 0

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


def stage_rows(
    folder: pathlib.Path,
    source: raw.RawData,
    max_malformed: float = 0.0,
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
    hosts: Hosts = ALONE,
) -> tuple[list[StagedChunk], ReadReport]:
    """Decodes all chunks of a source into files of `folder`.

    Args:
      folder: is made.
      source: what to read. Parts are read at the same time, chunks decoded on all cores.
      max_malformed: share of malformed rows to put up with.
      change: applied to the rows of each chunk before they are written.
      hosts: those that share the source, and `folder`.

    Returns:
      The chunks of all hosts, in order, and the report of the whole.

    Raises:
      DataError: whatever the reader finds; too many malformed rows, or no row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = exchange(
        hosts, folder, "read", lambda: _read_share(folder, source, max_malformed, change, hosts)
    )
    shares = list(told)
    if any(share.sizes != shares[0].sizes for share in shares):
        raise DataError(
            f"{source.name}: not of the same size on every host; give all hosts the same raw files"
        )
    report = raw.total([report for share in shares for _, report in share.chunks])
    failures = [share.changed for share in shares]  # first, as it may be behind any other fault
    if not (report.malformed and not max_malformed):
        failures += [share.failed for share in shares]
    for failure in failures:
        if failure is not None:
            raise failure
    raw.check(source.name, report, max_malformed)
    staged, start = [], 0
    for host, share in enumerate(shares):
        for name, part_report in share.chunks:
            staged.append(StagedChunk(folder / name, start, part_report.rows, host))
            start += part_report.rows
    return staged, report


class _Share(NamedTuple):
    """What one host made of its share of a source."""

    chunks: list[tuple[str, ReadReport]]  # the name of each one's file, and what was met
    changed: BaseException | None  # what `Source.confirm` raised
    failed: BaseException | None  # what the reader raised first, in the order of the rows
    sizes: list[int]  # of the parts


def _read_share(
    folder: pathlib.Path,
    source: raw.RawData,
    max_malformed: float,
    change: Callable[[pa.Table], pa.Table],
    hosts: Hosts,
) -> _Share:
    sizes = source.sizes or [1] * len(source.parts)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    low, high = share_of(hosts, sizes)
    stop = threading.Event()
    stopped = folder / "stopped"  # tells the other hosts
    room = threading.Semaphore(WORKERS + 1)  # blocks in memory, for all parts together
    progress = Progress("prepare: read", source.size // hosts.count, "bytes")
    lock = threading.Lock()
    done = {"bytes": 0, "rows": 0}

    def give_up() -> None:
        stop.set()
        if hosts.count > 1:
            stopped.touch()

    def given_up() -> bool:
        return stop.is_set() or (hosts.count > 1 and stopped.exists())

    def decode(part: int, number: int, task: raw.Task) -> tuple[str, ReadReport]:
        try:
            chunk = task.decode()
            name = f"{part}.{number}.arrow"
            rows = change(chunk.rows)
            with pa.OSFile(str(folder / name), "wb") as file:
                with pa.ipc.new_file(file, rows.schema) as out:
                    out.write_table(rows)
        except BaseException:
            give_up()
            raise
        finally:
            room.release()
        if chunk.report.malformed and not max_malformed:
            give_up()  # it cannot get better
        with lock:
            done["bytes"] += task.consumed
            done["rows"] += len(rows)
            progress.update(done["bytes"], f"{done['rows']:,} rows")
        return name, chunk.report

    def read_part(part: int) -> list[concurrent.futures.Future]:
        futures = []
        place, last = starts[part], max(starts[part], starts[part + 1] - 1)
        if place >= high or last < low or given_up():
            return []
        try:
            for number, task in enumerate(source.parts[part]()):
                start = min(place, last)  # a block of what was unpacked before consumes nothing
                place += task.consumed
                if start < low:
                    continue
                if start >= high:
                    break
                room.acquire()
                if given_up():
                    room.release()
                    break
                futures.append(pool.submit(decode, part, number, task))
        except BaseException:
            give_up()
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
    changed = None
    try:
        source.confirm()
    except DataError as error:
        changed = error
    return _Share(results, changed, failed, list(sizes))


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
