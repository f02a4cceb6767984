"""The linear autoencoder against EASE and ALS: seconds, and rankings of all items on test rows.

    CADC_DATA_DIR=/raw/data python benchmarks/autoencoder.py [--quick] [--json FILE]

Each core of the CPU is a device. The settings of each data set are fixed here; EASE has the
regularisation of the autoencoder. The first fit compiles, the second is timed. EASE inverts a
matrix of items x items, and is left out where that has more than 12,000 rows. --quick: MovieLens 1M
at rank 64, without EASE.
"""

import argparse
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import numpy as np
import rankings

from cadc_jax import sharding
from cadc_jax.data.table import Table
from cadc_jax.evaluation import evaluate, scorers
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.factorization import als, autoencoder
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.study.rivals import item_weights
from cadc_jax.study.rivals.rankings import matrix_of, scorer

EVEN = ALSConfig(factors=192, alpha=4.0, frequency_exponent=1.0)
SETTINGS = {
    "ml-1m-ncf": AutoencoderConfig(factors=256),
    "ml-1m": AutoencoderConfig(factors=256, regularization=0.816, user_exponent=0.15),
    "gowalla": AutoencoderConfig(
        factors=512,
        regularization=0.111,
        dropout=1 / 3,
        user_exponent=0.5,
        start_exponent=0.5,
        item_exponent=0.5,
    ),
}
EASE = {"ml-1m-ncf": 300.0, "ml-1m": 500.0}  # the same as above, in EASE's absolute numbers
SECONDS = "seconds of a fit"
SHOWN = ("ndcg@10", "recall@20", "ndcg@20")


def main() -> None:
    """Fits and ranks each data set, and prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="MovieLens 1M at rank 64")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    sharding.split_cores()
    settings = {"ml-1m-ncf": AutoencoderConfig()} if arguments.quick else SETTINGS
    rows = [row for name, setting in settings.items() for row in compare(name, setting, arguments)]
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        result = {"machine": machine, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1))


def compare(name: str, config: AutoencoderConfig, arguments: argparse.Namespace) -> list[dict]:
    """Rows of one data set: ours against each peer."""
    table = rankings.read(name)
    ours = figures(table, lambda x, mesh: autoencoder.fit(x, config, jax.random.key(0), mesh=mesh))
    print(f"{name}: autoencoder of rank {config.factors}: {ours}", flush=True)
    peers = {"als": figures(table, lambda x, mesh: als.fit(x, EVEN, jax.random.key(0), mesh=mesh))}
    if not arguments.quick and name in EASE:
        matrix = matrix_of(table)
        start = time.perf_counter()
        weights = item_weights.ease(matrix, EASE[name])
        seconds = time.perf_counter() - start
        found = ranked(scorer(matrix, weights), table)
        peers["ease"] = {SECONDS: seconds} | found
    rows = []
    for peer, theirs in peers.items():
        print(f"{name}: {peer}: {theirs}", flush=True)
        for metric, value in ours.items():
            rows.append(
                {
                    "case": name,
                    "metric": metric if metric == SECONDS else f"{metric} (larger is better)",
                    "ours": value,
                    "peer": theirs[metric],
                    "peer_name": peer,
                    "ratio": value / theirs[metric],
                }
            )
    return rows


def figures(table: Table, fit: Callable[..., tuple[Factors, np.ndarray]]) -> dict[str, float]:
    """Seconds of the second fit, and how its factors rank."""
    train, schema = table.splits["train"], table.schema
    interactions = Interactions.from_rows(
        train["user"], train["item"], schema.num_users, schema.num_items
    )
    mesh = sharding.make_mesh()
    jax.block_until_ready(fit(interactions, mesh))
    start = time.perf_counter()
    factors, _ = jax.block_until_ready(fit(interactions, mesh))
    seconds = time.perf_counter() - start
    user, item = np.asarray(factors.user), np.asarray(factors.item)
    return {SECONDS: seconds} | ranked(scorers.factors(user, item, False), table)


def ranked(scorer: Scorer, table: Table) -> dict[str, float]:
    """Metrics of all users' rankings of all items."""
    found = evaluate.rank_users(scorer, table, "test").quality((10, 20))
    return {name: found[name] for name in SHOWN}


if __name__ == "__main__":
    main()
