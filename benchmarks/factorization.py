"""Implicit ALS against `implicit` and `cmfrec`: seconds an iteration, start-up, memory, objective.

    pip install -e '.[bench]'
    CADC_DATA_DIR=/path/to/raw/data python benchmarks/factorization.py [--quick] [--json FILE]

Two data sets: MovieLens 1M with the split of the NCF paper (`ml-1m-implicit/`, or power-law data of
that size if it is missing), and power-law data of MovieLens 20M's size. Every fit runs in its own
process, and the systems take turns: a busy machine slows all of them alike. Times are medians over
all iterations of all turns. All systems use 2 threads. This package runs on its one default device
('ours'), and on a mesh with one CPU device for each core ('ours x2'): XLA's CPU backend needs that
to keep two cores busy.

Ratios are ours / peer. Below 1 ours is faster, smaller, or lower in objective; for HR@10 above 1 is
better.
"""

import argparse
import gzip
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

THREADS = 2
LAMBDA, ALPHA = 30.0, 9.0
PEERS = ("implicit cg", "implicit cholesky", "cmfrec cg")
OURS = ("ours", "ours x2", "ours x2 exact")
METRICS = {  # key of a result -> its name in the table
    "iteration": "seconds an iteration",
    "overhead": "seconds of the first call beyond its iterations",
    "memory": "peak memory, MB",
    "objective": "objective",
    "hr@10": "hr@10/1+99 (larger is better)",
}


