"""The stateless shuffle: a bijection that any position enters, and as good as a random order."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import shuffle

seeds = st.integers(-(2**40), 2**64)
epochs = st.integers(0, 10_000)


def order(n, seed=0, epoch=0):
    return shuffle.permute(np.arange(n), n, seed, epoch)


GOLDEN = {  # (n, seed, epoch): the first elements
    (10, 0, 0): [3, 8, 2, 9, 4, 6, 7, 0, 5, 1],
    (10, 0, 1): [9, 1, 7, 5, 4, 3, 2, 0, 6, 8],
    (1000, 7, 0): [321, 676, 886, 134, 201],
    (10**6, -3, 12): [929758, 714879, 657998, 965618, 967984],
    (10**13, 2**64 - 1, 5): [
        5784886149626,
        7673160641886,
        1526457584568,
        7454495321886,
        8890227311881,
    ],
}


@pytest.mark.parametrize(("key", "first"), GOLDEN.items())
def test_golden_orders_never_change(key, first):
    n, seed, epoch = key
    assert shuffle.permute(np.arange(len(first)), n, seed, epoch).tolist() == first


@pytest.mark.parametrize("n", [*range(1, 201), 1000, 1023, 1024, 1025, 4096, 10_007])
def test_an_epoch_holds_every_element_once(n):
    np.testing.assert_array_equal(np.sort(order(n, seed=3, epoch=1)), np.arange(n))


@given(st.integers(1, 200), seeds, epochs)
def test_every_seed_and_epoch_holds_every_element_once(n, seed, epoch):
    assert sorted(order(n, seed, epoch).tolist()) == list(range(n))


@given(st.data(), st.integers(1, 3000), seeds, epochs)
def test_any_positions_give_the_elements_of_the_whole_order(data, n, seed, epoch):
    positions = data.draw(st.lists(st.integers(0, n - 1), max_size=30))
    found = shuffle.permute(np.array(positions, np.int64), n, seed, epoch)
    np.testing.assert_array_equal(found, order(n, seed, epoch)[positions])


@given(st.integers(1, 40), seeds)
def test_each_position_may_have_its_own_epoch(n, seed):
    epoch = np.array([[4], [0], [4]])
    orders = shuffle.permute(np.tile(np.arange(n), (3, 1)), n, seed, epoch)
    expected = [order(n, seed, e) for e in epoch.ravel()]
    np.testing.assert_array_equal(orders, expected, strict=True)


def test_the_positions_are_not_changed():
    positions = np.arange(100)
    shuffle.permute(positions, 100, 0, 0)
    np.testing.assert_array_equal(positions, np.arange(100))


def test_an_epoch_may_have_many_billions_of_elements():
    n = 10**13
    found = shuffle.permute(n - 1 - np.arange(1000), n, 5, 0)
    assert len(np.unique(found)) == 1000 and found.min() >= 0 and found.max() < n
    assert abs(found.mean() / n - 0.5) < 4 / np.sqrt(12 * 1000)


def test_each_epoch_and_seed_has_its_own_order():
    orders = [order(1000, seed, epoch) for seed in (-1, 0, 1, 2**32) for epoch in (0, 1, 2)]
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            assert np.mean(first == second) < 0.01  # one in a thousand agrees by chance
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.13  # 4 standard errors


def test_all_orders_of_three_elements_are_about_equally_frequent():
    codes = [int("".join(map(str, order(3, seed)))) for seed in range(1200)]
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 100  # of 200


def test_the_element_of_a_position_is_uniform_over_seeds():
    places = [int(shuffle.permute(np.array([17]), 1000, seed, 0)[0]) for seed in range(500)]
    counts = np.bincount(np.array(places) // 100, minlength=10)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("n", [1000, 9_973, 10_000])
def test_elements_move_by_uniform_distances(n):
    p = []
    for seed in range(100):
        distance = (order(n, seed) - np.arange(n)) % n
        p.append(scipy.stats.chisquare(np.bincount(distance * 10 // n, minlength=10)).pvalue)
    assert np.sum(np.array(p) < 0.01) <= scipy.stats.binom.ppf(0.999, 100, 0.01)
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("n", [9_973, 10_000])
@pytest.mark.parametrize("lag", [1, 2, 64, 128])  # the network's halves are of 64 and about 157
def test_elements_near_each_other_are_independent(n, lag):
    """The pair (element k, element k + lag) is uniform over a grid of 5 x 5 parts."""
    for seed in range(10):
        part = order(n, seed) * 5 // n
        counts = np.bincount(part[:-lag] * 5 + part[lag:], minlength=25)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_fixed_points_and_successions_are_as_frequent_as_by_chance():
    """Both counts are close to Poisson variables of mean 1."""
    for stay in (lambda x: x == np.arange(len(x)), lambda x: x[1:] == x[:-1] + 1):
        counts = [np.sum(stay(order(5_000, seed))) for seed in range(200)]
        assert abs(np.mean(counts) - 1) < 4 / np.sqrt(200)
        assert 0.6 < np.var(counts) < 1.6


def test_each_tenth_of_the_order_is_drawn_uniformly_from_the_epoch():
    """The chi-square has 81 degrees of freedom: a permutation fixes both margins of the table."""
    p = []
    for seed in range(100):
        part = order(10_000, seed) // 1000
        counts = np.bincount(np.repeat(np.arange(10), 1000) * 10 + part, minlength=100)
        p.append(scipy.stats.chi2.sf(np.sum((counts - 100) ** 2) / 100 * 0.9999, 81))
    assert np.sum(np.array(p) < 0.01) <= scipy.stats.binom.ppf(0.999, 100, 0.01)
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3
