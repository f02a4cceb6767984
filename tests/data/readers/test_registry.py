"""The registry of readers: the reader and the files of a source, and errors for missing files."""

import os

import numpy as np
import pytest

from cadc_jax.configuration import default_config
from cadc_jax.data import raw
from cadc_jax.data.readers import registry
from cadc_jax.errors import ConfigError, DataError

ROW = "1" + "\t2" * 13 + "\t68fd1e64" * 26 + "\n"


def settings(**fields):
    config = default_config()
    config.data.update(fields)
    return config.data.to_dict()


def criteo_folder(path, names):
    """Writes files of one row; its I1 is the index of the file in `names`."""
    for index, name in enumerate(names):
        (path / name).write_text(ROW.replace("\t2", f"\t{index}", 1))
    return path


def read(source, path, given):
    table = registry.open_raw_data(source, path, given)
    return raw.collect(table, given["max_malformed"])


# Criteo.


def test_a_folder_of_criteo_files_is_read_by_name(tmp_path):
    criteo_folder(tmp_path, ["day_2", "day_0", "day_1"])
    raw = read("criteo", tmp_path, settings(source="criteo"))
    assert raw.dense["I1"].tolist() == [1, 2, 0]


def test_day_10_is_read_after_day_9(tmp_path):
    """The days of Criteo's 1 TB are day_0 to day_23, and the last ones test."""
    criteo_folder(tmp_path, [f"day_{day}" for day in range(24)])
    raw = read("criteo", tmp_path, settings(source="criteo"))
    assert raw.dense["I1"].tolist() == list(range(24))


def test_a_criteo_file_is_read_alone(tmp_path):
    criteo_folder(tmp_path, ["day_0", "day_1"])
    raw = read("criteo", tmp_path / "day_1", settings(source="criteo"))
    assert raw.dense["I1"].tolist() == [1]


def test_the_share_of_malformed_rows_comes_from_the_settings(tmp_path):
    (tmp_path / "train.txt").write_text(ROW + "?\n" + ROW)
    with pytest.raises(DataError, match="train.txt:2"):
        read("criteo", tmp_path, settings(source="criteo"))
    raw = read("criteo", tmp_path, settings(source="criteo", max_malformed=0.5))
    assert raw.report.malformed == 1


