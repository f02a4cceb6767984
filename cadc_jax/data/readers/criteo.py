"""Reads the Criteo display-advertising logs: tab-separated text without a header.

A row is `label I1 .. I13 C1 .. C26`: 0 or 1, then 13 integers, then 26 categorical values of one to
eight hexadecimal digits. All fields but the label may be empty.

A block of lines is decoded in one of two ways, with the same result. `_decode_plain` is fast, but
refuses a block in which any line is malformed, lacks fields or has a categorical value of fewer
than eight digits. For such a block `_find_well_formed` sorts out the malformed lines and pads the
others, and `_decode_well_formed` decodes these.
"""

import codecs
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cadc_jax.data import raw
from cadc_jax.data.readers import files
from cadc_jax.runtime.storage import AnyPath

DENSE = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
FIELDS = ("label", *DENSE, *CATEGORICAL)

_LEADING = 1 + len(DENSE)  # the label and the integers, which every row must have
_EXAMPLES = 5  # malformed rows quoted in the report
_BLOCK_BYTES = 1 << 20  # of text that `read_logs` decodes at once; its arrays stay in the cache

_LABEL, _INTEGER, _HEXADECIMAL = "[01]", "(-?[0-9]{1,18})?", "[0-9a-fA-F]{0,8}"
_ROW = rf"^{_LABEL}(\t{_INTEGER}){{{len(DENSE)}}}(\t{_HEXADECIMAL}){{0,{len(CATEGORICAL)}}}$"
_VALID = (
    (re.compile(_LABEL.encode()), "0 or 1"),
    *((re.compile(_INTEGER.encode()), "an integer"),) * len(DENSE),
    *((re.compile(_HEXADECIMAL.encode()), "one to eight hexadecimal digits"),) * len(CATEGORICAL),
)

_READ = csv.ReadOptions(column_names=FIELDS, block_size=1 << 20, use_threads=False)
_PARSE = csv.ParseOptions(delimiter="\t", quote_char=False)
_NOT_PLAIN = (b" ", b"x", b"X", b"+", b"\r")  # Arrow accepts them in numbers or as a line end
_TOO_LONG = 1e18  # has 19 digits
_NOT_A_DIGIT = 0x80
_DIGITS = bytes(
    int(chr(c), 16) if chr(c) in "0123456789abcdefABCDEF" else _NOT_A_DIGIT for c in range(256)
)
_u64 = np.uint64


def open_logs(
    paths: Sequence[str | AnyPath], folds: Sequence[int] | None = None, block_bytes: int = 1 << 23
) -> raw.RawData:
    """Opens Criteo logs; rows come in the order of the files and of their lines.

    A row of 14 to 39 fields has lost trailing categorical values, a defect of real copies: they are
    filled with 'missing', and `report.padded` counts such rows. A row is malformed if it has fewer
    than 14 or more than 40 fields, a label other than 0 and 1, an integer field that is no integer,
    or a categorical field that is not one to eight hexadecimal digits. It is left out, and
    `report.malformed` counts it. Blank lines are skipped.

    Args:
      paths: text files, plain, gzip or Zstandard.
      folds: TRAIN, VALIDATION or TEST for each file, or None if the split does not go by file.
      block_bytes: text decoded at a time.

    Returns:
      Chunks with `label`; dense 'I1'..'I13', the integers without any scaling; and categorical
      'C1'..'C26', int64. The logs name no user, no item and no time. Reading raises DataError if a
      file is missing, empty, binary or truncated.
    """

    def tasks(path: str | AnyPath, piece: files.Piece, fold: int | None) -> Iterator[raw.Task]:
        for block in files.read_blocks(path, block_bytes, piece=piece):
            decode = functools.partial(_chunk, path, piece, block.line, block.text, fold)
            yield raw.Task(block.consumed, decode)

    confirm = files.unchanged_since_now(paths)
    parts, sizes = [], []
    for path, fold in zip(paths, [None] * len(paths) if folds is None else folds, strict=True):
        size = files.stored_size([path])
        for piece in files.pieces(path, block_bytes):
            parts.append(functools.partial(tasks, path, piece, fold))
            sizes.append((size if piece.stop is None else piece.stop) - piece.start)
    name = ", ".join(map(str, paths))
    return raw.RawData(name, parts, sum(sizes), confirm=confirm, sizes=sizes)


