"""A run that loses its power at any moment goes on from what the disk is sure to hold.

`power_cut.c` records, during one run, what each flush brings to the disk. From the record a work
folder is made as a power cut may leave it. A file has the content of its last flush, or none. Its
name is there in one of two ways, as file systems differ: NAMES_FLUSHED, the names of a folder are
those of its last flush; NAMES_AT_ONCE, all names are there, also those of empty files.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from cadc_jax.runtime import artifacts, manifest
from cadc_jax.runtime.materialize import materialize
from tests import test_crash
from tests.program import ROOT
from tests.test_crash import Job, Process, assert_same_results, resumed

pytestmark = pytest.mark.slow

NAMES_FLUSHED, NAMES_AT_ONCE = "names flushed", "names at once"
POINTS = {"prepare": 2, "factorize": 3, "sample": 1, "train": 3, "evaluate": 1, "report": 1}
STRIDE = 5  # every so many events the disk is looked at, without a run
RANKING = (
    *(x for x in test_crash.RANKING if not x.startswith("--config.arms")),
    "--config.arms=('cadc_trainable',)",
    "--config.als.iterations=4",
    "--config.train.evaluation_steps=16",
    *test_crash.ALWAYS,
)


@dataclasses.dataclass(frozen=True)
class Event:
    """A flush of a `file` or a `folder`, a change of names, or a line that is said."""

    kind: str
    inode: int
    path: pathlib.Path  # relative to the work folder


class Record:
    """What `power_cut.c` leaves of a run.

    Attributes:
      events: all events, in order.
      workdir: the work folder of the run.
    """

    def __init__(self, folder, workdir):
        self.folder, self.workdir = folder, workdir
        self.root = workdir.stat().st_ino
        self.events = []
        for line in (folder / "events").read_text().splitlines():
            _, kind, inode, path = line.split("\t")
            self.events.append(
                Event(kind, int(inode), pathlib.Path(os.path.relpath(path, workdir)))
            )

    def names(self, kind, number):
        """(name, inode, whether it is a folder) of each name in a listing."""
        listing = (self.folder / kind / str(number)).read_bytes()
        for name in filter(None, listing.split(b"\0")):
            inode, _, text = name[1:].partition(b" ")
            yield text.decode(), int(inode), name[:1] == b"d"

    def flushed(self, last):
        """Inode -> number of its last flush up to the event `last`."""
        flushes = enumerate(self.events[: last + 1])
        return {e.inode: number for number, e in flushes if e.kind in ("file", "folder")}

    def said(self, last):
        """All that was said up to the event `last`."""
        numbers = (n for n, event in enumerate(self.events[: last + 1]) if event.kind == "say")
        return b"".join((self.folder / "bytes" / str(n)).read_bytes() for n in numbers).decode()

    def cut(self, last, names, disk, copy=shutil.copy):
        """Makes the folder `disk` as the work folder is after a power cut after an event."""
        disk.mkdir()
        flushed = self.flushed(last)

        def put(path, inode, is_folder):
            if is_folder:
                path.mkdir(exist_ok=True)
            elif inode in flushed:
                copy(self.folder / "bytes" / str(flushed[inode]), path)
            else:
                path.touch()

        def put_flushed(path, inode):
            for name, inner, is_folder in self.names("names", flushed[inode]):
                put(path / name, inner, is_folder)
                if is_folder and inner in flushed:
                    put_flushed(path / name, inner)

        if names == NAMES_AT_ONCE:
            for name, inode, is_folder in self.names("trees", last):
                put(disk / name, inode, is_folder)
        elif self.root in flushed:
            put_flushed(disk, self.root)


def recorded(library, folder, workdir, command, **environment):
    """Runs a command, and records what it does to a work folder."""
    for path in (workdir, *(folder / name for name in ("bytes", "names", "trees"))):
        path.mkdir(parents=True)
    environment |= {"LD_PRELOAD": library, "CUT_ROOT": workdir, "CUT_OUT": folder}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = Record(folder, workdir)
    assert record.said(len(record.events)) == done.stdout
    return record


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """`power_cut.c`, compiled."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("power cuts are simulated on Linux, with a C compiler (cc)")
    path = tmp_path_factory.mktemp("library") / "power_cut.so"
    source = pathlib.Path(__file__).with_name("power_cut.c")
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", path, source, "-ldl", "-pthread"], check=True
    )
    return path


