"""Quality of the factorisations on MovieLens: rankings of implicit data, errors of ratings.

    pip install -e '.[bench]'
    CADC_DATA_DIR=/raw/data python benchmarks/factorization_quality.py [--quick] [--json FILE]

ml-1m: the NCF split and its 1 + 99 protocol. Each candidate setting is fitted without one seeded
training item a user, and ranks that item. The best setting is fitted again on all training rows and
only then scored on the test items. ml-100k: ratings in five seeded random folds. Settings are
chosen inside the training rows of the first fold. The peer, `cmfrec`, gets the same treatment.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax import metrics
from cadc_jax.data import splits, vocabulary
from cadc_jax.data.negatives import draw_for_evaluation, pair_keys
from cadc_jax.data.raw import TEST, TRAIN, VALIDATION
from cadc_jax.data.readers import movielens, tabular
from cadc_jax.evaluation import ranking
from cadc_jax.factorization import als, sgd
from cadc_jax.factorization.factors import Factors, scores
from cadc_jax.factorization.interactions import Interactions

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = pathlib.Path(os.environ.get("CADC_DATA_DIR", ROOT.parent / "shared" / "data"))

Setting = als.ALSConfig | sgd.SGDConfig
ALS_SETTINGS = [
    als.ALSConfig(factors=64, regularization=0.344, alpha=9.0),
    als.ALSConfig(factors=64, regularization=0.344, alpha=9.0, dtype="bfloat16"),
    als.ALSConfig(factors=128, regularization=0.955, alpha=4.0, frequency_exponent=1.0),
    als.ALSConfig(factors=192, regularization=0.716, alpha=4.0, frequency_exponent=1.0),
    als.ALSConfig(factors=192, regularization=0.955, alpha=4.0, frequency_exponent=1.0),
]
SGD_SETTINGS = [
    sgd.SGDConfig(epochs=15, learning_rate=0.1, regularization=r, negatives=8)
    for r in (0.003, 0.006)
]
RATING_SETTINGS = [(rank, reg) for rank in (20, 40) for reg in (0.08, 0.1, 0.12, 0.15)]


def main() -> None:
    """Runs each comparison whose data is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ALS of 64 factors, two rating folds")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    rows = []
    for name, compare in (("ml-1m-implicit", compare_rankings), ("ml-100k", compare_ratings)):
        if (DATA / name).is_dir():
            rows += compare(DATA / name, arguments.quick)
        else:
            print(f"skipped: {DATA / name} is missing")
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        result = {"machine": machine, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1))


@dataclasses.dataclass(frozen=True)
class RankingData:
    """Positive rows with a split, and the items that held-out ones are ranked against.

    Attributes:
      user: [N] int32 user ids.
      item: [N] int32 item ids.
      shape: (U, I).
      fold: [N] of TRAIN, VALIDATION and TEST.
      negatives: VALIDATION or TEST -> [rows of that fold, 99] item ids.
    """

    user: np.ndarray
    item: np.ndarray
    shape: tuple[int, int]
    fold: np.ndarray
    negatives: dict[int, np.ndarray]


def compare_rankings(folder: pathlib.Path, quick: bool) -> list[dict]:
    """HR@10 and NDCG@10 of the best ALS setting and the best SGD setting by validation."""
    data = read_rankings(folder)
    rows = test_best_setting(data, "als", ALS_SETTINGS[:2] if quick else ALS_SETTINGS)
    return rows if quick else rows + test_best_setting(data, "sgd", SGD_SETTINGS)


def read_rankings(folder: pathlib.Path) -> RankingData:
    """The rows of ml-1m with the NCF split; one seeded training row of each user validates."""
    raw = tabular.read_rows(
        folder,
        "train.csv.gz",
        tabular.ColumnNames("user_id", "item_id"),
        test="test.csv",
        negatives="test_negatives.csv.gz",
    )
    fold = splits.assign(raw, "given", 0, 0, seed=0)
    users = vocabulary.of(raw.user)
    items = vocabulary.of(np.concatenate([raw.item, raw.negatives.items]))
    user, item = users.ids(raw.user), items.ids(raw.item)
    test = items.ids(raw.negatives.items)[raw.negatives.places]

    # Validation draws only items that some training row has.
    untrained = np.setdiff1d(np.arange(1, items.size), item[fold == TRAIN])
    excluded = pair_keys(
        np.repeat(np.arange(1, users.size), len(untrained)),
        np.tile(untrained, users.size - 1),
        items.size,
    )
    seen = np.union1d(pair_keys(user, item, items.size), excluded)
    held_out = user[fold == VALIDATION]
    validation = draw_for_evaluation(held_out, seen, items.size, 99, seed=VALIDATION)
    shape = users.size, items.size
    return RankingData(user, item, shape, fold, {VALIDATION: validation, TEST: test})


