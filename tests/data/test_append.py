"""Rows added to a prepared table, against the table of all rows at once."""

import dataclasses

import numpy as np
import pytest

from cadc_jax.data import append, encoding, raw
from cadc_jax.data.append import NewRows
from cadc_jax.data.raw import TEST, TRAIN, VALIDATION, EntityTable, RawTable, ReadReport
from cadc_jax.data.table import open_table
from cadc_jax.errors import ConfigError
from tests.data.tables import CLICK, GIVEN, clicks, prepared

CONFIG = dataclasses.replace(GIVEN, num_negatives=0)
FIRST = RawTable(  # five training rows, a validation row and two test rows
    ReadReport(8),
    user=np.array([10, 10, 30, 30, 40, 10, 30, 40]),
    item=np.array([5, 7, 5, 9, 7, 9, 7, 5]),
    value=np.array([1, 2, 3, 4, 5, 1, 1, 1], np.float32),
    fold=np.array([TRAIN] * 5 + [VALIDATION] + [TEST] * 2, np.int8),
)


def new_rows(user, item, **more):
    """Rows to add, with the values 1, 2, 3, ..."""
    value = np.arange(1, len(user) + 1).astype(np.float32)
    return RawTable(
        ReadReport(len(user)), user=np.array(user), item=np.array(item), value=value, **more
    )


def added(path, table, config=CONFIG, first=FIRST, **content):
    """The table of `first` and the rows of `table`; and the facts of the second."""
    for name in ("before", "after"):
        (path / name).mkdir()
    before, facts = prepared(path / "before", first, config)
    rows = NewRows(raw.of_table(table), **content)
    found = append.append_rows(path / "after", path / "before", facts, rows, config)
    return before, open_table(path / "after", values=True), found


def test_new_rows_follow_the_earlier_ones_and_change_no_number(tmp_path):
    before, after, facts = added(tmp_path, new_rows([30, 20], [6, 5]))
    train, earlier = after.splits["train"], before.splits["train"]
    for name, column in earlier.items():
        np.testing.assert_array_equal(train[name][: len(column)], column)
    # Users are 10, 30, 40 and 20; items 5, 7, 9 and 6.
    np.testing.assert_array_equal(train["user"][-2:], [2, 4])
    np.testing.assert_array_equal(train["item"][-2:], [4, 1])
    np.testing.assert_array_equal(train["value"][-2:], [1, 2])
    encoder = encoding.open_encoder(tmp_path / "after")
    np.testing.assert_array_equal(encoder.user.values, [10, 30, 40, 20])
    np.testing.assert_array_equal(encoder.item.ids(np.array([6, 5, 8])), [4, 1, 0])
    np.testing.assert_array_equal(after.items["count"], [0, 3, 2, 1, 1])
    assert facts["rows"]["train"] == 7
    assert (facts["num_users"], facts["num_items"]) == (4, 4)
    assert facts["added"] == {"rows": 2, "held_out": 0, "known": 0, "users": 1, "items": 1}


def test_held_out_rows_stay(tmp_path):
    before, after, _ = added(tmp_path, new_rows([30, 20], [6, 5]))
    for split in ("validation", "test"):
        for name in ("user", "item", "value"):
            np.testing.assert_array_equal(after.splits[split][name], before.splits[split][name])


def test_a_held_out_pair_does_not_enter_training(tmp_path):
    _, after, facts = added(tmp_path, new_rows([10, 40, 40], [9, 5, 9]))
    assert facts["added"]["held_out"] == 2
    np.testing.assert_array_equal(after.splits["train"]["user"][5:], [3])
    np.testing.assert_array_equal(after.splits["train"]["item"][5:], [3])


def test_repeats_add_their_values_to_one_row(tmp_path):
    _, after, facts = added(tmp_path, new_rows([10, 40, 10, 40], [5, 9, 5, 9]))
    train = after.splits["train"]
    assert facts["added"] == {"rows": 1, "held_out": 0, "known": 3, "users": 0, "items": 0}
    assert len(train["user"]) == 6
    assert train["value"][0] == FIRST.value[0] + 1 + 3
    assert train["value"][5] == 2 + 4
    assert facts["merged_repeats"] == 3


def test_known_pairs_are_those_of_all_training_rows(tmp_path):
    _, after, _ = added(tmp_path, new_rows([40, 20, 10], [6, 5, 6]))
    train = after.splits["train"]
    order = np.lexsort((train["item"], train["user"]))
    user, item = after.known_pairs()
    np.testing.assert_array_equal(user, train["user"][order])
    np.testing.assert_array_equal(item, train["item"][order])