@pytest.fixture(scope="module")
def record_and_job(library, tmp_path_factory):
    """The record of a whole run, and the run itself."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "raw").mkdir()
    test_crash.write_ranking(folder / "raw")
    job = Job(
        (*RANKING, f"--config.data.path={folder / 'raw'}"),
        folder / "cache",
        folder / "work",
        stages=[],
        ends=[],
    )
    command = [sys.executable, "-m", "cadc_jax.main", *job.arguments, f"--workdir={job.workdir}"]
    record = recorded(
        library,
        folder / "record",
        job.workdir,
        command,
        PYTHONUNBUFFERED=1,
        JAX_COMPILATION_CACHE_DIR=job.cache,
    )
    return record, job


# What was promised by the time of a cut.


def finished_stages(record, last):
    """(stage, what it made) of each stage that the user was told is finished."""
    lines = re.findall(r"^\[.*\] (.*): done in .*/(\w+/\w+)\n", record.said(last), re.MULTILINE)
    return [(label.split()[0], folder) for label, folder in lines]


def promised_step(record, last, stage):
    """The step that a run has to resume a stage from, at least; None if it may start over.

    A checkpoint is whole once the next one begins; the newest one may be lost. Once the stage is
    finished they are deleted.
    """
    if any(name == stage for name, _ in finished_stages(record, last)):
        return None
    found = {}
    for name, _, _ in record.names("trees", last):
        parts = name.split("/")
        if len(parts) > 3 and parts[:2] == ["checkpoints", stage]:
            step = int(parts[3])
            found[step] = found.get(step, False) or parts[4:] == [manifest.NAME]
    whole = sorted(step for step, is_whole in found.items() if is_whole)
    begun = [step for step in found if not found[step]]
    if whole and not (begun and max(begun) > whole[-1]):
        whole.pop()
    return whole[-1] if whole else None


def steps_on(disk, stage):
    """Steps of the checkpoints on a disk that are whole; one may be half deleted."""
    for path in disk.glob(f"checkpoints/{stage}/*/*/{manifest.NAME}"):
        if not path.parent.name.isdigit():
            continue
        files = json.loads(path.read_text())["files"]
        if all((path.parent / name).is_file() for name in files):
            assert manifest.checksums(path.parent, files) == files
            yield int(path.parent.name)


@pytest.mark.parametrize("names", [NAMES_FLUSHED, NAMES_AT_ONCE])
def test_at_no_moment_is_a_stage_half_there_or_a_finished_one_lost(record_and_job, names, tmp_path):
    record, _ = record_and_job
    for last in range(0, len(record.events), STRIDE):
        disk = tmp_path / str(last)
        record.cut(last, names, disk, copy=os.link)
        for folder in disk.glob("*/[!.]*"):
            if folder.parent.name not in ("checkpoints", "reports"):
                artifacts.open_artifact(folder, verify=True)
        finished = finished_stages(record, last)
        assert all((disk / folder).is_dir() for _, folder in finished), record.events[last]
        for stage in ("factorize", "train"):
            step = promised_step(record, last, stage)
            assert step is None or max(steps_on(disk, stage)) >= step, record.events[last]
        shutil.rmtree(disk)


def stage_of(event):
    """The stage that an event belongs to."""
    first, *rest = event.path.parts or [""]
    if first == "checkpoints" and rest:
        first = rest[0]
    return first if first in POINTS else "report"


def points(record):
    """Numbers of events at which the power is cut, drawn from those of each stage."""
    rng = np.random.default_rng(0)
    for stage, count in POINTS.items():
        own = [n for n, e in enumerate(record.events) if e.kind != "say" and stage_of(e) == stage]
        yield from sorted(rng.choice(own, count, replace=False).tolist())


def resume(record, job, folder, cut):
    """Runs the command on what a cut leaves; returns a line about it."""
    last, names = cut
    workdir = folder / f"{last}-{names}".replace(" ", "-")
    record.cut(last, names, workdir)
    text = Process(job.arguments, job.cache, workdir).ends()
    assert "Traceback" not in text and "delete the folder" not in text
    for _, made in finished_stages(record, last):
        assert re.search(f": reused, .*/{made}\n", text)
    stage, steps = stage_of(record.events[last]), resumed(text)
    promised = promised_step(record, last, stage)
    if promised is not None and not re.search(rf"^\[.*\] {stage}.*: reused", text, re.MULTILINE):
        assert steps and steps[0] >= promised
    assert_same_results(workdir, job)
    return f"{names}, {record.events[last].kind} {record.events[last].path}: from {steps}"


def test_after_a_cut_the_same_command_ends_with_the_same_results(record_and_job, tmp_path):
    record, job = record_and_job
    cuts = [(n, (NAMES_FLUSHED, NAMES_AT_ONCE)[k % 2]) for k, n in enumerate(points(record))]
    assert len(cuts) >= 11
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for line in pool.map(functools.partial(resume, record, job, tmp_path), cuts):
            print(line)


def test_what_a_dead_process_of_the_same_number_left_is_no_obstacle(tmp_path):
    # In a container the program may always be process 1.
    name = artifacts.fingerprint("stage", {})
    left = tmp_path / "stage" / f".{name}.{socket.gethostname()}.{os.getpid()}.tmp" / "file"
    left.parent.mkdir(parents=True)
    left.touch()
    made = materialize(tmp_path, "stage", {}, lambda folder: {})
    assert [path.name for path in made.path.iterdir()] == [manifest.NAME]
    assert not left.parent.exists()


# The record itself.


def test_all_writers_are_on_the_record(record_and_job):
    record, job = record_and_job
    files = {event.path for event in record.events if event.kind == "file"}
    assert any("ocdbt" in str(path) for path in files)  # written by threads of C++
    assert {pathlib.Path("results.json"), pathlib.Path("report.png")} <= {
        event.path for event in record.events if event.kind == "rename"
    }


WRITES = """
import os, pathlib, sys
from cadc_jax.runtime import durable
root = pathlib.Path(sys.argv[1])
(root / "a").write_text("first")
durable.sync(root / "a")
durable.sync(root)
(root / "a").write_text("second")
(root / "b").write_text("not flushed")
(root / "c").mkdir()
durable.write_text(root / "c" / "d", "flushed")
os.rename(root / "a", root / "e")
print("end")
"""


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (NAMES_FLUSHED, {"a": "first"}),
        (NAMES_AT_ONCE, {"b": "", "c/d": "flushed", "e": "first"}),
    ],
)
def test_what_a_cut_leaves(library, tmp_path, names, left):
    command = [sys.executable, "-c", WRITES, tmp_path / "work"]
    record = recorded(library, tmp_path / "record", tmp_path / "work", command)
    assert record.events[-1].kind == "say"
    record.cut(len(record.events) - 1, names, tmp_path / "disk")
    files = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    assert {str(x.relative_to(tmp_path / "disk")): x.read_text() for x in files} == left
