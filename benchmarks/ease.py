"""The factors of shipped configurations beside EASE, over seeds; bytes; and training on samples.

    CADC_DATA_DIR=/raw/data python benchmarks/ease.py [--configs movielens_1m_ncf] [--seeds 3]
        [--rates 0.1,0.01] [--workdir DIR] [--json FILE] [--quick]

Each seed draws its own validation rows, where the configuration has none of its own. Both see the
same training rows, and EASE's regularisation is chosen by the full ranking of the validation rows,
as the configuration's weights were. It is left out above 12,000 items. Figures are means over the
seeds of each test user's NDCG at the configuration's first cut-off, among all items; an interval
(95 %, over both) is of the difference. `--rates` also trains the frozen network on samples. Bytes
are those of the packed factors in 32, 16 and 8 bits, and of the kept rows at each rate. --quick:
one seed, fewer factors.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
from typing import Any

import frontier
import numpy as np
from ml_collections import ConfigDict

from cadc_jax import configuration, experiment
from cadc_jax.data import packed
from cadc_jax.data.table import Table, open_table
from cadc_jax.evaluation import evaluate, scorers
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.quantization import dequantize
from cadc_jax.run import bundled_configs, compressed, stages
from cadc_jax.run.arms import CADC_FROZEN
from cadc_jax.run.context import Run
from cadc_jax.run.factor_files import open_factors, quantized
from cadc_jax.run.factors import factorize_stage
from cadc_jax.study import bootstrap
from cadc_jax.study.bootstrap import Interval
from cadc_jax.study.cells import EASE
from cadc_jax.study.rivals import registry, search
from cadc_jax.study.rivals.given import Given, without_test

BITS = (32, 16, 8)
TRIALS = 12  # of EASE's regularisation
CONFIGS = "movielens_1m_ncf,movielens_1m_distill_cf"
SIDES = ("user", "item")


def main() -> None:
    """Compares each configuration, and prints its lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", default=CONFIGS, help=f"names; by default {CONFIGS}")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--rates", default="", help="also train on samples, such as 0.1,0.01")
    parser.add_argument("--workdir", help="keeps finished stages here")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer factors")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    given = parser.parse_args()
    rates, rows = frontier.chosen(given.rates, ()), []
    with frontier.folder(given.workdir) as workdir:
        for name in given.configs.split(","):
            seeds = range(1 if given.quick else given.seeds)
            configs = [settings(name, seed, given.quick) for seed in seeds]
            rows.append({"case": name} | compare(configs, workdir, rates))
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps({"rows": rows}, indent=1))


def settings(name: str, seed: int, quick: bool) -> ConfigDict:
    """A shipped configuration with a seed, whose stored factors are exact."""
    config = bundled_configs.config(name)
    config.seed, config.factor_bits = seed, 32
    config.evaluation.max_users = 0
    if quick:
        config.als.factors = config.autoencoder.factors = 16
    return config


def compare(configs: list[ConfigDict], workdir: pathlib.Path, rates: list[float]) -> dict[str, Any]:
    """Figures of a configuration with several seeds."""
    name, cut = configs[0].name, configuration.evaluation_config(configs[0]).k[0]
    seen = [one_seed(config, workdir, rates) for config in configs]
    found: dict[str, Any] = {"metric": f"ndcg@{cut}", "seeds": len(seen)}
    for row in seen[0]:
        values = np.array([one[row] for one in seen])
        if values.ndim == 1:
            found[row] = float(values.mean())
            print(f"{name}: {row} {found[row]:,.0f}", flush=True)
            continue
        found[row] = values.mean(axis=1).tolist()
        text = f"{values.mean():.4f} (" + ", ".join(f"{x:.4f}" for x in found[row]) + ")"
        if row not in ("factors", "ease"):
            text += f"; over the factors {interval(values, [x['factors'] for x in seen])}"
        elif row == "factors" and "ease" in seen[0]:
            found["over ease"] = difference(values, [x["ease"] for x in seen])[:3]
            text += f"; over EASE {interval(values, [x['ease'] for x in seen])}"
        print(f"{name}: {found['metric']} {row} {text}", flush=True)
    return found


