"""Sparse products with the Gram matrix against dense ones."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from cadc_jax.factorization import gram
from tests.factorization.reference import I, U

RNG = np.random.default_rng(0)
WEIGHT = RNG.uniform(0.5, 2, U)
ROWS = RNG.normal(size=(I, 5)).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(("entries", "long"), [(256, False), (16, True)])
def test_products_are_dense_ones(entries, long, devices, interactions, matrix, monkeypatch):
    monkeypatch.setattr(gram, "CACHED_BYTES", 0)
    monkeypatch.setattr(gram, "LEAST_ENTRIES", entries)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    placed = gram.place(interactions, WEIGHT, 5, mesh)
    assert (placed.items.long_rows > 0) == long
    table = placed.table(ROWS)
    want = matrix.T @ (WEIGHT[:, None] * (matrix @ ROWS))
    np.testing.assert_allclose(placed.rows(gram.product(placed.gram, table)), want, rtol=1e-4)
    np.testing.assert_allclose(placed.encode(table), matrix @ ROWS, rtol=1e-4, atol=1e-4)


def test_a_table_gives_back_the_rows_that_were_put_in(interactions):
    placed = gram.place(interactions, WEIGHT, 5)
    table = placed.table(ROWS)
    np.testing.assert_array_equal(placed.rows(table), ROWS)
    unused = np.delete(np.asarray(table), placed.items.position, axis=0)
    assert not unused.any()
