import numpy as np
import pytest

from cadc_jax.data import shuffle


@pytest.mark.parametrize("n", [*range(1, 60), 1000, 4096, 10_007])
def test_an_epoch_holds_every_element_once(n):
    order = shuffle.permute(np.arange(n), n, seed=3, epoch=1)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_any_slice_can_be_reached_alone():
    whole = shuffle.permute(np.arange(5000), 5000, 0, 2)
    np.testing.assert_array_equal(shuffle.permute(np.arange(700, 900), 5000, 0, 2), whole[700:900])


def test_epochs_and_seeds_have_orders_of_their_own():
    base, epoch, seed = (
        shuffle.permute(np.arange(1000), 1000, *x) for x in ((0, 0), (0, 1), (1, 0))
    )
    for other in (epoch, seed):
        assert np.mean(base == other) < 0.02
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.15


def test_elements_land_anywhere():
    """Over many seeds an element's place is uniform: chi-square of 10 equal parts, 9 degrees."""
    places = [int(shuffle.permute(np.array([17]), 1000, seed, 0)[0]) for seed in range(500)]
    counts = np.bincount(np.array(places) // 100, minlength=10)
    assert np.sum((counts - 50) ** 2 / 50) < 33.7  # the 99.99 % quantile