def main() -> None:
    """Runs all cases and prints a table; with --worker, one fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smaller data, 64 factors, 1 turn")
    parser.add_argument("--json", metavar="FILE", help="also write the table there")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        system, data, factors, iterations = arguments.worker
        print(json.dumps(work(system, data, int(factors), int(iterations))))
        return

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("ml-1m", write_movielens), ("power-law 20M", write_power_law)):
            if arguments.quick and name != "ml-1m":
                continue
            data = pathlib.Path(folder) / "data.npz"
            write(data)
            for factors in (64,) if arguments.quick else (64, 128):
                case = f"{name}, {factors} factors"
                slow = name != "ml-1m"
                turns = 1 if arguments.quick else 2 if slow else 4
                results = take_turns(data, factors, 5 if slow else 15, turns, slow)
                rows += compare(case, results)
    show(rows)
    if arguments.json:
        result = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        }
        pathlib.Path(arguments.json).write_text(json.dumps(result | {"rows": rows}, indent=1))


def take_turns(data, factors: int, iterations: int, turns: int, slow: bool) -> dict:
    """System -> results of its turns. `slow` leaves exact solves out."""
    exact = ("exact", "cholesky")
    systems = [s for s in OURS + PEERS if not (slow and s.split()[-1] in exact)]
    results = {system: [] for system in systems}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(THREADS)}
    for _ in range(turns):
        for system in systems:
            arguments = ["--worker", system, str(data), str(factors), str(iterations)]
            done = subprocess.run(
                [sys.executable, __file__, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            results[system].append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"  {system:18s} {done.stdout.splitlines()[-1][:150]}", file=sys.stderr, flush=True
            )
    return results


def compare(case: str, results: dict) -> list[dict]:
    """Rows of the table: each of ours against each peer with the same kind of solver."""
    rows = []
    for peer in (p for p in PEERS if p in results):
        for mine in (o for o in OURS if o in results):
            if ("exact" in mine) != ("cholesky" in peer):
                continue
            for key, name in METRICS.items():
                ours, theirs = (median(results[system], key) for system in (mine, peer))
                if np.isnan([ours, theirs]).any():
                    continue
                rows.append(
                    {
                        "case": f"{case}, {mine}",
                        "metric": name,
                        "ours": ours,
                        "peer": theirs,
                        "peer_name": peer,
                        "ratio": ours / theirs if theirs else float("inf"),
                    }
                )
    return rows


def median(results: list[dict], key: str) -> float:
    """The median of a figure over all turns, and over iterations if it has one value for each."""
    values = [result[key] for result in results if key in result]
    return float(np.median(np.hstack(values))) if values else float("nan")


def show(rows: list[dict]) -> None:
    """Prints the table."""
    print(f"| {'case':42s} | {'metric':48s} | {'peer':17s} |    ours |    peer | ratio |")
    print("|" + "---|" * 6)
    for row in rows:
        numbers = f"{row['ours']:7.4g} | {row['peer']:7.4g} | {row['ratio']:5.2f}"
        print(f"| {row['case']:42s} | {row['metric']:48s} | {row['peer_name']:17s} | {numbers} |")


# One fit, in its own process.


def work(system: str, path: str, factors: int, iterations: int) -> dict:
    """The figures of one fit."""
    with np.load(path) as file:
        data = dict(file)
    fit = {"ours": fit_ours, "implicit": fit_implicit, "cmfrec": fit_cmfrec}[system.split()[0]]
    result, user, item = fit(system, data, factors, iterations)
    result["memory"] = peak_memory()
    user, item = np.asarray(user, np.float64), np.asarray(item, np.float64)
    result["objective"] = objective(data, user, item)
    if "candidates" in data:
        scores = np.einsum("ud,ujd->uj", user, item[data["candidates"]])
        result["hr@10"] = float(np.mean((scores[:, 1:] >= scores[:, :1]).sum(1) < 10))
    return result


def peak_memory() -> float:
    """Peak memory of this process in MB. (Linux's ru_maxrss would count the parent's, too.)"""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def fit_ours(system: str, data: dict, factors: int, iterations: int):
    """Times of `als.fit`, and its factors."""
    import jax

    from cadc_jax import sharding
    from cadc_jax.factorization import als
    from cadc_jax.factorization.interactions import Interactions

    mesh = None
    if "x2" in system:
        jax.config.update("jax_num_cpu_devices", THREADS)
        mesh = sharding.make_mesh()
    jax.devices()
    interactions = Interactions.from_rows(data["user"], data["item"], *map(int, data["shape"]))
    config = als.ALSConfig(
        factors=factors,
        regularization=LAMBDA / (ALPHA**0.5 * interactions.extent.noise),  # LAMBDA itself
        alpha=ALPHA,
        iterations=iterations,
        solver="exact" if "exact" in system else "cg",
    )
    ends = []
    fitted, _ = als.fit(
        interactions,
        config,
        jax.random.key(0),
        mesh=mesh,
        progress=lambda number, loss, seconds: ends.append(seconds),
    )
    times = np.diff(ends)
    return (
        {"iteration": times.tolist(), "overhead": ends[0] - float(np.median(times))},
        fitted.user,
        fitted.item,
    )


def fit_implicit(system: str, data: dict, factors: int, iterations: int):
    """Times of `implicit`, and its factors."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    ones = np.ones(len(data["user"]), np.float32)
    matrix = csr_matrix((ones, (data["user"], data["item"])), shape=tuple(data["shape"]))
    model = AlternatingLeastSquares(
        factors=factors,
        regularization=LAMBDA,
        alpha=1 + ALPHA,  # its confidence of an entry is alpha, ours 1 + alpha
        iterations=iterations,
        use_cg="cg" in system.split(),
        num_threads=THREADS,
        random_state=0,
    )
    times = []
    start = time.perf_counter()
    model.fit(
        matrix, show_progress=False, callback=lambda number, seconds, loss: times.append(seconds)
    )
    overhead = time.perf_counter() - start - sum(times)
    return {"iteration": times[1:], "overhead": overhead}, model.user_factors, model.item_factors


