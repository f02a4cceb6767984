"""Likely items: the first of each user by score, as many as the sample says that there are."""

import numpy as np
import pytest

from cadc_jax.data import likely, negatives, sampling
from cadc_jax.data.likely import LikelyItems
from cadc_jax.data.negatives import NegativeSampling, PairSet

USERS, ITEMS, RATE = 40, 101, 0.25


def random_factors(seed=0, items=ITEMS, users=USERS):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(users, 6)), rng.normal(size=(items, 6))


def whole(table):
    """Rows that rounding does not change, each on a scale of its own."""
    rounded = np.rint(100 * table / np.abs(table).max(axis=1, keepdims=True))
    rounded[:, 0] = 127
    return rounded * np.linspace(0.5, 2, len(table))[:, None]


def brute_force(factors, rows_user, rate):
    """[U, I] bool: the k / rate items of highest score, except id 0."""
    scores = factors[0] @ factors[1].T
    found = np.zeros(scores.shape, bool)
    for user, count in enumerate(np.bincount(rows_user, minlength=len(scores))):
        best = 1 + np.argsort(-scores[user, 1:])
        found[user, best[: round(count / rate)]] = True
    return found


def all_pairs(found):
    user, item = np.indices((len(found.user), len(found.item)))
    return found.contains(user.ravel(), item.ravel()).reshape(user.shape)


@pytest.mark.parametrize("users_at_a_time", [7, 1024])
def test_likely_items_are_the_first_of_each_user(monkeypatch, users_at_a_time):
    monkeypatch.setattr(likely, "_USERS", users_at_a_time)
    factors = tuple(map(whole, random_factors()))
    rows_user = np.random.default_rng(1).integers(0, USERS - 5, 90)
    found = all_pairs(LikelyItems.of(factors, rows_user, RATE))
    np.testing.assert_array_equal(found[:, 1:], brute_force(factors, rows_user, RATE)[:, 1:])
    assert not found[USERS - 5 :].any()  # users without rows


def test_rounding_the_factors_exchanges_few_items():
    factors, rows_user = random_factors(), np.random.default_rng(1).integers(0, USERS - 5, 90)
    found = all_pairs(LikelyItems.of(factors, rows_user, RATE))[:, 1:]
    expected = brute_force(factors, rows_user, RATE)[:, 1:]
    np.testing.assert_array_equal(found.sum(axis=1), expected.sum(axis=1))
    assert (found != expected).mean() < 0.003


def test_a_user_of_more_rows_than_items_has_no_unlikely_item():
    factors = random_factors()
    found = all_pairs(LikelyItems.of(factors, np.zeros(30, int), RATE))  # 120 of 100 items
    assert found[0, 1:].all()


def test_in_a_large_catalogue_probes_place_the_threshold():
    """It lies among the scores where the true one does, up to the spread of 1,024 probes."""
    items = 20_001
    factors, rows_user = random_factors(items=items), np.repeat(np.arange(USERS), 250)
    counts = all_pairs(LikelyItems.of(factors, rows_user, RATE))[:, 1:].sum(axis=1)
    share = 1000 / 20_000
    deviation = np.sqrt(share * (1 - share) / likely.PROBES)  # of the share of an item list
    assert counts.mean() / 20_000 == pytest.approx(share, abs=4 * deviation / USERS**0.5)
    assert np.abs(counts / 20_000 - share).max() < 4 * deviation


def test_where_a_draw_hardly_ever_is_the_users_nothing_is_likely():
    factors = random_factors(items=20_001)
    assert not all_pairs(LikelyItems.of(factors, np.zeros(2, int), RATE)).any()


def test_negatives_are_uniform_over_the_rest():
    factors = random_factors()
    rows = {"user": np.zeros(5, np.int32), "item": np.arange(1, 6, dtype=np.int32)}
    found = LikelyItems.of(factors, rows["user"], RATE)
    sampler = NegativeSampling.of(rows, 4, ITEMS, found)
    drawn = negatives.draw_for_training(
        *(np.zeros(5000, int), np.arange(5000), PairSet.of(sampler.known), ITEMS, 4, 0), found
    )
    allowed = ~brute_force(factors, rows["user"], RATE)[0]
    allowed[:6] = False  # id 0 and the kept pairs
    counts = np.bincount(drawn.ravel(), minlength=ITEMS)
    np.testing.assert_array_equal(counts > 0, allowed)
    expected = 20_000 / allowed.sum()
    chi_square = np.sum((counts[allowed] - expected) ** 2 / expected)
    assert chi_square < allowed.sum() + 4 * np.sqrt(2 * allowed.sum())


def planted_log(users=300, items=200, rank=4):
    """A log with a planted taste: [U, I] bool, and factors that fit it."""
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(users, rank)) @ rng.normal(size=(rank, items))
    log = taste + 0.5 * rng.normal(size=taste.shape) > 3
    log[:, 0] = False
    left, values, right = np.linalg.svd(log.astype(float), full_matrices=False)
    return log, (left[:, :16] * values[:16], right[:16].T)


def test_far_fewer_negatives_are_positives_that_the_sample_lacks():
    """The share of draws that are training rows, kept or not, counted with the whole log."""
    log, factors = planted_log()
    user, item = np.nonzero(log)
    kept = sampling.keep(np.arange(len(user)), 0.1, 0)
    rows = {"user": user[kept], "item": item[kept]}
    draws = np.arange(100 * len(rows["user"]))
    users = np.tile(rows["user"], 100)

    def wrong(found):
        sampler = NegativeSampling.of(rows, 1, log.shape[1], found)
        known = PairSet.of(sampler.known)
        drawn = negatives.draw_for_training(users, draws, known, log.shape[1], 1, 0, found)
        return log[users, drawn[:, 0]].mean()

    plain, better = wrong(None), wrong(LikelyItems.of(factors, rows["user"], 0.1))
    assert plain > 0.1
    assert better < plain / 3
