"""Evaluation of scorers: blocks, padding, protocols and the names of metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from cadc_jax import metrics, sharding
from cadc_jax.data.table import Features, Schema, Table
from cadc_jax.errors import ConfigError, TrainingError
from cadc_jax.evaluation import evaluate
from cadc_jax.evaluation.evaluate import EvaluationConfig, FullRanking
from cadc_jax.evaluation.scorers import Scorer

ROWS = {
    "user": np.arange(5, dtype=np.int32),
    "item": np.array([1, 2, 1, 2, 1], np.int32),
    "label": np.array([0, 1, 0, 1, 1], np.float32),
    "dense": np.array([[0.1], [0.9], [0.8], [0.7], [0.6]], np.float32),
    "categorical": np.zeros((5, 0), np.int32),
}


BY_DENSE = Scorer(lambda batch: batch["dense"])
UNCALIBRATED = Scorer(BY_DENSE.score, calibrated=False)


# Clicks.


@pytest.mark.parametrize("block", [1, 2, 3, 5, 100])
def test_padding_of_the_last_block_counts_nowhere(monkeypatch, block):
    monkeypatch.setattr(evaluate, "CLICK_BLOCK", block)
    quality = evaluate.evaluate_clicks(BY_DENSE, ROWS)
    assert quality["auc"] == pytest.approx(4 / 6)
    logits, labels = ROWS["dense"][:, 0], ROWS["label"]
    expected = np.mean(np.log1p(np.exp(-logits)) + (1 - labels) * logits)
    assert quality["logloss"] == pytest.approx(expected, rel=1e-5)
    assert quality["calibration"] == pytest.approx(np.sum(1 / (1 + np.exp(-logits))) / 3)


def click_rows(n, seed=0):
    """Rows with their logit as dense feature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=n).astype(np.float32)
    return {
        "user": np.zeros(n, np.int32),
        "item": np.zeros(n, np.int32),
        "label": (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(np.float32),
        "dense": logits[:, None],
    }


def test_clicks_of_many_blocks_are_rated_as_scikit_learn_rates_them():
    rows = click_rows(2 * evaluate.CLICK_BLOCK + 123)
    logits = rows["dense"][:, 0]
    quality = evaluate.evaluate_clicks(BY_DENSE, rows)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert quality == {
        "auc": pytest.approx(sklearn.metrics.roc_auc_score(rows["label"], logits), abs=1e-5),
        "logloss": pytest.approx(sklearn.metrics.log_loss(rows["label"], probability), rel=1e-5),
        "calibration": pytest.approx(probability.mean() / rows["label"].mean(), rel=1e-5),
    }


@pytest.mark.parametrize(("scorer", "first"), [(BY_DENSE, "logloss"), (UNCALIBRATED, "auc")])
def test_the_metric_that_choices_are_made_by_is_the_first_of_a_validation(scorer, first):
    table = Table(Schema("click", 5, 3, *[Features()] * 3), {"validation": ROWS}, {}, {}, {})
    found = evaluate.validation_quality(scorer, table, EvaluationConfig())
    assert next(iter(found)) == first
    assert found == evaluate.evaluate_clicks(scorer, ROWS)


def test_a_validation_takes_as_many_rows_as_it_is_told(monkeypatch):
    table = Table(Schema("click", 5, 3, *[Features()] * 3), {"validation": ROWS}, {}, {}, {})
    found = evaluate.validation_quality(BY_DENSE, table, EvaluationConfig(max_rows=2))
    places = np.array([0, 2])
    assert found == evaluate.evaluate_clicks(BY_DENSE, {k: x[places] for k, x in ROWS.items()})


def test_a_split_too_large_to_sort_is_rated_within_the_stated_error(monkeypatch):
    rows = click_rows(4 * evaluate.CLICK_BLOCK + 123)
    exact = evaluate.evaluate_clicks(BY_DENSE, rows)
    monkeypatch.setattr(evaluate, "EXACT_ROWS", 20_000)
    monkeypatch.setattr(evaluate, "EDGE_ROWS", 1000)
    streamed = evaluate.evaluate_clicks(BY_DENSE, rows)
    error = streamed.pop("auc_error")
    assert 0 < error < 1 / 1000
    assert streamed.pop("auc") == pytest.approx(exact.pop("auc"), abs=error + 1e-6)
    assert streamed == exact


def test_the_scores_of_a_drifting_split_are_all_resolved(monkeypatch):
    """Bins made by the first rows alone would hold none of the last."""
    rows = click_rows(20_000)
    rows["dense"] += np.linspace(0, 50, 20_000, dtype=np.float32)[:, None]
    monkeypatch.setattr(evaluate, "EXACT_ROWS", 0)
    monkeypatch.setattr(evaluate, "EDGE_ROWS", 1000)
    assert evaluate.evaluate_clicks(BY_DENSE, rows)["auc_error"] < 1 / 1000


def test_a_constant_score_has_no_error_beyond_the_size_that_is_sorted(monkeypatch):
    monkeypatch.setattr(evaluate, "EXACT_ROWS", 0)
    rows = click_rows(100)
    rows["dense"][:] = 0.3
    quality = evaluate.evaluate_clicks(UNCALIBRATED, rows)
    assert quality == {"auc": 0.5, "auc_error": 0}


def test_a_large_split_is_read_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(evaluate, "EXACT_ROWS", 1000)

    class OnDisk:
        def __init__(self, column):
            self.column = column

        def __len__(self):
            return len(self.column)

        def __getitem__(self, places):
            assert len(places) == evaluate.CLICK_BLOCK
            return self.column[places]

        def __array__(self, *args, **kwargs):
            raise AssertionError("the whole column is read")

    rows = {name: OnDisk(column) for name, column in click_rows(30_000).items()}
    assert 0.6 < evaluate.evaluate_clicks(BY_DENSE, rows)["auc"] < 0.8


def test_scores_that_lie_on_eight_devices_are_rated_alike(monkeypatch):
    rows = click_rows(20_000)
    split = sharding.named(sharding.make_mesh(), sharding.BATCH)
    for exact_rows in (20_000, 0):
        monkeypatch.setattr(evaluate, "EXACT_ROWS", exact_rows)
        one = evaluate.evaluate_clicks(BY_DENSE, rows)
        spread = Scorer(lambda batch: jax.device_put(batch["dense"], split))
        eight = evaluate.evaluate_clicks(spread, rows)
        assert eight == pytest.approx(one, rel=1e-6)


def test_a_scorer_sees_blocks_of_one_shape_with_an_item_a_row(monkeypatch):
    monkeypatch.setattr(evaluate, "CLICK_BLOCK", 2)
    shapes = []

    def score(batch):
        shapes.append({name: x.shape for name, x in batch.items()})
        return jnp.zeros(batch["item"].shape)

    evaluate.evaluate_clicks(Scorer(score), {**ROWS, "negatives": np.zeros((5, 9), np.int32)})
    block = {"user": (2,), "item": (2, 1), "dense": (2, 1), "categorical": (2, 0)}
    assert shapes == [block] * 3


@pytest.mark.parametrize("exact_rows", [0, 100])
def test_scores_of_all_rows_are_handed_out_in_order(monkeypatch, exact_rows):
    monkeypatch.setattr(evaluate, "CLICK_BLOCK", 2)
    monkeypatch.setattr(evaluate, "EXACT_ROWS", exact_rows)
    monkeypatch.setattr(evaluate, "EDGE_ROWS", 4)
    kept = []
    evaluate.evaluate_clicks(BY_DENSE, ROWS, keep=kept.append)
    np.testing.assert_array_equal(np.concatenate(kept), ROWS["dense"][:, 0])


def test_scores_that_are_no_logits_have_no_log_loss():
    assert set(evaluate.evaluate_clicks(UNCALIBRATED, ROWS)) == {"auc"}


# Rankings.


def ranking_table(users=40, items=30):
    """Each user trains on item 1, validates on 2 and tests on 5, with negatives above 5."""
    rng = np.random.default_rng(0)

    def split(item):
        return {
            "user": np.arange(1, users, dtype=np.int32),
            "item": np.full(users - 1, item, np.int32),
            "negatives": rng.integers(6, items, (users - 1, 9)).astype(np.int32),
        }

    schema = Schema("ranking", users, items, Features(), Features(), Features())
    known = {"offsets": np.r_[0, np.arange(users)], "items": split(1)["item"]}
    splits = {"train": split(1), "validation": split(2), "test": split(5)}
    return Table(schema, splits, {}, {}, known)


def lower_is_better(batch):
    """Scores item i by -i, for its own [B, G] or shared [1, G] items."""
    shape = len(batch["user"]), batch["item"].shape[1]
    return jnp.broadcast_to(-jnp.asarray(batch["item"], jnp.float32), shape)


def odd_users_hit(batch):
    """Item 5 comes first for users of odd numbers, and last for the others."""
    sign = 2 * (jnp.asarray(batch["user"]) % 2)[:, None] - 1
    return jnp.asarray(sign * (batch["item"] == 5), jnp.float32)


def quality_full(score, table, split, k, max_users=0, seed=0, **settings):
    scorer = Scorer(score, **settings)
    return evaluate.rank_users(scorer, table, split, max_users, seed).quality((k,))


def quality_sampled(score, columns, k):
    ranks = evaluate.ranks_sampled(Scorer(score), columns)
    return evaluate.sampled_quality(ranks, (k,), columns["negatives"].shape[1])


def test_the_full_ranking_leaves_out_all_earlier_splits():
    """Of items 1.. ordered by number, 1 (train) and 2 (validation) are seen, so 5 is third."""
    table = ranking_table()
    test = quality_full(lower_is_better, table, "test", 3)
    third = {"ndcg@3": 0.5, "recall@3": 1, "hit@3": 1, "map@3": 1 / 3, "hr@3": 1, "mrr": 1 / 3}
    assert test == pytest.approx(third)
    assert quality_full(lower_is_better, table, "test", 2)["hr@2"] == 0
    validation = quality_full(lower_is_better, table, "validation", 1)
    assert validation["hr@1"] == 1


def test_items_that_others_have_seen_still_compete():
    table = ranking_table()
    table.splits["train"]["item"][::2] = 3  # these users have not seen 1, but 3
    half = quality_full(lower_is_better, table, "test", 3)
    assert half["hr@3"] == 1  # either 3 and 4 or 1 and 4 come before 5
    table.splits["validation"]["item"][:] = 6
    fewer = quality_full(lower_is_better, table, "test", 3)
    assert fewer["hr@3"] == 0  # now 2 does too


def test_a_held_out_item_that_nobody_trains_on_is_a_miss():
    table = ranking_table()
    table.splits["test"]["item"][:13] = 0  # 13 of 39 users
    quality = quality_full(lower_is_better, table, "test", 3)
    assert quality["hr@3"] == pytest.approx(26 / 39)
    quality = quality_sampled(lower_is_better, table.splits["test"], 3)
    assert quality["hr@3/1+9"] == pytest.approx(26 / 39)


@pytest.mark.parametrize("users", [1, 7, 1000])
def test_blocks_of_any_size_rank_alike(monkeypatch, users):
    table = ranking_table()
    pairs = users * table.schema.num_items
    monkeypatch.setattr(evaluate, "USER_BLOCK", users)
    full = quality_full(odd_users_hit, table, "test", 1, pairs=pairs)
    assert full["hr@1"] == pytest.approx(20 / 39)  # 1, 3, .., 39
    sampled = quality_sampled(odd_users_hit, table.splits["test"], 1)
    assert sampled["hr@1/1+9"] == pytest.approx(20 / 39)


def test_a_part_of_the_users_is_drawn_by_the_seed():
    table = ranking_table()
    found = [
        quality_full(odd_users_hit, table, "test", 1, 10, seed)["hr@1"] for seed in (0, 0, 1, 2, 3)
    ]
    assert found[0] == found[1] and len(set(found)) > 1
    assert all(round(value * 10, 4).is_integer() for value in found)


def test_ranks_stand_beside_their_rows_and_mark_those_not_drawn():
    table = ranking_table()
    ranking = evaluate.rank_users(Scorer(lower_is_better), table, "test", max_users=10)
    ranks = ranking.ranks
    assert len(ranks) == 39 and np.sum(ranks == -1) == 29
    assert set(ranks[ranks >= 0]) == {2}
    assert ranking.users == {"ranked": 10, "all": 39}


def with_more(table, split, item, users):
    """The table with one more held-out item for some users, at the end of the split."""
    rows, more = table.splits[split], len(users)
    added = {"user": np.array(users, np.int32), "item": np.full(more, item, np.int32)}
    added["negatives"] = rows["negatives"][:more]
    table.splits[split] = {name: np.concatenate([rows[name], added[name]]) for name in rows}
    return table


def test_users_are_drawn_with_all_their_rows():
    table = with_more(ranking_table(), "test", 4, range(1, 40))
    ranks = evaluate.rank_users(Scorer(lower_is_better), table, "test", max_users=10).ranks
    assert np.sum(ranks >= 0) == 20
    np.testing.assert_array_equal(ranks[:39] >= 0, ranks[39:] >= 0)


def test_a_user_with_several_items_counts_once_per_user_and_more_per_row():
    """Of items 3.. ordered by number, all users test 5, at place 2; 13 test 4 too, and these have
    their items at places 1 and 2."""
    table = with_more(ranking_table(), "test", 4, range(1, 14))
    quality = quality_full(lower_is_better, table, "test", 2)
    assert quality == pytest.approx(
        {
            "ndcg@2": 13 * (1 / np.log2(3)) / (1 + 1 / np.log2(3)) / 39,
            "recall@2": 13 * 0.5 / 39,
            "hit@2": 13 / 39,
            "map@2": 13 * (1 / 2) / 2 / 39,
            "hr@2": 13 / 52,
            "mrr": (13 * (1 / 2) + 26 * (1 / 3)) / 39,
        }
    )


def test_the_standard_errors_are_those_of_means_over_users():
    user, item = np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])
    found = FullRanking(user, item, np.array([0, 5, 0, 0]), np.zeros(9, int)).standard_errors(3)
    expected = np.std([1, 0.5, 1], ddof=1) / np.sqrt(3)
    assert found["recall@3"] == pytest.approx(expected)
    one = FullRanking(user[:1], item[:1], np.array([0]), np.zeros(9, int))
    assert one.standard_errors(3) == {}  # of one user nothing is known


