"""The stateless shuffle: a bijection, reachable at any place, and as good as a random one."""

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


@pytest.mark.parametrize("n", [*range(1, 201), 1000, 4096, 10_007])
def test_an_epoch_holds_every_element_once(n):
    np.testing.assert_array_equal(np.sort(order(n, seed=3, epoch=1)), np.arange(n))


@given(st.integers(1, 200), seeds, epochs)
def test_an_epoch_holds_every_element_once_whatever_the_seed_and_epoch(n, seed, epoch):
    assert sorted(order(n, seed, epoch).tolist()) == list(range(n))


@given(st.data(), st.integers(1, 3000), seeds, epochs)
def test_any_places_can_be_reached_alone(data, n, seed, epoch):
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=30))
    alone = shuffle.permute(np.array(places, np.int64), n, seed, epoch)
    np.testing.assert_array_equal(alone, order(n, seed, epoch)[places])


def test_the_places_asked_for_are_left_as_they_are():
    places = np.arange(100)
    shuffle.permute(places, 100, 0, 0)
    np.testing.assert_array_equal(places, np.arange(100))


def test_an_epoch_of_many_billions_is_no_harder():
    n = 10**13
    found = shuffle.permute(n - 1 - np.arange(1000), n, 5, 0)
    assert len(np.unique(found)) == 1000 and found.min() >= 0 and found.max() < n
    assert abs(found.mean() / n - 0.5) < 4 / np.sqrt(12 * 1000)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [order(1000, seed, epoch) for seed in (-1, 0, 1, 2**32) for epoch in (0, 1, 2)]
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            assert np.mean(first == second) < 0.01  # one in a thousand agrees by chance
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.13  # 4 standard errors


def test_all_orders_of_three_elements_occur_alike():
    codes = [int("".join(map(str, order(3, seed)))) for seed in range(1200)]
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 100  # of 200


def test_an_element_lands_anywhere():
    """Over many seeds the place of an element is uniform."""
    places = [int(shuffle.permute(np.array([17]), 1000, seed, 0)[0]) for seed in range(500)]
    counts = np.bincount(np.array(places) // 100, minlength=10)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("n", [1000, 9_973, 10_000])
def test_elements_move_by_any_distance_alike(n):
    p = []
    for seed in range(20):
        distance = (order(n, seed) - np.arange(n)) % n
        p.append(scipy.stats.chisquare(np.bincount(distance * 10 // n, minlength=10)).pvalue)
    assert min(p) > 1e-4
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


def test_elements_side_by_side_come_from_anywhere():
    """The pair (element k, element k + 1) is uniform over a grid of 5 x 5 parts."""
    for seed in range(10):
        part = order(10_000, seed) * 5 // 10_000
        counts = np.bincount(part[:-1] * 5 + part[1:], minlength=25)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
