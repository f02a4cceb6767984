"""Compares a benchmark, or any command, at two commits of this repository.

    python benchmarks/compare.py COMMIT [COMMIT2] -- benchmarks/data.py --quick
    python benchmarks/compare.py COMMIT --command -- \\
        python -m cadc_jax.main --config=configs/criteo.py --workdir={tmp}

COMMIT is the side 'before'. COMMIT2 is the side 'after'; without it, that is the working tree. Each
commit is checked out into a temporary folder. Both sides run in the current environment and read
the same raw data ($CADC_DATA_DIR, or `data` in this checkout), and each imports its own `cadc_jax`.

The sides take turns: before, after; after, before; and so on. So a machine that gets slower or
faster changes both. A benchmark runs as the script of its own side, with `--json`. Its rows are
matched by case and metric, and their value `ours` is compared. With `--command` the wall time of
the whole process is compared. `{tmp}` stands for a new empty folder in every run.

The ratio is after / before: the median over the turns, with the lowest and the highest turn.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEADER = ("case", "metric", "before", "after", "ratio", "lower", "upper")
NAMES = 2  # columns of the table with names, which are aligned to the left

Values = dict[tuple[str, str], float]  # (case, metric) -> value


class CompareError(Exception):
    """A comparison cannot be made. The message is one line."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A version of the repository.

    Attributes:
      name: 'before (<commit>)' or 'after (<commit or working tree>)'.
      root: folder that holds it.
    """

    name: str
    root: pathlib.Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its table."""
    signal.signal(signal.SIGTERM, _exit_on_signal)  # removes temporary folders first
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="compare-") as name, _sides(options, name) as sides:
            for side in sides:
                print(f"{side.name} imports {_imported(side)}", flush=True)
            measure = _wall_time if options.command else _benchmark_values
            turns = _take_turns(sides, options.turns, lambda side: measure(side, options.run))
    except (CompareError, OSError) as error:
        sys.exit(f"compare: {error}")
    except KeyboardInterrupt:
        sys.exit("compare: interrupted")
    print(f"\n{_show(turns, sides)}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. `run` holds the words after '--'."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        usage="%(prog)s COMMIT [COMMIT2] [--turns N] [--command] -- BENCHMARK ARGUMENTS",
    )
    parser.add_argument("before", metavar="COMMIT", help="the side 'before'")
    parser.add_argument(
        "after", metavar="COMMIT2", nargs="?", help="the side 'after'; default: the working tree"
    )
    parser.add_argument("--turns", type=int, default=3, help="runs of each side; default: 3")
    parser.add_argument(
        "--command",
        action="store_true",
        help="compare the wall time of a command, which follows '--' in place of a benchmark",
    )
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    options.run = arguments[end + 1 :]
    if not options.run:
        parser.error("name the benchmark or the command to run after '--'")
    if options.turns < 1:
        parser.error(f"--turns={options.turns}: must be at least 1")
    return options


# The two sides.


@contextlib.contextmanager
def _sides(options: argparse.Namespace, folder: str) -> Iterator[list[Side]]:
    """Both sides; the folders of commits are removed at the end."""
    with contextlib.ExitStack() as stack:
        sides = []
        for role, commit in (("before", options.before), ("after", options.after)):
            if commit is None:
                sides.append(Side(f"{role} (working tree)", ROOT))
            else:
                short = _commit(commit)
                root = pathlib.Path(folder).resolve() / role
                stack.enter_context(_worktree(root, short))
                sides.append(Side(f"{role} ({short})", root))
        if not options.command:
            for side in sides:
                if not (side.root / options.run[0]).is_file():
                    raise CompareError(f"there is no {options.run[0]} in {side.name}")
        yield sides


def _commit(name: str) -> str:
    """The short hash of a commit."""
    revision = f"{name}^{{commit}}"
    done = _git("rev-parse", "--verify", "--quiet", "--short", "--end-of-options", revision)
    if done.returncode:
        raise CompareError(f"{name!r} is not a commit of {ROOT}")
    return done.stdout.strip()


@contextlib.contextmanager
def _worktree(root: pathlib.Path, commit: str) -> Iterator[None]:
    """Has a commit checked out in the new folder `root`."""
    try:
        done = _git("worktree", "add", "--detach", str(root), commit)
        if done.returncode:
            raise CompareError(f"cannot check out {commit}: {_last_line(done.stderr)}")
        yield
    finally:
        _git("worktree", "remove", "--force", str(root))


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)


