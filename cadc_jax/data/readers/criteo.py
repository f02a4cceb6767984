"""Reads the Criteo display-advertising logs: tab-separated text without a header.

A row is `label I1 .. I13 C1 .. C26`: 0 or 1, then 13 integers, then 26 categorical values of one to
eight hexadecimal digits; any but the label may be empty. A block of lines is decoded at once, by
Arrow's parser if all are plain and whole. If not, NumPy does it and finds what is wrong: the
last eight bytes of a field make one 64-bit word, and a few shifts and sums turn words into numbers.
"""

import codecs
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cadc_jax.data import raw
from cadc_jax.data.readers import files

DENSE = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
FIELDS = ("label", *DENSE, *CATEGORICAL)

_LEADING = 1 + len(DENSE)  # the label and the integers, which no row may lack
_EXAMPLES = 5  # malformed rows quoted in the report
_BLOCK_BYTES = 1 << 20  # what `read` decodes at once; its arrays stay in the cache
_WORD = 8  # bytes
_NOT_A_DIGIT = 0x80
_DIGITS = bytes(
    int(chr(c), 16) if chr(c) in "0123456789abcdefABCDEF" else _NOT_A_DIGIT for c in range(256)
)
_INTEGER = re.compile(rb"-?[0-9]{1,18}")
_VALID = (
    (re.compile(rb"[01]"), "0 or 1"),
    *((re.compile(rb"(-?[0-9]{1,18})?"), "an integer"),) * len(DENSE),
    *((re.compile(rb"[0-9a-fA-F]{0,8}"), "one to eight hexadecimal digits"),) * len(CATEGORICAL),
)
_TOO_LONG = 1e18  # has 19 digits
_READ = csv.ReadOptions(column_names=FIELDS, block_size=1 << 20, use_threads=False)
_PARSE = csv.ParseOptions(delimiter="\t", quote_char=False)
_CONVERT = csv.ConvertOptions(
    column_types={"label": pa.binary(1)}
    | dict.fromkeys(DENSE, pa.int64())
    | dict.fromkeys(CATEGORICAL, pa.binary(8)),
    null_values=[""],
    strings_can_be_null=True,
)
_u64 = np.uint64


def open_logs(
    paths: Sequence[str | Path], folds: Sequence[int] | None = None, block_bytes: int = 1 << 23
) -> raw.RawData:
    """Criteo logs, in the order of the files and of their rows.

    A row of 14 to 39 fields has lost trailing categorical values, a defect that real copies have:
    they are filled with 'missing', and `report.padded` counts such rows. A row is malformed if it
    has fewer than 14 or more than 40 fields, a label other than 0 and 1, an integer field that is
    no integer, or a categorical field that is not one to eight hexadecimal digits: it is left out,
    and `report.malformed` counts it. Blank lines are passed over.

    Args:
      paths: text files, plain, gzip or Zstandard.
      folds: TRAIN, VALIDATION or TEST for each file, or None if the split does not go by file.
      block_bytes: text decoded at a time.

    Returns:
      Chunks with `label`; dense 'I1'..'I13', the integers as they stand; and categorical
      'C1'..'C26', int64. The logs name no user, no item and no time. Reading raises DataError if a
      file is missing, empty, binary or truncated.
    """

    def tasks(path: str | Path, piece: files.Piece, fold: int | None) -> Iterator[raw.Task]:
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


def read_logs(paths: Sequence[str | Path], max_malformed: float = 0.0) -> raw.RawTable:
    """Reads `open_logs` into memory.

    Args:
      paths: text files, plain, gzip or Zstandard.
      max_malformed: the largest share of malformed rows to put up with, in [0, 1].

    Raises:
      DataError: a file is missing, empty, binary or truncated; too many rows are malformed.
    """
    return raw.collect(open_logs(paths, block_bytes=_BLOCK_BYTES), max_malformed)