def test_files_of_criteo_may_be_the_splits(tmp_path):
    criteo_folder(tmp_path, ["day_0", "day_1", "day_2", "day_10", "day_11"])
    given = settings(split="given", validation_file="day_10", test_file="day_11*")
    raw = read("criteo", tmp_path, given)
    assert raw.fold.tolist() == [0, 0, 0, 1, 2] and raw.dense["I1"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("field", ["validation", "test"])
def test_a_missing_file_of_a_split_is_an_error_that_lists_the_files(tmp_path, field):
    criteo_folder(tmp_path, ["day_0", "day_1", "day_2"])
    names = {"validation_file": "day_1", "test_file": "day_2", f"{field}_file": "day_9"}
    message = f"data.{field}_file='day_9': .* there are day_0, day_1, day_2"
    with pytest.raises(ConfigError, match=message):
        read("criteo", tmp_path, settings(split="given", **names))


# Tables and MovieLens.


def test_columns_and_files_come_from_the_settings(tmp_path):
    (tmp_path / "log.tsv").write_text("who\twhat\tstars\na\tx\t5\nb\ty\t3\n")
    given = settings(train_file="log.tsv")
    given["columns"] |= {"user": "who", "item": "what", "value": "stars"}
    raw = read("tabular", tmp_path, given)
    assert raw.user.tolist() == ["a", "b"] and raw.item.tolist() == ["x", "y"]
    assert raw.value.tolist() == [5, 3]
    assert raw.timestamp is raw.label is raw.fold is raw.users is raw.items is None


def test_all_files_of_a_table_are_read_by_their_use(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id\n1,10\n1,11\n")
    (tmp_path / "b.csv").write_text("user_id,item_id\n1,12\n")
    (tmp_path / "c.csv").write_text("user_id,item_id\n1,13\n")
    (tmp_path / "n.csv").write_text("user_id,one,two\n1,14,15\n")
    (tmp_path / "u.csv").write_text("id,age\n1,30\n")
    (tmp_path / "i.csv").write_text("key,name\n10,Ten\n")
    given = settings(
        train_file="a.csv", validation_file="b.csv", test_file="c.csv", negatives_file="n.csv"
    )
    given["user_content"] |= {"file": "u.csv", "dense": ("age",)}
    given["item_content"] |= {"file": "i.csv", "id": "key", "title": "name"}
    raw = read("tabular", tmp_path, given)
    assert raw.item.tolist() == [10, 11, 12, 13] and raw.fold.tolist() == [0, 0, 1, 2]
    assert raw.negatives.items[raw.negatives.places].tolist() == [[14, 15]]
    assert raw.users.dense["age"].tolist() == [30] and raw.users.titles is None
    assert raw.items.ids.tolist() == [10] and raw.items.titles.tolist() == ["Ten"]
    names = [file.name for file in registry.raw_files("tabular", tmp_path, given)]
    assert sorted(names) == ["a.csv", "b.csv", "c.csv", "i.csv", "n.csv", "u.csv"]


def test_movielens_is_read_as_the_variant_of_the_settings(tmp_path):
    (tmp_path / "u.data").write_text("7\t1\t5\t100\n")
    (tmp_path / "u.user").write_text("7|24|M|technician|85711\n")
    (tmp_path / "u.item").write_text("1|Toy Story (1995)|01-Jan-1995||u" + "|0" * 19 + "\n")
    raw = read("movielens", tmp_path, settings(source="movielens", variant="100k"))
    assert (raw.user.tolist(), raw.item.tolist(), raw.value.tolist()) == ([7], [1], [5])
    np.testing.assert_array_equal(raw.items.dense["year"], [1995])
    names = [file.name for file in registry.raw_files("movielens", tmp_path, settings())]
    assert names == ["u.data", "u.item", "u.user"]


# Several files of one split.


def parts_in(folder, *names):
    """CSV files of one row; the item is the place of the file in `names`."""
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        (folder / name).write_text(f"user_id,item_id\n7,{place}\n")


@pytest.mark.parametrize("name", ["part-*.csv", "part-?*.csv", "part-[0-9]*.csv"])
def test_files_of_a_pattern_are_read_in_the_order_of_their_numbers(tmp_path, name):
    parts_in(tmp_path, "part-10.csv", "part-9.csv", "other.csv", ".part-1.csv")
    given = settings(train_file=name)
    assert read("tabular", tmp_path, given).item.tolist() == [1, 0]
    names = [file.name for file in registry.raw_files("tabular", tmp_path, given)]
    assert names == ["part-9.csv", "part-10.csv"]


def test_the_files_of_a_folder_are_read_and_what_is_no_table_is_not(tmp_path):
    parts_in(tmp_path / "log", "b.csv", "a.csv", "_SUCCESS", ".b.csv.crc", "readme.md")
    assert read("tabular", tmp_path, settings(train_file="log")).item.tolist() == [1, 0]


def test_a_file_that_tests_is_none_of_training(tmp_path):
    parts_in(tmp_path, "day_1.csv", "day_2.csv", "day_3.csv")
    given = settings(train_file="day_*.csv", test_file="day_3.csv", split="given")
    found = read("tabular", tmp_path, given)
    assert (found.item.tolist(), found.fold.tolist()) == ([0, 1, 2], [0, 0, 2])


def test_splits_by_the_names_of_a_hub_snapshot(tmp_path):
    names = [f"{split}-0000{n}-of-00002.csv" for split in ("train", "test") for n in (0, 1)]
    parts_in(tmp_path / "data", *names)
    given = settings(train_file="data/train-*", test_file="data/test-*", split="given")
    found = read("tabular", tmp_path, given)
    assert (found.item.tolist(), found.fold.tolist()) == ([0, 1, 2, 3], [0, 0, 2, 2])
    with pytest.raises(DataError, match=r"data: a folder of several splits \(test, train\); name"):
        read("tabular", tmp_path, settings(train_file="data"))


@pytest.mark.parametrize("name", ["part-*.csv", "log"])
def test_a_pattern_or_folder_without_files_is_an_error(tmp_path, name):
    (tmp_path / "log").mkdir()
    with pytest.raises(DataError, match="no such file of rows; check data.path and the name"):
        registry.raw_files("tabular", tmp_path, settings(train_file=name))


def test_a_name_with_brackets_is_first_of_all_a_name(tmp_path):
    parts_in(tmp_path, "log [1].csv", "log 1.csv")
    assert read("tabular", tmp_path, settings(train_file="log [1].csv")).item.tolist() == [0]


def test_negatives_go_with_the_rows_of_all_test_files(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,10\n2,10\n")
    for user in (1, 2):
        (tmp_path / f"test-{user}.csv").write_text(f"user_id,item_id\n{user},11\n")
    (tmp_path / "n.csv").write_text("user_id,one\n2,15\n1,14\n")
    given = settings(train_file="log.csv", test_file="test-*.csv", negatives_file="n.csv")
    found = read("tabular", tmp_path, given).negatives
    assert found.items[found.places].tolist() == [[14], [15]]


def test_rows_are_added_from_the_files_of_a_pattern(tmp_path):
    parts_in(tmp_path, "part-1.csv", "part-2.csv", "notes.csv")
    given = settings(train_file="part-*.csv")
    paths = registry.added_files("tabular", tmp_path, given)
    found = raw.collect(registry.open_added("tabular", paths, given))
    assert found.item.tolist() == [0, 1]


def test_adjacency_lists_are_read_by_the_settings(tmp_path):
    (tmp_path / "train.txt").write_text("1 10 11\n2 10\n")
    (tmp_path / "test.txt").write_text("1 12\n2\n")
    given = settings(train_file="train.txt", test_file="test.txt", format="adjacency")
    found = read("tabular", tmp_path, given)
    assert found.user.tolist() == [1, 1, 2, 1] and found.item.tolist() == [10, 11, 10, 12]
    assert found.fold.tolist() == [0, 0, 0, 2]
    paths = registry.added_files("tabular", tmp_path / "test.txt", given)
    assert raw.collect(registry.open_added("tabular", paths, given)).item.tolist() == [12]


@pytest.mark.parametrize(
    "columns", [{"value": "stars"}, {"timestamp": "when"}, {"categorical": ("tag",)}]
)
def test_adjacency_lists_have_no_other_columns(tmp_path, columns):
    (tmp_path / "train.txt").write_text("1 10 11\n")
    given = settings(train_file="train.txt", format="adjacency")
    given["columns"] |= columns
    with pytest.raises(ConfigError, match="have no '(stars|when|tag)'; leave it out"):
        read("tabular", tmp_path, given)


# Missing files.


@pytest.mark.parametrize("source", ["criteo", "movielens"])
def test_a_missing_path_is_an_error_that_says_how_to_set_it(tmp_path, source):
    message = f"{tmp_path}/nowhere: no such file or folder; set data.path .*CADC_DATA_DIR"
    with pytest.raises(DataError, match=message):
        registry.raw_files(source, tmp_path / "nowhere", settings())


@pytest.mark.parametrize("field", ["train", "validation", "test", "negatives"])
def test_a_missing_file_of_a_table_is_named(tmp_path, field):
    (tmp_path / "there.csv").touch()
    given = settings(**{"train_file": "there.csv", f"{field}_file": "gone.csv"})
    with pytest.raises(DataError, match=f"{tmp_path}/gone.csv: no such file; set data.path"):
        registry.raw_files("tabular", tmp_path, given)


@pytest.mark.parametrize("kind", ["user", "item"])
def test_a_missing_file_of_content_is_named(tmp_path, kind):
    (tmp_path / "there.csv").touch()
    given = settings(train_file="there.csv")
    given[f"{kind}_content"]["file"] = "gone.csv"
    with pytest.raises(DataError, match=f"{tmp_path}/gone.csv: no such file"):
        registry.raw_files("tabular", tmp_path, given)


@pytest.mark.parametrize("source", ["criteo", "movielens"])
def test_an_empty_folder_is_named(tmp_path, source):
    with pytest.raises(DataError, match=f"{tmp_path}: the folder holds no files"):
        registry.raw_files(source, tmp_path, settings())


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_a_day_that_is_no_file_is_named_instead_of_skipped(tmp_path, kind):
    (tmp_path / "day_0").write_text("0\t1\n")
    other = tmp_path / "day_1"
    if kind == "link":
        other.symlink_to(tmp_path / "gone")
    elif kind == "folder":
        other.mkdir()
    else:
        os.mkfifo(other)
    with pytest.raises(DataError, match=f"{other}: (a broken link|no file)"):
        registry.raw_files("criteo", tmp_path, {})
