"""Memory of each of several processes that factorise one log by ALS, and whether they agree.

    python benchmarks/als_ranges.py [--quick] [--json FILE]

A random log of 50,000,000 rows of 500,000 users and 100,000 items, some of these far more popular
than others (--quick: a twentieth of it all), in two columns on disk. It is factorised by 1, 2 and 4
processes on this machine, with 8 factors and 2 iterations. What a process holds at most is compared
with what it holds at most for 1 % of the rows of the same users and items: that is the base, which
does not depend on the rows (JAX, its programs, numbers of users and items). A single process builds
the whole matrix in memory, as `cadc` does; several read the log in blocks.
"""

import argparse
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

USERS, ITEMS, ROWS = 500_000, 100_000, 50_000_000
PROCESSES = (1, 2, 4)


def main() -> None:
    """Runs all cases and prints a table; with --worker, one process of a fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the size")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(*arguments.worker)))
        return
    rows, before, expected = [], None, None
    print(
        "processes  peak MB  base MB  beyond it  1 / of half as many  seconds  largest difference"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_log(pathlib.Path(folder), 20 if arguments.quick else 1)
        for processes in PROCESSES:
            base, _ = together(folder, processes, 0.01)
            peak, seconds = together(folder, processes, 1.0)
            found = np.load(f"{folder}/factors.npy")
            expected = found if expected is None else expected
            difference = float(np.abs(found - expected).max() / np.abs(expected).max())
            ratio = None if before is None else before / (peak - base)
            print(
                f"{processes:9d}  {peak:7.0f}  {base:7.0f}  {peak - base:9.0f}  "
                f"{ratio or 0:17.2f}  {seconds:7.1f}  {difference:18.1e}",
                flush=True,
            )
            if ratio is not None:
                rows.append(
                    {
                        "case": f"{processes} processes",
                        "metric": "peak MB of a process beyond the base; 0.5 would be the best",
                        "ours": peak - base,
                        "peer": before,
                        "peer_name": f"ours, {processes // 2} processes",
                        "ratio": 1 / ratio,
                    }
                )
            before = peak - base
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        text = json.dumps({"machine": machine, "rows": rows}, indent=1)
        pathlib.Path(arguments.json).write_text(text)


def write_log(folder: pathlib.Path, scale: int) -> None:
    """Users and items of the rows; `scale` divides the size."""
    rng = np.random.default_rng(0)
    users, items, rows = USERS // scale, ITEMS // scale, ROWS // scale
    user = np.lib.format.open_memmap(folder / "user.npy", "w+", np.int32, (rows,))
    item = np.lib.format.open_memmap(folder / "item.npy", "w+", np.int32, (rows,))
    for start in range(0, rows, 1 << 20):
        part = slice(start, min(start + (1 << 20), rows))
        size = part.stop - part.start
        user[part] = rng.integers(0, users, size)
        item[part] = items * rng.random(size) ** 2
    (folder / "sizes.json").write_text(json.dumps([users, items]))


def together(folder: str, processes: int, share: float) -> tuple[float, float]:
    """The largest of the peaks of so many processes in MB, and their seconds."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    one = "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=1"
    command = [sys.executable, __file__, "--worker", folder, str(share), str(port), str(processes)]
    workers = [
        subprocess.Popen(
            [*command, str(process)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": one},
        )
        for process in range(processes)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        sys.exit("a process failed")
    found = [json.loads(output.splitlines()[-1]) for output in outputs if output]
    return max(x["peak"] for x in found), max(x["seconds"] for x in found)


def work(folder: str, share: str, port: str, processes: str, process: str) -> dict:
    """One process of a fit."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if int(processes) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    from cadc_jax import sharding
    from cadc_jax.data.columns import open_array, read_part
    from cadc_jax.factorization import als, log_matrix
    from cadc_jax.factorization.interactions import Interactions

    start = time.perf_counter()
    path = pathlib.Path(folder)
    user, item = (open_array(path / f"{name}.npy") for name in ("user", "item"))
    sizes, rows = json.loads((path / "sizes.json").read_text()), int(float(share) * len(user))
    if int(processes) == 1:
        matrix = Interactions.from_rows(user[:rows], item[:rows], *sizes)
    else:

        def read(start: int, stop: int) -> log_matrix.Block:
            return read_part(user, start, stop), read_part(item, start, stop), None

        matrix = log_matrix.read(log_matrix.Log(rows, *sizes, read))
    config = als.ALSConfig(factors=8, iterations=2)
    factors, _ = als.fit(matrix, config, jax.random.key(0), mesh=sharding.make_mesh())
    if process == "0":
        np.save(path / "factors.npy", np.concatenate([factors.user, factors.item]))
    return {"peak": peak(), "seconds": time.perf_counter() - start}


def peak() -> float:
    """Peak memory of this process in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


if __name__ == "__main__":
    main()
