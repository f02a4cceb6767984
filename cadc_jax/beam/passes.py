"""What the workers of the pipelines do: read, stage, count and encode chunks of rows.

All of it is done by the functions that prepare a table on one machine. Rows and counts stay in
files; what travels between workers names them, since a runner may hold all that travels in memory.
An error that a user can mend is a result like another, so that the first one in the order of the
rows can be told.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from cadc_jax.beam import scratch
from cadc_jax.data import counting, prepare, staging
from cadc_jax.data.counting import FoldOf
from cadc_jax.data.hosts import told_error
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.raw import RawData, ReadReport, Task
from cadc_jax.data.staging import StagedChunk
from cadc_jax.data.vocabulary import Counter
from cadc_jax.errors import CadcError

SUMMARIES = "summaries"  # tag of the second output of `CountChunks`


@dataclasses.dataclass(frozen=True)
class Job:
    """What all workers know.

    Attributes:
      open: opens the source.
      config: the settings.
      folder: for files; see `scratch`.
    """

    open: Callable[[], RawData]
    config: PrepareConfig
    folder: str


class Chunk(NamedTuple):
    """A staged chunk, in its place among all rows."""

    number: int
    file: str
    start: int
    rows: int

    def staged(self) -> StagedChunk:
        """As the splits know it; nothing is read by this path."""
        return StagedChunk(pathlib.Path(self.file), self.start, self.rows)


class StagePart(beam.DoFn):
    """Number of a part -> for each of its blocks, the file of its rows and the report on them.

    Blocks are decoded where they are read, so their text does not travel. A fault is told like a
    block, and ends the part.
    """

    def __init__(self, job: Job):
        self.job = job

    def setup(self):
        self.open = functools.cache(self.job.open)

    def process(self, part: int) -> Iterator[dict[str, Any]]:
        number = 0
        try:
            for task in self.open().parts[part]():
                yield {"part": part, "number": number, **self._staged(task), "failed": None}
                number += 1
        except CadcError as error:
            yield {"part": part, "number": number, **_NO_ROWS, "failed": told_error(error)}

    def _staged(self, task: Task) -> dict[str, Any]:
        change = functools.partial(prepare.clean, config=self.job.config)
        rows, report = staging.decoded(task, change)
        return {
            "file": scratch.write_rows(self.job.folder, rows),
            "report": dataclasses.asdict(report),
            "validates": prepare.validates(rows),
        }


_NO_ROWS = {"file": "", "report": dataclasses.asdict(ReadReport(0)), "validates": False}


class CountChunks(beam.DoFn):
    """`Chunk`s -> (column, the file of its counts) for a bundle of them; see `write_counter`.

    For each chunk there is a summary under the tag SUMMARIES.
    """

    def __init__(self, job: Job, fold_of: FoldOf):
        self.job, self.fold_of = job, fold_of

    def start_bundle(self):
        self.counters: dict[str, Counter] = {}

    def process(self, chunk: Chunk) -> Iterator[Any]:
        rows, config = scratch.read_rows(chunk.file), self.job.config
        counts = counting.count_rows(rows, self.fold_of(rows, chunk.staged()), config.flag)
        for name, counted in counts.values.items():
            self.counters.setdefault(name, Counter(config.max_vocabulary)).add(*counted)
        summary = {
            "number": chunk.number,
            "columns": list(counts.values),
            "dense": list(counts.statistics),
            "moments": counting.moments_of(counts.statistics).tolist(),
            "rows": counts.rows,
        }
        yield beam.pvalue.TaggedOutput(SUMMARIES, summary)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for name, counter in self.counters.items():
            file = scratch.write_counter(self.job.folder, counter)
            yield GlobalWindows.windowed_value((name, file))


def add_up(counted: tuple[str, Iterable[str | None]], job: Job) -> tuple[str, str | None]:
    """Adds up the counts of a column, in any order: (column, files) -> (column, file)."""
    column, files = counted
    total = Counter(job.config.max_vocabulary)
    for file in files:
        total.merge(scratch.read_counter(file, job.config.max_vocabulary))
    return column, scratch.write_counter(job.folder, total)


class EncodeChunk(beam.DoFn):
    """A `Chunk` -> (its number, the file of its encoded rows)."""

    def __init__(self, job: Job, fold_of: FoldOf, encoder: str):
        self.folder, self.fold_of, self.file = job.folder, fold_of, encoder

    def setup(self):
        self.encoder = scratch.read_object(self.file)

    def process(self, chunk: Chunk) -> Iterator[tuple[int, str]]:
        rows = scratch.read_rows(chunk.file)
        encoded = prepare.by_part(self.encoder.encode(rows), self.fold_of(rows, chunk.staged()))
        yield chunk.number, scratch.write_encoded(self.folder, encoded)
