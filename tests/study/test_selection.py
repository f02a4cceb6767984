"""Rules that choose training rows."""

import numpy as np
import pytest
import scipy.stats

from cadc_jax.study import selection

RNG = np.random.default_rng(0)
USER = RNG.integers(1, 40, 1000)
ITEM = RNG.zipf(1.5, 1000).clip(max=50)
TIME = RNG.integers(0, 300, 1000)
LOSS = RNG.random(1000)


def chosen(rule, count=137, seed=0):
    return selection.choose(rule, count, seed, USER, ITEM, TIME, LOSS)


@pytest.mark.parametrize("rule", selection.RULES)
def test_a_rule_keeps_the_number_of_rows_asked_for_and_the_same_ones_again(rule):
    for count in (1, 137, 1000):
        ids = chosen(rule, count)
        assert len(ids) == count and np.all(np.diff(ids) > 0)
        np.testing.assert_array_equal(ids, chosen(rule, count))


@pytest.mark.parametrize("rule", ["per_user", "popular", "inverse_propensity"])
def test_rules_that_draw_depend_on_the_seed(rule):
    assert set(chosen(rule)) != set(chosen(rule, seed=1))


@pytest.mark.parametrize("rule", ["recent", "hardest"])
def test_rules_that_do_not_draw_ignore_the_seed(rule):
    np.testing.assert_array_equal(chosen(rule), chosen(rule, seed=1))


def test_per_user_keeps_the_share_of_every_user_up_to_one_row():
    share = np.bincount(USER) * 137 / 1000
    kept = np.bincount(USER[chosen("per_user")], minlength=len(share))
    assert np.all(np.abs(kept - share) < 1)


def test_per_user_keeps_every_row_with_the_same_probability():
    times = np.bincount(np.concatenate([chosen("per_user", 100, s) for s in range(400)]))
    assert scipy.stats.chisquare(times).pvalue > 0.01


def test_rows_are_drawn_in_proportion_to_their_weight():
    """One row is drawn from a heavy one and nine light ones: the heavy one with 9 / 18."""
    weight = np.array([9.0] + [1.0] * 9)
    heavy = sum(0 in selection.weighted(weight, 1, seed) for seed in range(2000))
    assert scipy.stats.binomtest(heavy, 2000, 0.5).pvalue > 0.01


def test_popular_items_are_more_frequent_by_one_rule_and_rarer_by_the_other():
    def mean_count(rule):
        return np.bincount(ITEM)[ITEM[chosen(rule)]].mean()

    everything = np.bincount(ITEM)[ITEM].mean()
    assert mean_count("inverse_propensity") < everything < mean_count("popular")


def test_recent_rows_are_the_latest_and_hardest_rows_have_the_highest_loss():
    ids = chosen("recent")
    assert TIME[ids].min() >= np.delete(TIME, ids).max()
    ids = chosen("hardest")
    assert LOSS[ids].min() > np.delete(LOSS, ids).max()


def test_among_rows_of_the_same_time_the_later_ones_are_recent():
    assert selection.recent(np.array([5, 5, 5, 1]), 2).tolist() == [1, 2]


def test_among_rows_of_the_same_loss_the_earlier_ones_are_hardest():
    assert selection.hardest(np.array([5, 5, 5, 1]), 2).tolist() == [0, 1]


def test_about_a_twentieth_of_the_users_is_hidden_and_others_with_another_seed():
    first, second = (selection.hidden_users(20_000, seed) for seed in (0, 1))
    assert first.mean() == pytest.approx(0.05, abs=0.01)
    assert (first & second).mean() == pytest.approx(0.05**2, abs=0.002)
