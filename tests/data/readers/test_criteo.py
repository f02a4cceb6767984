"""The Criteo reader: what it accepts, what it pads, and what it refuses with which message."""

import gzip
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cadc_jax.configuration import data_folder
from cadc_jax.data import raw
from cadc_jax.data.readers import criteo, files
from cadc_jax.errors import DataError

DATA_DIR = data_folder()
SAMPLE = DATA_DIR / "criteo-sample" / "train.txt"
HEAD = DATA_DIR / "criteo-sample" / "head_8k.txt.gz"


def row(label="0", integers=None, categoricals=None) -> str:
    """A row of 40 fields: by default the integers 1..13 and the categorical values 1..26."""
    integers = [str(i) for i in range(1, 14)] if integers is None else integers
    categoricals = [f"{i:08x}" for i in range(1, 27)] if categoricals is None else categoricals
    return "\t".join([label, *integers, *categoricals])


def write(path: Path, *rows: str, end: str = "\n") -> Path:
    path.write_bytes(("\n".join(rows) + end).encode())
    return path


def with_field(name: str, text: str) -> str:
    """The default row with one field replaced."""
    fields = row().split("\t")
    fields[criteo.FIELDS.index(name)] = text
    return "\t".join(fields)


def read_value(tmp_path: Path, name: str, text: str):
    table = criteo.read_logs([write(tmp_path / "train.txt", with_field(name, text))])
    return (table.dense | table.categorical)[name][0]


# What a row means.


def test_a_row_is_a_label_13_integers_and_26_hexadecimal_values(tmp_path):
    table = criteo.read_logs([write(tmp_path / "train.txt", row("1"), row("0"))])
    assert table.label.dtype == np.float32 and table.label.tolist() == [1, 0]
    assert list(table.dense) == [f"I{i}" for i in range(1, 14)]
    assert list(table.categorical) == [f"C{i}" for i in range(1, 27)]
    for i, column in enumerate(table.dense.values(), start=1):
        assert column.dtype == np.float32 and column.tolist() == [i, i]
    for i, column in enumerate(table.categorical.values(), start=1):
        assert column.dtype == np.int64 and column.tolist() == [i, i]
    assert table.report.rows == 2
    assert table.report.padded == table.report.malformed == 0
    assert table.user is table.item is table.value is table.timestamp is table.fold is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("7", 7), ("-1", -1), ("12345678", 12345678), ("-99999999", -99999999)]
    + [("123456789", 123456789), ("-4294967296", -(2**32)), ("007", 7), ("9" * 18, 10**18)],
)
def test_integers_may_have_any_sign_and_up_to_18_digits(tmp_path, text, value):
    assert read_value(tmp_path, "I5", text) == np.float32(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("00000000", 0), ("ffffffff", 0xFFFFFFFF), ("68FD1e64", 0x68FD1E64), ("a", 10), ("1f", 31)],
)
def test_categorical_values_are_hexadecimal_numbers(tmp_path, text, value):
    assert read_value(tmp_path, "C26", text) == value


def test_an_empty_integer_is_nan_and_an_empty_categorical_is_minus_one(tmp_path):
    text = row("1", [""] * 13, [""] * 26)
    table = criteo.read_logs([write(tmp_path / "train.txt", text)])
    assert all(np.isnan(column).tolist() == [True] for column in table.dense.values())
    assert all(column.tolist() == [-1] for column in table.categorical.values())
    assert table.report.padded == 0


def test_files_are_read_one_after_the_other(tmp_path):
    paths = [write(tmp_path / f"day_{i}", with_field("I1", str(i))) for i in (3, 1, 2)]
    assert criteo.read_logs(paths).dense["I1"].tolist() == [3, 1, 2]


def test_rows_keep_their_order_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", 1000)
    rows = [with_field("I1", str(i)) for i in range(100)]
    table = criteo.read_logs([write(tmp_path / "train.txt", *rows)])
    assert table.dense["I1"].tolist() == list(range(100))


