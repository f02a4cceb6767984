"""Shares of several hosts, and the exchange of results."""

import concurrent.futures
import itertools
import threading

import numpy as np
import pytest
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


def test_borders_move_to_a_near_border_of_a_part():
    assert shares([100, 104, 96, 99], 2) == [(-np.inf, 204), (204, np.inf)]
    assert shares([100] * 10, 3) == [(-np.inf, 300), (300, 700), (700, np.inf)]
    assert shares([100], 2) == [(-np.inf, 50), (50, np.inf)]
    assert shares([100, 50], 2) == [(-np.inf, 75), (75, np.inf)]


def test_a_single_host_has_everything():
    assert shares([3, 4], 1) == [(-np.inf, np.inf)]


# Exchange.


def on_all_hosts(count, call):
    """Results or exceptions of `call(hosts)` on each of `count` hosts, which are threads."""
    barrier = threading.Barrier(count)

    def run(index):
        return call(Hosts(index, count, lambda name: barrier.wait(60)))

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, index) for index in range(count)]
        return [future.exception() or future.result() for future in futures]


def test_a_single_host_exchanges_nothing(tmp_path):
    assert list(hosts.exchange(hosts.SINGLE_HOST, tmp_path, "x", lambda: 7)) == [7]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [2, 3])
def test_every_host_gets_the_results_of_all_in_their_order(tmp_path, count):
    def call(this):
        return list(hosts.exchange(this, tmp_path, "x", lambda: 10 * this.index))

    assert on_all_hosts(count, call) == [[10 * index for index in range(count)]] * count


def test_every_host_raises_the_error_of_the_first_host_that_failed(tmp_path):
    def call(this):
        def work():
            if this.index:
                raise ValueError(f"host {this.index}")

        return list(hosts.exchange(this, tmp_path, "x", work))

    errors = on_all_hosts(3, call)
    assert [(type(error), str(error)) for error in errors] == [(ValueError, "host 1")] * 3


def test_the_barrier_has_the_name_of_the_exchange(tmp_path):
    def wait(name):
        raise TimeoutError(name)

    with pytest.raises(TimeoutError, match="prepare/x"):
        hosts.exchange(Hosts(0, 2, wait), tmp_path, "x", lambda: 7)
