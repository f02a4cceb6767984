"""The reader of tables: what it accepts, how it types values, and what it refuses."""

import datetime
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cadc_jax.configuration import data_folder
from cadc_jax.data import raw
from cadc_jax.data.readers import files, tabular
from cadc_jax.data.readers.tabular import ColumnNames, ContentFile, TableFiles
from cadc_jax.errors import ConfigError, DataError

DATA_DIR = data_folder()
IDS = ColumnNames(user="user", item="item")


def has(folder: str):
    path = DATA_DIR / folder
    return pytest.mark.skipif(not path.is_dir(), reason=f"{path} is absent; set CADC_DATA_DIR")


def lists(negatives):
    """The negatives of each test row."""
    items = raw.as_values(negatives.items).tolist()
    return [[items[place] for place in row] for row in negatives.places.tolist()]


def write(folder: Path, **texts: str) -> Path:
    """Writes a file NAME.csv for each argument, and returns the folder."""
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


# What the columns mean.


def test_rows_are_read_by_the_names_of_their_columns(tmp_path):
    columns = ColumnNames(
        *("user", "item", "click", "rating", "time"), dense=["price"], categorical=["city", "hour"]
    )
    text = (
        "rating,user,item,time,click,price,city,hour,unused\n"
        "4.5,7,20,100,1,9.99,Riga,5,x\n"
        "1,8,10,1.5e9,0,,,,y\n"
    )
    table = tabular.read_rows(write(tmp_path, train=text), "train.csv", columns)
    assert table.user.tolist() == [7, 8] and table.user.dtype == np.int64
    assert table.item.tolist() == [20, 10] and table.item.dtype == np.int64
    assert table.label.tolist() == [1, 0] and table.label.dtype == np.float32
    assert table.value.tolist() == [4.5, 1] and table.value.dtype == np.float32
    assert table.timestamp.tolist() == [100, 1_500_000_000] and table.timestamp.dtype == np.int64
    np.testing.assert_array_equal(table.dense["price"], np.array([9.99, np.nan], np.float32))
    assert table.categorical["city"].tolist() == ["Riga", ""]
    assert table.categorical["hour"].tolist() == [5, -1]
    assert table.categorical["hour"].dtype == np.int64
    assert table.report.rows == 2


def test_columns_that_are_not_named_are_none(tmp_path):
    table = tabular.read_rows(write(tmp_path, train="user,item\n1,2\n"), "train.csv", IDS)
    assert table.label is table.value is table.timestamp is None
    assert table.fold is table.negatives is table.users is table.items is None


def test_identifiers_may_be_text(tmp_path):
    table = tabular.read_rows(
        write(tmp_path, train="user,item\nann,B01\nbob,B02\n"), "train.csv", IDS
    )
    assert table.user.tolist() == ["ann", "bob"] and table.user.type == raw.TEXT
    assert table.item.tolist() == ["B01", "B02"]


@pytest.mark.parametrize("text", ["007", "0x10", "1.0", "9223372036854775808", "x"])
def test_identifiers_are_text_if_one_is_not_written_as_a_plain_integer(tmp_path, text):
    write(tmp_path, train=f"user,item\n1,2\n{text},3\n")
    assert tabular.read_rows(tmp_path, "train.csv", IDS).user.tolist() == ["1", text]


def test_identifiers_have_one_type_in_all_files(tmp_path):
    write(
        tmp_path,
        train="user,item\n1,2\n",
        test="user,item\n1,x\n",
        negatives="user,a,b\n1,3,4\n",
        items="id,price\n2,5\n",
        users="id,age\n1,30\n",
    )
    table = tabular.read_rows(
        tmp_path,
        "train.csv",
        IDS,
        test="test.csv",
        negatives="negatives.csv",
        users=ContentFile("users.csv", dense=["age"]),
        items=ContentFile("items.csv", dense=["price"]),
    )
    assert table.item.tolist() == ["2", "x"]
    assert lists(table.negatives) == [["3", "4"]]
    assert table.items.ids.tolist() == ["2"]
    assert table.user.tolist() == [1, 1] and table.users.ids.tolist() == [1]


