"""The matrix of a log that is read in blocks, by one process and by several over Gloo."""

import contextlib
import dataclasses
import itertools
import sys

import jax
import numpy as np
import pytest

from cadc_jax.errors import DataError
from cadc_jax.factorization import als, autoencoder, log_matrix
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.factorization.log_matrix import Log
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stopped
from tests.factorization import reference
from tests.runtime.test_distributed import finished, free_port, start


def log_of(user, item, value, users, items):
    def read(start, stop):
        part = slice(start, stop)
        return user[part], item[part], None if value is None else value[part]

    return Log(len(user), users, items, read)


@pytest.fixture(params=["values", "repeats alone"])
def rows(request, monkeypatch):
    """A log with every special case, in blocks of few rows."""
    monkeypatch.setattr(log_matrix, "BLOCK_ROWS", 7)
    user, item, value = reference.sparse_data()
    return user, item, value if request.param == "values" else None


def assert_same(found, expected):
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.columns, expected.columns)
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_log_that_is_read_in_blocks_has_the_matrix_of_its_rows(rows):
    found = log_matrix.read(log_of(*rows, reference.U, reference.I))
    expected = Interactions.from_rows(*rows[:2], reference.U, reference.I, rows[2])
    assert (found.num_users, found.num_items) == (reference.U, reference.I)
    assert found.num_entries == expected.num_entries
    assert found.extent == expected.extent
    for side, same in ((found.by_user, expected.by_user), (found.by_item, expected.by_item)):
        np.testing.assert_array_equal(side.counts, same.counts)
        assert side.total == pytest.approx(same.total, rel=1e-12)
        assert side.all_ones == same.all_ones
        assert_same(side.take(np.arange(len(side.counts))), same)


def test_some_rows_are_those_of_the_whole_matrix(rows):
    found = log_matrix.read(log_of(*rows, reference.U, reference.I))
    expected = Interactions.from_rows(*rows[:2], reference.U, reference.I, rows[2])
    for side, same in ((found.by_user, expected.by_user), (found.by_item, expected.by_item)):
        chosen = np.arange(1, len(side.counts), 3)
        assert_same(side.take(chosen), same.take(chosen))


def test_rows_that_do_not_count_are_not_in_the_matrix():
    user, item, kept = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([1, 0, 0, 1], bool)

    def read(start, stop):
        part = slice(start, stop)
        return user[part][kept[part]], item[part][kept[part]], None

    found = log_matrix.read(Log(4, 2, 2, read))
    np.testing.assert_array_equal(found.by_user.counts, [1, 1])
    np.testing.assert_array_equal(found.by_item.take(np.arange(2)).columns, [0, 1])


def test_a_log_without_rows_has_an_empty_matrix():
    none = np.zeros(0, np.int32)
    found = log_matrix.read(log_of(none, none, None, 3, 2))
    assert (found.num_entries, found.num_users, found.num_items) == (0, 3, 2)


@pytest.mark.parametrize(
    ("user", "value", "message"),
    [([0, 3], None, "user ids run from 0 to 3"), ([0, 1], [1, np.inf], "1 values are not finite")],
)
def test_rows_that_cannot_be_right_are_rejected(user, value, message):
    value = None if value is None else np.array(value, np.float32)
    with pytest.raises(DataError, match=message):
        log_matrix.read(log_of(np.array(user), np.array([0, 1]), value, 3, 2))


# Fits in several processes. Sums are added up in another order in each number of processes.

KEY = jax.random.key(0)
ALS = ALSConfig(factors=6, alpha=2.0, iterations=4, chunk=64)
CONFIGS = {
    "implicit": ALS,
    "explicit": dataclasses.replace(ALS, feedback="explicit", solver="exact", fixed_side="sharded"),
    "autoencoder": AutoencoderConfig(factors=6, regularization=1.0, passes=2),
}
CASES = [(2, name) for name in CONFIGS] + [(4, "implicit"), (4, "explicit")]
WORKER = """
import pathlib, sys
import numpy as np
from cadc_jax.runtime import distributed

port, count, process, folder, checkpoint = sys.argv[1:]
distributed.initialize(f"localhost:{port}", int(count), int(process))
from tests.factorization.test_log_matrix import fit_all  # uses devices

found = fit_all(pathlib.Path(folder), pathlib.Path(checkpoint))
if process == "0":
    np.savez(pathlib.Path(folder) / "factors.npz", **found)
distributed.finish()
"""


