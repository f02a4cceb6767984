"""Decodes a source once, on all cores and in bounded memory, into Arrow files that read fast.

The number of rows, the vocabularies and the means of all rows must be known before the first row of
a table can be written. Staged chunks save parsing the text a second time for that. Each chunk is a
file; the chunks are in the order of the source.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from cadc_jax.data import raw
from cadc_jax.data.facts import REPORT
from cadc_jax.data.hosts import (
    ERROR,
    SINGLE_HOST,
    Form,
    Hosts,
    Message,
    error_of,
    exchange,
    share_of,
    told_error,
)
from cadc_jax.data.raw import ReadReport
from cadc_jax.errors import DataError
from cadc_jax.runtime import manifest
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
      rows: number of its rows.
      host: index of the host that read it and processes it further.
    """

    path: pathlib.Path
    start: int
    rows: int
    host: int = 0

    @property
    def places(self) -> slice:
        """The places of its rows among all rows."""
        return slice(self.start, self.start + self.rows)

    def read(self, names: Collection[str] | None = None) -> pa.Table:
        """Reads all its columns, or only its columns among `names`.

        The file is read and not memory-mapped, because mapped pages would stay in memory. Another
        host may have written it, so it is checked that no offset or code leads outside of it.
        """
        with pa.OSFile(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            if names is None:
                rows = reader.read_all()
            else:
                wanted = [i for i, name in enumerate(reader.schema.names) if name in names]
                if not wanted:
                    return pa.table({})
                options = pa.ipc.IpcReadOptions(included_fields=wanted)
                rows = pa.ipc.open_file(file, options=options).read_all()
        rows.validate(full=True)
        return rows


def stage_rows(
    folder: pathlib.Path,
    source: raw.RawData,
    max_malformed: float = 0.0,
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
    hosts: Hosts = SINGLE_HOST,
) -> tuple[list[StagedChunk], ReadReport]:
    """Decodes all chunks of a source into files.

    Args:
      folder: where to write the files; made if needed. Several hosts share it.
      source: what to read. Parts are read at the same time, and chunks decoded on all cores.
      max_malformed: largest share of malformed rows to leave out.
      change: applied to the rows of each chunk before they are written. Rows that it leaves out
        are counted as `below`.
      hosts: the hosts that share the work.

    Returns:
      The chunks of all hosts, in order, and the report of the whole source.

    Raises:
      DataError: if the reader finds a fault, too many rows are malformed, or there are none. Of
        several faults, the first one in the order of the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader = _ShareReader(folder, source, max_malformed, change, hosts)
    shares = list(exchange(hosts, folder, "read", reader.read, _SHARE))
    report = check_shares(source.name, shares, max_malformed)
    staged, start = [], 0
    for host, share in enumerate(shares):
        for part, number, rows in share.chunks:
            staged.append(StagedChunk(folder / _file_name(part, number), start, rows, host))
            start += rows
    return staged, report


def decoded(task: raw.Task, change: Callable[[pa.Table], pa.Table]) -> tuple[pa.Table, ReadReport]:
    """The changed rows of a task, and the report on them; `change` as for `stage_rows`."""
    chunk = task.decode()
    rows = change(chunk.rows)
    below = chunk.report.rows - len(rows)
    return rows, dataclasses.replace(chunk.report, rows=len(rows), below=below)


def map_chunks(
    label: str, function: Callable[[StagedChunk], R], chunks: Sequence[StagedChunk]
) -> Iterator[R]:
    """`ordered_map` over chunks, which shows the progress in rows under this label."""
    progress = Progress(label, sum(chunk.rows for chunk in chunks), "rows")
    done = 0
    for chunk, result in zip(chunks, ordered_map(function, chunks), strict=True):
        yield result
        done += chunk.rows
        progress.update(done)
    progress.close()


def ordered_map(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`map` on all cores. Results keep their order; at most one per core waits to be consumed."""
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: list[Future[R]] = []
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > WORKERS:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


class Share(NamedTuple):
    """One host's share of a source, decoded.

    Attributes:
      chunks: part, number in the part, and rows of each chunk.
      report: what the reader found in all of them.
      changed: the error that `RawData.confirm` raised, or None.
      failed: the reader's first error in the order of the rows, or None.
      sizes: sizes of the parts.
    """

    chunks: list[tuple[int, int, int]]
    report: ReadReport
    changed: BaseException | None
    failed: BaseException | None
    sizes: list[int]


def report_of(told: Mapping[str, Any]) -> ReadReport:
    """The report that `dataclasses.asdict` made JSON of."""
    return ReadReport(**{**told, "examples": tuple(told["examples"])})


_KIND: manifest.Kind = {
    "chunks": [[int]],
    "report": REPORT,
    "changed": ERROR,
    "failed": ERROR,
    "sizes": [int],
}


def _pack_share(share: Share) -> Message:
    told = {
        "report": dataclasses.asdict(share.report),
        "changed": told_error(share.changed),
        "failed": told_error(share.failed),
    }
    return Message(share._asdict() | told)


def _unpack_share(message: Message) -> Share:
    told = message.plain
    manifest.check(told, _KIND, "the share")
    return Share(
        chunks=[(part, number, rows) for part, number, rows in told["chunks"]],
        report=report_of(told["report"]),
        changed=error_of(told["changed"]),
        failed=error_of(told["failed"]),
        sizes=told["sizes"],
    )


_SHARE = Form(_pack_share, _unpack_share)


def _file_name(part: int, number: int) -> str:
    """The file of a chunk. It is made of numbers, so no host can name a file elsewhere."""
    return f"{part}.{number}.arrow"


def check_shares(name: str, shares: Sequence[Share], max_malformed: float) -> ReadReport:
    """Raises the first fault of all shares, or returns the report of the whole source `name`.

    Raises:
      DataError: as `stage_rows`.
    """
    if any(share.sizes != shares[0].sizes for share in shares):
        raise DataError(
            f"{name}: not of the same size on every host; give all hosts the same raw files"
        )
    report = raw.total([share.report for share in shares])
    # A change comes first, because it may be the cause of any other fault.
    failures = [share.changed for share in shares]
    if max_malformed or not report.malformed:  # else the report is the fault
        failures += [share.failed for share in shares]
    for failure in failures:
        if failure is not None:
            raise failure
    raw.check_report(name, report, max_malformed)
    return report


class _ShareReader:
    """Decodes one host's share of a source into files.

    A thread for each part yields its tasks, and a pool of threads decodes them. `room` bounds the
    blocks in memory over all parts. The first fault stops all threads, and all other hosts.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        source: raw.RawData,
        max_malformed: float,
        change: Callable[[pa.Table], pa.Table],
        hosts: Hosts,
    ):
        """Arguments as for `stage_rows`."""
        self.folder, self.source, self.hosts = folder, source, hosts
        self.max_malformed, self.change = max_malformed, change
        self.sizes = list(source.sizes or [1] * len(source.parts))
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.low, self.high = share_of(hosts, self.sizes)
        self.stop = threading.Event()
        self.stop_file = folder / "stopped"  # tells the other hosts
        self.room = threading.Semaphore(WORKERS + 1)
        self.lock = threading.Lock()  # of the progress
        self.progress = Progress("prepare: read", source.size // hosts.count, "bytes")
        self.bytes_done, self.rows_done = 0, 0

    def read(self) -> Share:
        """Decodes the share; called once."""
        parts = range(len(self.source.parts))
        with (
            ThreadPoolExecutor(WORKERS) as decoders,
            ThreadPoolExecutor(min(WORKERS, len(parts))) as readers,
        ):
            parts_read = [readers.submit(self._read_part, part, decoders) for part in parts]
            concurrent.futures.wait(parts_read)
            chunks, failed = _results_of(parts_read)
        self.progress.close()
        changed = None
        try:
            self.source.confirm()
        except DataError as error:
            changed = error
        report = raw.total([report for _, _, report in chunks])
        places = [(part, number, report.rows) for part, number, report in chunks]
        return Share(places, report, changed, failed, self.sizes)

    def _read_part(self, part: int, decoders: ThreadPoolExecutor) -> list[Future]:
        """Hands the tasks of a part that are in the share to the decoders."""
        futures: list[Future] = []
        place = self.starts[part]
        last = max(place, self.starts[part + 1] - 1)
        if place >= self.high or last < self.low or self._stopped():
            return futures
        try:
            for number, task in enumerate(self.source.parts[part]()):
                # Text unpacked from bytes already consumed may begin at the end of the part.
                start = min(place, last)
                place += task.consumed
                if start < self.low:
                    continue
                if start >= self.high:
                    break
                self.room.acquire()
                if self._stopped():
                    self.room.release()
                    break
                futures.append(decoders.submit(self._decode, part, number, task))
        except BaseException:
            self._stop()
            raise
        return futures

    def _decode(self, part: int, number: int, task: raw.Task) -> tuple[int, int, ReadReport]:
        """Writes the rows of a task to a file."""
        try:
            rows, report = decoded(task, self.change)
            with pa.OSFile(str(self.folder / _file_name(part, number)), "wb") as file:
                with pa.ipc.new_file(file, rows.schema) as out:
                    out.write_table(rows)
        except BaseException:
            self._stop()
            raise
        finally:
            self.room.release()
        if report.malformed and not self.max_malformed:
            self._stop()  # no later row can change that this is a fault
        with self.lock:
            self.bytes_done += task.consumed
            self.rows_done += len(rows)
            self.progress.update(self.bytes_done, f"{self.rows_done:,} rows")
        return part, number, report

    def _stop(self) -> None:
        self.stop.set()
        if self.hosts.count > 1:
            self.stop_file.touch()

    def _stopped(self) -> bool:
        return self.stop.is_set() or (self.hosts.count > 1 and self.stop_file.exists())


def _results_of(
    parts: Sequence[Future[list[Future]]],
) -> tuple[list[tuple[int, int, ReadReport]], BaseException | None]:
    """All results of finished parts, and the first exception; both in the order of the rows."""
    results, failed = [], None
    for part in parts:
        if part.exception():
            failed = failed or part.exception()
            continue
        for future in part.result():
            if future.exception():
                failed = failed or future.exception()
            else:
                results.append(future.result())
    return results, failed
