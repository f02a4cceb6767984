"""Readers given damaged files either raise an error that names the file, or account for every row.

The tests read thousands of small files with a few random faults each. The result is compared with a
naive count, and a naive parse, of the same text.
"""

import collections
import csv
import gzip
import io
import os
import pathlib
import re
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cadc_jax.data import raw
from cadc_jax.data.readers import criteo, tabular
from cadc_jax.errors import CadcError

BOM = b"\xef\xbb\xbf"
CRITEO, CSV, PARQUET, COMPRESSED = 3_000, 1_500, 1_000, 1_000


@pytest.fixture
def file(tmp_path):
    """A file to write, in memory if possible, because a disk is slower than the readers."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tmp_path
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield pathlib.Path(folder) / "fuzzed"


def attempt(path, text: bytes, read):
    """What `read` returns for a file with this text, or None if it raises an error with its name.

    Any other exception fails the test, and shows the text.
    """
    path.write_bytes(text)
    try:
        return read()
    except CadcError as error:
        assert str(path) in str(error), (text, error)
        assert "\n" not in str(error), (text, error)
        return None
    except Exception as error:
        raise AssertionError(f"{text!r} raises {error!r}") from error


def mutated(rng: np.random.Generator, text: bytes, tokens: list[bytes], most: int = 3) -> bytes:
    """The text with one to `most` random faults, among them insertions of `tokens`."""
    for _ in range(rng.integers(1, most + 1)):
        start, end = np.sort(rng.integers(0, len(text) + 1, 2)).tolist()
        token = tokens[rng.integers(len(tokens))]
        fault = rng.integers(10)
        if fault == 0:  # a bit flips
            flipped = bytes(byte ^ 1 << rng.integers(8) for byte in text[start : start + 1])
            text = text[:start] + flipped + text[start + 1 :]
        elif fault == 1:  # bytes are lost
            text = text[:start] + text[start + rng.integers(1, 4) :]
        elif fault == 2:  # the file ends early
            text = text[:end] if rng.random() < 0.5 else text
        elif fault == 3:  # a piece is repeated
            text = text[:end] + text[start:end] + text[end:]
        elif fault == 4:  # Windows line ends
            text = text.replace(b"\n", b"\r\n")
        elif fault == 5:
            text = BOM + text
        elif fault == 6:  # lines are shuffled
            lines = text.splitlines(keepends=True)
            text = b"".join(lines[place] for place in rng.permutation(len(lines)))
        elif fault == 7:  # a random byte
            text = text[:start] + rng.bytes(1) + text[start:]
        else:
            text = text[:start] + token + text[start:]
    return text


# Criteo.

INTEGER, HEXADECIMAL = re.compile(rb"(-?[0-9]{1,18})?"), re.compile(rb"[0-9a-fA-F]{0,8}")
CRITEO_TOKENS = [
    *(b"\t", b"\t\t", b"\n", b"\n\n", b"\r", b"\0", b" ", b"-", b"+", b"g", b"xyz", b"0x1f"),
    *(b"1e5", b"1.5", b"99999999999", b"9" * 18, b"9" * 19, b"-" + b"9" * 30, b"\xff", b"0" * 9),
    *("é".encode(), b'"', b"inf", b"nan", b"\t" * 30, b"\t" * 45, b"NULL", b"2\t", b"\x1f\x8b"),
]


def criteo_text(rng: np.random.Generator, rows: int) -> bytes:
    """Valid rows, some of whose fields are empty."""

    def fields():
        yield b"%d" % rng.integers(2)
        for value in rng.integers(-3, 10 ** rng.integers(1, 10), 13).tolist():
            yield b"" if rng.random() < 0.2 else b"%d" % value
        for value in rng.integers(0, 1 << 32, 26).tolist():
            yield b"" if rng.random() < 0.1 else b"%08x" % value

    return b"".join(b"\t".join(fields()) + b"\n" for _ in range(rows))


def criteo_row(line: bytes) -> list[float] | None:
    """Label, integers and hexadecimals of a line, by a naive parser; None if it is malformed."""
    label, *rest = line.split(b"\t")
    if label not in (b"0", b"1") or not 13 <= len(rest) <= 39:
        return None
    dense, categorical = rest[:13], rest[13:]
    if not all(map(INTEGER.fullmatch, dense)) or not all(map(HEXADECIMAL.fullmatch, categorical)):
        return None
    row = [float(label), *(np.float32(x) if x else np.nan for x in dense)]
    row += [int(x, 16) if x else -1 for x in categorical]
    return row + [-1] * (40 - len(row))


@pytest.mark.slow
def test_a_damaged_criteo_file_loses_no_row(file, monkeypatch):
    decode, plain = criteo._decode_plain, []

    def decode_both_ways(text):
        table = decode(text)
        if table is not None:
            plain.append(text)
            check_same(table, text)
        return table

    monkeypatch.setattr(criteo, "_decode_plain", decode_both_ways)
    rng = np.random.default_rng(1)
    valid = [criteo_text(rng, rows) for rows in (1, 2, 3, 4)]
    inputs = read = malformed = 0
    for number in range(CRITEO):
        text = mutated(rng, valid[number % len(valid)], CRITEO_TOKENS)
        inputs += 1
        table = attempt(file, text, lambda: criteo.read_logs([file], max_malformed=1.0))
        if table is None:
            continue
        text = text.removeprefix(BOM) + (b"" if text.endswith(b"\n") else b"\n")
        text = text.replace(b"\r\n", b"\n")
        lines = [line for line in text.split(b"\n") if line]
        expected = [row for row in map(criteo_row, lines) if row is not None]
        assert table.report.rows + table.report.malformed == len(lines), text
        assert table.report.rows == len(expected), text
        columns = [table.label, *table.dense.values(), *table.categorical.values()]
        assert same(np.transpose(columns), np.array(expected)), text
        read, malformed = read + 1, malformed + bool(table.report.malformed)
    assert inputs == 3_000
    # A reader that always raises, or never finds a malformed row, would pass the checks above.
    assert read > inputs / 2 and malformed > inputs / 10
    assert inputs / 10 < len(plain) < inputs * 0.9


def check_same(table: pa.Table, text: bytes) -> None:
    """The slower decoder must find no fault in lines that the plain one accepts; same values."""
    good, padded, malformed = criteo._find_well_formed(text)
    assert not padded and not malformed, text
    other = criteo._decode_well_formed(good)
    assert table.schema == other.schema
    for found, expected in zip(table.columns, other.columns, strict=True):
        if pa.types.is_dictionary(found.type):
            found, expected = found.cast(pa.int64()), expected.cast(pa.int64())
        assert same(found.to_numpy(), expected.to_numpy()), text


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


# CSV.

HEADER = ["user", "item", "click", "time", "price", "city", "note"]
COLUMNS = tabular.ColumnNames(
    user="user", item="item", label="click", timestamp="time", dense=["price"], categorical=["city"]
)
CSV_ROWS = [
    ["1", "10", "1", "100", "9.5", "Riga", "x"],
    ["2", "a,b", "0", "1500000000", "", "", ""],
    ["ann", "12", "1", "7", "-3", 'say "hi"', "two\nlines"],
    ["99999999999999999999", "-1", "0", "0", "1", "Zürich", '5" disk'],
    ["007", "x y", "1", "-5", "0.25", "5", ""],
]
CSV_TOKENS = [
    *(b",", b",,", b"\n", b"\n\n", b"\r", b"\0", b'"', b'""', b'"\n', b',"', b" ", b"\t", b"'"),
    *(b"1e5", b"nan", b"inf", b"-", b"9" * 10, b"9" * 19, b"9" * 400, b"\xff", "é".encode()),
    *(b"\\", b"NULL", b"x" * 1001, b"1e400", b"0x10", b"_", b"\xef\xbb\xbf", b"user,item\n"),
]


def csv_text(rng: np.random.Generator) -> bytes:
    rows = [CSV_ROWS[place] for place in rng.permutation(5)[: rng.integers(1, 6)]]
    if rng.random() < 0.5:  # without quotes, which are parsed in another way
        rows = [[re.sub('[",\n]', ".", field) for field in row] for row in rows]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([HEADER, *rows])
    return out.getvalue().encode()


def csv_records(text: bytes) -> list[list[str]]:
    """Records by Python's parser, without blank lines."""
    lines = io.StringIO(text.removeprefix(BOM).decode(errors="replace"), newline="")
    return [fields for fields in csv.reader(lines) if fields]