def read_logs(paths: Sequence[str | AnyPath], max_malformed: float = 0.0) -> raw.RawTable:
    """Reads logs into memory.

    Args:
      paths: as for `open_logs`.
      max_malformed: the largest share of malformed rows to leave out, in [0, 1].

    Raises:
      DataError: a file is missing, empty, binary or truncated; too many rows are malformed.
    """
    return raw.collect(open_logs(paths, block_bytes=_BLOCK_BYTES), max_malformed)


def _chunk(
    path: str | AnyPath, piece: files.Piece, line: int, text: bytes, fold: int | None
) -> raw.Chunk:
    """Decodes whole lines, the first of which is number `line` of a piece of the file."""
    rows = _decode_plain(text)
    if rows is not None:
        report = raw.ReadReport(len(rows))
    else:
        good, padded, malformed = _find_well_formed(text)
        rows = _decode_well_formed(good)
        line += piece.lines_before() if malformed else 0
        examples = [
            f"{path}:{line + offset}: {_fault_of(row)}" for offset, row in malformed[:_EXAMPLES]
        ]
        report = raw.ReadReport(len(rows), padded, len(malformed), tuple(examples))
    if fold is not None:
        rows = rows.append_column("fold", pa.array(np.full(len(rows), fold, np.int8)))
    return raw.Chunk(rows, report)


def _decode_plain(text: bytes) -> pa.Table | None:
    """Decodes lines of 40 fields whose categorical values are empty or have eight digits.

    Returns:
      The rows, or None if a line is different. Arrow's parser accepts more as a number than a log
      may contain, and cannot say what is wrong with a line.
    """
    # Arrow would drop a byte-order mark here, even in the middle of the file.
    if text.startswith(codecs.BOM_UTF8) or any(mark in text for mark in _NOT_PLAIN):
        return None
    try:
        table = _read(text, label=pa.binary(1), categorical=pa.binary(8))
    except pa.ArrowInvalid:
        return None
    if not len(table):
        return None
    label = table["label"].chunk(0)
    digits = np.frombuffer(label.buffers()[1], np.uint8, len(label), label.offset)
    if label.null_count or not np.isin(digits, (ord("0"), ord("1"))).all():
        return None
    dense = [_as_float32(table[name]) for name in DENSE]
    if any((np.abs(values.to_numpy()) >= _TOO_LONG).any() for values in dense):
        return None
    categorical = []
    for name in CATEGORICAL:
        values = _encode_eight_digits(table[name].chunk(0))
        if values is None:
            return None
        categorical.append(values)
    return _rows(pa.array((digits - ord("0")).astype(np.float32)), dense, categorical)


def _find_well_formed(text: bytes) -> tuple[pa.Buffer, int, list[tuple[int, bytes]]]:
    """Sorts out malformed lines, and pads the others to 40 fields.

    Args:
      text: whole lines.

    Returns:
      good: the well-formed lines, with 40 fields each.
      padded: how many of them lacked fields.
      malformed: the other lines, without blank ones, and their numbers, counted from 0.
    """
    lines = pc.split_pattern(pa.array([text]), "\n").flatten()
    matches = pc.match_substring_regex(lines, _ROW)
    others = pc.indices_nonzero(pc.and_not(pc.not_equal(lines, b""), matches))
    malformed = zip(others.to_pylist(), lines.take(others).to_pylist(), strict=True)

    good = lines.filter(matches)
    lacking = pc.subtract(len(FIELDS) - 1, pc.count_substring(good, "\t"))
    good = pc.binary_join_element_wise(good, pc.binary_repeat(pa.scalar(b"\t"), lacking), b"")
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(good)], good), b"\n")[0]
    return joined.as_buffer(), int(np.count_nonzero(lacking)), list(malformed)