def test_best_setting(data: RankingData, name: str, settings: Sequence[Setting]) -> list[dict]:
    """Fits each setting, and scores the best one by validation on the test rows."""
    found = []
    for setting in settings:
        start = time.perf_counter()
        factors = fit(data, setting, data.fold == TRAIN)
        seconds = time.perf_counter() - start
        value = quality(data, factors, VALIDATION)["ndcg@10"]
        found.append((value, setting))
        print(f"ml-1m {name}: validation ndcg@10 {value:.4f}, {seconds:.1f} s, {setting}")
    _, best = max(found, key=lambda pair: pair[0])
    start = time.perf_counter()
    factors = jax.block_until_ready(fit(data, best, data.fold != TEST))
    seconds = time.perf_counter() - start
    result = quality(data, factors, TEST)
    print(f"ml-1m {name}, best by validation, refitted: test {result}, {seconds:.1f} s")
    figures = {f"{k}/1+99 (larger is better)": v for k, v in result.items()}
    figures["seconds of the fit"] = seconds
    return [{"case": f"ml-1m {name}", "metric": k, "ours": v} for k, v in figures.items()]


def fit(data: RankingData, setting: Setting, chosen: np.ndarray) -> Factors:
    """Factors of the chosen rows."""
    user, item = data.user[chosen], data.item[chosen]
    key = jax.random.key(0)
    if isinstance(setting, als.ALSConfig):
        return als.fit(Interactions.from_rows(user, item, *data.shape), setting, key)[0]
    return sgd.fit(sgd.TrainingRows(user, item, *data.shape), setting, key)[0]


def quality(data: RankingData, factors: Factors, fold: int) -> dict[str, float]:
    """HR@10 and NDCG@10 of the rows of a fold among their negatives."""

    def score(user: np.ndarray, item: np.ndarray) -> jax.Array:
        return scores(factors, jnp.asarray(user)[:, None], jnp.asarray(item))

    rows = data.fold == fold
    user, item, negatives = data.user[rows], data.item[rows], data.negatives[fold]
    ranks = ranking.sampled_ranks(score, user, item, negatives, 512)
    return {
        "hr@10": float(metrics.hit_rate(ranks, 10)),
        "ndcg@10": float(metrics.ndcg(ranks, 10)),
    }


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Ratings: user [N] and item [N] from 0 on, value [N]."""

    user: np.ndarray
    item: np.ndarray
    value: np.ndarray


# ratings, (factors, regularization), rows to train on, rows to predict -> predicted values
Predict = Callable[[Ratings, tuple[int, float], np.ndarray, np.ndarray], np.ndarray]


def compare_ratings(folder: pathlib.Path, quick: bool) -> list[dict]:
    """RMSE over five folds of ours and of cmfrec."""
    raw = movielens.read_movielens(folder, "100k")
    user, item = (np.unique(x, return_inverse=True)[1] for x in (raw.user, raw.item))
    ratings = Ratings(user, item, raw.value)
    folds = 2 if quick else 5
    ours = mean_error(ratings, "ours", predict_by_als, folds)
    peer = mean_error(ratings, "cmfrec", predict_by_cmfrec, folds)
    return [
        {
            "case": "ml-100k explicit als",
            "metric": "rmse",
            "ours": ours,
            "peer": peer,
            "peer_name": "cmfrec",
            "ratio": ours / peer,
        }
    ]


def mean_error(ratings: Ratings, name: str, predict: Predict, folds: int) -> float:
    """Mean RMSE over folds, with the setting that is best inside the first fold's training rows."""
    rows = len(ratings.user)
    part = np.random.default_rng(0).permutation(rows) % 5
    validation = np.random.default_rng(1).permutation(rows) % 10 == 0

    def error(setting: tuple[int, float], train: np.ndarray, test: np.ndarray) -> float:
        predicted = np.clip(predict(ratings, setting, train, test), 1, 5)
        return float(np.sqrt(np.mean((predicted - ratings.value[test]) ** 2)))

    first = part != 0
    found = {s: error(s, first & ~validation, first & validation) for s in RATING_SETTINGS}
    best = min(found, key=lambda setting: found[setting])
    errors = [error(best, part != fold, part == fold) for fold in range(folds)]
    print(
        f"ml-100k {name}: rmse {np.mean(errors):.4f}, folds "
        f"{' '.join(f'{e:.4f}' for e in errors)}; factors and regularization {best}"
    )
    return float(np.mean(errors))


def predict_by_als(
    ratings: Ratings, setting: tuple[int, float], train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Predictions of explicit ALS."""
    factors, regularization = setting
    config = als.ALSConfig(
        factors=factors,
        regularization=regularization,
        frequency_exponent=1.0,
        feedback="explicit",
    )
    user, item = ratings.user, ratings.item
    shape = user.max() + 1, item.max() + 1
    matrix = Interactions.from_rows(user[train], item[train], *shape, ratings.value[train])
    fitted, _ = als.fit(matrix, config, jax.random.key(0))
    return np.asarray(scores(fitted, user[test], item[test]))


def predict_by_cmfrec(
    ratings: Ratings, setting: tuple[int, float], train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Predictions of cmfrec."""
    import cmfrec
    import pandas

    factors, regularization = setting
    user, item = ratings.user, ratings.item
    frame = pandas.DataFrame(
        {"UserId": user[train], "ItemId": item[train], "Rating": ratings.value[train]}
    )
    model = cmfrec.CMF(
        k=factors, lambda_=regularization, scale_lam=True, niter=15, verbose=False, nthreads=2
    )
    return model.fit(frame).predict(user[test], item[test])


if __name__ == "__main__":
    main()
