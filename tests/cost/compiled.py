"""Predicted figures against figures of compiled programs, and sizes to predict for."""

import pytest

from benchmarks import plan
from cadc_jax import cost

CLICKS = cost.Sizes("click", 10**6, 16_000, 8_000, 64_000, (0, 13, 0), (0, 24, 0), entries=10**6)
PAIRS = cost.Sizes("ranking", 10**6, 16_000, 8_000, 640, (2, 0, 3), (3, 0, 2), entries=10**6)


def assert_near(pairs):
    """Checks that predictions are close; temporaries only up to a factor of 2."""
    for name, tolerance in ((plan.ARGUMENTS, 0.01), (plan.FLOPS, 0.01), (plan.RECEIVED, 0.05)):
        predicted, found = pairs[name]
        assert predicted == pytest.approx(found, rel=tolerance, abs=100), name
    predicted, found = pairs[plan.TEMPORARIES]
    assert found / 2 <= predicted <= found * 2
