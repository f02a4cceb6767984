"""Comparing commits: on a small repository whose benchmark writes down what it was told."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

COMPARE = pathlib.Path(__file__).parents[2] / "benchmarks" / "compare.py"
TOY = """
import json, os, pathlib, sys
import cadc_jax

values = [float(x) for x in cadc_jax.VALUES.split()]
calls = pathlib.Path(os.environ["TMPDIR"]).parent / "calls"
with open(calls, "a") as file:
    print(cadc_jax.NAME, sys.argv[1], file=file)
turn = sum(line.startswith(cadc_jax.NAME) for line in calls.read_text().splitlines())
rows = [{"case": "all", "metric": "seconds", "ours": values[turn - 1], "peer": 1}]
rows += [{"case": cadc_jax.NAME, "metric": "seconds", "ours": 1.0}]
pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps({"rows": rows}))
"""


# A program that a shell starts in the background ignores SIGINT, and so do its children.
WITH_INTERRUPTS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Repository:
    """A repository with a commit 'first', a commit 'second' and changes in the working tree.

    Its benchmark `toy.py` gives the next of the VALUES of its `cadc_jax` in each run.
    """

    def __init__(self, folder):
        self.folder, self.temporary, self.calls = folder / "repo", folder / "tmp", folder / "calls"
        for path in (self.folder / "benchmarks", self.folder / "cadc_jax", self.temporary):
            path.mkdir(parents=True)
        shutil.copy(COMPARE, self.folder / "benchmarks")
        (self.folder / "benchmarks" / "toy.py").write_text(TOY)
        self.git("init", "--quiet")
        self.write("first", "10 10 20")
        self.commit("first")
        self.write("second", "30 10 40")
        (self.folder / "benchmarks" / "later.py").write_text(TOY)
        self.commit("second")
        self.write("now", "5 5 5")

    def git(self, *arguments):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def write(self, name, values):
        (self.folder / "cadc_jax" / "__init__.py").write_text(
            f"NAME = {name!r}; VALUES = {values!r}"
        )

    def commit(self, tag):
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", tag)
        self.git("tag", tag)

    def start(self, *arguments):
        """Starts `compare.py`; a signal of the user reaches it as if from a terminal."""
        return subprocess.Popen(
            [sys.executable, "-c", WITH_INTERRUPTS, "benchmarks/compare.py", *arguments],
            cwd=self.folder,
            env=os.environ | {"TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def compare(self, *arguments):
        """(exit code, standard output, standard error) of `compare.py`."""
        process = self.start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err

    def assert_clean(self):
        """No temporary folder and no record of one is left."""
        assert len(self.git("worktree", "list").splitlines()) == 1
        assert not list(self.temporary.iterdir())


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    return Repository(tmp_path)


def table(out):
    """The lines of the table, in cells."""
    return [line.split() for line in out.split("\n\n")[1].splitlines()]


def test_two_commits_are_compared_by_the_median_of_the_ratios_of_each_turn(repository):
    code, out, err = repository.compare("first", "second", "--", "benchmarks/toy.py", "--quick")
    assert (code, err) == (0, "")
    header, line, *others = table(out)
    assert header == ["case", "metric", "before", "after", "ratio", "lower", "upper"]
    # Before 10, 10, 20; after 30, 10, 40: ratios 3, 1, 2. The ratio of medians would be 3.
    assert line == ["all", "seconds", "10", "30", "2", "1", "3"]
    only = [" ".join(words[:5] + words[6:]) for words in others]  # without the hash
    assert only == [
        "not on both sides, before first, seconds",
        "not on both sides, after second, seconds",
    ]
    repository.assert_clean()


def test_the_side_that_goes_first_alternates_and_arguments_are_passed_on(repository):
    repository.compare("first", "second", "--", "benchmarks/toy.py", "--quick")
    calls = repository.calls.read_text().splitlines()
    names = ["first", "second", "second", "first", "first", "second"]
    assert calls == [f"{name} --quick" for name in names]


def test_a_commit_is_compared_with_the_working_tree_by_default(repository):
    command = ("first", "--turns", "1", "--", "benchmarks/toy.py", "--quick")
    code, out, _ = repository.compare(*command)
    assert code == 0
    assert table(out)[1] == ["all", "seconds", "10", "5", "0.5", "0.5", "0.5"]
    assert f"after (working tree) imports {repository.folder / 'cadc_jax'}" in out
    assert f"imports {repository.temporary}" in out
    repository.assert_clean()


def test_a_command_is_timed_as_a_whole_in_a_new_folder_each_time(repository):
    """The command of 'before' takes 0.4 s longer than that of the working tree."""
    repository.write("slow", "0.4")
    repository.commit("slow")
    repository.write("now", "0")
    script = "import cadc_jax, os, sys, time; os.mkdir(sys.argv[1]); "
    script += "time.sleep(float(cadc_jax.VALUES))"
    command = [sys.executable, "-c", script, "{tmp}/new"]
    code, out, err = repository.compare("slow", "--turns=2", "--command", "--", *command)
    assert (code, err) == (0, "")
    before, after, ratio = map(float, table(out)[1][-5:-2])
    assert before > 0.4 and before - after > 0.2 and ratio < 1
    repository.assert_clean()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("none", "--", "benchmarks/toy.py"), "'none' is not a commit of"),
        (("first", "--", "benchmarks/later.py"), "there is no benchmarks/later.py in before ("),
        (("first", "--turns=4", "--", "benchmarks/toy.py"), "IndexError"),  # it has three values
        (("first", "--command", "--", "no-such-program"), "no program 'no-such-program'"),
        (("first", "--command", "--", "false"), "false ended with exit code 1 in before ("),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(repository, arguments, why):
    code, _, err = repository.compare(*arguments)
    assert code == 1
    assert err.startswith("compare: ") and why in err and err.count("\n") == 1
    repository.assert_clean()


def test_a_script_that_writes_no_rows_is_named(repository):
    (repository.folder / "benchmarks" / "toy.py").write_text("pass")
    code, _, err = repository.compare("first", "--", "benchmarks/toy.py", "--quick")
    assert code == 1 and "benchmarks/toy.py of after (working tree) wrote no rows" in err


def test_options_that_make_no_comparison_are_refused(repository):
    assert "after '--'" in repository.compare("first")[2]
    assert "at least 1" in repository.compare("first", "--turns=0", "--", "x")[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_folders_are_removed_when_it_is_interrupted(repository, number):
    mark = repository.folder.parent / "running"
    script = f"import pathlib, time; pathlib.Path({str(mark)!r}).touch(); time.sleep(60)"
    process = repository.start("first", "--command", "--", sys.executable, "-c", script)
    while not mark.exists() and process.poll() is None:
        time.sleep(0.05)
    assert len(repository.git("worktree", "list").splitlines()) == 2
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    repository.assert_clean()
