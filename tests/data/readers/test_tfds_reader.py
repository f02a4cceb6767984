"""TFDS as a source: rows in stored order, plain types, and errors that say what to do."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cadc_jax.configuration import data_folder, default_config
from cadc_jax.data import prepare, raw
from cadc_jax.data.raw import TEST, TEXT, TRAIN
from cadc_jax.data.readers import registry, tfds_reader
from cadc_jax.data.readers.tabular import ColumnNames
from cadc_jax.data.table import open_table
from cadc_jax.errors import ConfigError, DataError

ARCHIVE = data_folder() / "ml-latest-small/ml-latest-small.zip"
NAME = "ratings_of_a_test"
ROWS = 100


def store(folder: Path, **options) -> str:
    """Stores ROWS examples, as another program might, and returns the folder."""
    examples = [
        {
            "user_id": f"ü{i}",
            "movie_genres": [i % 3] * (i % 4),
            "user_rating": i / 2,
            "liked": i % 2 == 0,
            "gender": i % 2,
            "raw": b"\xff",
        }
        for i in range(ROWS)
    ]
    features = {
        "user_id": tfds.features.Text(),
        "movie_genres": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)),
        "user_rating": np.float64,
        "liked": np.bool_,
        "gender": tfds.features.ClassLabel(names=["F", "M"]),
        "raw": tfds.features.Text(),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name=NAME,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": list(enumerate(examples))},
        data_dir=str(folder),
        download_config=tfds.download.DownloadConfig(num_shards=4),
        **options,
    )
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """A folder with a data set of four shards."""
    return store(tmp_path_factory.mktemp("tfds"))


SCALARS = ["user_id", "user_rating", "liked", "gender"]


def read(data_dir: str, split: str = "train") -> dict[str, np.ndarray]:
    """Returns the scalar columns of a split, which is one chunk."""
    (chunk,) = tfds_reader.read_chunks(NAME, split, data_dir, SCALARS)
    return chunk


def test_every_row_comes_whole(data_dir):
    chunk = read(data_dir)
    assert list(chunk) == SCALARS
    number = 2 * chunk["user_rating"].astype(int)
    number += chunk["gender"]  # the remainder of the division
    assert sorted(number) == list(range(ROWS))
    np.testing.assert_array_equal(chunk["user_id"], [f"ü{i}" for i in number])
    np.testing.assert_array_equal(chunk["liked"], number % 2 == 0)


def test_rows_come_shard_by_shard(data_dir):
    shards = [read(data_dir, f"train[{i}shard:{i + 1}shard]")["user_id"] for i in range(4)]
    np.testing.assert_array_equal(read(data_dir)["user_id"], np.concatenate(shards))


def test_chunks_have_a_limit_and_lose_no_row(data_dir, monkeypatch):
    whole = read(data_dir)["user_rating"]
    monkeypatch.setattr(tfds_reader, "CHUNK_ROWS", 30)
    chunks = list(tfds_reader.read_chunks(NAME, "train", data_dir, ["user_rating"]))
    assert [len(chunk["user_rating"]) for chunk in chunks] == [30, 30, 30, 10]
    joined = np.concatenate([chunk["user_rating"] for chunk in chunks])
    np.testing.assert_array_equal(joined, whole)


def test_rows_of_many_bytes_come_in_smaller_chunks(data_dir, monkeypatch):
    info = tfds.builder(NAME, data_dir=data_dir).info.splits["train"]
    monkeypatch.setattr(tfds_reader, "_CHUNK_BYTES", 7 * (info.num_bytes // info.num_examples))
    chunks = list(tfds_reader.read_chunks(NAME, "train", data_dir, ["user_rating"]))
    assert {len(chunk["user_rating"]) for chunk in chunks[:-1]} == {7}


def test_values_are_text_integers_and_numbers(data_dir):
    chunk = read(data_dir)
    text, *numbers = (chunk[name] for name in SCALARS)
    assert text.type == TEXT
    assert [values.dtype.kind for values in numbers] == ["f", "i", "i"]
    assert chunk["liked"].dtype == chunk["gender"].dtype == np.int64
    assert chunk["user_rating"].dtype == np.float32


def test_without_names_all_scalars_are_read(data_dir):
    with pytest.raises(DataError, match="column 'raw' .* not UTF-8"):  # only a scalar is read
        list(tfds_reader.read_chunks(NAME, "train", data_dir))


def test_part_of_a_split_can_be_read(data_dir):
    part, whole = read(data_dir, "train[10%:20%]"), read(data_dir)
    np.testing.assert_array_equal(part["user_id"], whole["user_id"][10:20])


@pytest.mark.parametrize(
    ("name", "split", "columns", "error", "message"),
    [
        (NAME, "test", None, DataError, "no split 'test'; there are train"),
        (NAME, "train", ["user"], ConfigError, "no column 'user'.*did you mean 'user_id'"),
        (NAME, "train", ["movie_genres"], ConfigError, "not a scalar but Sequence"),
        ("no_such_set", "train", None, ConfigError, "no TFDS data set 'no_such_set'.*tfds build"),
        ("movielens/9k-ratings", "train", None, ConfigError, "no TFDS data set"),
        ("movielens/100k-ratings", "train", None, DataError, "not prepared.*tfds build"),
    ],
)
def test_a_missing_data_set_split_or_column_is_named(
    data_dir, name, split, columns, error, message
):
    with pytest.raises(error, match=message):
        next(tfds_reader.read_chunks(name, split, data_dir, columns))


def test_a_data_set_in_another_format_is_an_error(tmp_path):
    store(tmp_path, file_format="array_record")
    with pytest.raises(DataError, match="array_record: prepare it .* --file_format=tfrecord"):
        next(tfds_reader.read_chunks(NAME, "train", str(tmp_path)))


@pytest.mark.slow
def test_movielens_from_tfds_has_the_published_rows(tmp_path):
    if not ARCHIVE.exists():
        pytest.skip(f"no {ARCHIVE}")
    # TFDS takes a download from the manual folder if its name is the registered one.
    tfds.builder("movielens/latest-small-ratings", data_dir=tmp_path).download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=ARCHIVE.parent)
    )
    chunks = list(tfds_reader.read_chunks("movielens/latest-small-ratings", "train", str(tmp_path)))
    names = ["user_id", "movie_id", "user_rating", "timestamp"]
    found = [np.concatenate([chunk[name] for chunk in chunks]).tolist() for name in names]
    with zipfile.ZipFile(ARCHIVE).open("ml-latest-small/ratings.csv") as file:
        rows = list(csv.reader(io.TextIOWrapper(file)))[1:]
    expected = [(user, movie, float(rating), int(time)) for user, movie, rating, time in rows]
    assert sorted(zip(*found, strict=True)) == sorted(expected)


# As a source of rows.

COLUMNS = ColumnNames(
    user="user_id",
    item="gender",
    label="liked",
    dense=("user_rating",),
    categorical=("gender",),
)


def test_rows_become_chunks_by_the_names_of_their_columns(data_dir):
    source = tfds_reader.open_splits(NAME, {TRAIN: "train"}, COLUMNS, data_dir)
    table = raw.collect(source)
    expected = read(data_dir)
    assert table.report.rows == source.size == ROWS and table.fold is None
    np.testing.assert_array_equal(table.user, expected["user_id"])
    np.testing.assert_array_equal(table.item, expected["gender"])
    np.testing.assert_array_equal(table.label, expected["liked"].astype(np.float32))
    np.testing.assert_array_equal(table.dense["user_rating"], expected["user_rating"])
    np.testing.assert_array_equal(table.categorical["gender"], expected["gender"])


def test_splits_of_the_data_set_may_be_the_folds_of_the_rows(data_dir):
    splits = {TRAIN: "train[:50%]+train[50%:80%]", TEST: "train[80%:]"}
    table = raw.collect(tfds_reader.open_splits(NAME, splits, COLUMNS, data_dir))
    assert np.bincount(table.fold).tolist() == [80, 0, 20]
    np.testing.assert_array_equal(table.user, read(data_dir)["user_id"])


def test_a_label_out_of_range_is_a_malformed_row(data_dir):
    columns = ColumnNames(user="user_id", item="gender", label="user_rating")
    source = tfds_reader.open_splits(NAME, {TRAIN: "train"}, columns, data_dir)
    table = raw.collect(source, max_malformed=1.0)
    wrong = ~np.isin(read(data_dir)["user_rating"], (0, 1))
    assert table.report.malformed == wrong.sum() == ROWS - 2
    assert table.report.examples[0].startswith(f"{NAME}, train: row {np.argmax(wrong) + 1}: ")
    with pytest.raises(DataError, match="its label or value is out of range .*max_malformed"):
        raw.collect(source)


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"no {ARCHIVE}")
def test_movielens_from_tfds_is_prepared_by_configuration_alone(tmp_path):
    builder = tfds.builder("movielens/latest-small-ratings", data_dir=str(tmp_path / "tfds"))
    manual = tfds.download.DownloadConfig(manual_dir=str(ARCHIVE.parent))
    builder.download_and_prepare(download_config=manual)
    config = default_config()
    config.data.update(
        source="tfds",
        path=str(tmp_path / "tfds"),
        tfds_name="movielens/latest-small-ratings",
        train_file="train",
        split="leave_one_out",
    )
    config.data.columns.update(
        user="user_id", item="movie_id", value="user_rating", timestamp="timestamp"
    )
    data = config.data.to_dict()
    source = registry.open_raw_data("tfds", tmp_path / "tfds", data)
    prepared = prepare.PrepareConfig("ranking", "leave_one_out")
    facts = prepare.write_table(tmp_path / "table", source, prepared)
    assert facts["rows"] == {
        "train": 100_836 - 2 * 610,
        "validation": 610,
        "test": 610,
        "fold_in": 0,
    }
    assert facts["num_users"] == 610
    assert open_table(tmp_path / "table").splits["test"]["negatives"].shape == (610, 99)
    assert any("tfrecord" in path.name for path in registry.raw_files("tfds", tmp_path, data))