def csv_output(table) -> list[tuple]:
    """The rows of a table as tuples, with ids as text."""

    def text(values):
        if isinstance(values, np.ndarray) and values.dtype == int:
            return np.where(values == -1, "", values.astype(str))
        return values

    columns = [text(table.user), text(table.item), table.label, table.timestamp]
    columns += [np.nan_to_num(table.dense["price"], nan=-1), text(table.categorical["city"])]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def csv_expected(fields: list[str]) -> tuple:
    """The same tuple for a well-formed record."""
    user, item, click, time, price, city, _ = fields
    return user, item, float(click), int(time), float(price or -1), city


@pytest.mark.slow
def test_a_damaged_csv_file_loses_no_row(file):
    rng = np.random.default_rng(2)
    inputs = read = malformed = blocks = 0
    for _ in range(CSV):
        valid = csv_text(rng)
        head, rows = valid.split(b"\n", 1)
        if rng.random() < 0.2:
            text = mutated(rng, valid, CSV_TOKENS)
        else:  # most faults of a header are errors, and leave nothing to count
            text = head + b"\n" + mutated(rng, rows, CSV_TOKENS)
        inputs += 1
        table = attempt(
            file,
            text,
            lambda: tabular.read_rows(file.parent, file.name, COLUMNS, max_malformed=1.0),
        )
        if table is None:
            continue
        _, *records = csv_records(text)
        assert table.report.rows + table.report.malformed == len(records), text
        untouched = [fields for fields in csv_records(valid)[1:] if fields in records]
        missing = collections.Counter(map(csv_expected, untouched))
        missing -= collections.Counter(csv_output(table))
        assert not missing, text
        read, malformed = read + 1, malformed + bool(table.report.malformed)
        if read % 2:
            continue

        def read_in_blocks():
            files = tabular.TableFiles(file.name)
            small = tabular.open_rows(file.parent, files, COLUMNS, block_bytes=120)
            return raw.collect(small, max_malformed=1.0)

        again = attempt(file, text, read_in_blocks)
        if again is not None:  # None: a row is longer than the blocks
            blocks += 1
            assert again.report == table.report, text
            assert csv_output(again) == csv_output(table), text
    assert inputs == 1_500
    assert read > inputs / 2 and malformed > inputs / 10 and blocks > inputs / 6


