"""Which host reads what."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import hosts
from cadc_jax.data.hosts import Hosts


def shares(sizes, count):
    return [hosts.share_of(Hosts(index, count), sizes) for index in range(count)]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 9))
def test_every_byte_has_one_host_and_shares_are_about_equal(sizes, count):
    found = shares(sizes, count)
    assert found[0][0] == -np.inf and found[-1][1] == np.inf
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    bounded = np.clip(found, 0, sum(sizes))
    lengths = np.diff(bounded)
    assert (lengths >= 0.74 * sum(sizes) / count).all()
    assert (lengths <= 1.26 * sum(sizes) / count).all()


def test_parts_stay_whole_where_it_costs_little():
    assert shares([100, 104, 96, 99], 2) == [(-np.inf, 204), (204, np.inf)]
    assert shares([100] * 10, 3) == [(-np.inf, 300), (300, 700), (700, np.inf)]
    assert shares([100], 2) == [(-np.inf, 50), (50, np.inf)]
    assert shares([100, 50], 2) == [(-np.inf, 75), (75, np.inf)]


def test_a_host_alone_has_everything():
    assert shares([3, 4], 1) == [(-np.inf, np.inf)]


def test_a_host_alone_gathers_its_own(tmp_path):
    assert list(hosts.exchange(hosts.ALONE, tmp_path, "x", lambda: 7)) == [7]
    assert not list(tmp_path.iterdir())
