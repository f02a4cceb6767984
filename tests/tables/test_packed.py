"""Packed tables hold, read and write the same bits as plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax.tables import packed

V = 48


def table(width):
    return jax.random.normal(jax.random.key(0), (V, width))


@pytest.mark.parametrize("width", [8, 16, 64])
def test_a_packed_table_has_the_shape_and_the_numbers_of_the_plain_one(width):
    form = packed.pack(table(width))
    assert form.wide.shape == (V * width // 128, 128)
    assert form.shape == (V, width) and len(form) == V and form.dtype == jnp.float32
    np.testing.assert_array_equal(packed.plain({"t": form})["t"], table(width))


@pytest.mark.parametrize("width", [8, 16, 64])
def test_rows_are_read_as_from_a_plain_table_also_outside_of_it(width):
    ids = jnp.asarray([0, 1, V - 1, -1, V, 3 * V, 7, 7], jnp.int32)
    np.testing.assert_array_equal(
        packed.read(packed.pack(table(width)), ids), packed.read(table(width), ids)
    )


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("width", [8, 64])
def test_rows_are_changed_as_in_a_plain_table_and_others_keep_their_bits(width, ascending):
    ids = jnp.asarray([2, V + 1, 3, 4, V + 4, 40, V + 6], jnp.int32)
    if not ascending:
        ids = ids[::-1]
    change = jax.random.normal(jax.random.key(1), (len(ids), width))
    plain = table(width).at[5].set(-0.0)
    form = packed.pack(plain)
    want = packed.add(plain, ids, change, unique=True)
    got = packed.add(form, ids, change, ascending=ascending)
    assert bits(got) == bits(want)
    old = packed.read(plain, ids)
    want = packed.write(plain, ids, old, change)
    got = packed.write(form, ids, old, change, ascending=ascending)
    assert bits(got) == bits(want)


def bits(form):
    return np.asarray(packed.plain(form)).tobytes()


def test_changes_of_the_same_row_add_up():
    got = packed.add(packed.pack(jnp.zeros((16, 8))), jnp.asarray([3, 3, 2]), jnp.ones((3, 8)))
    np.testing.assert_array_equal(packed.plain(got)[:5, 0], [0, 0, 1, 2, 0])


@pytest.mark.parametrize(
    ("shape", "dtype", "can"),
    [
        ((V, 64), "float32", True),
        ((V, 8), "float32", True),
        ((V, 4), "float32", False),
        ((V, 48), "float32", False),
        ((V, 128), "float32", False),
        ((V,), "float32", False),
        ((V, 64), "bfloat16", False),
    ],
)
def test_tables_are_packed_if_their_rows_are_narrow_divide_the_lanes_and_are_float32(
    shape, dtype, can
):
    assert packed.can_pack(shape, jnp.dtype(dtype)) == can