def test_no_negative_is_a_training_row(tmp_path):
    columns = {name: getattr(FIRST, name) for name in ("user", "item", "value", "fold")}
    more = np.arange(50, 56), np.arange(11, 17), np.ones(6, np.float32), np.zeros(6, np.int8)
    pairs = zip(columns.items(), more, strict=True)
    columns = {name: np.concatenate([column, rows]) for (name, column), rows in pairs}
    first = RawTable(ReadReport(14), **columns)
    config = dataclasses.replace(CONFIG, num_negatives=2)
    user, item = np.repeat([10, 30, 40], 4), np.tile(np.arange(11, 15), 3)
    _, after, _ = added(tmp_path, new_rows(user, item), config, first)
    for split in ("validation", "test"):
        rows = after.splits[split]
        for user, drawn in zip(rows["user"], rows["negatives"], strict=True):
            known = after.known["items"][slice(*after.known["offsets"][user : user + 2])]
            assert not set(drawn) & set(known)


def test_new_ids_take_their_content_by_the_earlier_vocabularies_and_scales(tmp_path):
    def items(ids, year, kind, tags):
        return EntityTable(
            ids=np.array(ids),
            dense={"year": np.array(year, np.float32)},
            categorical={"kind": np.array(kind)},
            bags={"tags": np.array(tags)},
            titles=np.array([f"Film {i}" for i in ids]),
        )

    first = dataclasses.replace(FIRST, items=items([5, 7], [1990, 2000], [1, 2], ["a", "b|a"]))
    content = items([5, 7, 6, 8], [1990, 2000, 2010, 0], [1, 2, 2, 1], ["a", "b|a", "a|b|c", ""])
    before, after, _ = added(tmp_path, new_rows([10, 10], [6, 4]), first=first, items=content)
    np.testing.assert_array_equal(after.items["dense"][:4], before.items["dense"])
    np.testing.assert_allclose(after.items["dense"][4:, 0], [0, 3])  # ids of 4 and 6
    np.testing.assert_array_equal(after.items["categorical"][4:, 0], [0, 2])
    np.testing.assert_array_equal(after.items["bags"][5, 0], [1, 2, 0])  # 'c' is new
    np.testing.assert_array_equal(after.items["bags"][2, 0], [2, 1, -1])


def test_clicks_are_added_with_their_features(tmp_path):
    table = clicks(4)
    table.dense["count"][:] = [0, 1, 2, np.nan]
    table.categorical["who"][:] = [0, 1, 2, 9]
    table.categorical["other"][:] = 77
    before, after, facts = added(tmp_path, table, CLICK, clicks())
    rows, count = after.splits["train"], len(before.splits["train"]["user"])
    assert facts["added"]["rows"] == 4
    np.testing.assert_array_equal(rows["label"][count:], table.label)
    assert rows["user"][-1] == before.schema.num_users
    assert not rows["categorical"][count:].any()  # a value that training rows did not have
    assert rows["dense"][-1] == 0
    clicked = np.bincount(rows["item"], rows["label"], after.schema.num_items)
    np.testing.assert_array_equal(after.items["clicks"], clicked)


def test_the_table_is_that_of_all_rows_but_for_the_order_of_ids(tmp_path):
    new = new_rows([20, 40, 10], [6, 6, 4])
    _, after, _ = added(tmp_path, new)
    columns = {
        name: np.concatenate([getattr(FIRST, name), getattr(new, name)])
        for name in ("user", "item", "value")
    }
    fold = np.concatenate([FIRST.fold, np.zeros(3, np.int8)])
    (tmp_path / "all").mkdir()
    whole, _ = prepared(tmp_path / "all", RawTable(ReadReport(11), fold=fold, **columns), CONFIG)
    ours, theirs = (encoding.open_encoder(tmp_path / name) for name in ("after", "all"))
    for kind in ("user", "item"):
        places = np.append(0, getattr(ours, kind).ids(getattr(theirs, kind).values))
        np.testing.assert_array_equal(
            after.splits["train"][kind], places[whole.splits["train"][kind]]
        )
    np.testing.assert_array_equal(after.splits["train"]["value"], whole.splits["train"]["value"])


def test_new_rows_below_the_least_value_are_left_out(tmp_path):
    new = new_rows([30, 20], [6, 5])
    first = dataclasses.replace(FIRST, value=np.array([1, 2, 3, 4, 5, 5, 5, 5], np.float32))
    config = dataclasses.replace(CONFIG, min_value=2)
    _, after, facts = added(tmp_path, new, config, first)
    assert (facts["added"]["rows"], facts["reader"]["below"]) == (1, 2)
    assert after.splits["train"]["value"][-1] == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"min_item_rows": 2}, "which users and items stay is decided by the whole log"),
        ({"split": "users"}, "data.split='users': new rows of held-out users"),
        ({"max_vocabulary": 3}, "data.max_vocabulary=3: with the new rows there are more users"),
    ],
)
def test_what_cannot_be_added_is_refused(tmp_path, changed, message):
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    _, facts = prepared(tmp_path / "before", FIRST, CONFIG)
    config = dataclasses.replace(CONFIG, validation=0.1, test=0.1, **changed)
    rows = NewRows(raw.of_table(new_rows([20], [5])))
    with pytest.raises(ConfigError, match=message):
        append.append_rows(tmp_path / "after", tmp_path / "before", facts, rows, config)