def test_the_standard_error_of_clicks_is_that_of_the_auc():
    labels, scores = np.array([0, 1, 0, 1, 1.0]), np.array([0.1, 0.4, 0.35, 0.8, 0.3])
    found = evaluate.click_errors(labels, scores)
    assert found == {"auc": metrics.auc_standard_error(labels, scores)}
    assert evaluate.click_errors(np.ones(5), scores) == {}


def test_each_user_is_scored_once():
    table = with_more(ranking_table(), "test", 4, range(1, 40))
    users = []

    def score(batch):
        users.extend(batch["user"].tolist())
        return lower_is_better(batch)

    evaluate.rank_users(Scorer(score), table, "test")
    assert users[:39] == list(range(1, 40)) and set(users[39:]) <= {39}  # the rest is padding


def test_coverage_counts_the_items_in_any_list_of_a_ranked_user():
    """Users see 3, 4, .. in this order; item 0 is none of the 29."""
    table = ranking_table()
    ranking = evaluate.rank_users(Scorer(lower_is_better), table, "test", length=5)
    quality = ranking.quality((1, 5), coverage=True)
    assert quality["coverage@1"] == 1 / 29 and quality["coverage@5"] == 5 / 29
    table.known["items"][0] = 3  # the first user has seen it, and 1 not
    ranking = evaluate.rank_users(Scorer(lower_is_better), table, "test", length=5)
    assert ranking.quality((1,), coverage=True)["coverage@1"] == 2 / 29


