import pytest

from cadc_jax.configuration import default_config
from cadc_jax.data import sources
from cadc_jax.errors import DataError

ROW = "1" + "\t2" * 13 + "\t68fd1e64" * 26 + "\n"


def settings(**fields):
    config = default_config()
    config.data.update(fields)
    return config.data.to_dict()


def test_a_folder_of_criteo_files_is_read_by_name(tmp_path):
    (tmp_path / "day_1").write_text(ROW.replace("1", "0", 1))
    (tmp_path / "day_0").write_text(ROW)
    raw = sources.read("criteo", tmp_path, settings(source="criteo"))
    assert raw.label.tolist() == [1, 0]


def test_columns_and_files_come_from_the_settings(tmp_path):
    (tmp_path / "log.tsv").write_text("who\twhat\tstars\na\tx\t5\nb\ty\t3\n")
    given = settings(train_file="log.tsv")
    given["columns"] |= {"user": "who", "item": "what", "value": "stars"}
    raw = sources.read("tabular", tmp_path, given)
    assert raw.user.tolist() == ["a", "b"] and raw.value.tolist() == [5, 3]
    assert raw.timestamp is None and raw.fold is None


@pytest.mark.parametrize("source", ["criteo", "movielens"])
def test_a_missing_path_says_how_to_name_one(tmp_path, source):
    with pytest.raises(DataError, match="nowhere: no such file or folder; set data.path"):
        sources.raw_files(source, tmp_path / "nowhere", settings())


def test_a_missing_file_of_a_table_is_named(tmp_path):
    with pytest.raises(DataError, match="log.csv: no such file"):
        sources.raw_files("tabular", tmp_path, settings(train_file="log.csv"))


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no files"):
        sources.raw_files("criteo", tmp_path, settings())
