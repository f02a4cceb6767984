"""Reads CSV and TSV files whose fields may be quoted, in blocks of whole rows.

Arrow parses a block if every row of it has the right number of fields. If not, regular expressions
find the malformed rows, and Arrow parses the others. The same expressions find the end of the last
whole row of a block and the line of a row, which Arrow does not report.
"""

import codecs
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv

from cadc_jax.data.readers import files
from cadc_jax.data.readers.tabular_rows import EXAMPLES, FileRows
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.runtime.storage import AnyPath

WIDE, _CUT = "::", "\x1f"  # a separator of two characters, and the one that is read in its place
HEAD_BYTES = 1 << 20  # bytes at the start of a file that are searched for the header


class TextFile(NamedTuple):
    """A CSV or TSV file that exists and has the wanted columns."""

    path: AnyPath
    types: dict[str, pa.DataType]  # of the columns to read
    separator: str
    names: list[str]  # of all columns
    has_header: bool


def open_file(
    path: AnyPath, separator: str, header: Sequence[str], names: Sequence[str] | None
) -> TextFile:
    """Reads the header of a text file, and checks its columns.

    Args:
      path: the file.
      separator, header: as in `tabular.ColumnNames`.
      names: columns to read; None: all.

    Raises:
      ConfigError: the separator is not a single ASCII character, or is a quote or newline.
      DataError: the file is missing, damaged or binary, lacks a column, or has no rows.
    """
    separator = separator or ("\t" if ".tsv" in path.suffixes else ",")
    letter = _one_letter(separator)
    if len(letter) != 1 or not letter.isascii() or letter in '"\r\n':
        raise ConfigError(
            f"separator {separator!r}: it must be a single character of ASCII, no quote or "
            "newline, or '::'"
        )
    blocks = _blocks_of_rows(path, separator, HEAD_BYTES)
    rows = (row.group() for block in blocks for row in _rows(block.text, separator))
    present = list(header) or _parse_header(path, letter, next(rows, b""))
    names = present if names is None else names
    files.check_columns(path, names, present)
    if next(rows, None) is None:
        raise files.no_rows_error(path)
    return TextFile(path, dict.fromkeys(names, pa.string()), separator, present, not header)


def read_text_rows(
    file: TextFile, block_bytes: int
) -> Iterator[tuple[int, Callable[[], FileRows]]]:
    """Yields (bytes, function that parses the rows) of each block of about `block_bytes`."""
    header = file.has_header
    for line, text, consumed in _blocks_of_rows(file.path, file.separator, block_bytes):
        if header and (row := next(_rows(text, file.separator), None)):
            line += text.count(b"\n", 0, row.end())
            text, header = text[row.end() :], False
        yield consumed, functools.partial(_parse_block, file, line, text)


def _parse_header(path: AnyPath, separator: str, row: bytes) -> list[str]:
    if not row:
        raise files.no_rows_error(path)
    if not files.is_utf8(row):
        raise files.binary_error(path)
    read = pyarrow.csv.ReadOptions(block_size=len(row))  # a header must not exceed a block
    parse = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    return pyarrow.csv.read_csv(pa.BufferReader(row), read, parse).column_names


def _parse_block(file: TextFile, line: int, text: bytes) -> FileRows:
    """Parses whole rows, the first of which begins on this line of the file."""
    malformed: dict[int, int] = {}  # where a malformed row begins -> where it ends
    table = _parse(file, text)
    if table is None:
        rows = _rows(text, file.separator)
        malformed = {row.start(): row.end() for row in rows if _fault_of(file, row.group())}
        cuts = [0, *itertools.chain(*malformed.items()), len(text)]
        good = zip(cuts[::2], cuts[1::2], strict=True)
        table = _parse(file, b"".join(text[start:end] for start, end in good))

    def line_at(start: int) -> int:
        return line + text.count(b"\n", 0, start)

    def line_of(row: int) -> int:
        starts = (found.start() for found in _rows(text, file.separator))
        good = (start for start in starts if start not in malformed)
        return line_at(next(itertools.islice(good, row, None)))

    first = itertools.islice(malformed.items(), EXAMPLES)
    faults = ((start, _fault_of(file, text[start:end])) for start, end in first)
    examples = [(line_at(start), fault) for start, fault in faults if fault]
    return FileRows(table, f"{file.path}:", line_of, len(malformed), examples)


