"""64-bit arithmetic from 32-bit words, against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cadc_jax.resident import uint64
from cadc_jax.resident.uint64 import UInt64

NUMBERS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**64 - 1])


def number(x):
    return int(x.high) << 32 | int(x.low)


def arrays(value):
    return UInt64(*(jnp.asarray(x) for x in uint64.of(value)))


@settings(max_examples=60)
@given(NUMBERS, NUMBERS)
def test_sums_and_products_are_modulo_2_to_the_64(a, b):
    assert number(uint64.add(arrays(a), arrays(b))) == (a + b) % 2**64
    assert number(uint64.multiply(arrays(a), arrays(b))) == a * b % 2**64


@settings(max_examples=60)
@given(NUMBERS, NUMBERS)
def test_the_upper_half_of_a_product_of_words(a, b):
    a, b = a % 2**32, b % 2**32
    assert int(uint64.upper_half(np.uint32(a), np.uint32(b))) == a * b >> 32


@pytest.mark.parametrize("bits", [1, 27, 30, 31])
@settings(max_examples=20)
@given(NUMBERS)
def test_xor_with_itself_shifted(bits, a):
    assert number(uint64.xor_shifted(arrays(a), bits)) == a ^ a >> bits


@pytest.mark.parametrize("divisor", [1, 2, 3, 255, 3706, 65_536, 10_000_019, 2**30, 2**31 - 1])
@settings(max_examples=20)
@given(NUMBERS)
def test_remainders_for_few_and_many_digits(divisor, a):
    assert int(uint64.remainder(arrays(a), divisor)) == a % divisor


def test_no_type_of_64_bits_is_in_a_program():
    text = jax.jit(uint64.multiply).lower(arrays(1), arrays(2)).as_text()
    assert "ui32" in text and "i64" not in text