# Forms of the files.


@pytest.mark.parametrize(
    ("name", "separator", "between"),
    [("train.csv", "", ","), ("train.tsv", "", "\t"), ("train.tsv.gz", "", "\t")]
    + [("train.csv.gz", "", ","), ("train.dat", "|", "|")],
)
def test_text_files_may_have_any_separator_and_be_compressed(tmp_path, name, separator, between):
    text = f"user{between}item\n1{between}2\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    table = tabular.read_rows(tmp_path, name, ColumnNames("user", "item", separator=separator))
    assert table.user.tolist() == [1] and table.item.tolist() == [2]


def test_a_file_without_a_header_is_read_by_the_given_names(tmp_path):
    write(tmp_path, train="1,2\n3,4\n")
    table = tabular.read_rows(
        tmp_path, "train.csv", ColumnNames("user", "item", header=["item", "user"])
    )
    assert table.user.tolist() == [2, 4] and table.item.tolist() == [1, 3]


def test_a_byte_order_mark_windows_line_ends_blank_lines_and_quotes_do_not_matter(tmp_path):
    (tmp_path / "train.csv").write_bytes(b'\xef\xbb\xbfuser,item\r\n1,"a, b"\r\n\r\n2,c')
    table = tabular.read_rows(tmp_path, "train.csv", IDS)
    assert table.user.tolist() == [1, 2] and table.item.tolist() == ["a, b", "c"]


def test_parquet_gives_the_same_as_text(tmp_path):
    day = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
    columns = {
        "user": pa.array([7, 8], pa.int32()),
        "item": pa.array(["a", "b"]).dictionary_encode(),
        "click": pa.array([True, False]),
        "rating": pa.array([4, 5]),
        "time": pa.array([day, day], pa.timestamp("us", tz="UTC")),
        "price": pa.array([2**24 + 1, None]),
        "hour": pa.array([5.0, None]),
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "train.parquet")
    names = ColumnNames(
        *("user", "item", "click", "rating", "time"), dense=["price"], categorical=["hour"]
    )
    table = tabular.read_rows(tmp_path, "train.parquet", names)
    assert table.user.tolist() == [7, 8] and table.user.dtype == np.int64
    assert table.item.tolist() == ["a", "b"]
    assert table.label.tolist() == [1, 0]
    assert table.value.tolist() == [4, 5] and table.value.dtype == np.float32
    assert table.timestamp.tolist() == [86_400, 86_400] and table.timestamp.dtype == np.int64
    np.testing.assert_array_equal(table.dense["price"], np.array([2**24, np.nan], np.float32))
    assert table.categorical["hour"].tolist() == [5, -1]


def test_several_train_files_are_read_one_after_the_other(tmp_path):
    write(tmp_path, b="user,item\n1,2\n", a="item,user\n4,3\n")
    table = tabular.read_rows(tmp_path, ["b.csv", "a.csv"], IDS)
    assert table.user.tolist() == [1, 3] and table.item.tolist() == [2, 4]


# Data with its own split, negatives and content.


def test_files_for_validation_and_test_make_the_fold(tmp_path):
    write(
        tmp_path, train="user,item\n1,2\n1,3\n", valid="user,item\n1,4\n", test="user,item\n1,5\n"
    )
    table = tabular.read_rows(tmp_path, "train.csv", IDS, validation="valid.csv", test="test.csv")
    assert table.item.tolist() == [2, 3, 4, 5]
    assert table.fold.tolist() == [raw.TRAIN] * 2 + [raw.VALIDATION, raw.TEST]
    assert table.fold.dtype == np.int8


