"""Records hold the columns exactly, in few words."""

import numpy as np
import pytest

from cadc_jax.resident import records

N = 70_000  # more than a block of rows
DRAW = np.random.default_rng(0)
ROWS = {
    "user": DRAW.integers(0, 70_000, N, np.int32),
    "item": DRAW.integers(0, 256, N, np.int32),
    "label": DRAW.integers(0, 2, N).astype(np.float32),
    "dense": DRAW.normal(size=(N, 3)).astype(np.float32),
    "categorical": DRAW.integers(0, [2, 300, 2**31 - 1, 65_536, 65_537], (N, 5)).astype(np.int32),
}
ROWS["categorical"][7] = [1, 299, 2**31 - 2, 65_535, 65_536]


def through(columns, half=False, lanes=False):
    layout = records.plan(columns, half, lanes)
    return records.unpack(records.pack(columns, layout, slice(0, N)), layout)


@pytest.mark.parametrize("lanes", [False, True])
def test_columns_come_back_exactly(lanes):
    for name, column in through(ROWS, lanes=lanes).items():
        np.testing.assert_array_equal(column, ROWS[name], strict=True)


def test_a_feature_takes_the_fewest_bits_that_hold_it():
    layout = records.plan(ROWS)
    bits = {column.name: [field.bits for field in column.fields] for column in layout.columns}
    assert bits == {
        "user": [32],
        "item": [8],
        "label": [8],
        "dense": [32] * 3,
        "categorical": [8, 16, 32, 16, 32],
    }
    assert layout.words == -(-sum(sum(x) for x in bits.values()) // 32)


def test_floats_may_be_rounded_to_bfloat16_except_whole_numbers():
    found = through(ROWS, half=True)
    np.testing.assert_array_equal(found["label"], ROWS["label"])
    np.testing.assert_allclose(found["dense"], ROWS["dense"], rtol=2**-8)
    assert not np.array_equal(found["dense"], ROWS["dense"])


@pytest.mark.parametrize("odd", [-0.0, 256, 0.5, -1, np.nan, np.inf])
def test_floats_that_are_not_small_whole_numbers_stay_floats(odd):
    column = {"dense": np.array([[1.0], [odd]], np.float32)}
    layout = records.plan(column)
    assert not layout.columns[0].fields[0].whole
    found = np.asarray(records.unpack(records.pack(column, layout, slice(0, 2)), layout)["dense"])
    np.testing.assert_array_equal(found.view(np.uint32), column["dense"].view(np.uint32))


def test_a_part_of_the_rows_is_that_part_and_zeros_past_the_end():
    layout = records.plan(ROWS)
    whole = records.pack(ROWS, layout, slice(0, N))
    part = records.pack(ROWS, layout, slice(5, N + 4))
    np.testing.assert_array_equal(part[: N - 5], whole[5:])
    assert part.shape == (N - 1, layout.words) and not part[N - 5 :].any()


@pytest.mark.parametrize("features, words", [(0, 8), (9, 16), (100, 128), (200, 201)])
def test_records_for_lanes_divide_them(features, words):
    """One word for the user, and one for each feature."""
    rows = {"user": ROWS["user"][:9], "dense": np.full((9, features), 0.5, np.float32)}
    assert records.plan(rows, lanes=True).words == words


def test_columns_without_features_take_no_room():
    rows = {"user": ROWS["item"], "dense": np.zeros((N, 0), np.float32)}
    assert records.plan(rows).words == 1
    assert through(rows)["dense"].shape == (N, 0)
