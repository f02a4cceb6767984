import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import evaluation
from cadc_jax.data.table import Features, Schema, Table

ROWS = {
    "user": np.arange(5, dtype=np.int32),
    "item": np.array([1, 2, 1, 2, 1], np.int32),
    "label": np.array([0, 1, 0, 1, 1], np.float32),
    "dense": np.array([[0.1], [0.9], [0.8], [0.7], [0.6]], np.float32),
    "categorical": np.zeros((5, 0), np.int32),
}


def by_dense(batch):
    return batch["dense"]


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_padding_of_the_last_block_counts_nowhere(monkeypatch, block):
    monkeypatch.setattr(evaluation, "CLICK_BLOCK", block)
    quality = evaluation.evaluate_clicks(by_dense, ROWS)
    assert quality["auc"] == pytest.approx(4 / 6)
    logits, labels = ROWS["dense"][:, 0], ROWS["label"]
    expected = np.mean(np.log1p(np.exp(-logits)) + (1 - labels) * logits)
    assert quality["logloss"] == pytest.approx(expected, rel=1e-5)


def test_scores_that_are_no_logits_have_no_log_loss():
    assert set(evaluation.evaluate_clicks(by_dense, ROWS, calibrated=False)) == {"auc"}


def ranking_table(users=40, items=30):
    rng = np.random.default_rng(0)

    def split(*item):
        return {
            "user": np.arange(1, users, dtype=np.int32),
            "item": np.full(users - 1, item[0], np.int32),
            "negatives": rng.integers(3, items, (users - 1, 9)).astype(np.int32),
        }

    schema = Schema("ranking", users, items, Features(), Features(), Features())
    return Table(schema, {"train": split(1), "validation": split(2), "test": split(5)}, {}, {})


def lower_is_better(batch):
    """Scores item i by -i, for its own [B, G] or shared [1, G] items."""
    shape = len(batch["user"]), batch["item"].shape[1]
    return jnp.broadcast_to(-jnp.asarray(batch["item"], jnp.float32), shape)


def test_the_full_ranking_leaves_out_all_earlier_splits():
    """Of items 1.. ordered by number, 1 (train) and 2 (validation) are seen, so 5 is third."""
    table = ranking_table()
    test = evaluation.evaluate_ranking_full(lower_is_better, table, "test", 3)
    assert test == {"hr@3": 1.0, "ndcg@3": pytest.approx(0.5)}
    assert evaluation.evaluate_ranking_full(lower_is_better, table, "test", 2)["hr@2"] == 0
    validation = evaluation.evaluate_ranking_full(lower_is_better, table, "validation", 1)
    assert validation["hr@1"] == 1


def test_a_part_of_the_users_is_drawn_by_the_seed():
    table = ranking_table()

    def only_odd_users(batch):
        hit = (batch["user"] % 2)[:, None] * (batch["item"] == 5)
        return jnp.asarray(hit, jnp.float32)

    found = [
        evaluation.evaluate_ranking_full(only_odd_users, table, "test", 1, 10, seed)["hr@1"]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert found[0] == found[1] and len(set(found)) > 1
    assert all(round(value * 10, 4).is_integer() for value in found)


def test_the_sampled_protocol_is_named_in_the_keys():
    quality = evaluation.evaluate_ranking_sampled(
        lower_is_better, ranking_table().splits["test"], 10
    )
    assert set(quality) == {"hr@10/1+9", "ndcg@10/1+9"}
    assert quality["hr@10/1+9"] == 1
