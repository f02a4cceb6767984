"""Intervals over seeds and users, against plain loops and on simulated results."""

import time

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cadc_jax.study import bootstrap, paired

SEEDS = (0, 1, 2)


def of_users(values, seeds=None, replicates=bootstrap.REPLICATES):
    """Figures of [S, N] values of N users."""
    values = np.atleast_2d(values)
    return bootstrap.means(values, np.arange(values.shape[1]), seeds, replicates)


def counts_of(users, replicates):
    return np.concatenate([count for _, count in bootstrap._draws(users, replicates)])


def test_one_fewer_than_all_users_are_drawn_the_same_ones_in_each_call(monkeypatch):
    counts = counts_of(20, 50)
    assert counts.shape == (50, 20) and (counts.sum(axis=1) == 19).all()
    assert len(np.unique(counts, axis=0)) == 50
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)  # five replicates at a time
    np.testing.assert_array_equal(counts_of(20, 50), counts)


def test_means_are_those_of_a_plain_loop_over_rows():
    rng = np.random.default_rng(0)
    user, values = rng.integers(3, 9, 40), rng.random((2, 40))
    values[1, :5] = np.nan  # a seed has no value there
    found = bootstrap.means(values, user, (0, 1), replicates=30)
    users = np.unique(user)
    assert found.users == len(users)
    np.testing.assert_allclose(found.found, np.nanmean(values, axis=1))
    for count, drawn in zip(counts_of(len(users), 30), found.drawn, strict=True):
        for row, mean in zip(values, drawn, strict=True):
            of_all = [
                v for u, n in zip(users, count, strict=True) for v in list(row[user == u]) * int(n)
            ]
            assert mean == pytest.approx(np.nanmean(of_all))


def test_aucs_are_those_of_a_plain_loop_over_rows_with_ties():
    rng = np.random.default_rng(0)
    user, labels = rng.integers(0, 12, 200), rng.random(200) < 0.3
    scores = np.round(rng.normal(size=(2, 200)) + labels, 1)
    found = bootstrap.aucs(labels, scores, user, (0, 1), replicates=20)
    for row, value in zip(scores, found.found, strict=True):
        assert value == pytest.approx(sklearn.metrics.roc_auc_score(labels, row))
    for count, drawn in zip(counts_of(12, 20), found.drawn, strict=True):
        for row, value in zip(scores, drawn, strict=True):
            weight = count[user]
            assert value == pytest.approx(
                sklearn.metrics.roc_auc_score(labels, row, sample_weight=weight)
            )


def test_replicates_without_a_click_say_nothing():
    found = bootstrap.aucs(np.array([1, 0, 0]), np.array([[2.0, 1, 0]]), np.arange(3), None, 50)
    assert found.found == 1 and np.isnan(found.drawn).any()
    interval = bootstrap.difference(found, found)
    assert interval.mean == 0 and interval.p == 1 and interval.verdict == "="


def test_seeds_and_users_are_drawn_crossed():
    """The reference draws a table of seeds x users, cell by cell."""
    rng = np.random.default_rng(0)
    values, other = rng.random((3, 15)), rng.random((1, 15))
    found = bootstrap.difference(of_users(values, SEEDS), of_users(other))
    places = np.random.default_rng((*bootstrap._SEEDS, 0)).integers(0, 3, (bootstrap.REPLICATES, 2))
    drawn = []
    for count, seeds in zip(counts_of(15, bootstrap.REPLICATES), places, strict=True):
        cells = [
            values[seed, user] - other[0, user]
            for seed in seeds
            for user in np.repeat(np.arange(15), count.astype(int))
        ]
        drawn.append(np.mean(cells))
    assert found.mean == pytest.approx(values.mean() - other.mean())
    assert found.seeds and found.mean - found.low == pytest.approx(found.high - found.mean)
    by_seeds = values.mean(axis=1).var(ddof=1) / 3
    variance = np.var(drawn, ddof=1)
    degrees = variance**2 / (by_seeds**2 / 2 + (variance - by_seeds) ** 2 / 14)
    reach = scipy.stats.t.ppf(0.975, degrees) * variance**0.5
    assert found.high - found.mean == pytest.approx(reach)
    test = scipy.stats.t.sf(abs(found.mean) / variance**0.5, degrees)
    assert found.p == pytest.approx(2 * test)


