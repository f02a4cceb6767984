"""Quality of the factorisations on MovieLens: rankings of implicit data, errors of ratings.

    pip install -e '.[bench]'
    CADC_DATA_DIR=/raw/data python benchmarks/factorization_quality.py [--quick] [--json FILE]

ml-1m: the NCF split and its 1 + 99 protocol. Each candidate setting is fitted without one seeded
training item a user and ranks that item; the best one is fitted again on all training rows and
only then scored on the test items. ml-100k: ratings in five seeded random folds; settings are
chosen inside the training rows of the first fold. The peer, `cmfrec`, gets the same treatment.
"""

import argparse
import json
import os
import pathlib
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax import metrics
from cadc_jax.data import prepare, splits
from cadc_jax.data.negatives import draw_for_evaluation, pair_keys
from cadc_jax.data.raw import TEST, TRAIN, VALIDATION
from cadc_jax.data.readers import movielens, tabular
from cadc_jax.evaluation import ranking
from cadc_jax.factorization import als, sgd
from cadc_jax.factorization.factors import scores
from cadc_jax.factorization.interactions import Interactions

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = pathlib.Path(os.environ.get("CADC_DATA_DIR", ROOT.parent / "shared" / "data"))

ALS_SETTINGS = [
    als.ALSConfig(factors=64, regularization=30.0, alpha=9.0),
    als.ALSConfig(factors=64, regularization=30.0, alpha=9.0, dtype="bfloat16"),
    als.ALSConfig(factors=128, regularization=0.04, alpha=4.0, frequency_exponent=1.0),
    als.ALSConfig(factors=192, regularization=0.03, alpha=4.0, frequency_exponent=1.0),
    als.ALSConfig(factors=192, regularization=0.04, alpha=4.0, frequency_exponent=1.0),
]
SGD_SETTINGS = [
    sgd.SGDConfig(epochs=15, learning_rate=0.1, regularization=r, negatives=8)
    for r in (0.003, 0.006)
]
RATING_SETTINGS = [(rank, reg) for rank in (20, 40) for reg in (0.08, 0.1, 0.12, 0.15)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ALS of 64 factors, two rating folds")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    rows = []
    if (DATA / "ml-1m-implicit").is_dir():
        rows += rankings(arguments.quick)
    else:
        print(f"skipped: {DATA / 'ml-1m-implicit'} is missing")
    if (DATA / "ml-100k").is_dir():
        rows += ratings(arguments.quick)
    else:
        print(f"skipped: {DATA / 'ml-100k'} is missing")
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        result = {"machine": machine, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1))