def interval(ours: np.ndarray, theirs: list[np.ndarray]) -> str:
    """A difference as text."""
    mean, low, high, *_ = difference(ours, theirs)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def difference(ours: np.ndarray, theirs: list[np.ndarray]) -> Interval:
    """The difference of [S, U] values of each seed and user, over both."""
    sides = (np.asarray(side) for side in (ours, theirs))
    return bootstrap.difference(
        *(bootstrap.means(x, np.arange(x.shape[1]), tuple(range(len(x)))) for x in sides)
    )


def one_seed(config: ConfigDict, workdir: pathlib.Path, rates: list[float]) -> dict[str, Any]:
    """The NDCG of each test user by row of the table, and bytes."""
    run = Run(config, workdir, say=lambda line: None)
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    table, cut = open_table(prepared.path), configuration.evaluation_config(config).k[0]
    factors = open_factors(factorize_stage(run, prepared).path)
    found: dict[str, Any] = {}
    for bits in BITS:
        stored, size = packed_factors(factors, bits)
        found["factors" if bits == 32 else f"{bits} bits"] = by_factors(stored, table, cut)
        found[f"bytes of factors, {bits} bits"] = size
    if not registry.RIVALS[EASE].why_not(table):
        scorer, settings = best_ease(table, cut)
        print(f"{config.name}, seed {config.seed}: EASE with {settings}", flush=True)
        found["ease"] = by_user(scorer, table, cut)
    for rate in rates:
        found |= sampled(run, rate)
    return found


def best_ease(table: Table, cut: int) -> tuple[Scorer, dict[str, Any]]:
    """EASE with the settings that validate best among all items."""
    rival, seen = registry.RIVALS[EASE], without_test(table)
    fit = rival.open(Given(seen))

    def quality(scorer: Scorer) -> float:
        return evaluate.rank_users(scorer, seen, "validation").quality((cut,))[f"ndcg@{cut}"]

    log = search.TrialLog([axis.name for axis in rival.axes])
    chosen = search.best(rival, fit, quality, log, TRIALS, say=lambda line: None)
    return fit(chosen.settings), chosen.settings


def packed_factors(factors: Factors, bits: int) -> tuple[Factors, int]:
    """The factors as they are stored in so many bits, and the bytes of their files."""
    tables, size = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            file = pathlib.Path(folder) / f"{side}.parquet"
            columns = quantized(side, np.asarray(getattr(factors, side)), bits)
            packed.pack(file, columns)
            tables[side] = dequantize(columns[side], columns.get(f"{side}_scale"))
            size += file.stat().st_size
    return dataclasses.replace(factors, **tables), size


def sampled(run: Run, rate: float) -> dict[str, Any]:
    """The frozen network's NDCG of each test user, and the bytes of the kept rows."""
    config = run.config.copy_and_resolve_references()
    config.rate, config.factor_bits = rate, 8
    run = dataclasses.replace(run, config=config)
    inputs = compressed.make_inputs(run, stages.prepare_stage(run, stages.raw_data(run)))
    made = experiment.arm_row(run, inputs, "two_tower", CADC_FROZEN)
    ranks = np.load(run.workdir / "evaluate" / made["evaluation"] / "ranks_full.npy")
    table = open_table(inputs.prepared.path)
    test = table.splits["test"]
    ranking = evaluate.metrics.UserRankings.of_ranks(
        ranks, test["user"], test["item"], table.schema.num_items
    )
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        compressed.pack_rows(inputs.prepared.path, inputs.sample.path, out)
        size = sum(file.stat().st_size for file in out.iterdir())
    name, cut = f"rate {rate:g}", configuration.evaluation_config(config).k[0]
    print(f"{config.name}, seed {config.seed}, {name}: best step {made['best_step']}", flush=True)
    return {name: ranking.ndcg(cut), f"bytes of kept rows, {name}": size}


def by_factors(factors: Factors, table: Table, cut: int) -> np.ndarray:
    """Each test user's NDCG, ranked by the dot products of factors."""
    user, item = (np.asarray(getattr(factors, side)) for side in SIDES)
    return by_user(scorers.factors(user, item, calibrated=False), table, cut)


def by_user(scorer: Scorer, table: Table, cut: int) -> np.ndarray:
    """Each test user's NDCG among all items."""
    found = evaluate.rank_users(scorer, table, "test")
    return evaluate.metrics.UserRankings.of_ranks(
        found.ranks, found.user, found.item, len(found.best)
    ).ndcg(cut)


if __name__ == "__main__":
    main()