def _chunk(
    path: str | Path, piece: files.Piece, line: int, text: bytes, fold: int | None
) -> raw.Chunk:
    """Decodes whole lines, of which the first is number `line` of a piece of the file."""
    rows, report = _parse(text), None
    if rows is None:  # whatever is not plain and whole
        block = _decode(text)
        line += piece.lines_before() if block.examples else 0
        examples = tuple(f"{path}:{line + offset}: {what}" for offset, what in block.examples)
        report = raw.ReadReport(len(block.label), block.padded, block.malformed, examples)
        columns = {"label": block.label}
        columns |= {raw.DENSE + name: x for name, x in zip(DENSE, block.dense, strict=True)}
        for name, values in zip(CATEGORICAL, block.categorical, strict=True):
            columns[raw.CATEGORICAL + name] = values
        rows = raw.table_of(columns)
    if fold is not None:
        rows = rows.append_column("fold", pa.array(np.full(len(rows), fold, np.int8)))
    return raw.Chunk(rows, report or raw.ReadReport(len(rows)))


def _parse(text: bytes) -> pa.Table | None:
    """Decodes lines of 40 fields with categorical values of eight digits; None if some are not.

    Arrow's parser is faster than ours, but takes more for a number than we do, and cannot say what
    is wrong with a row.
    """
    # Arrow would drop a byte-order mark here, wherever in the file the block is.
    if text.startswith(codecs.BOM_UTF8) or any(x in text for x in (b" ", b"x", b"X", b"+", b"\r")):
        return None
    try:
        table = csv.read_csv(pa.BufferReader(text), _READ, _PARSE, _CONVERT)
    except pa.ArrowInvalid:
        return None
    table = table.combine_chunks()
    if not len(table):
        return None
    label = table["label"].chunk(0)
    digits = np.frombuffer(label.buffers()[1], np.uint8, len(label), label.offset)
    if label.null_count or not np.isin(digits, (ord("0"), ord("1"))).all():
        return None
    columns = {"label": pa.array((digits - ord("0")).astype(np.float32))}
    for name in DENSE:
        values = pc.fill_null(pc.cast(table[name].chunk(0), pa.float32(), safe=False), np.nan)
        if (np.abs(values.to_numpy()) >= _TOO_LONG).any():
            return None
        columns[raw.DENSE + name] = values
    for name in CATEGORICAL:
        values = _coded_words(table[name].chunk(0))
        if values is None:
            return None
        columns[raw.CATEGORICAL + name] = values
    return pa.table(columns)


def _coded_words(column: pa.FixedSizeBinaryArray) -> pa.DictionaryArray | None:
    """[N] words of eight hexadecimal digits, coded by their values; None if some are not."""
    words = pa.Array.from_buffers(pa.int64(), len(column), column.buffers(), offset=column.offset)
    words = pc.dictionary_encode(words, null_encoding="encode")
    present = pc.is_valid(words.dictionary).to_numpy(zero_copy_only=False)
    text = pc.fill_null(words.dictionary, 0).to_numpy().tobytes()
    digits = np.frombuffer(text.translate(_DIGITS), np.uint64)
    values, valid = _hexadecimals(digits, np.where(present, _WORD, 0))
    if not valid.all():
        return None
    if text.islower() or text.isdigit():
        return pa.DictionaryArray.from_arrays(words.indices, pa.array(values))
    return raw.distinct(words.indices, pa.array(values))  # 'AB' and 'ab' are the same number


class _Block(NamedTuple):
    """The rows of one block of lines: R of them are well-formed."""

    label: np.ndarray  # [R] f32
    dense: np.ndarray  # [13, R] f32
    categorical: np.ndarray  # [26, R] i64
    padded: int
    malformed: int
    examples: list[tuple[int, str]]  # (line within the block, what is wrong), the first few


def _decode(text: bytes) -> _Block:
    """Decodes whole lines, each with its newline."""
    text = b"\n" * _WORD + text  # so that a word may end at the end of any field
    characters = np.frombuffer(text, np.uint8)
    ends, lengths, fields, line_starts = _locate(characters)
    # A word at every byte, of which only those that end a field are gathered.
    words = np.ndarray(len(text) - _WORD + 1, "<u8", text.translate(_DIGITS), strides=(1,))
    words = words[ends - _WORD]

    leading = slice(_LEADING)
    numbers, whole = _integers(text, characters, words[leading], ends[leading], lengths[leading])
    label, label_length = numbers[0], lengths[0]
    trailing = slice(_LEADING, None)
    categorical, hexadecimal = _hexadecimals(words[trailing], lengths[trailing])

    good = (fields >= _LEADING) & (fields <= len(FIELDS)) & whole.all(0) & hexadecimal.all(0)
    good &= (label_length == 1) & ((label == 0) | (label == 1))
    blank = (fields == 1) & (label_length == 0)
    wrong = np.flatnonzero(~good & ~blank)
    if not good.all():
        label, numbers, categorical, fields = (
            array[..., good] for array in (label, numbers, categorical, fields)
        )
    return _Block(
        label=label,
        dense=numbers[1:],
        categorical=categorical,
        padded=int(np.count_nonzero(fields < len(FIELDS))),
        malformed=len(wrong),
        examples=[
            (int(row), _what_is_wrong(text[line_starts[row] : text.index(b"\n", line_starts[row])]))
            for row in wrong[:_EXAMPLES]
        ],
    )


