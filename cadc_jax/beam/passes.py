"""What the workers of the pipelines do: read, stage, count and encode chunks of rows.

All of it is done by the functions that prepare a table on one machine. An error that a user can
mend is a result like another, so that the first one in the order of the rows can be told.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa

from cadc_jax.beam import scratch
from cadc_jax.data import counting, prepare, staging
from cadc_jax.data.counting import FoldOf
from cadc_jax.data.hosts import told_error
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.raw import RawData, ReadReport, Task
from cadc_jax.data.staging import StagedChunk
from cadc_jax.data.vocabulary import Counter
from cadc_jax.errors import CadcError

SUMMARIES = "summaries"  # tag of the second output of `CountChunk`


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


class Block(NamedTuple):
    """A block of a part of the source, or the error that ends the part."""

    part: int
    number: int  # in the part
    task: Task | None
    failed: dict[str, str] | None = None


class Chunk(NamedTuple):
    """A staged chunk, in its place among all rows."""

    number: int
    file: str
    start: int
    rows: int

    def staged(self) -> StagedChunk:
        """As the splits know it; nothing is read by this path."""
        return StagedChunk(pathlib.Path(self.file), self.start, self.rows)


class ReadPart(beam.DoFn):
    """Number of a part -> its `Block`s, which are read but not decoded."""

    def __init__(self, job: Job):
        self.job = job

    def setup(self):
        self.open = functools.cache(self.job.open)

    def process(self, part: int) -> Iterator[Block]:
        number = 0
        try:
            for task in self.open().parts[part]():
                yield Block(part, number, task)
                number += 1
        except CadcError as error:
            yield Block(part, number, None, told_error(error))


class StageBlock(beam.DoFn):
    """A `Block` -> where its rows are, and the report on them."""

    def __init__(self, job: Job):
        self.job = job

    def process(self, block: Block) -> Iterator[dict[str, Any]]:
        change = functools.partial(prepare.clean, config=self.job.config)
        file, report, validates, failed = "", ReadReport(0), False, block.failed
        if block.task is not None:
            try:
                rows, report = staging.decoded(block.task, change)
                validates = prepare.validates(rows)
                file = scratch.write_rows(self.job.folder, rows)
            except CadcError as error:
                failed = told_error(error)
        yield {
            "part": block.part,
            "number": block.number,
            "file": file,
            "report": dataclasses.asdict(report),
            "validates": validates,
            "failed": failed,
        }


class ReadAndStage(beam.DoFn):
    """Number of a part -> what `StageBlock` yields for its blocks; they do not travel."""

    def __init__(self, job: Job):
        self.read, self.stage = ReadPart(job), StageBlock(job)

    def setup(self):
        self.read.setup()

    def process(self, part: int) -> Iterator[dict[str, Any]]:
        for block in self.read.process(part):
            yield from self.stage.process(block)


class CountChunk(beam.DoFn):
    """A `Chunk` -> (column, (values, counts)), and a summary under the tag SUMMARIES."""

    def __init__(self, job: Job, fold_of: FoldOf):
        self.flag, self.fold_of = job.config.flag, fold_of

    def process(self, chunk: Chunk) -> Iterator[Any]:
        rows = scratch.read_rows(chunk.file)
        counts = counting.count_rows(rows, self.fold_of(rows, chunk.staged()), self.flag)
        yield from counts.values.items()
        summary = {
            "number": chunk.number,
            "columns": list(counts.values),
            "dense": list(counts.statistics),
            "moments": counting.moments_of(counts.statistics).tolist(),
            "rows": counts.rows,
        }
        yield beam.pvalue.TaggedOutput(SUMMARIES, summary)


class CountValues(beam.CombineFn):
    """Adds up the counts of a column's values; the sum does not depend on their order."""

    def __init__(self, max_values: int):
        self.max_values = max_values

    def create_accumulator(self) -> Counter:
        return Counter(self.max_values)

    def add_input(self, counter: Counter, counted: tuple[pa.Array, np.ndarray]) -> Counter:
        counter.add(*counted)
        return counter

    def merge_accumulators(self, counters: Iterable[Counter]) -> Counter:
        merged = Counter(self.max_values)
        for counter in counters:
            merged.merge(counter)
        return merged

    def compact(self, counter: Counter) -> Counter:
        counter.merge_pending()
        return counter

    def extract_output(self, counter: Counter) -> Counter:
        return self.compact(counter)


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