def _decode_well_formed(text: pa.Buffer) -> pa.Table:
    """Decodes the good lines of `_find_well_formed`."""
    table = _read(text, label=pa.float32(), categorical=pa.string())
    dense = [_as_float32(table[name]) for name in DENSE]
    categorical = [_encode_digits(table[name].combine_chunks()) for name in CATEGORICAL]
    return _rows(table["label"].combine_chunks(), dense, categorical)


def _read(text: bytes | pa.Buffer, label: pa.DataType, categorical: pa.DataType) -> pa.Table:
    """Parses lines of 40 fields, with these types for the label and the categorical values."""
    types = {"label": label} | dict.fromkeys(DENSE, pa.int64())
    types |= dict.fromkeys(CATEGORICAL, categorical)
    if not len(text):
        return pa.schema(types).empty_table()
    convert = csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    return csv.read_csv(pa.BufferReader(text), _READ, _PARSE, convert).combine_chunks()


def _as_float32(column: pa.ChunkedArray) -> pa.Array:
    """Integers [N] as float32, NaN where missing."""
    values = pc.cast(column.combine_chunks(), pa.float32(), safe=False)
    return pc.fill_null(values, np.nan)


def _encode_digits(column: pa.StringArray) -> pa.DictionaryArray:
    """Dictionary-encodes hexadecimal numbers [N] by their values, -1 where missing."""
    texts = pc.dictionary_encode(column, null_encoding="encode")
    values = pc.cast(pc.binary_join_element_wise("0x", texts.dictionary, ""), pa.int64())
    return raw.distinct(texts.indices, pc.fill_null(values, -1))


def _encode_eight_digits(column: pa.FixedSizeBinaryArray) -> pa.DictionaryArray | None:
    """The faster way for eight bytes [N] each; None if one of them is not a digit."""
    words = pa.Array.from_buffers(pa.int64(), len(column), column.buffers(), offset=column.offset)
    words = pc.dictionary_encode(words, null_encoding="encode")
    present = pc.is_valid(words.dictionary).to_numpy(zero_copy_only=False)
    zero = int.from_bytes(b"00000000", "little")
    text = pc.fill_null(words.dictionary, zero).to_numpy().tobytes()
    word = np.frombuffer(text.translate(_DIGITS), "<u8")  # a byte for each digit, first to last
    if (word & _u64(_NOT_A_DIGIT * 0x0101010101010101)).any():
        return None
    # Joins neighbours: digits to bytes, bytes to pairs, pairs to a number.
    word = ((word << _u64(4)) | (word >> _u64(8))) & _u64(0x00FF00FF00FF00FF)
    word = ((word << _u64(8)) | (word >> _u64(16))) & _u64(0x0000FFFF0000FFFF)
    word = ((word << _u64(16)) | (word >> _u64(32))) & _u64(0x00000000FFFFFFFF)
    values = pa.array(np.where(present, word.astype(np.int64), -1))
    if text.islower() or text.isdigit():
        return pa.DictionaryArray.from_arrays(words.indices, values)
    return raw.distinct(words.indices, values)  # 'AB' and 'ab' are the same number


def _rows(label: pa.Array, dense: Sequence[pa.Array], categorical: Sequence[pa.Array]) -> pa.Table:
    """The rows of a chunk, from its columns."""
    columns = {"label": label}
    columns |= {raw.DENSE + name: values for name, values in zip(DENSE, dense, strict=True)}
    for name, values in zip(CATEGORICAL, categorical, strict=True):
        columns[raw.CATEGORICAL + name] = values
    return pa.table(columns)


def _fault_of(line: bytes) -> str:
    """Describes the first fault of a malformed line."""
    fields = line.split(b"\t")
    if len(fields) > len(FIELDS):
        return f"{len(fields)} fields, where a row has {len(FIELDS)}"
    if len(fields) < _LEADING:
        return f"{len(fields)} fields, where a row has {len(FIELDS)}, and at least {_LEADING}"
    for name, field, (pattern, meaning) in zip(FIELDS, fields, _VALID, strict=False):
        if not pattern.fullmatch(field):
            text = field.decode("utf-8", "backslashreplace")
            return f"{name}: {text[:40]!r} is not {meaning}"
    raise AssertionError("the line is well-formed")
