"""Factors in few bits: integers with a scale for each row, or half precision.

A row x is stored as round(x / s) with s = max |x| / (2^(bits - 1) - 1). The error of an entry is at
most s / 2. Rows of a factorisation differ much in length, so each needs its own scale.
"""

import numpy as np

from cadc_jax.errors import ConfigError

BITS = (*range(2, 9), 16, 32)  # up to 8 an int8 with a scale; then float16 and float32


def check_bits(name: str, bits: int) -> None:
    """Raises ConfigError, with the name of the field, unless `bits` is one of BITS."""
    if bits not in BITS:
        raise ConfigError(f"{name}={bits}: must be 2 to 8, 16 or 32, the bits of a factor's entry")


def dtype_of(bits: int) -> np.dtype:
    """The dtype in which `quantize` returns a table."""
    return np.dtype(np.int8 if bits <= 8 else np.float16 if bits == 16 else np.float32)


def quantize(table: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A table in `bits` bits an entry.

    Args:
      table: [N, D] float32.
      bits: one of BITS.

    Returns:
      [N, D] int8 levels and the scales [N] float32 of the rows; or [N, D] float16 or float32, and
      None.
    """
    if bits > 8:
        return table.astype(dtype_of(bits)), None
    top = 2 ** (bits - 1) - 1
    scale = (np.abs(table).max(axis=1, initial=0) / top).astype(np.float32)
    levels = np.rint(table / np.where(scale == 0, 1, scale)[:, None])
    # A scale that was rounded down, or to 0 from a subnormal number, could pass the last level.
    return np.clip(levels, -top, top).astype(dtype_of(bits)), scale


def dequantize(table: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """[N, D] float32 of what `quantize` returned; a scale that is too large gives infinity."""
    if scale is None:
        return np.asarray(table, np.float32)
    with np.errstate(over="ignore"):
        return np.asarray(table, np.float32) * np.asarray(scale, np.float32)[:, None]


def predicted_levels(levels: np.ndarray, scale: np.ndarray, new_scale: np.ndarray) -> np.ndarray:
    """A guess at the levels of a similar table: the levels of this one under the other's scales.

    Two tables that differ little are stored in less space as one of them and the difference of the
    other from this guess, modulo 256.

    Args:
      levels: [N, D] int8.
      scale: [N] float32, of `levels`.
      new_scale: [N] float32, of the other table.

    Returns:
      [N, D] int8, the same on every machine.
    """
    with np.errstate(over="ignore"):  # such a guess is clipped
        ratio = np.divide(scale, new_scale, out=np.zeros_like(scale), where=new_scale > 0)
    guess = np.rint(levels * np.minimum(ratio, 128)[:, None])
    return np.clip(guess, -127, 127).astype(np.int8)