def test_negatives_are_in_the_order_of_the_test_rows(tmp_path):
    write(
        tmp_path,
        train="user,item\n1,2\n",
        test="user,item\n3,5\n1,6\n3,7\n",
        negatives="user,a,b\n1,11,12\n2,21,22\n3,31,32\n",
    )
    table = tabular.read_rows(
        tmp_path, "train.csv", IDS, test="test.csv", negatives="negatives.csv"
    )
    assert lists(table.negatives) == [[31, 32], [11, 12], [31, 32]]


def test_content_has_ids_features_and_titles(tmp_path):
    write(tmp_path, train="user,item\n1,2\n", goods="name,sku,brand,price\nLamp,2,5,9.5\nPen,3,,\n")
    content = ContentFile(
        "goods.csv", id="sku", dense=["price"], categorical=["brand"], title="name"
    )
    items = tabular.read_rows(tmp_path, "train.csv", IDS, items=content).items
    assert items.ids.tolist() == [2, 3]
    np.testing.assert_array_equal(items.dense["price"], np.array([9.5, np.nan], np.float32))
    assert items.categorical["brand"].tolist() == [5, -1]
    assert items.titles.tolist() == ["Lamp", "Pen"]


def test_content_may_have_sets_of_values(tmp_path):
    write(tmp_path, train="user,item\n1,2\n", goods="sku,moods\n2,dark|slow\n3,\n")
    content = ContentFile("goods.csv", id="sku", bags=["moods"])
    items = tabular.read_rows(tmp_path, "train.csv", IDS, items=content).items
    assert items.bags["moods"].tolist() == ["dark|slow", ""]


def test_content_may_be_in_the_format_of_movielens_1m(tmp_path):
    write(tmp_path, train="user,item\n1,2\n")
    (tmp_path / "users.dat").write_text("1::F::25::3::55117\n")
    (tmp_path / "movies.dat").write_text("2::Heat (1995)::Action|Crime\n")
    users, items = (
        ContentFile("users.dat", "movielens_1m"),
        ContentFile("movies.dat", "movielens_1m"),
    )
    table = tabular.read_rows(tmp_path, "train.csv", IDS, users=users, items=items)
    assert table.users.ids.tolist() == [1] and table.users.categorical["age"].tolist() == [25]
    assert table.items.ids.tolist() == [2] and table.items.dense["year"].tolist() == [1995]


# What is refused.


def error_of(folder: Path, file: str = "train.csv", columns: ColumnNames = IDS, **more) -> str:
    with pytest.raises(DataError) as error:
        tabular.read_rows(folder, file, columns, **more)
    assert str(folder / file) in str(error.value) or more
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_column_is_named_with_the_nearest_and_all_columns(tmp_path):
    message = error_of(write(tmp_path, train="user_id,item\n1,2\n"))
    assert message.endswith("no column 'user', did you mean 'user_id'?; there are user_id, item")
    pyarrow.parquet.write_table(pa.table({"usr": [1], "item": [2]}), tmp_path / "train.parquet")
    message = error_of(tmp_path, "train.parquet")
    assert message.endswith("no column 'user', did you mean 'usr'?; there are usr, item")


def test_a_column_that_occurs_twice_is_an_error(tmp_path):
    assert "two columns 'user'" in error_of(write(tmp_path, train="user,item,user\n1,2,3\n"))


