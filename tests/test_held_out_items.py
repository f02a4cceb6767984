"""Several held-out items a user, from the log to the report: the metrics are those of each user."""

import json
import math

import numpy as np
import pytest

from cadc_jax import configuration, experiment
from cadc_jax.data.table import open_table
from cadc_jax.run import compressed
from cadc_jax.run.factor_files import open_factors
from cadc_jax.serving import recommend, trained
from tests.small_runs import quiet

K = 3
TRAIN = "1,1 1,2 2,1 2,2 2,3 3,1 3,3 4,1 4,2 4,4 4,5"  # items 1 to 5 have 4, 3, 2, 1 and 1 rows
FILES = {"train": TRAIN, "validation": "1,3 2,4", "test": "1,4 1,5 2,5 3,2 3,4"}


def small_config(folder, rule):
    """A configuration whose network is as small as can be, without a log."""
    config = configuration.default_config()
    config.name, config.rate, config.arms = "several", 1.0, ("cadc_frozen",)
    config.data.update(path=str(folder), split=rule, num_negatives=0, validation=0.25, test=0.25)
    config.als.update(factors=2, iterations=2, regularization=1.0, alpha=9.0)
    config.two_tower.hidden = (2,)
    config.train.update(batch_rows=64, max_evaluations=1, negatives=1)
    config.evaluation.update(k=(2, K), ranking="full")
    return config


def given_config(folder, names=tuple(FILES)):
    """The log FILES, split by files."""
    config = small_config(folder, "given")
    for name in names:
        lines = FILES[name].replace(" ", "\n")
        (folder / f"{name}.csv").write_text(f"user_id,item_id\n{lines}\n")
        config.data[f"{name}_file"] = f"{name}.csv"
    return config


def drawn_config(folder, rule):
    """A log of 24 users with 2 to 13 of 20 items each, in the order of time."""
    rng = np.random.default_rng(0)
    pairs = [(u, i) for u in range(24) for i in rng.permutation(20)[: 2 + u % 12]]
    lines = [f"{u},{i},{when}" for when, (u, i) in enumerate(rng.permutation(pairs))]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,time", *lines]))
    config = small_config(folder, rule)
    config.data.train_file, config.data.columns.timestamp = "log.csv", "time"
    return config


def run(config, workdir):
    """The metrics of the two scorers without a network, the table, and the folder of factors."""
    experiment.run(experiment.Run(config, workdir, quiet))
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    (prepared,), (factors,) = ((workdir / x).iterdir() for x in ("prepare", "factorize"))
    return {row["arm"]: row["metrics"] for row in rows}, open_table(prepared), factors


def items_by_user(*parts):
    found = {}
    for rows in parts:
        for user, item in zip(rows["user"].tolist(), rows["item"].tolist(), strict=True):
            found.setdefault(user, []).append(item)
    return found


def expected(table, scores):
    """Metrics at K by their definitions, of scores [U, I]; ties count against the model."""
    parts = table.splits
    known = items_by_user(*(rows for name, rows in parts.items() if name != "test"))
    found = []
    for user, items in items_by_user(parts["test"]).items():
        left = set(range(1, scores.shape[1])) - set(known.get(user, [])) - set(items)
        ranks = sorted(
            sum(scores[user, other] >= scores[user, item] for other in left) if item else math.inf
            for item in items
        )
        places = [1 + rank + j for j, rank in enumerate(ranks)]
        hits = [place for place in places if place <= K]
        best = sum(1 / math.log2(1 + place) for place in range(1, 1 + min(K, len(items))))
        found.append(
            {
                f"ndcg@{K}": sum(1 / math.log2(1 + place) for place in hits) / best,
                f"recall@{K}": len(hits) / len(items),
                f"hit@{K}": float(bool(hits)),
                "mrr": 1 / places[0],
            }
        )
    return {name: np.mean([metrics[name] for metrics in found]) for name in found[0]}


def assert_as_defined(metrics, table, factors):
    found = open_factors(factors)
    user, item = found.user, found.item
    counts = np.tile(table.items["count"], (len(user), 1))
    for arm, scores in (("popularity", counts), ("mf_alone", user @ item.T)):
        for name, value in expected(table, scores).items():
            assert metrics[arm][name] == pytest.approx(value, rel=1e-4), (arm, name)


