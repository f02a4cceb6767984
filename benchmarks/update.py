"""Seven updates by a day's rows against one run on all rows, on MovieLens 100K.

    CADC_DATA_DIR=/raw/data python benchmarks/update.py [--methods als,autoencoder] [--workdir DIR]
        [--json FILE] [--quick]

Each user's last row by time tests and the one before it validates. The other rows are cut by time:
a first part, which is run, and seven days, with which it is updated in turn. A second run reads all
rows at once. Both rank all items for all users by the factors alone; users and items of the days
are new to the first part, whose own figures show what an update is worth. Seconds are those of the
stages up to `sample`, compilation included. --quick: rank 8, and every fourth user.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import frontier
import jax
import numpy as np
from ml_collections import ConfigDict

from cadc_jax import configuration, experiment
from cadc_jax.data.encoding import open_encoder
from cadc_jax.data.readers import movielens
from cadc_jax.data.table import Table, open_table
from cadc_jax.evaluation import evaluate, scorers
from cadc_jax.run import updates
from cadc_jax.run.bundled_configs import config as bundled
from cadc_jax.run.context import Run
from cadc_jax.run.factor_files import factor_tables

DAYS = 7
FIRST = 0.65  # share of the training rows in the first part
CUT = 10
HELD_OUT = ("validation", "test")


def main() -> None:
    """Compares each method, and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="als,autoencoder", help="factorisations")
    parser.add_argument("--workdir", help="keeps files and finished stages here")
    parser.add_argument("--quick", action="store_true", help="rank 8, every fourth user")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    given = parser.parse_args()
    rows = []
    with frontier.folder(given.workdir) as workdir:
        write_files(workdir / "raw", step=4 if given.quick else 1)
        for method in given.methods.split(","):
            config = settings(workdir / "raw", method, 8 if given.quick else 32)
            rows += compare(config, workdir)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps({"rows": rows}, indent=1))


def write_files(folder: pathlib.Path, step: int) -> None:
    """Writes the held-out rows, the first part, the days, and `all.csv`, of every `step`th user."""
    raw = movielens.read_ratings(configuration.data_folder() / "ml-100k" / "u.data", "100k")
    columns = [np.asarray(x) for x in (raw.user, raw.item, raw.timestamp)]
    rows = np.stack(columns, axis=1)[columns[0] % step == 0]
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0], rows[:, 2]))]
    after = np.zeros(len(rows), np.int64)  # rows of the same user that come later
    for user in np.unique(rows[:, 0]):
        own = np.flatnonzero(rows[:, 0] == user)
        after[own] = np.arange(len(own))[::-1]
    train = rows[after > 1]
    cuts = np.linspace(FIRST, 1, DAYS + 1)[:-1]
    parts = np.split(train, (cuts * len(train)).astype(int))
    files = {"validation": rows[after == 1], "test": rows[after == 0], "all": train}
    files |= {"first" if day == 0 else f"day{day}": part for day, part in enumerate(parts)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in files.items():
        lines = "".join(f"{user},{item},{when}\n" for user, item, when in part)
        (folder / f"{name}.csv").write_text("user,item,when\n" + lines)


def settings(folder: pathlib.Path, method: str, rank: int) -> ConfigDict:
    """The configuration of the run on all rows."""
    config = configuration.default_config()
    config.name, config.factorization = "update", method
    config.als = bundled("movielens_100k").als
    config.als.factors = config.autoencoder.factors = rank
    data = config.data
    data.path, data.split = str(folder), "given"
    data.train_file, data.validation_file, data.test_file = "all.csv", "validation.csv", "test.csv"
    data.columns.update(user="user", item="item", timestamp="when")
    data.num_negatives, config.train.negatives = 20, 1  # neither is used
    return config


def compare(config: ConfigDict, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Figures of one method: the first part, after all updates, and of one run on all rows."""
    method, folder = config.factorization, pathlib.Path(config.data.path)
    whole = Run(config, workdir / f"{method}-all", say=lambda line: None)
    seconds = timed(lambda: experiment.run(whole, "sample"))
    first = config.copy_and_resolve_references()
    first.data.train_file = "first.csv"
    last = workdir / f"{method}-0"
    experiment.run(Run(first, last, say=lambda line: None), "sample")
    wanted = ranked(whole.workdir, last)
    figures, took = {"the first part": wanted["updated"]}, []
    for day in range(1, DAYS + 1):
        before, out = updates.open_before(last), workdir / f"{method}-{day}"
        run = Run(before.config, out, say=lambda line: None)
        log = folder / f"day{day}.csv"
        took.append(timed(lambda: experiment.update(run, before, log)))  # noqa: B023
        last = out
    found = ranked(whole.workdir, last)
    figures |= {"seven updates": found["updated"], "one run": found["whole"]}
    for name, own in figures.items():
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in own.items())
        print(f"{method}: {name}: {shown}", flush=True)
    print(f"{method}: seconds of one run {seconds:.1f}, of an update {np.round(took, 1).tolist()}")
    rows = [
        {"metric": f"{metric} (larger is better)", "ours": value, "peer": found["whole"][metric]}
        for metric, value in found["updated"].items()
    ]
    rows.append({"metric": "seconds", "ours": float(np.mean(took)), "peer": seconds})
    shared = {"case": f"{method}, seven updates", "peer_name": "one run on all rows"}
    return [shared | row | {"ratio": row["ours"] / row["peer"]} for row in rows]


def timed(work: Callable[[], None]) -> float:
    """Seconds of some work, with nothing compiled before it."""
    jax.clear_caches()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ranked(whole: pathlib.Path, updated: pathlib.Path) -> dict[str, dict[str, float]]:
    """Metrics of both runs, on the held-out rows and with the known items of the whole one."""
    (prepared,), (theirs,) = ((x / "prepare").glob("[!.]*") for x in (whole, updated))
    table, places = open_table(prepared), {}
    for kind in ("user", "item"):  # place of each id of the whole run in the updated one
        own, other = (getattr(open_encoder(x), kind) for x in (prepared, theirs))
        places[kind] = np.concatenate([[0], other.ids(own.values)])
    found = {}
    for name, folder in (("whole", whole), ("updated", updated)):
        (factors,) = (folder / "factorize").glob("[!.]*")
        user, item = factor_tables(factors)
        if name == "updated":
            user, item = user[places["user"]], item[places["item"]]
        found[name] = quality(table, scorers.factors(user, item, calibrated=False))
    return found


def quality(table: Table, scorer: scorers.Scorer) -> dict[str, float]:
    """NDCG and recall of all users' rankings of all items, on both held-out splits."""
    found = {}
    for split in HELD_OUT:
        metrics = evaluate.rank_users(scorer, table, split).quality((CUT,))
        for name in (f"ndcg@{CUT}", f"recall@{CUT}"):
            found[f"{split} {name}"] = metrics[name]
    return found


if __name__ == "__main__":
    main()
