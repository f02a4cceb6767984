"""The metrics of rankings against the library ranx, and the seconds that ranking all users takes.

    pip install ranx
    CADC_DATA_DIR=/raw/data python benchmarks/rankings.py [--data ml-1m,ml-1m-ncf,gowalla]

Users are ranked by ALS factors. For ranx each user's list is made by NumPy alone, by sorting all
scores; for the mean reciprocal rank NumPy looks the first test item up in the whole list. ranx
divides its average precision by n, the number of test items, and the package by min(k, n): the
package's values are scaled for the comparison.
"""

import argparse
import gzip
import os
import pathlib
import time

import numpy as np

from cadc_jax import library, metrics
from cadc_jax.data.table import Features, Schema, Table
from cadc_jax.evaluation import evaluate, scorers
from cadc_jax.factorization import als

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = pathlib.Path(os.environ.get("CADC_DATA_DIR", ROOT.parent / "shared" / "data"))
FILES = {
    "ml-1m": ("ml-1m-distill-cf", ("train.csv.gz", "validation.csv.gz", "test.csv.gz")),
    "ml-1m-ncf": ("ml-1m-implicit", ("train.csv.gz", None, "test.csv")),
    "gowalla": ("gowalla", ("train.csv.gz", None, "test.csv.gz")),
}
CUT_OFFS = (10, 20, 50)
NAMES = {"recall": "recall", "ndcg": "ndcg", "hit": "hit_rate", "map": "map"}  # ours -> ranx's


def main() -> None:
    """Compares the metrics on each data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=",".join(FILES), help="some of " + ", ".join(FILES))
    for name in parser.parse_args().data.split(","):
        compare(name)


def compare(name: str) -> None:
    """Prints ours, theirs and the difference of each metric on a data set."""
    table = read(name)
    schema, train = table.schema, table.splits["train"]
    pairs = train["user"], train["item"]
    config = als.ALSConfig(factors=64, iterations=8)
    factors = library.factorize(*pairs, schema.num_users, schema.num_items, config)
    user, item = np.asarray(factors.user), np.asarray(factors.item)
    start = time.perf_counter()
    scorer = scorers.factors(user, item, calibrated=False)
    ranking = evaluate.rank_users(scorer, table, "test", length=max(CUT_OFFS))
    ours = ranking.quality(CUT_OFFS, coverage=True)
    seconds = time.perf_counter() - start
    print(f"\n{name}: {ranking.users['all']:,} users, {len(ranking.user):,} test rows,", end=" ")
    print(f"{schema.num_items:,} items: {seconds:.1f} s; {ours}")
    lists = metrics.UserRankings.of_ranks(
        ranking.ranks, ranking.user, ranking.item, schema.num_items
    )
    for cut in CUT_OFFS:
        part = np.minimum(lists.held_out, cut) / lists.held_out
        ours[f"map@{cut}"] = float(np.mean(lists.average_precision(cut) * part))
    for key, theirs in by_ranx(table, user, item).items():
        print(f"{key:10} {ours[key]:.8f} ranx {theirs:.8f} difference {ours[key] - theirs:+.1e}")


def by_ranx(table: Table, user: np.ndarray, item: np.ndarray) -> dict[str, float]:
    """Metrics of whole lists that are sorted by NumPy."""
    import ranx

    seen, held_out = (by_user(table, names) for names in (("train", "validation"), ("test",)))
    run, qrels, reciprocal, nothing = {}, {}, [], np.zeros(0, np.int32)
    for owner, own in held_out.items():
        scores = user[owner] @ item.T
        scores[np.append(seen.get(owner, nothing), 0)] = -np.inf
        listed = np.argsort(-scores, kind="stable")
        reciprocal.append(1 / (1 + np.flatnonzero(np.isin(listed, own))[0]))
        best = listed[: max(CUT_OFFS)]
        run[str(owner)] = {str(i): float(len(best) - place) for place, i in enumerate(best)}
        qrels[str(owner)] = {str(i): 1 for i in own}
    wanted = [f"{name}@{k}" for name in NAMES.values() for k in CUT_OFFS]
    found = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), wanted)
    values = {f"{ours}@{k}": found[f"{x}@{k}"] for ours, x in NAMES.items() for k in CUT_OFFS}
    return values | {"mrr": float(np.mean(reciprocal))}


def by_user(table: Table, names: tuple[str, ...]) -> dict[int, np.ndarray]:
    """User -> its items in some splits."""
    rows = [np.stack([table.splits[x]["user"], table.splits[x]["item"]], axis=1) for x in names]
    pairs = np.unique(np.concatenate(rows), axis=0)
    users, starts = np.unique(pairs[:, 0], return_index=True)
    parts = np.split(pairs[:, 1], starts[1:])
    return dict(zip(users.tolist(), parts, strict=True))


def read(name: str) -> Table:
    """The splits of a data set as a table; an item id is 1 more than in the files."""
    folder, files = FILES[name]
    parts = []
    for file in files:
        if file is None:
            parts.append(np.zeros((0, 2), np.int32))
            continue
        path = DATA / folder / file
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as text:
            rows = np.loadtxt(text, np.int32, delimiter=",", skiprows=1, usecols=(0, 1))
        parts.append(np.unique(rows, axis=0) + [0, 1])
    splits = {
        split: {"user": rows[:, 0].astype(np.int32), "item": rows[:, 1].astype(np.int32)}
        for split, rows in zip(("train", "validation", "test"), parts, strict=True)
    }
    users, items = (np.concatenate(parts).max(axis=0) + 1).tolist()
    train = splits["train"]
    ends = np.cumsum(np.bincount(train["user"], minlength=users))
    known = {"offsets": np.append(0, ends), "items": train["item"]}
    schema = Schema("ranking", users, items, Features(), Features(), Features())
    return Table(schema, splits, {}, {}, known)


if __name__ == "__main__":
    main()