def test_lists_longer_than_there_are_items_hold_them_all():
    ranking = evaluate.rank_users(Scorer(lower_is_better), ranking_table(), "test", length=50)
    quality = ranking.quality((50,), coverage=True)
    assert quality["coverage@50"] == 27 / 29  # all but 1 and 2, which everyone has seen
    assert quality["recall@50"] == 1


def test_as_many_users_as_there_are_is_all_of_them():
    table = ranking_table()
    all_users = quality_full(odd_users_hit, table, "test", 1)
    for max_users in (39, 1000):
        assert quality_full(odd_users_hit, table, "test", 1, max_users) == all_users


def test_the_sampled_protocol_is_named_in_the_keys():
    quality = quality_sampled(lower_is_better, ranking_table().splits["test"], 10)
    assert quality == {"hr@10/1+9": 1, "ndcg@10/1+9": 1}


# Settings.


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"k": 0}, "evaluation.k=0: must be at least 1"),
        ({"k": (10, 0)}, r"evaluation.k=\(10, 0\): must be at least 1"),
        ({"k": ()}, r"evaluation.k=\(\): must be a number, or a tuple such as \(10, 20\)"),
        ({"k": "10,20"}, "evaluation.k='10,20': must be a number, or a tuple"),
        ({"k": 2.5}, "evaluation.k=2.5: must be a number, or a tuple"),
        ({"max_users": -1}, "evaluation.max_users=-1: must be at least 0"),
        ({"ranking": "all"}, "evaluation.ranking='all': must be one of sampled, full"),
    ],
)
def test_settings_out_of_range_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**fields)


@pytest.mark.parametrize(
    ("given", "found"), [(20, (20,)), ([5, 10], (5, 10)), ((20, 10, 20), (20, 10))]
)
def test_cut_offs_are_a_tuple_in_the_given_order(given, found):
    assert EvaluationConfig(k=given).k == found


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rows_of_one_class_have_no_auc(label):
    rows = ROWS | {"label": np.full(5, label, np.float32)}
    expected = {"logloss", "calibration"} if label else {"logloss"}
    assert set(evaluate.evaluate_clicks(BY_DENSE, rows)) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_an_error(value):
    rows = ROWS | {"dense": ROWS["dense"] * np.float32(value)}
    with pytest.raises(TrainingError, match="not a finite number"):
        evaluate.evaluate_clicks(BY_DENSE, rows)