# Forms of the file.


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_do_not_matter(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf" + f"{row('1')}\r\n\r\n{row('0')}\r\n\r\n".encode())
    table = criteo.read_logs([path])
    assert table.label.tolist() == [1, 0]
    assert table.categorical["C26"].tolist() == [26, 26]
    assert table.report.malformed == 0


def test_the_last_line_may_lack_its_newline(tmp_path):
    table = criteo.read_logs([write(tmp_path / "train.txt", row(), row(), end="")])
    assert table.categorical["C26"].tolist() == [26, 26]


def test_a_compressed_file_needs_no_suffix(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(gzip.compress(f"{row('1')}\n".encode()))
    assert criteo.read_logs([path]).label.tolist() == [1]


# Lost trailing fields.


@pytest.mark.parametrize("fields", [14, 37, 39])
def test_lost_trailing_categoricals_are_filled_with_missing_and_counted(tmp_path, fields):
    short = "\t".join(row("1").split("\t")[:fields])
    table = criteo.read_logs([write(tmp_path / "train.txt", row(), short, row())])
    assert table.report.rows == 3 and table.report.padded == 1 and table.report.malformed == 0
    kept = fields - 14
    values = [column[1] for column in table.categorical.values()]
    assert values == list(range(1, kept + 1)) + [-1] * (26 - kept)
    assert table.dense["I13"].tolist() == [13, 13, 13]
    assert table.categorical["C26"][[0, 2]].tolist() == [26, 26]


def test_a_padded_row_may_end_in_a_windows_line_end(tmp_path):
    path = write(tmp_path / "train.txt", "\t".join(row().split("\t")[:15]) + "\r", row() + "\r")
    assert criteo.read_logs([path]).categorical["C1"].tolist() == [1, 1]


# Malformed rows.

MALFORMED = {
    "13 fields": ("\t".join(row().split("\t")[:13]), "13 fields"),
    "41 fields": (row() + "\t", "41 fields"),
    "label 2": (with_field("label", "2"), "label: '2' is not 0 or 1"),
    "label 01": (with_field("label", "01"), "label: '01' is not 0 or 1"),
    "no label": (with_field("label", ""), "label: '' is not 0 or 1"),
    "real number": (with_field("I3", "1.5"), "I3: '1.5' is not an integer"),
    "minus alone": (with_field("I3", "-"), "I3: '-' is not an integer"),
    "two minuses": (with_field("I3", "--1"), "I3: '--1' is not an integer"),
    "hexadecimal integer": (with_field("I3", "ff"), "I3: 'ff' is not an integer"),
    "long word": (with_field("I3", "not-a-number"), "I3: 'not-a-number' is not an integer"),
    "long integer": (with_field("I3", "9" * 19), f"I3: '{'9' * 19}' is not an integer"),
    "not hexadecimal": (with_field("C2", "0000000g"), "C2: '0000000g' is not one to eight hex"),
    "nine digits": (with_field("C2", "123456789"), "C2: '123456789' is not one to eight hex"),
    "not ascii": (with_field("C2", "ä"), "C2: 'ä' is not one to eight hex"),
}


@pytest.mark.parametrize(("text", "what"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_row_stops_the_reader_by_default(tmp_path, text, what):
    path = write(tmp_path / "train.txt", row(), "", text, row())
    with pytest.raises(DataError) as error:
        criteo.read_logs([path])
    message = str(error.value)
    assert message.startswith(f"{path}:3: {what}")
    assert "raise `data.max_malformed`" in message and "\n" not in message


@pytest.mark.parametrize(("text", "what"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_row_within_the_share_is_left_out_counted_and_quoted(tmp_path, text, what):
    path = write(tmp_path / "train.txt", row("1"), text, row("0"), row("1"))
    table = criteo.read_logs([path], max_malformed=0.25)
    assert table.label.tolist() == [1, 0, 1]
    assert table.report.rows == 3 and table.report.malformed == 1
    (example,) = table.report.examples
    assert example.startswith(f"{path}:2: {what}")


def test_more_malformed_rows_than_the_share_stop_the_reader(tmp_path):
    path = write(tmp_path / "train.txt", "a", "b", row(), row())
    with pytest.raises(DataError, match=r"train.txt:1: .*2 of the 4 rows .*now 0.4"):
        criteo.read_logs([path], max_malformed=0.4)


def test_five_malformed_rows_are_quoted_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", 1000)
    paths = [write(tmp_path / name, *["?", row(), row()] * 2) for name in ("a", "b")]
    report = criteo.read_logs(paths, max_malformed=0.5).report
    assert report.malformed == 4 and report.rows == 8
    places = [example.split(": ")[0] for example in report.examples]
    assert places == [f"{paths[0]}:1", f"{paths[0]}:4", f"{paths[1]}:1", f"{paths[1]}:4"]
    assert len(criteo.read_logs(paths * 2, max_malformed=0.5).report.examples) == 5


def test_malformed_rows_in_all_pieces_of_a_file_are_quoted_with_their_line(tmp_path):
    rows = [row()] * 500
    malformed = [3, 250, 251, 499]
    lines = ("?" if i in malformed else x for i, x in enumerate(rows))
    path = write(tmp_path / "train.txt", *lines)
    source = criteo.open_logs([path], block_bytes=1000)
    assert len(source.parts) > 3 and sum(source.sizes) == source.size == path.stat().st_size
    report = raw.collect(source, max_malformed=0.5).report
    places = [example.split(": ")[0] for example in report.examples]
    assert places == [f"{path}:{i + 1}" for i in malformed]


# Files that cannot be read.


def one_line_error(path: Path) -> str:
    with pytest.raises(DataError) as error:
        criteo.read_logs([path])
    message = str(error.value)
    assert str(path) in message and "\n" not in message and ";" in message
    return message


def test_a_missing_file_is_named(tmp_path):
    assert "no such file; check `data.path`" in one_line_error(tmp_path / "nowhere.txt")


def test_a_folder_is_not_a_file(tmp_path):
    assert "a folder where a file is expected" in one_line_error(tmp_path)


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0), files._UTF8_BOM])
def test_an_empty_file_is_an_error(tmp_path, content):
    (tmp_path / "train.txt").write_bytes(content)
    assert "the file is empty" in one_line_error(tmp_path / "train.txt")


def test_a_file_of_blank_lines_has_no_rows(tmp_path):
    assert "no rows" in one_line_error(write(tmp_path / "train.txt", "", ""))


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0", b"caf\xe9\n", "0\t1\n".encode("utf-16")]
)
def test_a_binary_file_is_an_error(tmp_path, content):
    (tmp_path / "train.txt").write_bytes(content)
    assert "a binary file (or not in UTF-8) where text" in one_line_error(tmp_path / "train.txt")


def test_a_truncated_compressed_file_is_an_error(tmp_path):
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(f"{row()}\n".encode() * 1000)[:-20])
    assert "truncated or damaged" in one_line_error(path)


def test_a_file_without_line_ends_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", 1000)
    assert "longer than 1000 bytes" in one_line_error(write(tmp_path / "train.txt", "0\t" * 5000))


# Any file.

integers = st.none() | st.integers(-(10**12), 10**12)
hashes = st.none() | st.integers(0, 2**32 - 1)
rows = st.tuples(
    st.sampled_from([0, 1]),
    st.lists(integers, min_size=13, max_size=13),
    st.lists(hashes, min_size=26, max_size=26),
    st.integers(14, 40),
)


@hypothesis.given(st.lists(rows, min_size=1, max_size=20), st.sampled_from(["\n", "\r\n"]))
def test_the_values_written_are_the_values_read(tmp_path_factory, written, line_end):
    path = tmp_path_factory.mktemp("criteo") / "train.txt"
    lines = []
    for label, numbers, categoricals, fields in written:
        texts = ["" if n is None else str(n) for n in numbers]
        texts += ["" if c is None else f"{c:08x}" for c in categoricals]
        lines.append("\t".join([str(label), *texts][:fields]))
    path.write_bytes(line_end.join(lines).encode())

    table = criteo.read_logs([path])

    assert table.label.tolist() == [label for label, *_ in written]
    for i, name in enumerate(criteo.DENSE):
        expected = [np.nan if numbers[i] is None else numbers[i] for _, numbers, *_ in written]
        np.testing.assert_array_equal(table.dense[name], np.array(expected, np.float32))
    for i, name in enumerate(criteo.CATEGORICAL):
        expected = [
            -1 if categoricals[i] is None or fields <= 14 + i else categoricals[i]
            for *_, categoricals, fields in written
        ]
        assert table.categorical[name].tolist() == expected
    assert table.report.rows == len(written)
    assert table.report.padded == sum(fields < 40 for *_, fields in written)


@hypothesis.given(st.data())
def test_a_line_is_malformed_if_and_only_if_one_of_its_fields_is(data):
    line = bytearray(row("1").encode())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(line) - 1))
        line[position] = data.draw(st.sampled_from(b"\t\t0129aAfFgG-+. \x7f\xff"))
    good, _, malformed = criteo._find_well_formed(bytes(line) + b"\n")
    fields = bytes(line).split(b"\t")
    well_formed = 14 <= len(fields) <= 40 and all(
        pattern.fullmatch(field) for field, (pattern, _) in zip(fields, criteo._VALID, strict=False)
    )
    assert (not malformed) == well_formed
    assert len(criteo._decode_well_formed(good)) == well_formed


# Real data.


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is absent; set CADC_DATA_DIR")
def test_every_row_of_the_real_sample_is_read_and_half_of_them_are_padded():
    report = criteo.read_logs([SAMPLE]).report
    assert (report.rows, report.padded, report.malformed) == (1000, 498, 0)


@pytest.mark.skipif(not HEAD.exists(), reason=f"{HEAD} is absent; set CADC_DATA_DIR")
def test_the_real_head_agrees_with_a_naive_parser():
    table = criteo.read_logs([HEAD])
    lines = gzip.decompress(HEAD.read_bytes()).decode().splitlines()
    fields = list(zip(*(line.split("\t") for line in lines), strict=True))
    assert table.label.tolist() == [float(text) for text in fields[0]]
    for column, texts in zip(table.dense.values(), fields[1:14], strict=True):
        np.testing.assert_array_equal(column, np.array([t or "nan" for t in texts], np.float32))
    for column, texts in zip(table.categorical.values(), fields[14:], strict=True):
        assert column.tolist() == [int(text, 16) if text else -1 for text in texts]