def most_items_of_a_user(rows):
    return np.bincount(rows["user"]).max()


def test_metrics_of_a_given_split_with_validation_rows_by_hand(tmp_path):
    """By popularity, user 1 is left with 4 and 5, both held out. User 2 is left with 5. User 3 is
    left with 2, 4 and 5; of these, 4 ties with 5 and is behind it."""
    metrics, table, factors = run(given_config(tmp_path), tmp_path / "work")
    second = 1 / math.log2(3)
    found = {name: x for name, x in metrics["popularity"].items() if "/" not in name}
    assert found == pytest.approx(
        {
            "ndcg@2": (1 + 1 + 1 / (1 + second)) / 3,
            "recall@2": (1 + 1 + 0.5) / 3,
            "hit@2": 1,
            "map@2": (1 + 1 + 0.5) / 3,
            "hr@2": 4 / 5,
            f"ndcg@{K}": (1 + 1 + (1 + 0.5) / (1 + second)) / 3,
            f"recall@{K}": 1,
            f"hit@{K}": 1,
            f"map@{K}": (1 + 1 + (1 + 2 / 3) / 2) / 3,
            f"hr@{K}": 1,
            "mrr": 1,
            "coverage@2": 3 / 5,
            f"coverage@{K}": 3 / 5,
        }
    )
    assert_as_defined(metrics, table, factors)


def test_a_given_split_without_validation_rows_takes_one_of_each_test_user(tmp_path):
    metrics, table, factors = run(given_config(tmp_path, ("train", "test")), tmp_path / "work")
    assert sorted(items_by_user(table.splits["validation"])) == [1, 2, 3]
    assert most_items_of_a_user(table.splits["validation"]) == 1
    assert most_items_of_a_user(table.splits["test"]) == 2
    assert_as_defined(metrics, table, factors)


@pytest.mark.parametrize("rule", ["last_share", "random", "time", "users"])
def test_metrics_are_as_defined_whatever_the_split(tmp_path, rule):
    metrics, table, factors = run(drawn_config(tmp_path, rule), tmp_path / "work")
    for split in ("validation", "test"):
        assert most_items_of_a_user(table.splits[split]) > 1
    assert_as_defined(metrics, table, factors)


# Users held out whole.


def test_arms_without_vectors_of_held_out_users_are_left_out_and_named(tmp_path):
    config, said = drawn_config(tmp_path, "users"), []
    config.arms = ("full", "cadc_frozen", "cadc_trainable")
    experiment.run(experiment.Run(config, tmp_path / "work", said.append))
    (line,) = (line for line in said if "left out" in line and line.startswith(" "))
    assert line.strip().startswith("left out: full, which learn a user's vector from training rows")
    rows = json.loads((tmp_path / "work" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows][2:] == ["cadc_frozen", "cadc_trainable"]
    report = (tmp_path / "work" / "report.md").read_text()
    assert "Test users are in no training row" in report and "fold_in" in report


def test_a_held_out_user_is_recommended_none_of_its_known_items(tmp_path):
    run(drawn_config(tmp_path, "users"), tmp_path / "work")
    model = trained.open_trained(tmp_path / "work")
    rows = model.table.splits["fold_in"]
    users = np.unique(rows["user"])
    known = items_by_user(rows)
    for _, scores, ids in recommend.blocks(model, users, 20):
        assert np.isfinite(scores[ids > 0]).all()
        for user, items in zip(users, ids, strict=True):
            left = set(range(1, model.table.schema.num_items)) - set(known[user])
            assert set(items[items > 0].tolist()) == left


def test_a_compressed_data_set_holds_what_held_out_users_need(tmp_path):
    config, out = drawn_config(tmp_path, "users"), tmp_path / "compressed"
    metrics, _, _ = run(config, tmp_path / "work")
    experiment.compress(experiment.Run(config, tmp_path / "work", quiet), out)
    given = compressed.open_compressed(out)
    experiment.train_from(experiment.Run(given.config, tmp_path / "again", quiet), given)
    rows = json.loads((tmp_path / "again" / "results.json").read_text())["rows"]
    for row in rows:
        assert row["metrics"] == pytest.approx(metrics[row["arm"]])
