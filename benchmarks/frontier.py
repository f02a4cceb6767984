"""Bytes of the compressed data set against the quality that is left of it, on MovieLens 1M.

    CADC_DATA_DIR=/raw/data python benchmarks/frontier.py [--train] [--quick] [--json FILE]

For each rank of the factors, number of bits and rate it prints the bytes of what training reads
(kept rows, factors, content and vocabularies), as a share of the gzip file of training rows, and
the mean NDCG@10 of all test users, who rank all items. 'factors' scores with the factors alone;
with --train a frozen two-tower network is trained on the kept rows as well. Losses are against 32
bits at the same rank and rate. The last column adds the mask and the held-out rows, which
evaluation alone reads. The split is that of `configs/movielens_1m_ncf.py`, with ALS, the seed 0.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cadc_jax import experiment
from cadc_jax.configuration import raw_path
from cadc_jax.run import bundled_configs, compressed, compressed_sizes, stages
from cadc_jax.run.arms import CADC_FROZEN, MF_ALONE
from cadc_jax.run.context import Run

RANKS, BITS, RATES = (48, 64, 96, 128, 192), (32, 16, 8, 7, 6, 5, 4), (0.1, 0.01)
METRIC = "ndcg@10"


def main() -> None:
    """Measures all points and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train a network at each point, too")
    parser.add_argument("--quick", action="store_true", help="one rank, three numbers of bits")
    parser.add_argument("--ranks", default="", help="such as 64,96")
    parser.add_argument("--bits", default="", help="such as 32,8")
    parser.add_argument("--rates", default="", help="such as 0.1")
    parser.add_argument("--workdir", help="keeps finished stages here")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    given = parser.parse_args()
    ranks = chosen(given.ranks, (32,) if given.quick else RANKS)
    bits = chosen(given.bits, (32, 8, 6) if given.quick else BITS)
    rates = chosen(given.rates, RATES[:1] if given.quick else RATES)
    rows: list[dict[str, Any]] = []
    print(f"rank bits  rate  factors  loss     {'CADC     loss     ' * given.train}", end="")
    print("MB to train from  over gzip  MB in all  over gzip")
    with folder(given.workdir) as workdir:
        for rank, rate, bit in itertools.product(ranks, rates, bits):
            rows.append(point(workdir, int(rank), int(bit), rate, given.train))
            show(rows)
    if given.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        result = {"machine": machine, "rows": [as_result(row) for row in rows]}
        pathlib.Path(given.json).write_text(json.dumps(result, indent=1))


def chosen(text: str, default: tuple[float, ...]) -> list[float]:
    """Numbers of an option, or the default."""
    return [float(x) for x in text.split(",")] if text else list(default)


@contextlib.contextmanager
def folder(path: str | None) -> Iterator[pathlib.Path]:
    """The given folder, or one that is deleted in the end."""
    if path:
        yield pathlib.Path(path)
    else:
        with tempfile.TemporaryDirectory() as name:
            yield pathlib.Path(name)


def settings(rank: int, bits: int, rate: float) -> ConfigDict:
    """The configuration of a point."""
    config = bundled_configs.config("movielens_1m_ncf")
    config.factorization, config.als.factors = "als", rank
    config.factor_bits, config.rate = bits, rate
    return config


def point(workdir: pathlib.Path, rank: int, bits: int, rate: float, train: bool) -> dict[str, Any]:
    """Quality and bytes at one point."""
    config = settings(rank, bits, rate)
    run = Run(config, workdir, say=lambda line: None)
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    inputs = compressed.make_inputs(run, prepared)
    row = {"rank": rank, "bits": bits, "rate": rate}
    row["factors"] = experiment.baseline_row(run, inputs, MF_ALONE)["metrics"][METRIC]
    if train:
        made = experiment.arm_row(run, inputs, "two_tower", CADC_FROZEN)
        row |= {"cadc": made["metrics"][METRIC], "best_step": made["best_step"]}
    with tempfile.TemporaryDirectory() as name:
        out = pathlib.Path(name) / "set"
        parts = compressed_sizes.sizes(
            compressed.write_compressed(out, config, inputs, compressed.RawSize(1, 1))
        )
    later = parts["mask"] + parts["held-out rows"]
    log = (raw_path(config) / config.data.train_file).stat().st_size
    trained_on = sum(parts.values()) - later
    return row | {"bytes": trained_on, "all": trained_on + later, "log": log}


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the last row."""
    row = rows[-1]
    found = ""
    for name in ("factors", "cadc"):
        if name in row:
            found += f"{row[name]:.4f}   {loss(rows, row, name):+.4f}  "
    shares = [f"{row[x] / 1e6:13.3f} {row[x] / row['log']:10.3f}" for x in ("bytes", "all")]
    print(f"{row['rank']:4} {row['bits']:4} {row['rate']:5g}  {found}", *shares, flush=True)


def loss(rows: list[dict[str, Any]], row: dict[str, Any], name: str) -> float:
    """How much less a row has than the one of 32 bits, of the same rank and rate."""
    whole = next(x for x in rows if (x["rank"], x["rate"]) == (row["rank"], row["rate"]))
    return whole[name] - row[name]


def as_result(row: dict[str, Any]) -> dict[str, Any]:
    """A row as all benchmarks write theirs."""
    return {
        "case": f"rank {row['rank']}, {row['bits']} bits, rate {row['rate']:g}",
        "metric": "bytes to train from over the gzip of the training rows (smaller is better)",
        "ours": row["bytes"],
        "peer": row["log"],
        "peer_name": "gzip of the training rows",
        "ratio": row["bytes"] / row["log"],
        **{name: row[name] for name in ("factors", "cadc", "best_step", "all") if name in row},
    }


if __name__ == "__main__":
    main()