def test_over_users_alone_it_is_nearly_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 500))
    found = bootstrap.difference(of_users(ours, (0,)), of_users(theirs, (0,)))
    test = scipy.stats.ttest_rel(ours, theirs)
    expected = test.confidence_interval(0.95)
    assert not found.seeds and found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.1)
    assert found.p == pytest.approx(test.pvalue, rel=0.2)


@pytest.mark.parametrize(
    ("ours", "theirs", "drawn"),
    [
        (SEEDS, SEEDS, True),  # the same seeds on both sides
        (SEEDS, None, True),  # nothing is random there
        (SEEDS, (3, 4), True),
        (SEEDS, (0,), False),  # of one seed nothing is known
        ((0,), None, False),
        (None, None, False),
    ],
)
def test_seeds_are_drawn_where_each_random_side_has_several(ours, theirs, drawn):
    rng = np.random.default_rng(0)
    sides = [of_users(rng.random((len(x or (0,)), 30)), x) for x in (ours, theirs)]
    assert bootstrap.difference(*sides).seeds == drawn


def test_what_both_sides_share_cancels_out():
    """Users, and the seeds that both have, differ far more than the two sides do."""
    rng = np.random.default_rng(0)
    shared = 100 * rng.normal(size=1000) + 100 * rng.normal(size=(3, 1))
    better = shared + 0.1 + 0.1 * rng.normal(size=(3, 1000))
    ours, theirs = of_users(better, SEEDS), of_users(shared, SEEDS)
    assert bootstrap.difference(ours, theirs).verdict == "better"
    assert bootstrap.difference(theirs, ours).verdict == "worse"


def test_a_single_user_has_no_interval():
    found = bootstrap.difference(
        of_users(np.ones((3, 1)), SEEDS), of_users(np.zeros((3, 1)), SEEDS)
    )
    assert found.mean == 1 and np.isnan([found.low, found.p]).all() and found.verdict == "="


@pytest.mark.parametrize("seeds", [3, 5])
def test_it_covers_other_seeds_which_an_interval_over_users_alone_misses(seeds):
    """Two equal scorers: an interval of 95 % may miss 0 in one of twenty studies."""
    rng, trials = np.random.default_rng(0), 200
    both = alone = 0
    for _ in range(trials):
        base = rng.normal(size=100)
        of_seed, of_user = 0.05 * rng.normal(size=(seeds, 1)), 0.2 * rng.normal(size=100)
        ours = base + of_seed + of_user + 0.2 * rng.normal(size=(seeds, 100))
        sides = of_users(ours, tuple(range(seeds)), 200), of_users(base, None, 200)
        found = bootstrap.difference(*sides)
        both += found.low <= 0 <= found.high
        expected = scipy.stats.ttest_rel(ours.mean(axis=0), base).confidence_interval(0.95)
        alone += expected.low <= 0 <= expected.high
    assert both >= 0.94 * trials and alone < 0.85 * trials


def test_it_covers_the_auc_of_users_with_many_rows():
    """The rows of a user are alike: by rows alone the interval of DeLong et al. is too narrow."""
    rng, trials, users, rows = np.random.default_rng(0), 150, 60, 20
    user = np.repeat(np.arange(users), rows)
    covered = by_rows = 0
    for _ in range(trials):
        truth = 3 * rng.normal(size=users)[user]
        labels = rng.random(len(user)) < 1 / (1 + np.exp(-truth))
        a, b = truth + 3 * rng.normal(size=(2, users))[:, user]  # as good as each other
        sides = [bootstrap.aucs(labels, x[None], user, None, 200) for x in (a, b)]
        found = bootstrap.difference(*sides)
        covered += found.low <= 0 <= found.high
        clicks, others = (
            ours - theirs
            for ours, theirs in zip(*(paired.placements(labels, x) for x in (a, b)), strict=True)
        )
        error = (clicks.var(ddof=1) / len(clicks) + others.var(ddof=1) / len(others)) ** 0.5
        by_rows += abs(found.mean) <= 1.96 * error
    assert covered >= 0.91 * trials and by_rows < 0.7 * trials


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds():
    rng = np.random.default_rng(0)
    labels, user = rng.random(100_000) < 0.3, rng.integers(0, 5000, 100_000)
    scores = rng.normal(size=(5, 100_000)) + labels
    before = time.process_time()
    bootstrap.aucs(labels, scores, user, tuple(range(5)))
    assert time.process_time() - before < 20
