"""Evidence for a user and an item column: found where it was planted, absent elsewhere."""

import numpy as np
import pytest

from cadc_jax.data import user_item_candidates
from cadc_jax.data.readers import criteo, synthetic
from cadc_jax.errors import ConfigError

ROWS = 40_000


def clicks(logit: np.ndarray, seed: int = 99) -> np.ndarray:
    return (np.random.default_rng(seed).random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(int)


def column(values: int, seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).integers(values, size=rows)


def study_two(label, u, v) -> user_item_candidates.Record:
    """The record of two columns."""
    (record,) = user_item_candidates.compare_pairs(label, {"u": u, "v": v})
    return record


def one_of_two_bits(strength: float) -> float:
    """Mutual information, in bits, of a click and a coin that sets its logit to +-strength."""
    p = 1 / (1 + np.exp(-strength))
    return 1 + p * np.log2(p) + (1 - p) * np.log2(1 - p)


def test_the_planted_pair_comes_first(tmp_path):
    synthetic.write_criteo(tmp_path / "train.txt", 50_000, seed=0)
    log = criteo.read_logs([tmp_path / "train.txt"])
    names = (synthetic.USER, synthetic.ITEM, "C1", "C4", "C5", "C9", "C15")
    records = user_item_candidates.compare_pairs(
        log.label, {name: log.categorical[name] for name in names}
    )
    assert (records[0].user, records[0].item) == (synthetic.USER, synthetic.ITEM)
    assert records[0].taste.evident and records[0].pair.evident
    assert records[0].taste.bits > 20 * max(record.taste.bits for record in records[1:])


@pytest.mark.parametrize("sizes", [(2, 2), (50, 20), (2000, 1000), (20_000, 5)])
def test_independent_columns_give_no_evidence(sizes):
    record = study_two(column(2, 0), column(sizes[0], 1), column(sizes[1], 2))
    for saving in (record.pair, record.taste):
        assert not saving.evident
        assert abs(saving.bits) < 1e-3


@pytest.mark.parametrize("sizes", [(50, 20), (1000, 300)])
def test_effects_of_single_columns_are_not_an_effect_of_the_pair(sizes):
    u, v = column(sizes[0], 1), column(sizes[1], 2)
    rng = np.random.default_rng(3)
    label = clicks(rng.normal(size=sizes[0])[u] + rng.normal(size=sizes[1])[v] - 1)
    record = study_two(label, u, v)
    for saving in (record.pair, record.taste):
        assert not saving.evident
        assert abs(saving.bits) < 2e-3


def test_correlated_columns_are_not_an_effect_of_the_pair():
    u = column(300, 1)
    v = (u + column(3, 2)) % 300  # almost the same
    record = study_two(clicks(np.random.default_rng(3).normal(size=300)[u]), u, v)
    assert record.pair.bits < 1e-3 and record.taste.bits < 1e-3


def test_an_exclusive_or_is_found_with_its_mutual_information():
    u, v = column(10, 1), column(6, 2)
    record = study_two(clicks(np.where((u + v) % 2, 0.8, -0.8)), u, v)
    for saving in (record.pair, record.taste):
        assert saving.evident
        assert abs(saving.bits - one_of_two_bits(0.8)) < 4 * saving.error


def test_a_weak_effect_is_estimated_within_its_standard_error():
    u, v = column(4, 1, 200_000), column(4, 2, 200_000)
    record = study_two(clicks(np.where((u + v) % 2, 0.1, -0.1)), u, v)
    for saving in (record.pair, record.taste):
        assert saving.evident
        assert abs(saving.bits - one_of_two_bits(0.1)) < 4 * saving.error


def test_taste_is_found_even_if_each_pair_is_seen_once():
    u, v = column(2000, 1), column(2000, 2)
    rng = np.random.default_rng(3)
    likes = rng.choice([-1, 1], 2000)[u] * rng.choice([-1, 1], 2000)[v]
    record = study_two(clicks(1.5 * likes), u, v)
    assert record.pairs > 0.98 * ROWS
    assert record.pair.bits < 0.02 * record.taste.bits
    assert 0.5 < record.taste.bits / one_of_two_bits(1.5) < 1


def test_the_standard_error_is_the_spread_over_samples():
    savings = []
    for seed in range(30):
        u, v = column(4, 3 * seed, 4000), column(4, 3 * seed + 1, 4000)
        label = clicks(np.where((u + v) % 2, 0.7, -0.7), 3 * seed + 2)
        savings.append(study_two(label, u, v).pair)
    spread = np.std([saving.bits for saving in savings])
    assert 0.6 < spread / np.mean([saving.error for saving in savings]) < 1.6


def test_a_cross_is_found_if_its_columns_alone_say_nothing():
    columns = {name: column(4, seed) for seed, name in enumerate("abc")}
    label = clicks(np.where(sum(columns.values()) % 2, 1, -1))
    records = user_item_candidates.compare_pairs(label, columns, ["a", "b", "c", "a*b"])
    assert [(r.user, r.item) for r in records if r.pair.evident] == [("a*b", "c")]
    assert len(records) == 4  # 'a*b' is not paired with its own columns
    assert records[0].users == 16


def test_a_record_counts_rows_values_and_pairs():
    u = np.array(["x"] * 6 + ["y", "y", "z", ""])
    v = np.array([1, 1, 1, 1, 1, -1, 1, 1, 1, 1])
    label = np.array([0, 1] * 5)
    (record,) = user_item_candidates.compare_pairs(label, {"few": v, "many": u}, ["few", "many"])
    assert (record.user, record.item) == ("many", "few")  # the user has more values
    assert (record.users, record.items, record.pairs, record.rows) == (4, 2, 5, 10)
    assert record.density == 5 / 8
    assert record.median_rows_per_user == 1.5
    assert record.enough == 1 / 4


def test_taste_is_more_useful_than_a_pair_effect_and_that_more_than_none():
    def record(pair, taste):
        savings = (user_item_candidates.Saving(pair, 0.1), user_item_candidates.Saving(taste, 0.1))
        return user_item_candidates.Record("u", "v", 2, 2, 4, 9, 4.5, 0.5, *savings)

    best_first = [record(0, 2), record(3, 1), record(1, 1), record(2, 0.1), record(0.1, 0.1)]
    ordered = sorted(best_first[::-1], key=lambda r: r.usefulness, reverse=True)
    assert ordered == best_first


def test_the_seed_determines_the_records_and_progress_is_reported():
    label, columns = column(2, 0), {name: column(9, seed) for seed, name in enumerate("abcd", 1)}
    told = []
    first = user_item_candidates.compare_pairs(
        label, columns, seed=1, progress=lambda *done: told.append(done)
    )
    assert told == [(done, 6) for done in range(1, 7)]
    assert first == user_item_candidates.compare_pairs(label, columns, seed=1)
    assert first != user_item_candidates.compare_pairs(label, columns, seed=2)


def test_constant_columns_and_row_numbers_are_not_candidates():
    columns = {
        "constant": np.zeros(1000, int),
        "row": np.arange(1000),
        "nearly": np.where(np.arange(1000) < 400, -1, np.arange(1000)),  # or missing
        "user": column(100, 1, 1000),
        "text": column(3, 1, 1000).astype(str),
    }
    assert user_item_candidates.candidate_columns(columns) == ["user", "text"]
    assert user_item_candidates.candidate_columns(columns, max_seen_once=0.9999) == [
        "nearly",
        "user",
        "text",
    ]


def test_the_table_says_how_to_configure_the_best_pair():
    u, v, w = column(10, 1), column(6, 2), column(3, 3)
    label = clicks(np.where((u + v) % 2, 0.8, -0.8))
    records = user_item_candidates.compare_pairs(
        label, {"C1": u, "C2": v, "C3": w}, ["C1", "C2", "C3"]
    )
    text = user_item_candidates.table(records, top=2)
    legend, body = text.splitlines()[:2], text.splitlines()[5:]
    assert "mbit" in legend[0] and "*" in legend[1]
    assert body[0].split()[:2] == ["C1", "C2"]
    assert f"{1000 * records[0].taste.bits:.2f} +- " in body[0]
    assert body[2] == ""  # `top` rows
    assert "config.data.user_features = ('C1',)" in text
    assert "config.data.item_features = ('C2',)" in text
    assert "luck:" not in text


def test_the_table_warns_if_the_best_of_many_pairs_may_be_luck():
    nothing, something = (
        user_item_candidates.Saving(0.0, 0.1),
        user_item_candidates.Saving(0.25, 0.1),
    )
    counts = {"users": 2, "items": 2, "pairs": 4, "rows": 9, "median_rows_per_user": 4.5}
    best, other = (
        user_item_candidates.Record("u", "a*b", enough=0.5, pair=nothing, taste=taste, **counts)
        for taste in (something, nothing)
    )
    assert "luck:" not in user_item_candidates.table([best, other])
    assert "best of 100 pairs may be that good by luck" in user_item_candidates.table(
        [best, *[other] * 99]
    )
    assert "config.data.item_features = ('a', 'b')" in user_item_candidates.table([best])


def test_a_column_of_ids_is_advised_by_its_name_in_the_log():
    saving = user_item_candidates.Saving(0.25, 0.1)
    counts = {"users": 2, "items": 2, "pairs": 4, "rows": 9, "median_rows_per_user": 4.5}
    record = user_item_candidates.Record(
        "device_ip", "C14", enough=0.5, pair=saving, taste=saving, **counts
    )
    lines = user_item_candidates.table([record], ids=["device_ip", "ad"]).splitlines()
    assert lines[-4:] == [
        "To use the first pair, set in the configuration file:",
        "    config.data.columns.user = 'device_ip'",
        "    config.data.user_features = ()",
        "    config.data.item_features = ('C14',)",
    ]


def test_without_evidence_the_table_advises_nothing():
    records = user_item_candidates.compare_pairs(
        column(2, 0), {"a": column(5, 1), "b": column(5, 2)}
    )
    for some in (records, []):
        assert "user_features" not in user_item_candidates.table(some)
        assert "nothing to gain" in user_item_candidates.table(some)


def test_wrong_labels_and_columns_are_refused():
    u, v = column(5, 1), column(5, 2)
    with pytest.raises(ValueError, match="0 and 1"):
        user_item_candidates.compare_pairs(np.full(ROWS, 2), {"u": u, "v": v})
    with pytest.raises(ValueError, match="both must occur"):
        user_item_candidates.compare_pairs(np.zeros(ROWS), {"u": u, "v": v})
    with pytest.raises(ValueError, match="'v' has 3 rows"):
        user_item_candidates.compare_pairs(column(2, 0), {"u": u, "v": v[:3]})
    with pytest.raises(ConfigError, match="no column 'w' of the candidate 'u\\*w'"):
        user_item_candidates.compare_pairs(column(2, 0), {"u": u, "v": v}, ["v", "u*w"])