@pytest.mark.parametrize(
    ("column", "text", "what"),
    [
        ("user", "", "user: the value is missing"),
        ("item", "", "item: the value is missing"),
        ("click", "", "click: the value is missing"),
        ("click", "2", "click: 2 is not 0 or 1"),
        ("click", "nan", "click: nan is not 0 or 1"),
        ("click", "yes", "click: 'yes' is not a number"),
        ("rating", "", "rating: the value is missing"),
        ("rating", "good", "rating: 'good' is not a number"),
        ("rating", "inf", "rating: inf is not a finite number"),
        ("time", "", "time: the value is missing"),
        ("time", "monday", "time: 'monday' is not a number"),
        ("time", "nan", "time: nan is not a finite number"),
        ("price", "cheap", "price: 'cheap' is not a number"),
    ],
)
def test_a_bad_value_is_an_error_with_file_line_and_column(tmp_path, column, text, what):
    columns = ColumnNames("user", "item", "click", "rating", "time", dense=["price"])
    good = {"user": "1", "item": "2", "click": "1", "rating": "3", "time": "4", "price": "5"}
    lines = [",".join(good), *[",".join(good.values())] * 4]
    lines[3] = ",".join((good | {column: text}).values())
    lines.insert(1, "")  # a blank line is skipped, but counts in line numbers
    write(tmp_path, train="\n".join(lines))
    message = error_of(tmp_path, columns=columns)
    assert message.startswith(f"{tmp_path / 'train.csv'}:5: {what} (1 of the ")
    assert "mend or remove such rows, or raise `data.max_malformed`" in message