def _imported(side: Side) -> str:
    """The file of the `cadc_jax` that the side imports.

    Raises:
      CompareError: if that is not in the side's folder.
    """
    # -P leaves the current folder out, which a script would not search either.
    find = "import importlib.util as u; print(getattr(u.find_spec('cadc_jax'), 'origin', ''))"
    path = _run(side, [sys.executable, "-P", "-c", find]).strip()
    if not path or side.root not in pathlib.Path(path).resolve().parents:
        raise CompareError(f"{side.name} imports cadc_jax from {path or 'nowhere'}")
    return path


# Runs.


def _take_turns(
    sides: Sequence[Side], turns: int, measure: Callable[[Side], Values]
) -> list[list[Values]]:
    """Values of [turn][side]; the side that goes first alternates."""
    found = []
    for turn in range(turns):
        values = {}
        for side in sides if turn % 2 == 0 else reversed(sides):
            start = time.perf_counter()
            values[side.name] = measure(side)
            seconds = time.perf_counter() - start
            print(f"turn {turn + 1} of {turns}: {side.name}: {seconds:.1f} s", flush=True)
        found.append([values[side.name] for side in sides])
    return found


def _benchmark_values(side: Side, run: Sequence[str]) -> Values:
    """Runs a benchmark of this side once and reads its rows."""
    with tempfile.TemporaryDirectory(prefix="compare-json-") as folder:
        file = pathlib.Path(folder) / "rows.json"
        _run(side, [sys.executable, *run, "--json", str(file)])
        try:
            rows = json.loads(file.read_text())["rows"]
            values: Values = {}
            for row in rows:  # rows with other peers have the same `ours`
                values.setdefault((row["case"], row["metric"]), float(row["ours"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CompareError(
                f"{run[0]} of {side.name} wrote no rows of a benchmark with --json: {error!r}"
            ) from None
    return values


def _wall_time(side: Side, run: Sequence[str]) -> Values:
    """Runs a command once and measures its seconds."""
    with tempfile.TemporaryDirectory(prefix="compare-tmp-") as folder:
        command = [part.replace("{tmp}", folder) for part in run]
        start = time.perf_counter()
        _run(side, command)
        seconds = time.perf_counter() - start
    return {(shlex.join(run), "wall seconds (smaller is better)"): seconds}


def _run(side: Side, command: Sequence[str]) -> str:
    """Runs a command in the side's folder and returns its standard output."""
    path = [str(side.root), *filter(None, [os.environ.get("PYTHONPATH")])]
    data = pathlib.Path(os.environ.get("CADC_DATA_DIR", ROOT / "data")).resolve()
    environment = {"PYTHONPATH": os.pathsep.join(path), "CADC_DATA_DIR": str(data)}
    try:
        done = subprocess.run(
            command, cwd=side.root, env=os.environ | environment, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise CompareError(f"there is no program {command[0]!r}") from None
    if done.returncode:
        raise CompareError(
            f"{shlex.join(command)} ended with exit code {done.returncode} in {side.name}: "
            f"{_last_line(done.stderr) or _last_line(done.stdout)}"
        )
    return done.stdout


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


# The table.


def _show(turns: Sequence[Sequence[Values]], sides: Sequence[Side]) -> str:
    """The table as text, and the rows that only one side has."""
    everywhere = [values for turn in turns for values in turn]
    keys = [key for key in everywhere[0] if all(key in values for values in everywhere)]
    lines = [list(HEADER)]
    for key in keys:
        pairs = [(before[key], after[key]) for before, after in turns]
        lines.append([*key, *(f"{value:.4g}" for value in _summary(pairs))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_aligned(line, widths) for line in lines]
    for position, side in enumerate(sides):
        own: Mapping = dict.fromkeys(key for turn in turns for key in turn[position])
        text += [
            f"not on both sides, {side.name}: {', '.join(key)}" for key in own if key not in keys
        ]
    return "\n".join(text)


def _summary(pairs: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Medians before and after; median, lowest and highest of the turns' ratios."""
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [b / a if a else math.nan for a, b in pairs]
    return before, after, statistics.median(ratios), min(ratios), max(ratios)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if column < NAMES else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _exit_on_signal(number: int, frame: object) -> None:
    """Ends the program by an exception, which leaves every `with` block properly."""
    del frame
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