def _locate(characters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Finds the fields of R lines, after the first eight characters.

    Args:
      characters: [n] u8.

    Returns:
      ends: [40, R] where each field ends. Fields that the line lacks end where it ends.
      lengths: [40, R] characters in each field; 0 for those that the line lacks.
      fields: [R] fields in the line, of which those past the 40th are not in the other two.
      line_starts: [R].
    """
    separators = np.flatnonzero((characters == ord("\t")) | (characters == ord("\n")))[_WORD:]
    last = np.flatnonzero(characters[separators] == ord("\n"))  # [R] the last separator of a line
    first = np.concatenate([[0], last[:-1] + 1])
    ends = separators[np.minimum(first + np.arange(len(FIELDS))[:, None], last)]
    line_starts = np.concatenate([[_WORD], separators[last[:-1]] + 1])
    lengths = np.empty_like(ends)
    lengths[0] = ends[0] - line_starts
    lengths[1:] = ends[1:] - ends[:-1] - 1
    return ends, np.maximum(lengths, 0, out=lengths), last - first + 1, line_starts


def _integers(
    text: bytes, characters: np.ndarray, words: np.ndarray, ends: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fields' values, f32, NaN where empty; and whether each is an integer or empty."""
    negative = characters[ends - lengths] == ord("-")
    lengths_unsigned = lengths - negative
    word = _digits_alone(words, lengths_unsigned)
    # 0x76 is what lifts 10, and no digit below it, to 0x80.
    valid = ((word + _every_byte(0x76)) | word) & _every_byte(_NOT_A_DIGIT) == 0
    valid &= (lengths_unsigned > 0) | (lengths == 0)
    word = (word * _u64(10) + (word >> _u64(8))) & _u64(0x00FF00FF00FF00FF)
    word = (word * _u64(100) + (word >> _u64(16))) & _u64(0x0000FFFF0000FFFF)
    word = (word * _u64(10_000) + (word >> _u64(32))) & _u64(0x00000000FFFFFFFF)
    value = word.astype(np.float32)
    value = np.where(negative, -value, value)
    value[lengths == 0] = np.nan
    for at in zip(*np.nonzero(lengths_unsigned > _WORD), strict=True):  # longer than a word: rare
        field = text[ends[at] - lengths[at] : ends[at]]
        valid[at] = _INTEGER.fullmatch(field) is not None
        value[at] = int(field) if valid[at] else np.nan
    return value, valid


def _hexadecimals(words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fields' values, i64, -1 where empty; and whether each is valid."""
    word = _digits_alone(words, lengths)
    valid = ((word & _every_byte(_NOT_A_DIGIT)) == 0) & (lengths <= _WORD)
    word = ((word << _u64(4)) | (word >> _u64(8))) & _u64(0x00FF00FF00FF00FF)
    word = ((word << _u64(8)) | (word >> _u64(16))) & _u64(0x0000FFFF0000FFFF)
    word = ((word << _u64(16)) | (word >> _u64(32))) & _u64(0x00000000FFFFFFFF)
    value = word.astype(np.int64)
    value[lengths == 0] = -1
    return value, valid


def _digits_alone(words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Zeroes the bytes of each little-endian word before its last `lengths`, in [0, 8]."""
    before = (_WORD - np.clip(lengths, 0, _WORD)).astype(np.uint64) << _u64(3)  # bits
    return words >> before << before  # NumPy defines a shift by 64 as 0


def _every_byte(byte: int) -> np.uint64:
    return np.uint64(byte * 0x0101010101010101)


def _what_is_wrong(line: bytes) -> str:
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
