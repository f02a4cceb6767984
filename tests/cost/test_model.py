"""Time and text of a cost, and the sizes of a prepared table."""

import dataclasses

import numpy as np
import pytest

from cadc_jax.cost import model
from cadc_jax.cost.model import HARDWARE, LAUNCH, SHARE, Cost, Hardware
from cadc_jax.data.table import Features, Schema, Table
from cadc_jax.errors import ConfigError

DEVICE = Hardware(1e9, 10.0, 5.0, {"float32": 100.0}, "gpu")
COST = Cost(
    *("c", {"x": 6e8, "y": 3e8}, "step", 120.0, "float32", 6.0, {"x": 12.0}),
    *(100_000, 3, "epoch"),
)


def test_time_is_the_sum_of_all_parts_at_their_share_of_the_peak():
    seconds = COST.seconds(DEVICE)
    assert seconds["products"] == pytest.approx(1.2 / SHARE)
    assert seconds["memory"] == pytest.approx(0.6 / SHARE)
    assert seconds["receiving"] == pytest.approx(2.4 / SHARE)
    assert seconds["launches"] == pytest.approx(100_000 * LAUNCH)
    assert seconds["total"] == pytest.approx(4.2 / SHARE + 100_000 * LAUNCH)


def test_the_text_has_memory_and_time():
    text = model.text([COST], DEVICE)
    assert "900.00 MB of 1.00 GB: fits" in text
    assert "kernels started                       100,000  250.00 ms" in text
    assert "step: about 7.25 s; epoch of 3: about 21.75 s" in text


def test_the_text_does_not_repeat_the_time_of_a_single_unit():
    single = model.text([dataclasses.replace(COST, units=1)], DEVICE)
    assert single.endswith("step: about 7.25 s")


def test_the_text_says_if_memory_is_too_small():
    small = dataclasses.replace(DEVICE, memory=8e8)
    assert "900.00 MB of 800.00 MB: DOES NOT FIT" in model.text([COST], small)


def test_the_text_leaves_out_memory_of_unbounded_devices_and_parts_of_size_0():
    empty = dataclasses.replace(COST, memory={"x": 5.0, "none": 0.0}, received={"none": 0.0})
    text = model.text([empty, COST], dataclasses.replace(DEVICE, memory=float("inf")))
    assert "none" not in text
    assert "5 B\n" in text and "fits" not in text.lower()
    assert text.count("memory of a device") == 2


def test_the_text_has_the_memory_of_a_host_where_it_is_counted():
    text = model.text([COST, dataclasses.replace(COST, host={"x": 2e9, "y": 1e9})], DEVICE)
    assert text.count("memory of a host") == 1
    assert "3.00 GB\n" in text


def test_an_unknown_device_is_rejected_with_the_known_ones():
    assert model.hardware("v5e") is HARDWARE["v5e"]
    with pytest.raises(
        ConfigError, match="hardware='v9': must be one of v5e, v5p, v6e, h100, h200, cpu"
    ):
        model.hardware("v9")


SCHEMA = Schema(
    "ranking",
    3,
    2,
    context=Features(("price",), ("hour", "day"), (4, 5)),
    user_content=Features(categorical=("town",), vocabulary_sizes=(7,)),
    item_content=Features(("age", "size"), (), (), ("tags",), (11,)),
)


def test_the_sizes_of_a_ranking_table_are_those_of_its_columns():
    rows = {"user": np.array([0, 1, 1, 1])}
    known = {"offsets": np.array([0, 1, 3, 3])}
    table = Table(SCHEMA, {"train": rows}, {}, {"count": np.array([1, 2])}, known)
    sizes = model.sizes_of(table)
    assert (sizes.task, sizes.rows, sizes.num_users, sizes.num_items) == ("ranking", 4, 3, 2)
    assert sizes.feature_rows == 4 + 5 + 7 + 11
    assert (sizes.dense, sizes.categorical) == ((0, 1, 2), (1, 2, 0))
    assert sizes.entries == 3
    np.testing.assert_array_equal(sizes.user_counts, [1, 2, 0])
    np.testing.assert_array_equal(sizes.item_counts, [1, 2])


def test_the_entries_of_a_click_table_are_its_clicks():
    schema = dataclasses.replace(SCHEMA, task="click")
    rows, items = {"user": np.zeros(9)}, {"clicks": np.array([4, 1])}
    sizes = model.sizes_of(Table(schema, {"train": rows}, {}, items, {}))
    assert (sizes.rows, sizes.entries, sizes.user_counts) == (9, 5, None)
    np.testing.assert_array_equal(sizes.item_counts, [4, 1])