# Parquet.


def test_a_damaged_parquet_file_loses_no_row(file):
    file = file.with_suffix(".parquet")
    rng = np.random.default_rng(3)
    rows = 40
    table = pa.table(
        {
            "user": pa.array(rng.integers(0, 9, rows)),
            "item": pa.array([f"i{i % 7}" for i in range(rows)]).dictionary_encode(),
            "click": pa.array(rng.integers(0, 2, rows).astype(np.int8)),
            "time": pa.array(np.arange(rows), pa.timestamp("s")),
            "price": pa.array(rng.random(rows)),
            "city": pa.array([None, "a", "b", "Zürich"] * (rows // 4)),
        }
    )
    inputs = read = refused = 0
    for number in range(PARQUET):
        out = io.BytesIO()
        kind = ("none", "snappy", "zstd")[number % 3]
        pa.parquet.write_table(table, out, row_group_size=17, compression=kind)
        text = mutated(rng, out.getvalue(), [b"\0", b"PAR1", b"\xff" * 4], most=1)
        inputs += 1
        found = attempt(
            file,
            text,
            lambda: tabular.read_rows(file.parent, file.name, COLUMNS, max_malformed=1.0),
        )
        if found is None:
            refused += 1
            continue
        assert found.report.rows + found.report.malformed == rows, text
        read += 1
    assert inputs == 1_000
    assert read > inputs / 20 and refused > inputs / 3


# Compressed files.


def zstd(text: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(text)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_damaged_compressed_file_loses_no_row(file, compress):
    rng = np.random.default_rng(4)
    rows = 30
    valid = criteo_text(rng, rows)
    whole = compress(valid)
    members = compress(valid[: len(valid) // 2]) + compress(valid[len(valid) // 2 :])
    assert criteo_rows(file, whole) == criteo_rows(file, members) == rows
    inputs = refused = 0
    for number in range(COMPRESSED // 2):
        original = (whole, members)[number % 2]
        if number % 4 < 2:
            text = original[: rng.integers(1, len(original))]
        else:
            text = mutated(rng, original, [b"\0", b"\n", original[:10], b"\x1f\x8b"], most=1)
        inputs += 1
        found = criteo_rows(file, text)
        refused += found is None
        if number % 4 == 0:
            assert found is None, text  # a part of a stream
        elif found is not None and found < rows:
            assert found == lines_of(text, compress), text
    assert inputs == 500
    assert refused > inputs / 2


def criteo_rows(file, text: bytes) -> int | None:
    """The number of rows read or malformed, or None if the file is refused."""
    table = attempt(file, text, lambda: criteo.read_logs([file], max_malformed=1.0))
    return None if table is None else table.report.rows + table.report.malformed


def lines_of(text: bytes, compress) -> int:
    """The number of lines of a compressed file, which can be decompressed."""
    if compress is gzip.compress:
        text = gzip.decompress(text)
    else:
        text = pa.CompressedInputStream(pa.BufferReader(text), "zstd").read()
    return sum(map(bool, text.splitlines()))
