"""A small log with every special case, as a sparse and as a dense matrix."""

import pytest

from cadc_jax.factorization.interactions import Interactions
from tests.factorization import reference


@pytest.fixture(scope="session")
def matrix():
    """The dense matrix [U, I] of `reference.sparse_data`."""
    return reference.dense(*reference.sparse_data(), reference.U, reference.I)


@pytest.fixture(scope="session")
def interactions():
    """The interactions of `reference.sparse_data`."""
    user, item, value = reference.sparse_data()
    return Interactions.from_rows(user, item, reference.U, reference.I, value)
