"""Statistics of training rows, and the encoding of raw rows by them."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import encoding, raw, vocabulary
from cadc_jax.data.encoding import Encoder, Statistics
from cadc_jax.errors import ArtifactError, ConfigError, DataError
from tests.data.tables import CLICK, clicks, prepared, rows_of

values = st.integers(-100, 100).map(float) | st.just(float("nan"))


# Statistics.


@given(st.lists(values), st.lists(values))
def test_statistics_of_parts_add_up_to_those_of_all(first, second):
    parts = [np.array(part, np.float32) for part in (first, second)]
    summed = encoding.statistics_of(parts[0]) + encoding.statistics_of(parts[1])
    whole = encoding.statistics_of(np.concatenate(parts))
    assert (summed.count, summed.only_flags) == (whole.count, whole.only_flags)
    assert summed.mean == pytest.approx(whole.mean, abs=1e-9)
    assert summed.squares == pytest.approx(whole.squares, rel=1e-5, abs=1e-4)


def test_the_scale_is_mean_and_standard_deviation_without_missing_values():
    values = np.array([1, np.nan, 5, 1, 5], np.float32)
    assert encoding.statistics_of(values) == Statistics(4, 3.0, 16.0, False)
    assert encoding.statistics_of(values).scale(1.0) == (3.0, 2.0)


def test_the_scale_of_flags_makes_them_0_and_1():
    log_of_1 = float(np.log1p(np.float32(1)))
    flags = np.array([0, log_of_1, np.nan], np.float32)
    assert encoding.statistics_of(flags, log_of_1).scale(log_of_1) == (0.0, log_of_1)


def test_a_constant_feature_is_divided_by_1():
    assert encoding.statistics_of(np.array([4, 4, 4], np.float32)).scale(1.0) == (4.0, 1.0)


def test_a_feature_without_values_is_left_alone():
    nothing = encoding.statistics_of(np.array([np.nan], np.float32))
    assert nothing == Statistics() and nothing.scale(1.0) == (0.0, 1.0)


def test_standardised_missing_values_are_0():
    found = encoding.standardise(np.array([1, np.nan, 7], np.float32), 3.0, 2.0)
    assert found.tolist() == [-1, 0, 2] and found.dtype == np.float32


# Changes of raw rows.


def test_a_feature_that_names_the_user_is_no_longer_a_feature():
    rows = encoding.add_user_and_item(rows_of(clicks()), ("who",), ("what",))
    assert set(rows.column_names) == {"label", "dense/count", "categorical/other", "user", "item"}
    assert vocabulary.values_of(rows["user"]).tolist() == clicks().categorical["who"].tolist()


def test_crossed_features_stay_features():
    rows = encoding.add_user_and_item(rows_of(clicks()), ("who", "other"), ("what",))
    assert {"categorical/who", "categorical/other"} < set(rows.column_names)
    columns = [clicks().categorical[name] for name in ("who", "other")]
    np.testing.assert_array_equal(
        vocabulary.values_of(rows["user"]), vocabulary.cross(columns), strict=True
    )


def test_features_replace_the_user_of_the_source():
    table = clicks(user=np.arange(20), item=np.arange(20))
    rows = encoding.add_user_and_item(rows_of(table), ("who",), ())
    assert vocabulary.values_of(rows["user"]).tolist() == table.categorical["who"].tolist()
    assert vocabulary.values_of(rows["item"]).tolist() == list(range(20))


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        (
            ("wo",),
            ("what",),
            "data.user_features: no categorical column 'wo'; there are: who, what, other",
        ),
        (("who",), (), r"no item id: set data.item_features to the column\(s\) to use"),
    ],
)
def test_missing_users_and_items_are_refused(users, items, message):
    with pytest.raises(ConfigError, match=message):
        encoding.add_user_and_item(rows_of(clicks()), users, items)


def test_the_log_transform_takes_negative_counts_for_0():
    rows = raw.table_of({"dense/x": [-3, 0, np.e - 1, np.nan], "label": [1, 0, 1, 0]})
    found = encoding.log_transform(rows)
    np.testing.assert_allclose(found["dense/x"].to_numpy(), [0, 0, 1, np.nan], rtol=1e-6)
    assert found["label"].to_pylist() == [1, 0, 1, 0]


def test_infinite_values_are_refused_and_missing_ones_are_not():
    encoding.check_finite(raw.table_of({"dense/x": [1, np.nan]}))
    with pytest.raises(DataError, match="dense feature 'x' holds an infinite value"):
        encoding.check_finite(raw.table_of({"dense/x": [1, -np.inf]}))


def test_a_coded_column_of_several_pieces_becomes_one_array():
    pieces = [raw.table_of({"user": np.array(part)}) for part in (["a", "b"], ["c", "a"])]
    column = encoding.coded_column(pa.concat_tables(pieces), "user")
    assert isinstance(column, pa.DictionaryArray)
    assert column.to_pylist() == ["a", "b", "c", "a"]


# Encoding.


def test_rows_become_ids_and_standardised_numbers(monkeypatch):
    monkeypatch.setattr(encoding, "_BLOCK", 2)  # three rows take two blocks
    encoder = Encoder(
        user_features=(),
        item_features=(),
        log_dense=False,
        user=vocabulary.of(np.array([7, 9])),
        item=vocabulary.of(np.array(["x", "y"])),
        dense={"b": (1.0, 2.0), "a": (0.0, 1.0)},
        categorical={
            "kind": vocabulary.of(np.array(["p", "q"])),
            "size": vocabulary.of(np.array([3])),
        },
    )
    rows = raw.table_of(
        {
            "user": np.array([9, 7, 8]),
            "item": np.array(["y", "z", "x"]),
            "label": [1, 0, 1],
            "dense/a": [0, 1, np.nan],
            "dense/b": [5, 1, np.nan],
            "categorical/size": np.array([3, 4, 3]),
            "categorical/kind": np.array(["q", "p", "r"]),
        }
    )
    encoded = encoder.encode(rows)
    expected = {
        "user": np.array([2, 1, 0], np.int32),
        "item": np.array([2, 0, 1], np.int32),
        "dense": np.array([[2, 0], [0, 1], [0, 0]], np.float32),
        "categorical": np.array([[2, 1], [1, 0], [0, 1]], np.int32),
        "label": np.array([1, 0, 1], np.float32),
    }
    assert encoded.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(encoded[name], column, strict=True)


@pytest.mark.parametrize("max_vocabulary", [0, 3])
def test_an_opened_encoder_encodes_new_data_like_the_table(tmp_path, max_vocabulary):
    config = dataclasses.replace(
        CLICK, user_features=("who", "other"), max_vocabulary=max_vocabulary
    )
    table, _ = prepared(tmp_path, clicks(100), config)
    encoder = encoding.open_encoder(tmp_path)
    rows = rows_of(clicks(100))
    rows = encoding.add_user_and_item(rows, encoder.user_features, encoder.item_features)
    assert encoder.log_dense
    encoded = encoder.encode(encoding.log_transform(rows))
    for name in ("user", "item", "label", "dense", "categorical"):
        whole = np.concatenate([table.splits[split][name] for split in table.splits])
        np.testing.assert_array_equal(encoded[name], whole, strict=True)


def test_a_folder_without_a_table_has_no_encoder(tmp_path):
    with pytest.raises(ArtifactError, match="not a prepared table"):
        encoding.open_encoder(tmp_path)


@pytest.mark.parametrize("values", [np.array([3, 7]), np.array(["Zürich", "é"]), np.array([], int)])
def test_a_vocabulary_is_read_back_whatever_its_name(tmp_path, values):
    """A slash in a name is not a folder."""
    (tmp_path / "vocabularies").mkdir()
    encoding.write_vocabulary(tmp_path, "row.a/b", vocabulary.of(values))
    found = encoding.read_vocabulary(tmp_path, "row.a/b", hashed=7)
    assert found.values.tolist() == values.tolist() and found.hashed == 7
    (file,) = (tmp_path / "vocabularies").iterdir()
    assert file.name == ("row.a_b.npy" if values.dtype == int else "row.a_b")


@pytest.mark.parametrize("values", [np.zeros(3, np.float32), np.zeros((3, 1), np.int64)])
def test_a_file_of_other_numbers_is_no_vocabulary(tmp_path, values):
    (tmp_path / "vocabularies").mkdir()
    np.save(tmp_path / "vocabularies" / "user.npy", values)
    with pytest.raises(ArtifactError, match="user.npy: .*where int64 .* belongs"):
        encoding.read_vocabulary(tmp_path, "user")


def test_a_missing_vocabulary_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="user.npy: .*No such file"):
        encoding.read_vocabulary(tmp_path, "user")
