"""A configuration that is drafted for a log says what was guessed, and runs."""

import json
import runpy

import pytest

from cadc_jax import configuration, experiment
from cadc_jax.drafting import draft
from cadc_jax.errors import ConfigError, DataError
from tests.drafting import logs
from tests.small_runs import quiet

COLUMNS = {  # user, item, label, value, timestamp
    "ratings_csv": ("userId", "movieId", "", "rating", "timestamp"),
    "two_colons": ("column_1", "column_2", "", "column_3", "column_4"),
    "plays_tsv": ("listener", "artist", "", "plays", "date"),
    "adjacency": ("user_id", "item_id", "", "", ""),
    "clicks_parquet": ("user_id", "ad_id", "click", "", ""),
    "saved_arrow": ("user", "item", "", "", "timestamp"),
}
SETTINGS = {
    "ratings_csv": {"train_file": "ratings.csv", "min_value": 4, "value_scale": "none"},
    "two_colons": {"train_file": "ratings.dat", "min_value": 4, "split": "leave_one_out"},
    "plays_tsv": {"train_file": "plays.tsv", "min_value": 0, "value_scale": "log"},
    "adjacency": {"train_file": "train.txt", "test_file": "test.txt", "format": "adjacency"},
    "clicks_parquet": {
        "task": "click",
        "split": "given",
        "train_file": "data/train-0000*-of-00002.parquet",
        "validation_file": "data/validation-00000-of-00001.parquet",
        "test_file": "data/test-00000-of-00001.parquet",
    },
    "saved_arrow": {"train_file": "data-0000*-of-00002.arrow", "split": "leave_one_out"},
}


def drafted(folder, name):
    """The draft of one of `logs.LOGS`, and the configuration in it."""
    made = draft.draft(logs.LOGS[name](folder))
    draft.write(made, folder / "mine.py")
    return made, runpy.run_path(folder / "mine.py")["get_config"]()


@pytest.mark.parametrize("name", logs.LOGS)
def test_columns_and_settings_are_guessed(tmp_path, name):
    made, config = drafted(tmp_path, name)
    columns = config.data.columns
    found = [columns[x] for x in ("user", "item", "label", "value", "timestamp")]
    assert tuple(found) == COLUMNS[name]
    assert {x: config.data[x] for x in SETTINGS[name]} == SETTINGS[name]
    assert made.why
    configuration.validate(config)


def test_features_and_content_are_guessed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, config = drafted(tmp_path / "a", "clicks_parquet")
    assert config.data.columns.dense == ("price",)
    assert config.data.columns.categorical == ("hour",)
    _, config = drafted(tmp_path / "b", "ratings_csv")
    content = config.data.item_content
    assert (content.file, content.id, content.title) == ("movies.csv", "movieId", "title")
    assert content.bags == ("genres",)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("ratings_csv", "adjacency") else pytest.param(name, marks=pytest.mark.slow)
        for name in logs.LOGS
    ],
)
def test_a_draft_runs(tmp_path, name):
    _, config = drafted(tmp_path, name)
    config.arms = ("cadc_frozen",)
    config.als.update(factors=4, iterations=2)
    config.sgd.update(factors=4, epochs=2)
    config.train.max_evaluations = 1
    experiment.run(experiment.Run(config, tmp_path / "work", quiet))
    results = json.loads((tmp_path / "work/results.json").read_text())
    assert [row["arm"] for row in results["rows"]] == ["popularity", "mf_alone", "cadc_frozen"]


def test_a_log_of_criteo_is_known_by_its_fields(tmp_path):
    row = "1" + "\t2" * 13 + "\t68fd1e64" * 26 + "\n"
    (tmp_path / "train.txt").write_text(row * 3)
    text = draft.draft(tmp_path / "train.txt").text
    assert 'data.source = "criteo"' in text and 'data.user_features = ("C7",)' in text


def test_movielens_is_known_by_its_files(tmp_path):
    for name in ("ratings.dat", "users.dat", "movies.dat"):
        (tmp_path / name).write_text("1::2::3\n")
    text = draft.draft(tmp_path).text
    assert 'data.source = "movielens"' in text and 'data.variant = "1m"' in text


def test_names_that_are_no_plain_text_are_quoted(tmp_path):
    odd = 'us"er\\_id', "item\N{GRINNING FACE}"
    rows = "".join(f"{x % 7},{x % 5}\n" for x in range(35))
    (tmp_path / 'lo"g.csv').write_text(f'"{odd[0].replace(chr(34), 2 * chr(34))}",{odd[1]}\n{rows}')
    made = draft.draft(tmp_path / 'lo"g.csv')
    draft.write(made, tmp_path / "mine.py")
    config = runpy.run_path(tmp_path / "mine.py")["get_config"]()
    assert (config.data.columns.user, config.data.columns.item) == odd
    assert config.data.train_file == 'lo"g.csv'


def test_rows_without_an_id_are_allowed_for(tmp_path):
    rows = "".join(f"{x % 7 or ''},{x % 5}\n" for x in range(35))
    (tmp_path / "log.csv").write_text("user_id,item_id\n" + rows)
    assert "data.max_malformed = 0.29" in draft.draft(tmp_path / "log.csv").text


def test_no_file_is_written_over(tmp_path):
    made = draft.draft(logs.two_colons(tmp_path))
    (tmp_path / "mine.py").write_text("mine")
    with pytest.raises(ConfigError, match="mine.py: is there already; give another file"):
        draft.write(made, tmp_path / "mine.py")
    assert (tmp_path / "mine.py").read_text() == "mine"
    with pytest.raises(ConfigError, match="give a file of Python"):
        draft.write(made, tmp_path / "mine.txt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file with rows of users and items in it"),
        ({"a.csv": "price,size\n1.5,2.5\n3.5,4.5\n"}, "no file with rows of users and items"),
        (
            {name: "user,item\n1,2\n" for name in ("ab.csv", "ac.csv")}
            | {"ad.csv": "colour,size\nred,2.5\nblue,2.5\n"},
            "2 files of rows .*which no pattern tells from the others",
        ),
    ],
)
def test_a_folder_that_is_no_log_is_an_error(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        draft.draft(tmp_path)


def test_a_missing_log_is_an_error(tmp_path):
    with pytest.raises(DataError, match="gone: no such file or folder; name the log"):
        draft.draft(tmp_path / "gone")