def _parse(file: TextFile, text: bytes) -> pa.Table | None:
    """Parses the columns to read of whole rows, as text; None if a row is malformed."""
    if not text.strip(b"\r\n"):
        return pa.schema(file.types).empty_table()
    if not files.is_utf8(text):
        return None
    quoted = b'"' in text
    if text.startswith(codecs.BOM_UTF8):  # Arrow would drop it, even in the middle of the file
        text = b"\n" + text
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(text),
            pyarrow.csv.ReadOptions(
                column_names=file.names, block_size=len(text), use_threads=False
            ),
            pyarrow.csv.ParseOptions(
                delimiter=_one_letter(file.separator),
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
            ),
            pyarrow.csv.ConvertOptions(
                column_types=file.types,
                include_columns=list(file.types),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        return None


def _fault_of(file: TextFile, row: bytes) -> str | None:
    """What is wrong with a row as a whole, or None."""
    fields = len(_grammar(file.separator).field.findall(row))
    if fields != len(file.names):
        return f"{fields} fields, where a row has {len(file.names)}"
    return None if files.is_utf8(row) else "the row is not in UTF-8"


# Where rows and fields end.


class _Grammar(NamedTuple):
    r"""Patterns for text whose quoted fields may contain separators, newlines and doubled quotes.

    A field is quoted if it begins with a quote. Further on, a quote is an ordinary character, as it
    is for Arrow. A row ends with '\n' or '\r'.
    """

    field: re.Pattern[bytes]  # with the separator or newline that ends it
    row: re.Pattern[bytes]
    rows: re.Pattern[bytes]  # any number of rows


def _one_letter(separator: str) -> str:
    return _CUT if separator == WIDE else separator


@functools.cache
def _grammar(separator: str) -> _Grammar:
    cut = re.escape(_one_letter(separator).encode())
    rest = rb"[^%b\r\n]*+" % cut
    # Repeated groups are atomic by (?>...), not by *+, which Python before 3.11.5 matches wrongly.
    field = rb'(?:"(?>(?:[^"]++|"")*)"%b|[^"%b\r\n]%b|)' % (rest, cut, rest)
    row = rb"(?>(?:%b%b)*)%b[\r\n]" % (field, cut, field)
    patterns = (rb"%b[%b\r\n]" % (field, cut), row, rb"(?>(?:%b)*)" % row)
    return _Grammar(*map(re.compile, patterns))


def _rows(text: bytes, separator: str) -> Iterator[re.Match[bytes]]:
    """The rows of a text of whole rows, without blank lines."""
    return (row for row in _grammar(separator).row.finditer(text) if len(row.group()) > 1)


def _blocks_of_rows(path: AnyPath, separator: str, block_bytes: int) -> Iterator[files.Block]:
    """Yields blocks as `files.read_blocks`, but of whole rows, which may have several lines."""
    line, rest, consumed = 1, b"", 0
    for block in files.read_blocks(path, block_bytes):
        text = block.text
        if separator == WIDE:  # the newline at the end of a block cuts none in two
            text = text.replace(WIDE.encode(), _CUT.encode())
        text = rest + text
        consumed += block.consumed
        quoted_rows = _grammar(separator).rows.match(text) if b'"' in text else None
        end = len(text) if quoted_rows is None else quoted_rows.end()
        if end:
            yield files.Block(line, text[:end], consumed)
            line += text.count(b"\n", 0, end)
            consumed = 0
        rest = text[end:]
        if len(rest) > block_bytes:
            break
    if rest:
        raise DataError(
            f"{path}:{line}: a quoted field of this row has no end within {len(rest)} bytes; add "
            "the quote that ends it, or remove the one it begins with"
        )
