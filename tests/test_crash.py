"""A run that is killed again and again ends in what an undisturbed run gives, bit for bit."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cadc_jax.data.readers import synthetic
from cadc_jax.run.context import COMPILING, EVALUATING
from tests.program import ROOT

pytestmark = pytest.mark.slow

KILLS = 5  # in each of two chains of each of two runs: 20
CLICKS = (
    "--config=configs/criteo.py",
    "--config.arms=('full','cadc_frozen')",
    "--config.rate=0.5",
    "--config.sgd.epochs=6",
    "--config.train.batch_rows=128",
    "--config.train.max_evaluations=2",
)
RANKING = (
    "--config=configs/movielens_10m.py",
    "--config.arms=('sample','cadc_trainable')",
    "--config.rate=0.5",
    "--config.data.num_negatives=10",
    "--config.als.factors=8",
    "--config.als.iterations=6",
    "--config.train.batch_rows=64",
    "--config.train.evaluation_steps=24",
    "--config.train.max_evaluations=2",
)
ALWAYS = ("--config.checkpoints.seconds=0", "--config.train.steps_per_call=4")


def write_ranking(folder):
    """Files of MovieLens 10M's format: 60 users, 40 items."""
    rng = np.random.default_rng(0)
    lines = [
        f"{user}::{item}::{rng.integers(1, 6)}::{rng.integers(1000)}"
        for user in range(1, 61)
        for item in rng.choice(np.arange(1, 41), rng.integers(5, 25), replace=False)
    ]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    titles = [f"{item}::Film {item} (1999)::Comedy" for item in range(1, 41)]
    (folder / "movies.dat").write_text("\n".join(titles) + "\n")


@dataclasses.dataclass(frozen=True)
class Job:
    """A command but for its work folder, and an undisturbed run of it."""

    arguments: tuple[str, ...]
    cache: pathlib.Path
    workdir: pathlib.Path
    stages: list[str]  # in the order in which they end
    ends: list[float]  # seconds after the start

    def long_stages(self):
        """Numbers of the stages that have checkpoints."""
        kinds = ("factorize", "train")
        return [i for i, stage in enumerate(self.stages) if stage.startswith(kinds)]


class Process:
    """The program at work on a folder."""

    def __init__(self, arguments, cache, workdir):
        workdir.mkdir(exist_ok=True)
        self.out = workdir.parent / f"{workdir.name}.{len(list(workdir.parent.iterdir()))}.txt"
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),  # so that each life starts soon
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        with open(self.out, "w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cadc_jax.main", *arguments, f"--workdir={workdir}"],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def text(self):
        return self.out.read_text()

    def stages(self):
        """Names of the stages that have ended."""
        lines = self.text().split("\n")[:-1]  # the last may not be whole
        return [line.split("] ")[1].split(":")[0] for line in lines if line.startswith("[")]

    def wait_for(self, condition):
        """Until the condition holds, or the process has ended."""
        while self.process.poll() is None and not condition():
            time.sleep(0.02)

    def ends(self, code=0):
        assert self.process.wait(300) == code, self.text()
        return self.text()