def rankings(quick: bool) -> list[dict]:
    """HR@10 and NDCG@10 of the best ALS and the best SGD by validation."""
    raw = tabular.read_rows(
        DATA / "ml-1m-implicit",
        "train.csv.gz",
        tabular.ColumnNames("user_id", "item_id"),
        test="test.csv",
        negatives="test_negatives.csv.gz",
    )
    fold = splits.assign(raw, "given", 0, 0, seed=0)
    everything = np.concatenate([raw.item, raw.negatives.ravel()])
    users, items = prepare.vocabulary(raw.user, 1), prepare.vocabulary(everything, 1)
    user, item = prepare.encode(raw.user, users), prepare.encode(raw.item, items)
    shape = len(users) + 1, len(items) + 1
    rated = np.unique(item[fold == TRAIN])  # validation draws among items that train
    seen = np.unique(pair_keys(user, item, shape[1]))
    unrated = np.setdiff1d(np.arange(1, shape[1]), rated)
    never = pair_keys(
        np.repeat(np.arange(1, shape[0]), len(unrated)), np.tile(unrated, shape[0] - 1), shape[1]
    )
    held = fold == VALIDATION
    validation = draw_for_evaluation(
        user[held], np.union1d(seen, never), shape[1], 99, seed=VALIDATION
    )
    test = prepare.encode(raw.negatives.ravel(), items).reshape(raw.negatives.shape)

    def quality(factors, rows, negatives):
        def score(u, i):
            return scores(factors, jnp.asarray(u)[:, None], jnp.asarray(i))

        ranks = ranking.sampled_ranks(score, user[rows], item[rows], negatives, 512)
        return {"hr@10": metrics.hit_rate(ranks, 10), "ndcg@10": metrics.ndcg(ranks, 10)}

    def fit(config, rows):
        if isinstance(config, als.ALSConfig):
            matrix = Interactions.from_rows(user[rows], item[rows], *shape)
            return als.fit(matrix, config, jax.random.key(0))[0]
        return sgd.fit(user[rows], item[rows], *shape, config, jax.random.key(0))[0]

    table = []
    for name, settings in (("als", ALS_SETTINGS), ("sgd", SGD_SETTINGS)):
        if quick:
            settings = settings[:2] if name == "als" else []
        found = []
        for config in settings:
            start = time.perf_counter()
            factors = fit(config, fold == TRAIN)
            seconds = time.perf_counter() - start
            value = float(quality(factors, held, validation)["ndcg@10"])
            found.append((value, config))
            print(f"ml-1m {name}: validation ndcg@10 {value:.4f}, {seconds:.1f} s, {config}")
        if not found:
            continue
        value, config = max(found, key=lambda pair: pair[0])
        start = time.perf_counter()
        factors = jax.block_until_ready(fit(config, fold != TEST))
        seconds = time.perf_counter() - start
        result = {k: float(v) for k, v in quality(factors, fold == TEST, test).items()}
        print(f"ml-1m {name}, best by validation, refitted: test {result}, {seconds:.1f} s")
        table += [
            {"case": f"ml-1m {name}", "metric": f"{k}/1+99 (larger is better)", "ours": v}
            for k, v in result.items()
        ]
        table.append({"case": f"ml-1m {name}", "metric": "seconds of the fit", "ours": seconds})
    return table


def ratings(quick: bool) -> list[dict]:
    """RMSE over five folds, ours and cmfrec's."""
    raw = movielens.read_movielens(DATA / "ml-100k", "100k")
    user = np.unique(raw.user, return_inverse=True)[1]
    item = np.unique(raw.item, return_inverse=True)[1]
    part = np.random.default_rng(0).permutation(len(user)) % 5
    inner = np.random.default_rng(1).permutation(len(user)) % 10 == 0  # of the training rows

    def ours(rank, regularization, train, test):
        config = als.ALSConfig(
            factors=rank,
            regularization=regularization,
            frequency_exponent=1.0,
            feedback="explicit",
        )
        matrix = Interactions.from_rows(
            user[train], item[train], user.max() + 1, item.max() + 1, raw.value[train]
        )
        factors, _ = als.fit(matrix, config, jax.random.key(0))
        return np.asarray(scores(factors, user[test], item[test]))

    def peer(rank, regularization, train, test):
        import cmfrec
        import pandas

        frame = pandas.DataFrame(
            {"UserId": user[train], "ItemId": item[train], "Rating": raw.value[train]}
        )
        model = cmfrec.CMF(
            k=rank, lambda_=regularization, scale_lam=True, niter=15, verbose=False, nthreads=2
        )
        return model.fit(frame).predict(user[test], item[test])

    def error(predict, setting, train, test):
        predicted = np.clip(predict(*setting, train, test), 1, 5)
        return float(np.sqrt(np.mean((predicted - raw.value[test]) ** 2)))

    result = {}
    for name, predict in (("ours", ours), ("cmfrec", peer)):
        first = part != 0
        settings = {s: error(predict, s, first & ~inner, first & inner) for s in RATING_SETTINGS}
        best = min(settings, key=settings.get)
        folds = range(2 if quick else 5)
        errors = [error(predict, best, part != fold, part == fold) for fold in folds]
        result[name] = float(np.mean(errors))
        print(
            f"ml-100k {name}: rmse {np.mean(errors):.4f}, folds "
            f"{' '.join(f'{e:.4f}' for e in errors)}; factors and regularization {best}"
        )
    return [
        {
            "case": "ml-100k explicit als",
            "metric": "rmse",
            "ours": result["ours"],
            "peer": result["cmfrec"],
            "peer_name": "cmfrec",
            "ratio": result["ours"] / result["cmfrec"],
        }
    ]


if __name__ == "__main__":
    main()
