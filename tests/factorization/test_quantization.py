"""Factors in few bits: how far they are off, and that differences lose nothing."""

import numpy as np
import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.factorization import quantization


def table(seed=0, rows=50, width=16):
    """Rows of very different lengths, one of them zero."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(rows, width)) * np.exp(rng.normal(size=(rows, 1)) * 3)
    made[3] = 0
    return made.astype(np.float32)


@pytest.mark.parametrize("bits", range(2, 9))
def test_an_entry_is_off_by_half_a_step_at_most(bits):
    given = table()
    levels, scale = quantization.quantize(given, bits)
    top = 2 ** (bits - 1) - 1
    assert levels.dtype == np.int8 and scale.dtype == np.float32
    assert np.abs(levels).max() == top
    step = np.abs(given).max(1, keepdims=True) / top
    error = np.abs(quantization.dequantize(levels, scale) - given)
    assert np.all(error <= step * (0.5 + 1e-5))


def test_half_and_single_precision_have_no_scale():
    given = table()
    half, none = quantization.quantize(given, 16)
    assert none is None and half.dtype == np.float16
    np.testing.assert_array_equal(quantization.dequantize(half, None), given.astype(np.float16))
    single, none = quantization.quantize(given, 32)
    np.testing.assert_array_equal(quantization.dequantize(single, none), given)


def test_quantising_twice_changes_nothing():
    levels, scale = quantization.quantize(table(), 8)
    again, _ = quantization.quantize(quantization.dequantize(levels, scale), 8)
    np.testing.assert_array_equal(again, levels)


@pytest.mark.parametrize("row", [[0.0, 0.0], [1e-45, 0.0], [3e38, -3e38], [1e-38, 2e-39]])
def test_extreme_rows_stay_finite(row):
    levels, scale = quantization.quantize(np.array([row], np.float32), 8)
    assert np.isfinite(quantization.dequantize(levels, scale)).all()


def test_a_similar_table_is_a_small_difference_from_the_guess():
    first = table()
    second = first * 1.1 + table(1) * np.abs(first).max(1, keepdims=True) * 1e-5
    (a, a_scale), (b, b_scale) = (quantization.quantize(x, 8) for x in (first, second))
    guess = quantization.predicted_levels(a, a_scale, b_scale)
    difference = b - guess
    assert np.abs(difference).mean() < np.abs(b).mean() / 10
    np.testing.assert_array_equal(difference + guess, b)  # modulo 256, as int8 wraps


def test_any_scales_give_a_guess_and_no_warning():
    scales = np.array([0, 1e-45, 1e-38, 1, 3e38], np.float32)
    levels = np.full((5, 2), -128, np.int8)
    for new in scales:
        guess = quantization.predicted_levels(levels, scales, np.full(5, new, np.float32))
        assert guess.dtype == np.int8


def test_other_numbers_of_bits_are_refused():
    quantization.check_bits("factor_bits", 8)
    for bits in (0, 1, 9, 64):
        with pytest.raises(ConfigError, match=f"factor_bits={bits}: must be 2 to 8, 16 or 32"):
            quantization.check_bits("factor_bits", bits)
