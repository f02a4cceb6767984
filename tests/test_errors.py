"""Checks of settings: what each accepts, and what its error says."""

import numpy as np
import pytest

from cadc_jax import errors
from cadc_jax.errors import ConfigError


def test_a_choice_is_one_of_the_allowed_values():
    errors.check_choice("als.solver", "cg", ("cg", "exact"))
    with pytest.raises(ConfigError, match="als.solver='lu': must be one of cg, exact"):
        errors.check_choice("als.solver", "lu", ("cg", "exact"))


def test_an_old_value_names_the_new_one():
    with pytest.raises(ConfigError, match="als.solver='cholesky': is now called 'exact'"):
        errors.check_choice("als.solver", "cholesky", ("cg", "exact"), {"cholesky": "exact"})


@pytest.mark.parametrize("value", [1, 1.5, np.int64(3), (1, 2), [4], ()])
def test_a_number_or_all_of_several_numbers_may_be_at_least_the_bound(value):
    errors.check_at_least("x", value, 1)


@pytest.mark.parametrize("value", [0, -1, float("nan"), (2, 0), np.float32(0.5)])
def test_a_number_below_the_bound_is_named(value):
    with pytest.raises(ConfigError, match="train.l2=.*: must be at least 1"):
        errors.check_at_least("train.l2", value, 1)


def test_the_bound_itself_is_not_above_it():
    errors.check_above("x", 1e-9, 0)
    for value in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="must be above 0"):
            errors.check_above("x", value, 0)


def test_a_share_is_at_least_0_and_below_1():
    for value in (0, 0.5, 0.999):
        errors.check_below_one("x", value)
    for value in (-0.1, 1, float("nan")):
        with pytest.raises(ConfigError, match=r"must be in \[0, 1\)"):
            errors.check_below_one("x", value)
