"""Rows of a table as records of 32-bit words: one gather reads a batch.

Every feature of a row gets the fewest of 8, 16 and 32 bits that hold all of its values. Floats
whose values are all small whole numbers, as labels are, count as integers.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.data.table import Columns
from cadc_jax.tables import packed

_SIZES = (8, 16, 32)
_BLOCK_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Field:
    """Where a feature is in a record.

    Attributes:
      bits: 8, 16 or 32.
      whole: whether the bits are an unsigned integer, not a float (32 bits) or a bfloat16 (16).
      word: the word they are in.
      shift: bits of that word below them.
    """

    bits: int
    whole: bool
    word: int = 0
    shift: int = 0


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table in its records.

    Attributes:
      name: of the column.
      dtype: name of its dtype in a batch.
      flat: whether it is [N]; otherwise it is [N, F].
      fields: of its F features.
    """

    name: str
    dtype: str
    flat: bool
    fields: tuple[Field, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How records are made of columns.

    Attributes:
      columns: the columns.
      words: W, words of a record.
    """

    columns: tuple[Column, ...]
    words: int


def plan(columns: Columns, half: bool = False, lanes: bool = False) -> Layout:
    """The layout of the smallest records; it reads all columns once.

    Args:
      columns: name -> [N] or [N, F], int32 of numbers >= 0 or float32.
      half: whether floats, except whole numbers, are rounded to bfloat16.
      lanes: whether records are to be packed into rows of 128 words, as TPUs store them.
    """
    found = {name: _sizes(x, half) for name, x in columns.items()}
    used, placed = 0, {}
    # The largest first: no field crosses the border of a word.
    for size in reversed(_SIZES):
        for name, fields in found.items():
            for place, field in enumerate(fields):
                if field.bits == size:
                    word, shift = divmod(used, 32)
                    placed[name, place] = dataclasses.replace(field, word=word, shift=shift)
                    used += size
    words = max(1, -(-used // 32))
    if lanes and words <= packed.LANES:
        words = max(packed.NARROWEST, 1 << (words - 1).bit_length())
    return Layout(
        tuple(
            Column(
                name,
                str(x.dtype),
                x.ndim == 1,
                tuple(placed[name, place] for place in range(len(found[name]))),
            )
            for name, x in columns.items()
        ),
        words,
    )


def _sizes(column: np.ndarray, half: bool) -> list[Field]:
    """The size of each feature of a column [N] or [N, F]."""
    rows, integers = column.reshape(len(column), -1), column.dtype.kind in "iu"
    largest, whole = np.zeros(rows.shape[1]), np.ones(rows.shape[1], bool)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = np.asarray(rows[start : start + _BLOCK_ROWS])
        if integers:
            largest = np.maximum(largest, block.max(axis=0))
        elif whole.any():  # the sign of a zero has to stay
            whole &= ((block == np.trunc(block)) & (block < 256) & ~np.signbit(block)).all(axis=0)
    return [
        Field(next(size for size in _SIZES if most < 1 << size), True)
        if small
        else Field(16 if half else 32, False)
        for most, small in zip(largest, whole, strict=True)
    ]


def pack(columns: Columns, layout: Layout, rows: slice) -> np.ndarray:
    """Records [n, W] uint32 of a range of rows, which may be larger than memory.

    Rows past the end are zeros.
    """
    (count,) = {len(x) for x in columns.values()}
    first, last, _ = rows.indices(max(count, rows.stop or count))
    made = np.zeros((last - first, layout.words), np.uint32)
    for start in range(first, min(last, count), _BLOCK_ROWS):
        part = slice(start, min(start + _BLOCK_ROWS, last, count))
        block = made[part.start - first : part.stop - first]
        for column in layout.columns:
            values = np.asarray(columns[column.name][part]).reshape(len(block), -1)
            for field, feature in zip(column.fields, values.T, strict=True):
                block[:, field.word] |= _bits(feature, field) << np.uint32(field.shift)
    return made


def _bits(feature: np.ndarray, field: Field) -> np.ndarray:
    """The bits of values [n], as uint32."""
    if field.whole:
        return feature.astype(np.uint32)
    if field.bits == 16:
        return feature.astype(jnp.bfloat16).view(np.uint16).astype(np.uint32)
    return feature.astype(np.float32).view(np.uint32)


def unpack(records: jax.Array, layout: Layout) -> Mapping[str, jax.Array]:
    """Columns [..., F] (or [...]) of records [..., W], each in its dtype."""
    return {column.name: _column(records, column) for column in layout.columns}


def _column(records: jax.Array, column: Column) -> jax.Array:
    if column.flat:
        return _feature(records, column.fields[0], column.dtype)
    if not column.fields:
        return jnp.zeros((*records.shape[:-1], 0), column.dtype)
    features = [_feature(records, field, column.dtype) for field in column.fields]
    return jnp.stack(features, axis=-1)


def _feature(records: jax.Array, field: Field, dtype: str) -> jax.Array:
    bits = records[..., field.word]
    if field.bits < 32:
        bits = bits >> np.uint32(field.shift) & np.uint32((1 << field.bits) - 1)
    if field.whole:
        return bits.astype(dtype)
    shifted = bits << np.uint32(32 - field.bits)  # a bfloat16 is the upper half of a float32
    return jax.lax.bitcast_convert_type(shifted, jnp.float32).astype(dtype)
