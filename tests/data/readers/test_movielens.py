"""The MovieLens readers: the three variants, their features, and what they refuse."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from cadc_jax.configuration import data_folder
from cadc_jax.data.readers import movielens
from cadc_jax.errors import ConfigError, DataError
from tests.data.tables import peak_growth

DATA_DIR = data_folder()


def has(folder: str):
    path = DATA_DIR / folder
    return pytest.mark.skipif(not path.is_dir(), reason=f"{path} is absent; set CADC_DATA_DIR")


def item_100k(number: int, title: str, *genres: str) -> str:
    flags = ["1" if genre in genres else "0" for genre in movielens._GENRES_100K]
    return "|".join([str(number), title, "01-Jan-1995", "", "http://x", *flags])


FILES = {
    "100k": {
        "u.data": "7\t20\t5\t100\n8\t10\t1\t90\n7\t10\t3\t95\n",
        "u.user": "7|17|M|writer|V3N4P\n8|18|F|none|00123\n",
        "u.item": f"{item_100k(10, 'Amélie (2001)', 'Comedy', 'Romance')}\n"
        f"{item_100k(20, 'unknown', 'unknown')}\n",
    },
    "1m": {
        "ratings.dat": "7::20::5::100\n8::10::1::90\n7::10::3::95\n",
        "users.dat": "7::M::1::10::48067\n8::F::18::16::00123\n",
        "movies.dat": "10::Amélie (2001)::Comedy|Romance\n20::Star: Trek (V) (1989) ::Sci-Fi\n",
    },
    "10m": {
        "ratings.dat": "7::20::0.5::100\n8::10::4.5::90\n7::10::3::95\n",
        "movies.dat": "10::Amélie (2001)::Comedy|Romance\n20::Pull (1999)::(no genres listed)\n",
    },
}

GENRES = {
    "100k": [{"Comedy", "Romance"}, {"unknown"}],
    "1m": [{"Comedy", "Romance"}, {"Sci-Fi"}],
    "10m": [{"Comedy", "Romance"}, {""}],
}


@pytest.fixture(params=movielens.VARIANTS)
def variant(request):
    return request.param


def write(folder: Path, variant: str, **changes: str) -> Path:
    """Writes the files of a variant; `changes` replaces files, their names with _ for the dot."""
    for name, text in FILES[variant].items():
        (folder / name).write_text(changes.get(name.replace(".", "_"), text), encoding="latin-1")
    return folder


# What the tables hold.


def test_ratings_are_rows_in_the_order_of_the_file(tmp_path, variant):
    table = movielens.read_movielens(write(tmp_path, variant), variant)
    assert table.user.tolist() == [7, 8, 7] and table.user.dtype == np.int64
    assert table.item.tolist() == [20, 10, 10] and table.item.dtype == np.int64
    assert table.value.tolist() == ([0.5, 4.5, 3] if variant == "10m" else [5, 1, 3])
    assert table.value.dtype == np.float32
    assert table.timestamp.tolist() == [100, 90, 95] and table.timestamp.dtype == np.int64
    assert table.report.rows == 3
    assert table.label is None and table.fold is None and not table.dense


def test_users_have_an_age_band_a_gender_an_occupation_and_a_zip_area(tmp_path):
    users = movielens.read_movielens(write(tmp_path, "1m"), "1m").users
    assert users.ids.tolist() == [7, 8]
    assert {name: values.tolist() for name, values in users.categorical.items()} == {
        "age": [1, 18],
        "gender": ["M", "F"],
        "occupation": [10, 16],
        "zip": ["4", "0"],
    }


def test_ages_of_100k_fall_into_the_bands_of_1m(tmp_path):
    ages = [7, 17, 18, 24, 25, 34, 35, 44, 45, 49, 50, 55, 56, 73]
    lines = "".join(f"{i}|{age}|M|writer|V3N4P\n" for i, age in enumerate(ages))
    users = movielens.read_movielens(write(tmp_path, "100k", u_user=lines), "100k").users
    bands = [1, 1, 18, 18, 25, 25, 35, 35, 45, 45, 50, 50, 56, 56]
    assert users.categorical["age"].tolist() == bands
    assert set(users.categorical["zip"].to_pylist()) == {"V"}
    assert set(users.categorical["occupation"].to_pylist()) == {"writer"}


def test_10m_has_no_users(tmp_path):
    assert movielens.read_movielens(write(tmp_path, "10m"), "10m").users is None


def test_items_have_titles_and_a_set_of_genres(tmp_path, variant):
    items = movielens.read_movielens(write(tmp_path, variant), variant).items
    assert items.ids.tolist() == [10, 20]
    assert items.titles[0].as_py() == "Amélie (2001)"
    assert list(items.dense) == ["year"] and items.dense["year"].dtype == np.float32
    assert [set(text.split("|")) for text in items.bags["genres"].to_pylist()] == GENRES[variant]


def test_the_year_is_the_last_one_in_the_title_or_nan(tmp_path):
    titles = ["1984 (1956)", "Remake (1956) (1984)", "Giving, The (1995) (V)", "unknown", "2001"]
    lines = "".join(f"{i}::{title}::Drama\n" for i, title in enumerate(titles))
    year = movielens.read_movielens(write(tmp_path, "1m", movies_dat=lines), "1m").items.dense[
        "year"
    ]
    np.testing.assert_array_equal(year, [1956, 1984, 1995, np.nan, np.nan])


# Forms of the files.


def test_ratings_of_100k_may_be_separated_by_any_white_space(tmp_path):
    table = movielens.read_movielens(
        write(tmp_path, "100k", u_data="7 20  5\t 100 \n8\t10\t1\t90"), "100k"
    )
    assert table.user.tolist() == [7, 8] and table.timestamp.tolist() == [100, 90]


def test_windows_line_ends_and_blank_lines_do_not_matter(tmp_path):
    table = movielens.read_movielens(
        write(tmp_path, "1m", ratings_dat="7::20::5::100\r\n\r\n"), "1m"
    )
    assert table.user.tolist() == [7] and table.timestamp.tolist() == [100]


@pytest.mark.parametrize("name", ["ratings.dat.gz", "ratings_no_timestamp.dat.gz"])
def test_ratings_may_be_compressed_and_without_timestamps(tmp_path, name):
    write(tmp_path, "1m")
    (tmp_path / "ratings.dat").unlink()
    (tmp_path / name).write_bytes(gzip.compress(b"7::20::5\n8::10::1\n"))
    table = movielens.read_movielens(tmp_path, "1m")
    assert table.user.tolist() == [7, 8] and table.value.tolist() == [5, 1]
    assert table.timestamp is None


def test_the_original_file_comes_before_a_copy_without_timestamps(tmp_path):
    write(tmp_path, "1m")
    (tmp_path / "ratings_no_timestamp.dat.gz").write_bytes(gzip.compress(b"7::20::5\n"))
    assert movielens.read_movielens(tmp_path, "1m").timestamp is not None


# What is refused.


def error_of(folder: Path, variant: str) -> str:
    with pytest.raises(DataError) as error:
        movielens.read_movielens(folder, variant)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_folder_says_where_to_get_the_data(tmp_path, variant):
    message = error_of(tmp_path / "nowhere", variant)
    assert "nowhere: no such folder" in message and "`data.path`" in message
    assert "https://grouplens.org/datasets/movielens/" in message


def test_a_missing_file_is_named_and_says_where_to_get_it(tmp_path, variant):
    for name in FILES[variant]:
        write(tmp_path, variant)
        (tmp_path / name).unlink()
        message = error_of(tmp_path, variant)
        assert f"{name}: no such file" in message and "grouplens.org" in message


def test_an_unknown_variant_is_an_error_that_lists_the_variants(tmp_path):
    with pytest.raises(ConfigError, match="'20m': no such variant; take one of 100k, 1m, 10m"):
        movielens.read_movielens(tmp_path, "20m")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("7::20::5", "3 fields, where a row has 4"),
        ("7::20::5::100::1", "5 fields, where a row has 4"),
        ("7::x::5::100", "item: 'x' is not an integer"),
        ("7::20::?::100", "rating: '?' is not a number"),
        ("7::20::::100", "rating: '' is not a number"),
        ("7::20::6::100", "rating: 6 is not between 0.5 and 5"),
        ("7::20::nan::100", "rating: nan is not between 0.5 and 5"),
        ("7::20::5::1e3", "timestamp: '1e3' is not an integer"),
    ],
)
def test_a_malformed_rating_is_an_error_with_its_line(tmp_path, line, what):
    write(tmp_path, "1m", ratings_dat=f"7::20::5::100\n{line}\n7::10::3::95\n")
    message = error_of(tmp_path, "1m")
    assert message == f"{tmp_path / 'ratings.dat'}:2: {what}; mend or remove the row"


def test_malformed_content_is_an_error_with_its_line(tmp_path):
    write(tmp_path, "1m", users_dat="7::M::1::10::48067\n8::F::young::16::00123\n")
    assert "users.dat:2: age: 'young' is not an integer" in error_of(tmp_path, "1m")
    write(tmp_path, "1m", movies_dat="10::Amélie (2001)\n")
    assert "movies.dat:1: 2 fields, where a row has 3" in error_of(tmp_path, "1m")


def test_an_empty_or_binary_file_is_an_error(tmp_path):
    write(tmp_path, "1m", ratings_dat="")
    assert "ratings.dat: the file is empty" in error_of(tmp_path, "1m")
    write(tmp_path, "1m", ratings_dat="\0\1")
    assert "ratings.dat: a binary file" in error_of(tmp_path, "1m")


def test_a_file_that_unpacks_to_too_much_is_an_error_and_does_not_fill_the_memory(tmp_path):
    write(tmp_path, "1m")
    (tmp_path / "ratings.dat").unlink()
    with gzip.open(tmp_path / "ratings.dat.gz", "wb", 1) as file:
        for _ in range(30):
            file.write(b"7::20::5::100\n" * 1_000_000)  # 420 MB in all
    growth = peak_growth(
        """
        from cadc_jax.data.readers import movielens
        from cadc_jax.errors import DataError
        movielens._MOST_BYTES = 32 << 20
        """,
        f"""
        try:
            movielens.read_movielens({str(tmp_path)!r}, "1m")
            raise AssertionError("too much was read")
        except DataError as error:
            assert "ratings.dat.gz: more than 32 MiB of text" in str(error), error
        """,
    )
    assert growth < 250


def test_a_row_may_be_longer_than_a_megabyte(tmp_path):
    title = "x" * 3_000_000
    write(tmp_path, "1m", movies_dat=f"20::{title}::War\n10::Up (2009)::War\n")
    items = movielens.read_movielens(tmp_path, "1m").items
    assert items.titles.to_pylist() == [title, "Up (2009)"]


def test_a_fault_in_a_later_block_has_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(movielens, "_BLOCK_BYTES", 64)
    write(tmp_path, "1m", ratings_dat="7::20::5::100\n" * 50 + "7::20::5\n" + "7::20::5::1\n" * 9)
    assert "ratings.dat:51: 3 fields, where a row has 4" in error_of(tmp_path, "1m")


# Real data.


@has("ml-100k")
def test_the_real_100k_has_the_published_counts():
    table = movielens.read_movielens(DATA_DIR / "ml-100k", "100k")
    assert table.report.rows == 100_000
    assert len(np.unique(table.user)) == len(table.users.ids) == 943
    assert len(np.unique(table.item)) == len(table.items.ids) == 1_682
    assert (table.user[0], table.item[0], table.value[0]) == (196, 242, 3)
    assert np.bincount(table.value.astype(int)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert np.isnan(table.items.dense["year"]).sum() == 1  # the item called 'unknown'
    assert len(set("|".join(table.items.bags["genres"].to_pylist()).split("|"))) == 19


@has("ml-1m")
def test_the_real_1m_has_the_published_counts():
    table = movielens.read_movielens(DATA_DIR / "ml-1m", "1m")
    assert table.report.rows == 1_000_209
    assert len(np.unique(table.user)) == len(table.users.ids) == 6_040
    assert len(np.unique(table.item)) == 3_706 and len(table.items.ids) == 3_883
    histogram = np.bincount(table.value.astype(int))
    assert histogram.tolist() == [0, 56174, 107557, 261197, 348971, 226310]
    assert not np.isnan(table.items.dense["year"]).any()
    assert len(set("|".join(table.items.bags["genres"].to_pylist()).split("|"))) == 18
