"""Unsigned 64-bit integers as pairs of uint32, for programs without 64-bit types.

Accelerators compute with 32 bits, and so does JAX unless told otherwise. All operations are modulo
2**64, as those of NumPy are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Word = Any  # a uint32 array of JAX or NumPy


class UInt64(NamedTuple):
    """`high * 2**32 + low`: two uint32 arrays that broadcast against each other."""

    high: Word
    low: Word


def of(value: int) -> UInt64:
    """A constant, modulo 2**64."""
    return UInt64(np.uint32(value >> 32 & 0xFFFFFFFF), np.uint32(value & 0xFFFFFFFF))


def of_word(low: Word) -> UInt64:
    """A uint32 as 64 bits."""
    return UInt64(jnp.zeros_like(low), low)


def add(a: UInt64, b: UInt64) -> UInt64:
    """a + b."""
    low = a.low + b.low
    return UInt64(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def multiply(a: UInt64, b: UInt64) -> UInt64:
    """a * b."""
    high = upper_half(a.low, b.low) + a.high * b.low + a.low * b.high
    return UInt64(high, a.low * b.low)


def upper_half(a: Word, b: Word) -> jax.Array:
    """The upper 32 bits of the product of two uint32."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    a_low, a_high, b_low, b_high = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    middle = a_high * b_low + (a_low * b_low >> 16)
    other = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (other >> 16)


def xor_shifted(a: UInt64, bits: int) -> UInt64:
    """a ^ (a >> bits), for 0 < bits < 32."""
    low = a.low >> bits | a.high << (32 - bits)
    return UInt64(a.high ^ a.high >> bits, a.low ^ low)


def remainder(a: UInt64, divisor: int) -> jax.Array:
    """a % divisor, for 0 < divisor < 2**31: uint32.

    Long division in digits of as many bits as the remainder leaves free in a word.
    """
    digit = 32 - divisor.bit_length()
    high, low = jnp.asarray(a.high), jnp.asarray(a.low)
    rest = jnp.zeros_like(high + low)
    below = 64
    while below:
        bits = min(digit, below if below <= 32 else below - 32)
        below -= bits
        word = low >> below if below < 32 else high >> (below - 32)
        rest = (rest << bits | word & ((1 << bits) - 1)) % np.uint32(divisor)
    return rest
