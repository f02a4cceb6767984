"""Preparing click logs: speed compared with a bare parse of the same file, and peak memory.

    python benchmarks/data.py [--quick] [--rows N] [--json FILE]

Speed: `prepare.write_table` (read, count, encode, write), compared with parsing the same file by
pyarrow and by polars, without using the result. All run on all cores and take turns. The ratio is
the median over the rounds of ours / peer; 1.0 is as fast as a bare parse. There are two logs: one
of `cadc_jax.data.readers.synthetic`, and one whose values are nearly all different. Columns of more
than 131,072 values are hashed.

Memory: peak resident memory of a process that prepares logs of N / 5 and of N rows, compared with
the memory after its imports, and the ratio of the two sizes (medians over the rounds).
"""

import argparse
import json
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyarrow import csv

from cadc_jax.data import prepare
from cadc_jax.data.readers import criteo, synthetic

CONFIG = prepare.PrepareConfig(
    "click",
    "order",
    validation=1 / 14,
    test=1 / 7,
    min_count=4,
    max_vocabulary=1 << 17,
    user_features=("C7",),
    item_features=("C11",),
    log_dense=True,
)


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200,000 rows, two rounds")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument(
        "--folder", type=pathlib.Path, help="for the files; default: a temporary one"
    )
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(peak_memory(options.worker)))
        return
    if options.quick:
        options.rows, options.rounds = 200_000, 2
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = list(measure(pathlib.Path(folder), options))
    print(f"\n{'case':<34} {'metric':<34} {'ours':>9} {'peer':>9}  {'peer':<16} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['case']:<34} {row['metric']:<34} {row['ours']:>9.2f} {row['peer']:>9.2f}  "
            f"{row['peer_name']:<16} {row['ratio']:>6.2f}"
        )
    if options.json:
        result = {"machine": f"{platform.processor()} {platform.platform()}", "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: pathlib.Path, options: argparse.Namespace) -> Iterator[dict]:
    """Yields the rows of the printed table."""
    for kind, write in (("synthetic", write_synthetic), ("nearly all different", write_distinct)):
        large, small = folder / f"{kind} large.txt", folder / f"{kind} small.txt"
        write(large, options.rows)
        write(small, options.rows // 5)
        case = f"{kind}, {options.rows / 1e6:g} M rows"
        yield from speed(case, large, folder / "out", options.rounds)
        yield from memory(case, small, large, options.rounds)
        large.unlink()
        small.unlink()


def speed(case: str, path: pathlib.Path, out: pathlib.Path, rounds: int) -> Iterator[dict]:
    """Yields a row for each peer: seconds, and the ratio of times."""

    def ours() -> None:
        shutil.rmtree(out, ignore_errors=True)
        prepare.write_table(out, criteo.open_logs([path]), CONFIG)

    runs = {"ours": ours, "pyarrow": lambda: parse_pyarrow(path)}
    try:
        import polars  # noqa: F401

        runs["polars"] = lambda: parse_polars(path)
    except ImportError:
        print("polars is not installed: pip install -e '.[bench]'", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    times = {name: taken[1:] for name, taken in times.items()}  # the first round warms up
    for peer in list(runs)[1:]:
        ratios = [a / b for a, b in zip(times["ours"], times[peer], strict=True)]
        yield {
            "case": case,
            "metric": "seconds, ratio of times",
            "ours": statistics.median(times["ours"]),
            "peer": statistics.median(times[peer]),
            "peer_name": f"{peer} parse",
            "ratio": statistics.median(ratios),
        }


def memory(case: str, small: pathlib.Path, large: pathlib.Path, rounds: int) -> Iterator[dict]:
    """Yields a row for each log, in megabytes, and one for their ratio."""
    runs = [[worker(path) for path in (small, large)] for _ in range(rounds)]
    peaks = [
        {key: statistics.median(run[key] for run in of_path) for key in of_path[0]}
        for of_path in zip(*runs, strict=True)
    ]
    for name, peak in zip(("N / 5", "N"), peaks, strict=True):
        yield {
            "case": case,
            "metric": f"MB at the peak, {name} rows",
            "ours": peak["peak"],
            "peer": peak["imports"],
            "peer_name": "imports alone",
            "ratio": peak["peak"] / peak["imports"],
        }
    yield {
        "case": case,
        "metric": "MB at the peak, N / (N / 5) rows",
        "ours": peaks[1]["peak"],
        "peer": peaks[0]["peak"],
        "peer_name": "N / 5 rows",
        "ratio": peaks[1]["peak"] / peaks[0]["peak"],
    }


def parse_pyarrow(path: pathlib.Path) -> None:
    """Parses into memory, categorical values as text: a bare parse has no hexadecimal numbers."""
    types = {"label": pa.int8()} | dict.fromkeys(criteo.DENSE, pa.int32())
    csv.read_csv(
        path,
        csv.ReadOptions(column_names=criteo.FIELDS),
        csv.ParseOptions(delimiter="\t", quote_char=False),
        csv.ConvertOptions(
            column_types=types | dict.fromkeys(criteo.CATEGORICAL, pa.string()),
            strings_can_be_null=True,
        ),
    )


def parse_polars(path: pathlib.Path) -> None:
    """Parses into memory with polars, to the same types."""
    import polars as pl

    pl.read_csv(
        path,
        separator="\t",
        has_header=False,
        quote_char=None,
        new_columns=list(criteo.FIELDS),
        schema_overrides={"label": pl.Int8}
        | dict.fromkeys(criteo.DENSE, pl.Int32)
        | dict.fromkeys(criteo.CATEGORICAL, pl.String),
    )


def write_synthetic(path: pathlib.Path, rows: int) -> None:
    """Writes rows of `readers.synthetic`, each million with another seed."""
    with open(path, "wb") as file:
        for seed, start in enumerate(range(0, rows, 1_000_000)):
            piece = path.with_suffix(".piece")
            synthetic.write_criteo(piece, min(1_000_000, rows - start), seed)
            file.write(piece.read_bytes())
            piece.unlink()


def write_distinct(path: pathlib.Path, rows: int) -> None:
    """Writes rows with random 32-bit categorical values, except for the user and the item."""
    rng = np.random.default_rng(0)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    with open(path, "wb") as file:
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            text = np.full((count, 2 + 13 * 2 + 26 * 9), ord("\t"), np.uint8)
            text[:, 0] = digits[rng.integers(0, 2, count)]
            text[:, 2:28:2] = digits[rng.integers(0, 10, (count, 13))]
            places = 28 + 9 * np.arange(26)[:, None] + np.arange(8)
            values = rng.integers(0, 1 << 32, (count, 26))
            values[:, [6, 10]] %= 1000  # the user and the item: C7 and C11
            text[:, places] = digits[values[:, :, None] >> np.arange(28, -1, -4) & 15]
            text[:, -1] = ord("\n")
            file.write(text.tobytes())


def worker(path: pathlib.Path) -> dict[str, float]:
    """Runs `peak_memory` in a new process."""
    command = [sys.executable, __file__, "--worker", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def peak_memory(path: pathlib.Path) -> dict[str, float]:
    """Peak resident memory in megabytes, after the imports and after preparing `path`."""

    def peak() -> float:  # getrusage would include the memory of the parent process
        status = pathlib.Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1e3

    imports = peak()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepare.write_table(pathlib.Path(folder) / "out", criteo.open_logs([path]), CONFIG)
    return {"imports": imports, "peak": peak()}


if __name__ == "__main__":
    main()