def undisturbed(folder, arguments):
    arguments = (*arguments, *ALWAYS)
    start, ends = time.monotonic(), []
    run = Process(arguments, folder / "cache", folder / "undisturbed")

    def note_ends():
        ends.extend([time.monotonic() - start] * (len(run.stages()) - len(ends)))

    run.wait_for(note_ends)
    run.ends()
    note_ends()
    return Job(arguments, folder / "cache", folder / "undisturbed", run.stages(), ends)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The two runs, undisturbed."""
    folders = tmp_path_factory.mktemp("clicks"), tmp_path_factory.mktemp("ranking")
    clicks, ranking = (folder / "raw" for folder in folders)
    for raw in (clicks, ranking):
        raw.mkdir()
    synthetic.write_criteo(clicks / "train.txt", 6000, 0)
    write_ranking(ranking)
    commands = (
        (*CLICKS, f"--config.data.path={clicks / 'train.txt'}"),
        (*RANKING, f"--config.data.path={ranking}"),
    )
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = pool.map(undisturbed, folders, commands)
        return dict(zip(("clicks", "ranking"), made, strict=True))


def moments(job, seed):
    """Seeded moments to kill at: (number of the stage, share of it), one in each long stage."""
    rng = np.random.default_rng(seed)
    long = job.long_stages()
    short = [number for number in range(len(job.stages)) if number not in long]
    numbers = [*rng.choice(short, KILLS - len(long)).tolist(), *long]
    return sorted(zip(numbers, rng.random(KILLS).tolist(), strict=True))


def steps(path):
    """Steps of all checkpoints under a folder."""
    return [int(found.name) for found in path.glob("*/*") if found.name.isdigit()]


def wait_for_moment(run, job, workdir, number, share):
    """Until the share of that stage is done: by its checkpoints if it has any, or else by time."""
    run.wait_for(lambda: len(run.stages()) >= number)
    if number in job.long_stages():
        kind = job.stages[number].split()[0]
        last = 6  # passes of the factorisation
        if kind == "train":
            manifests = [json.loads(p.read_text()) for p in job.workdir.glob("train/*/*.json")]
            last = min(made["facts"]["history"][-1]["step"] for made in manifests)
        done = len(run.stages())
        run.wait_for(
            lambda: (
                max(steps(workdir / "checkpoints" / kind), default=-1) >= share * (last - 4)
                or len(run.stages()) > done
            )
        )
    else:
        took = job.ends[number] - (job.ends[number - 1] if number else 0.0)
        deadline = time.monotonic() + share * took / 3  # it compiled then, and need not now
        run.wait_for(lambda: time.monotonic() >= deadline or len(run.stages()) > number)


def chain(job, workdir, seed):
    """Kills a run at the moments of a seed, then lets it end.

    Returns:
      The stages that the kills fell into, and all that the runs have said.
    """
    fell, said = [], []
    for number, share in moments(job, seed):
        run = Process(job.arguments, job.cache, workdir)
        wait_for_moment(run, job, workdir, number, share)
        run.process.kill()
        assert run.process.wait() == -signal.SIGKILL, run.text()
        done = len(run.stages())
        fell.append(job.stages[done] if done < len(job.stages) else "report")
        said.append(run.text())
    said.append(Process(job.arguments, job.cache, workdir).ends())
    return fell, said


def resumed(text):
    """Steps from which a run went on."""
    return [int(line.split()[3]) for line in text.splitlines() if "Resuming from step" in line]


def assert_same_results(workdir, job):
    """All artefacts and all figures are those of the undisturbed run; no more is left."""
    found = {str(path.relative_to(workdir)) for path in workdir.glob("*/*")}
    want = {str(path.relative_to(job.workdir)) for path in job.workdir.glob("*/*")}
    assert found == want
    for manifest in job.workdir.glob("*/*/manifest.json"):
        folder = manifest.parent.relative_to(job.workdir)
        one, other = (
            json.loads((path / folder / "manifest.json").read_text())
            for path in (workdir, job.workdir)
        )
        clock = {COMPILING: 0, EVALUATING: 0}  # a process that resumes has its own
        assert one["facts"] | clock == other["facts"] | clock
        for made in (one, other):  # what Orbax writes holds times: its arrays are compared
            made["files"] = {n: x for n, x in made["files"].items() if not n.startswith("state")}
        assert one["files"] == other["files"]
        if folder.parts[0] == "train":
            states = [arrays(path / folder / "state") for path in (workdir, job.workdir)]
            jax.tree.map(np.testing.assert_array_equal, *states)
    assert rows(workdir) == rows(job.workdir)
    for kind in ("factorize", "train"):
        assert not list((workdir / "checkpoints" / kind).iterdir())


def arrays(path):
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(np.asarray, checkpointer.restore(path.resolve()))


def rows(workdir):
    results = json.loads((workdir / "results.json").read_text())
    clocks = ("seconds", "compile_seconds", "evaluation_seconds")
    return [{n: x for n, x in row.items() if n not in clocks} for row in results["rows"]]


def test_killed_at_twenty_moments_the_results_are_bit_for_bit_the_same(jobs, tmp_path):
    seeds = {"clicks": (2, 3), "ranking": (8, 1)}  # together they kill in every stage
    tasks = [(jobs[n], tmp_path / f"{n}-{seed}", seed) for n in jobs for seed in seeds[n]]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda task: chain(*task), tasks))
    everywhere = set()
    for (job, workdir, _), (fell, said) in zip(tasks, done, strict=True):
        for stage, after in zip(fell, said[1:], strict=True):
            print(f"{workdir.name}: killed in {stage}; next run resumed from {resumed(after)}")
        assert_same_results(workdir, job)
        everywhere |= {stage.split()[0] for stage in fell}
    assert {"factorize", "train"} < everywhere
    assert sum(len(resumed(text)) for _, said in done for text in said) > 4


def test_sigterm_in_training_saves_and_the_same_command_resumes(jobs, tmp_path):
    job, workdir = jobs["ranking"], tmp_path / "work"
    run = Process(job.arguments, job.cache, workdir)
    run.wait_for(lambda: steps(workdir / "checkpoints" / "train"))
    run.process.terminate()
    text = run.ends(0)
    last = text.splitlines()[-1]
    assert last.startswith("cadc: stopped by SIGTERM: step ") and "the same command resumes" in last
    assert "Traceback" not in text
    step = last.split("step ")[1].split()[0]
    assert f"Resuming from step {step} " in Process(job.arguments, job.cache, workdir).ends()
    assert_same_results(workdir, job)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_rows_are_read_leaves_nothing_half_written(tmp_path, number, code):
    raw, workdir = tmp_path / "train.txt", tmp_path / "work"
    synthetic.write_criteo(raw, 100_000, 0)
    arguments = (CLICKS[0], f"--config.data.path={raw}")
    run = Process(arguments, tmp_path / "cache", workdir)
    run.wait_for(lambda: list(workdir.glob("prepare/.*.tmp/*")))
    run.process.send_signal(number)
    text = run.ends(code)
    last = text.splitlines()[-1]
    assert last.startswith(f"cadc: stopped by {number.name}: finished stages are kept; the same")
    assert "Traceback" not in text
    assert list((workdir / "prepare").iterdir()) == []


def test_a_killed_update_ends_in_what_an_undisturbed_one_gives(tmp_path):
    raw, log, cache = (tmp_path / name for name in ("raw", "new.dat", "cache"))
    raw.mkdir()
    write_ranking(raw)
    log.write_text("".join(f"{user}::{item}::4::2000\n" for user in (3, 99) for item in (1, 41)))
    options = (*RANKING, *ALWAYS, f"--config.data.path={raw}")
    Process((*options, "--stage=sample"), cache, tmp_path / "run").ends()
    command = ("update", *options, f"--from={tmp_path / 'run'}", f"--log={log}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Process(command, cache, whole).ends()
    run = Process(command, cache, killed)
    run.wait_for(lambda: steps(killed / "checkpoints" / "factorize"))
    run.process.kill()
    run.process.wait()
    assert "prepare (update): reused" in Process(command, cache, killed).ends()
    for file in whole.glob("*/*/**/*.npy"):
        assert (killed / file.relative_to(whole)).read_bytes() == file.read_bytes(), file