def fit_cmfrec(system: str, data: dict, factors: int, iterations: int):
    """Times of `cmfrec`, and its factors."""
    from cmfrec import CMF_implicit
    from scipy.sparse import coo_matrix

    ones = np.ones(len(data["user"]), np.float32)
    matrix = coo_matrix((ones, (data["user"], data["item"])), shape=tuple(data["shape"]))

    def timed(iterations: int):
        model = CMF_implicit(
            k=factors,
            lambda_=LAMBDA,
            alpha=ALPHA,
            niter=iterations,
            use_cg=True,
            max_cg_steps=3,
            finalize_chol=False,
            precompute_for_predictions=False,
            use_float=True,
            nthreads=THREADS,
            verbose=False,
        )
        start = time.perf_counter()
        model.fit(matrix)
        return time.perf_counter() - start, model

    one, _ = timed(1)  # it does not report the times of iterations
    total, model = timed(iterations)
    each = (total - one) / (iterations - 1)
    return {"iteration": [each], "overhead": one - each}, model.A_, model.B_


def objective(data: dict, user: np.ndarray, item: np.ndarray) -> float:
    """The objective over all pairs, Hu et al. 2008, eq. 3."""
    total = np.sum((user.T @ user) * (item.T @ item)) + LAMBDA * ((user**2).sum() + (item**2).sum())
    for start in range(0, len(data["user"]), 1 << 19):
        part = slice(start, start + (1 << 19))
        score = np.einsum("nd,nd->n", user[data["user"][part]], item[data["item"][part]])
        total += np.sum((1 + ALPHA) * (1 - score) ** 2 - score**2)
    return float(total)


# Data.


def write_movielens(path: pathlib.Path) -> None:
    """MovieLens 1M with the split of the NCF paper, and the candidates of its test rows."""
    root = pathlib.Path(__file__).resolve().parents[1]
    folder = pathlib.Path(os.environ.get("CADC_DATA_DIR", root.parent / "shared" / "data"))
    folder /= "ml-1m-implicit"
    if not folder.is_dir():
        print(f"{folder} is missing: power-law data of MovieLens 1M's size instead")
        write_power_law(path, 6_040, 3_706, 1_000_000)
        return
    train = read_csv(folder / "train.csv.gz")
    test = read_csv(folder / "test.csv")
    negatives = read_csv(folder / "test_negatives.csv.gz")
    users, user = np.unique(train[:, 0], return_inverse=True)
    items = np.unique(np.concatenate([train[:, 1], test[:, 1], negatives[:, 1:].ravel()]))
    test, negatives = (table[np.argsort(table[:, 0])] for table in (test, negatives))
    candidates = np.concatenate([test[:, 1:2], negatives[:, 1:]], 1)
    np.savez(
        path,
        user=user.astype(np.int32),
        item=np.searchsorted(items, train[:, 1]).astype(np.int32),
        shape=np.array([len(users), len(items)]),
        candidates=np.searchsorted(items, candidates),
    )


def read_csv(path: pathlib.Path) -> np.ndarray:
    """A table of integers, without its header."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as lines:
        return np.loadtxt(lines, delimiter=",", skiprows=1, dtype=np.int64)


def write_power_law(path: pathlib.Path, users=138_000, items=27_000, entries=20_000_000) -> None:
    """Writes random pairs; the default size is MovieLens 20M's."""
    user, item = power_law(users, items, entries)
    np.savez(path, user=user, item=item, shape=np.array([users, items]))


def power_law(users: int, items: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """User [E] and item [E] int32 of distinct random pairs with power-law popularity."""
    rng = np.random.default_rng(0)
    activity = np.cumsum(rng.lognormal(sigma=1.1, size=users))
    popularity = np.cumsum(1 / (np.arange(items) + 30.0))
    keys = np.zeros(0, np.int64)
    while len(keys) < entries:
        more = entries - len(keys) + entries // 10
        user = np.searchsorted(activity, rng.random(more) * activity[-1])
        item = np.searchsorted(popularity, rng.random(more) * popularity[-1])
        keys = np.unique(np.concatenate([keys, user * items + item]))
    keys = rng.permutation(keys)[:entries]
    user, item = np.divmod(keys, items)
    return user.astype(np.int32), item.astype(np.int32)


if __name__ == "__main__":
    main()