def test_a_bad_value_of_a_parquet_file_is_an_error_with_its_row(tmp_path):
    table = pa.table({"user": [1, 1], "item": [2, None]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert "train.parquet: row 2: item: the value is missing" in error_of(tmp_path, "train.parquet")


def test_a_row_with_too_many_fields_is_an_error_with_its_line(tmp_path):
    message = error_of(write(tmp_path, train="user,item\n1,2\n\n1,2,3\n"))
    assert "train.csv:4: 3 fields, where a row has 2 (1 of the 2 rows" in message


def test_missing_empty_and_unreadable_files_are_errors(tmp_path):
    assert "no such file; check `data.path`" in error_of(tmp_path)
    assert "the file is empty" in error_of(write(tmp_path, train=""))
    assert "no rows" in error_of(write(tmp_path, train="user,item\n"))
    (tmp_path / "train.csv").write_bytes(b"user,item\n\0\0")
    assert "a binary file" in error_of(tmp_path)
    (tmp_path / "train.csv").write_bytes(gzip.compress(b"user,item\n1,2\n" * 1000)[:-20])
    assert "truncated or damaged" in error_of(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    assert "not a whole Parquet file" in error_of(tmp_path, "train.parquet")


def test_a_missing_test_file_is_an_error(tmp_path):
    write(tmp_path, train="user,item\n1,2\n")
    assert "test.csv: no such file" in error_of(tmp_path, test="test.csv")


@pytest.mark.parametrize(("rows", "count"), [("2,3\n", 0), ("1,3\n1,4\n", 2)])
def test_a_test_user_needs_one_row_of_negatives(tmp_path, rows, count):
    write(tmp_path, train="user,item\n1,2\n", test="user,item\n1,5\n", negatives=f"user,a\n{rows}")
    message = error_of(tmp_path, test="test.csv", negatives="negatives.csv")
    assert f"user 1 of the test rows has {count} rows of negatives; it must have one" in message


def test_content_and_negatives_that_are_too_large_for_memory_are_errors(tmp_path, monkeypatch):
    write(tmp_path, train="user,item\n1,2\n", test="user,item\n1,5\n1,6\n1,7\n")
    write(tmp_path, negatives="user,a,b\n1,3,4\n", items="id,name\n2,Lamp\n5,Pen\n")
    monkeypatch.setattr(files, "MOST_BYTES", 20)
    message = error_of(tmp_path, items=ContentFile("items.csv", title="name"))
    assert "items.csv: more than 0 GiB of rows, too much for a file that is read as a" in message
    own = {"test": "test.csv", "negatives": "negatives.csv"}
    assert "negatives.csv: more than 0 GiB of rows" in error_of(tmp_path, **own)
    monkeypatch.undo()
    monkeypatch.setattr(tabular, "_MOST_NEGATIVES", 5)
    assert "negatives.csv: more than 5 negatives of all test rows" in error_of(tmp_path, **own)


def test_a_repeated_value_counts_as_often_as_it_is_there(tmp_path, monkeypatch):
    write(tmp_path, train="user,item\n1,2\n")
    names = pa.array(["x" * 100] * 1000).dictionary_encode()
    pyarrow.parquet.write_table(
        pa.table({"id": np.arange(1000), "name": names}), tmp_path / "items.parquet"
    )
    monkeypatch.setattr(files, "MOST_BYTES", 100_000)
    content = ContentFile("items.parquet", title="name")
    assert "items.parquet: more than 0 GiB of rows" in error_of(tmp_path, items=content)


def test_arguments_that_contradict_each_other_are_errors(tmp_path):
    write(tmp_path, train="user,item\n1,2\n")
    with pytest.raises(ConfigError, match="need a test file"):
        tabular.read_rows(tmp_path, "train.csv", IDS, negatives="negatives.csv")
    with pytest.raises(ConfigError, match="needs a user"):
        tabular.read_rows(
            tmp_path, "train.csv", ColumnNames(item="item"), users=ContentFile("users.csv")
        )
    with pytest.raises(ConfigError, match="format 'xml' of items.xml"):
        tabular.read_rows(tmp_path, "train.csv", IDS, items=ContentFile("items.xml", "xml"))
    with pytest.raises(ConfigError, match=r"'\|\|': it must be a single character"):
        tabular.read_rows(tmp_path, "train.csv", ColumnNames("user", "item", separator="||"))
    with pytest.raises(ConfigError, match="needs a user"):
        tabular.read_rows(tmp_path, "train.csv", ColumnNames("user"), items=ContentFile("i.csv"))
    with pytest.raises(ConfigError, match="no column is named"):
        tabular.read_rows(tmp_path, "train.csv", ColumnNames())


# Malformed rows that are left out.

FULL = ColumnNames(
    *("user", "item", "click", "rating", "time"), dense=["price"], categorical=["city"]
)


def test_malformed_rows_are_left_out_and_counted_by_line(tmp_path):
    lines = [
        b"\xef\xbb\xbfuser,item,note",
        b"1,a,fine",
        b"",
        b",b,no user",
        b'2,"c",',
        b'3,d,"a note',
        b'of two lines"',
        b"4,e",
        b"5,,no item",
        b'6,"f ""6""","x,y"',
        b"7,\xff,",
        b"8,g,h,i",
    ]
    # Bytes that are not UTF-8 in the first block would make the file binary.
    (tmp_path / "train.csv").write_bytes(b"\r\n".join(lines[:10]))
    table = tabular.read_rows(tmp_path, "train.csv", IDS, max_malformed=0.5)
    assert table.user.tolist() == [1, 2, 3, 6]
    assert table.item.tolist() == ["a", "c", "d", 'f "6"']
    assert table.report.rows == 4 and table.report.malformed == 3
    where = f"{tmp_path / 'train.csv'}:"
    assert table.report.examples == (
        f"{where}4: user: the value is missing",
        f"{where}8: 2 fields, where a row has 3",
        f"{where}9: item: the value is missing",
    )
    rows = b"0,z,\n" * (1 << 18)  # more than is read when the file is opened
    (tmp_path / "train.csv").write_bytes(lines[0] + b"\n" + rows + b"\n".join(lines[10:]))
    source = tabular.open_rows(tmp_path, TableFiles("train.csv"), IDS, block_bytes=1 << 20)
    report = raw.collect(source, max_malformed=0.5).report
    assert report.rows == 1 << 18
    assert report.examples == (
        f"{where}{(1 << 18) + 2}: the row is not in UTF-8",
        f"{where}{(1 << 18) + 3}: 4 fields, where a row has 3",
    )


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("time", "0x10"),
        ("time", "1e30"),
        ("time", "9" * 20),
        ("time", " 5"),
        ("price", "inf"),
        ("price", "1e40"),
        ("rating", "1_0"),
        ("user", "u" * 1001),
        ("city", "c" * 1001),
    ],
)
def test_values_that_later_stages_cannot_store_are_malformed(tmp_path, column, text):
    good = {"user": 1, "item": 2, "click": 1, "rating": 3, "time": 4, "price": 5, "city": 6}
    rows = [good, good | {column: text}, good]
    lines = [",".join(good), *(",".join(map(str, row.values())) for row in rows)]
    write(tmp_path, train="\n".join([*lines, ""]))
    [part] = tabular.open_rows(tmp_path, TableFiles("train.csv"), FULL).parts
    [chunk] = [task.decode() for task in part()]
    assert chunk.report.rows == len(chunk.rows) == 2 and chunk.report.malformed == 1
    assert chunk.report.examples[0].startswith(f"{tmp_path / 'train.csv'}:3: {column}: ")
    assert len(chunk.report.examples[0]) < 300
    assert chunk.rows["user"].chunk(0).dictionary.to_pylist() == ["1"]
    assert chunk.rows["categorical/city"].chunk(0).dictionary.to_pylist() == ["6"]


def test_malformed_values_of_a_parquet_file_are_left_out(tmp_path):
    table = pa.table(
        {
            "user": pa.array([b"a", b"b\0", b"\xff", b"d", b""]),
            "item": pa.array([2**63, 5, 6, 7, 8], pa.uint64()),
            "click": [1.0, 0.0, 1.0, 0.0, 1.0],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    columns = ColumnNames("user", "item", "click")
    table = tabular.read_rows(tmp_path, "train.parquet", columns, max_malformed=0.9)
    assert table.user.tolist() == ["a", "d"] and table.item.tolist() == [str(2**63), "7"]
    where = f"{tmp_path / 'train.parquet'}: row "
    assert table.report.examples == (
        f"{where}2: user: b'b\\x00' has a NUL character in it",
        f"{where}3: user: b'\\xff' is not text in UTF-8",
        f"{where}5: user: the value is missing",
    )


def test_negatives_belong_to_the_well_formed_test_rows(tmp_path):
    write(
        tmp_path,
        train="user,item\n1,2\n",
        test="user,item\n3,5\n,6\n1,\n1,7\n",
        negatives="user,a,b\n1,11,x\n3,31,32\n",
    )
    more = {"test": "test.csv", "negatives": "negatives.csv", "max_malformed": 0.5}
    table = tabular.read_rows(tmp_path, "train.csv", IDS, **more)
    assert table.item.tolist() == ["2", "5", "7"]
    assert lists(table.negatives) == [["31", "32"], ["11", "x"]]


def test_a_malformed_row_of_content_is_an_error(tmp_path):
    write(tmp_path, train="user,item\n1,2\n", goods="id,price\n2,5\n3,cheap\n")
    goods = ContentFile("goods.csv", dense=["price"])
    message = error_of(tmp_path, items=goods, max_malformed=1.0)
    assert message.endswith("goods.csv:3: price: 'cheap' is not a number; mend or remove the row")


# Blocks.


@pytest.mark.parametrize("block_bytes", [32, 64, 1 << 24])
def test_rows_and_their_lines_do_not_depend_on_the_blocks(tmp_path, block_bytes):
    rows = ["\ufeff2,c", '1,"a\n\nb"', "", '"3","d ""e"', "4", '5 "x",f', ',"\n"', "6,g"] * 5
    (tmp_path / "train.csv").write_text("user,item\n" + "\n".join(rows))
    source = tabular.open_rows(tmp_path, TableFiles("train.csv"), IDS, block_bytes)
    tasks = [task for part in source.parts for task in part()]
    assert (len(tasks) > 3) == (block_bytes < 100)
    assert sum(task.consumed for task in tasks) == source.size
    table = raw.collect(source, max_malformed=0.5)
    assert table.user.tolist() == ["\ufeff2", "1", "3", '5 "x"', "6"] * 5
    assert table.item.tolist() == ["c", "a\n\nb", 'd "e', "f", "g"] * 5
    lines = [int(example.split(":")[1]) for example in table.report.examples]
    assert table.report.malformed == 10 and lines == [8, 10, 19, 21, 30]


def test_a_row_group_of_a_parquet_file_is_a_chunk(tmp_path):
    table = pa.table({"user": list(range(10)), "item": [f"i{i}" for i in range(10)]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", row_group_size=4)
    both = TableFiles("train.parquet", validation="train.parquet")
    source = tabular.open_rows(tmp_path, both, IDS)
    tasks = [list(part()) for part in source.parts]
    assert [[len(task.decode().rows) for task in part] for part in tasks] == [[4, 4, 2]] * 2
    assert sum(task.consumed for part in tasks for task in part) == source.size
    table = raw.collect(source)
    assert table.user.tolist() == [*range(10)] * 2
    assert table.fold.tolist() == [raw.TRAIN] * 10 + [raw.VALIDATION] * 10


def test_ids_have_one_type_in_text_and_parquet(tmp_path):
    pyarrow.parquet.write_table(pa.table({"user": [7], "item": [8]}), tmp_path / "a.parquet")
    write(tmp_path, b="user,item\n9,x\n")
    table = tabular.read_rows(tmp_path, ["a.parquet", "b.csv"], IDS)
    assert table.user.tolist() == [7, 9] and table.item.tolist() == ["8", "x"]


def test_a_column_may_have_several_uses(tmp_path):
    write(tmp_path, train="user,item,stars\n1,2,5\n")
    columns = ColumnNames(
        "user", "item", value="stars", dense=["stars"], categorical=["stars", "item"]
    )
    table = tabular.read_rows(tmp_path, "train.csv", columns)
    assert table.value.tolist() == table.dense["stars"].tolist() == [5]
    assert table.categorical["stars"].tolist() == [5] and table.categorical["item"].tolist() == [2]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    write(tmp_path, train="user,item\n1,2\n", goods="id\n2\n")
    with_goods = TableFiles("train.csv", items=ContentFile("goods.csv"))
    source = tabular.open_rows(tmp_path, with_goods, IDS)
    source.confirm()
    write(tmp_path, goods="id\n2\n3\n")
    with pytest.raises(DataError, match="goods.csv: the file changed"):
        raw.collect(source)


# Real data.


@has("ml-1m-implicit")
def test_the_real_ncf_split_is_read_with_its_negatives_and_content():
    content = {
        "users": ContentFile("users.dat", "movielens_1m"),
        "items": ContentFile("movies.dat", "movielens_1m"),
    }
    table = tabular.read_rows(
        DATA_DIR / "ml-1m-implicit",
        "train.csv.gz",
        ColumnNames("user_id", "item_id"),
        test="test.csv",
        negatives="test_negatives.csv.gz",
        **content,
    )
    assert np.bincount(table.fold).tolist() == [994_169, 0, 6_040]
    assert len(np.unique(table.user)) == len(table.users.ids) == 6_040
    assert len(np.unique(table.item)) == 3_706
    negatives = table.negatives.items[table.negatives.places]
    assert negatives.shape == (6_040, 99) and negatives.dtype == np.int64
    assert negatives[0, :3].tolist() == [458, 2392, 2742]
    assert not (negatives == table.item[table.fold == raw.TEST][:, None]).any()


@has("epinions")
def test_the_real_epinions_has_the_published_counts():
    table = tabular.read_rows(
        DATA_DIR / "epinions", "interactions.csv.gz", ColumnNames("user_id", "item_id")
    )
    assert table.report.rows == 664_823
    assert len(np.unique(table.user)) == 40_163 and len(np.unique(table.item)) == 139_738