def fit_all(folder, checkpoint):
    """Name -> users and items of each fit; checkpoints of one that stops are left in `folder`."""
    from cadc_jax import sharding

    log_matrix.BLOCK_ROWS = 50
    matrix = log_matrix.read(log_of(*reference.sparse_data(), reference.U, reference.I))
    mesh, found = sharding.make_mesh(), {}
    for name in [name for count, name in CASES if count == jax.process_count()]:
        config = CONFIGS[name]
        method = autoencoder if isinstance(config, AutoencoderConfig) else als
        factors, losses = method.fit(matrix, config, KEY, mesh=mesh)
        found[name] = np.concatenate([factors.user, factors.item])
        found[f"losses of {name}"] = losses
    with Checkpoints(checkpoint) as saved:
        factors, _ = als.fit(matrix, ALS, KEY, mesh=mesh, saved=saved)
        assert saved.newest == 2
    found["resumed"] = np.concatenate([factors.user, factors.item])
    calls = itertools.count()
    with Checkpoints(folder / "stopped", stop=lambda: next(calls) >= 2) as saved:
        with contextlib.suppress(Stopped):
            als.fit(matrix, ALS, KEY, mesh=mesh, saved=saved)
        assert saved.newest == 2
    return found


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Number of processes -> what `fit_all` found; two resume where one stopped, and so on."""
    rows = reference.sparse_data()
    one = Interactions.from_rows(*rows[:2], reference.U, reference.I, rows[2])
    folder, found = tmp_path_factory.mktemp("one"), {}
    calls = itertools.count()
    with Checkpoints(folder / "stopped", stop=lambda: next(calls) >= 2) as saved:
        with contextlib.suppress(Stopped):
            als.fit(one, ALS, KEY, saved=saved)
    for count in (2, 4):
        before, folder = folder / "stopped", tmp_path_factory.mktemp(str(count))
        arguments = [sys.executable, "-c", WORKER, free_port(), count]
        processes = [start([*arguments, process, folder, before]) for process in range(count)]
        results = [finished(process, timeout=600) for process in processes]
        assert [code for code, _, _ in results] == [0] * count, results
        found[count] = dict(np.load(folder / "factors.npz"))
    found["stopped by four"] = folder / "stopped"
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("count", "name"), CASES)
def test_several_processes_find_the_factors_of_one_that_has_the_whole_matrix(fits, count, name):
    rows, config = reference.sparse_data(), CONFIGS[name]
    one = Interactions.from_rows(*rows[:2], reference.U, reference.I, rows[2])
    method = autoencoder if isinstance(config, AutoencoderConfig) else als
    factors, losses = method.fit(one, config, KEY)
    expected = np.concatenate([factors.user, factors.item])
    np.testing.assert_allclose(fits[count][f"losses of {name}"], losses, rtol=1e-4)
    np.testing.assert_allclose(fits[count][name], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_fit_that_fewer_processes_left_goes_on_in_more(fits, count):
    np.testing.assert_allclose(
        fits[count]["resumed"], fits[count]["implicit"], rtol=2e-3, atol=2e-4
    )


@pytest.mark.slow
def test_a_fit_that_four_processes_left_goes_on_in_one(fits):
    rows = reference.sparse_data()
    one = Interactions.from_rows(*rows[:2], reference.U, reference.I, rows[2])
    with Checkpoints(fits["stopped by four"]) as saved:
        factors, _ = als.fit(one, ALS, KEY, saved=saved)
        assert saved.newest == 2
    found = np.concatenate([factors.user, factors.item])
    np.testing.assert_allclose(found, fits[4]["implicit"], rtol=2e-3, atol=2e-4)
