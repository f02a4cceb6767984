"""Prepares a table with Apache Beam: the two passes of `data.prepare`, as pipelines.

Three pipelines stage the chunks of the source, count their values and encode them. What they find
comes back to this process, which numbers the rows of all chunks, makes the encoder, and puts the
encoded chunks together in the order of the rows. So the table is that of one machine, byte for
byte. This is the only package that imports Beam.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from cadc_jax.beam import passes, scratch
from cadc_jax.beam.passes import Chunk, Job
from cadc_jax.data import counting, prepare, raw, staging
from cadc_jax.data.counting import Counts, FoldOf
from cadc_jax.data.hosts import SINGLE_HOST, error_of
from cadc_jax.data.prepare import EncodedRows, PrepareConfig
from cadc_jax.data.raw import RawData, ReadReport
from cadc_jax.errors import ConfigError, DataError, check_choice
from cadc_jax.runtime.text import nearest, one_line

SOURCES = ("criteo", "tabular")


@dataclasses.dataclass(frozen=True)
class BeamConfig:
    """How the pipelines run.

    Attributes:
      runner: 'DirectRunner', or the name of another runner of Beam.
      source: reader of the raw rows, one of SOURCES.
      scratch: folder or URL for the files of the pipelines, which this process and all workers
        reach; None for a folder beside the table. It is left empty.
      options: further options of Beam, as 'name=value' or 'name'.

    Raises:
      ConfigError: if the source is another one, or Beam has no such option.
    """

    runner: str
    source: str
    scratch: str | None = None
    options: Sequence[str] = ()

    def __post_init__(self):
        check_choice("data.source (with --runner)", self.source, SOURCES)
        known = PipelineOptions([]).get_all_options()
        for option in self.options:
            if (name := option.partition("=")[0]) not in known:
                raise ConfigError(f"--beam={option}: Beam has no such option{nearest(name, known)}")

    def pipeline(self) -> beam.Pipeline:
        """A new pipeline; raises ConfigError if the runner lacks an option or is not installed."""
        try:
            # Beam's DirectRunner would first look for another program on the network.
            runner = FnApiRunner() if self.runner == "DirectRunner" else self.runner
            options = PipelineOptions([f"--{option}" for option in self.options])
            return beam.Pipeline(runner, options)
        except (ImportError, ValueError, SystemExit) as error:  # argparse exits
            raise ConfigError(f"--runner={self.runner}: {one_line(error)}") from None


def write_table(
    path: pathlib.Path, open_source: Callable[[], RawData], config: PrepareConfig, how: BeamConfig
) -> dict[str, Any]:
    """Writes the prepared table of a source as `prepare.write_table` does, with Beam.

    Args:
      path: an existing folder.
      open_source: opens the raw rows; it is pickled, and called by workers.
      config: the settings. Rows are clicks, and each is assigned to its split by itself.
      how: how the pipelines run.

    Returns:
      The facts of `prepare.write_table`.

    Raises:
      ConfigError, DataError: as `prepare.write_table`; the settings have to compare rows.
    """
    if config.task != "click" or config.cuts:
        raise ConfigError(
            "--runner: Beam prepares clicks without data.min_user_rows and data.min_item_rows; "
            "leave --runner out"
        )
    source = open_source()
    prepare.check_negatives(source, config)
    parent = path / "staging"
    if how.scratch is None:
        parent.mkdir()
    folder = scratch.new_folder(how.scratch or str(parent.resolve()))  # workers start elsewhere
    try:
        facts = _write(path, source, Job(open_source, config, folder), how)
    finally:
        scratch.delete(folder)
    if how.scratch is None:
        parent.rmdir()
    return facts


def _write(path: pathlib.Path, source: RawData, job: Job, how: BeamConfig) -> dict[str, Any]:
    config = job.config
    chunks, report, validates = _stage(source, job, how)
    assignment = prepare.assign_apart(report.rows, config, lambda: validates)
    if assignment is None:
        raise ConfigError(
            f"--runner: Beam takes data.split='order', 'random' and 'given' with validation rows, "
            f"not this '{config.split}', which compares rows; leave --runner out"
        )
    totals = counting.total([_count(chunks, assignment.fold_of, job, how)])
    counted = prepare.of_totals(totals, report, assignment, config)
    extents = prepare.extents(counted.part_rows, totals.rows_by_host, SINGLE_HOST)
    encoded = _encode(chunks, counted, job, how)
    item_counts = prepare.write_rows(path, encoded, counted, extents)
    return prepare.write_rest(path, source, counted, dict(item_counts), config)


def _stage(source: RawData, job: Job, how: BeamConfig) -> tuple[list[Chunk], ReadReport, bool]:
    """The first pipeline: decodes all blocks of the source into files.

    Returns:
      The chunks in the order of the rows, the report of the whole source, and whether the data's
      own split has validation rows.
    """
    file = f"{job.folder}/staged"
    with how.pipeline() as pipeline:
        parts = pipeline | beam.Create(range(len(source.parts)), reshuffle=True)
        staged = parts | beam.ParDo(passes.StagePart(job))
        _ = staged | _Results(file)
    found = scratch.read_results(file)
    found.sort(key=lambda x: (x["part"], x["number"]))
    reports = [staging.report_of(x["report"]) for x in found]
    changed = None
    try:
        source.confirm()
    except DataError as error:
        changed = error
    share = staging.Share(
        [(x["part"], x["number"], report.rows) for x, report in zip(found, reports, strict=True)],
        raw.total(reports),
        changed,
        next((error_of(x["failed"]) for x in found if x["failed"]), None),
        list(source.sizes or ()),
    )
    report = staging.check_shares(source.name, [share], job.config.max_malformed)
    rows = np.array([part.rows for part in reports])
    starts = (rows.cumsum() - rows).tolist()
    chunks = [
        Chunk(number, x["file"], start, x["report"]["rows"])
        for number, (x, start) in enumerate(zip(found, starts, strict=True))
    ]
    return chunks, report, any(x["validates"] for x in found)


def _count(chunks: Sequence[Chunk], fold_of: FoldOf, job: Job, how: BeamConfig) -> Counts:
    """The second pipeline: counts the values of training rows."""
    of_values, of_chunks = f"{job.folder}/values", f"{job.folder}/chunks"
    with how.pipeline() as pipeline:
        created = pipeline | beam.Create(chunks, reshuffle=True)
        count = beam.ParDo(passes.CountChunks(job, fold_of))
        counted = created | count.with_outputs(passes.SUMMARIES, main="values")
        values = counted["values"] | beam.GroupByKey() | beam.Map(passes.add_up, job)
        _ = values | "values" >> _Results(of_values)
        _ = counted[passes.SUMMARIES] | "chunks" >> _Results(of_chunks)
    summaries = sorted(scratch.read_results(of_chunks), key=lambda x: x["number"])
    files = dict(scratch.read_results(of_values))
    names = dict.fromkeys(name for x in summaries for name in x["columns"])
    most = job.config.max_vocabulary
    counters = {name: scratch.read_counter(files[name], most) for name in names}
    dense = summaries[0]["dense"]
    moments = np.array([x["moments"] for x in summaries], np.float64)
    rows = np.array([x["rows"] for x in summaries], np.int64)
    return Counts(counters, dense, moments.reshape(len(summaries), len(dense), 4), rows.sum(axis=0))


def _encode(
    chunks: Sequence[Chunk], counted: prepare.Counted, job: Job, how: BeamConfig
) -> Iterator[EncodedRows]:
    """The third pipeline: encodes all chunks. Yields them in their order, and deletes them."""
    file = f"{job.folder}/encoded"
    encoder = scratch.write_object(job.folder, counted.encoder)
    encode = passes.EncodeChunk(job, counted.assignment.fold_of, encoder)
    with how.pipeline() as pipeline:
        created = pipeline | beam.Create(chunks, reshuffle=True)
        _ = created | beam.ParDo(encode) | _Results(file)
    scratch.delete(*(chunk.file for chunk in chunks))
    for _number, encoded in sorted(scratch.read_results(file)):
        yield scratch.read_encoded(encoded)
        scratch.delete(encoded)


class _Results(beam.PTransform):
    """Writes all elements, which are few and small, to one file, for the process that waits."""

    def __init__(self, file: str):
        super().__init__()
        self.file = file

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        return elements | beam.combiners.ToList() | beam.Map(scratch.write_results, self.file)
