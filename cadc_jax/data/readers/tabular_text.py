"""CSV and TSV files, told into rows and columns, whatever separators and newlines are quoted."""

import codecs
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv

from cadc_jax.data.readers import files
from cadc_jax.data.readers.tabular_rows import EXAMPLES, FileRows
from cadc_jax.errors import ConfigError, DataError

HEAD_BYTES = 1 << 20  # looked at to find the columns


class TextFile(NamedTuple):
    """A CSV or TSV file that is there and has the columns."""

    path: Path
    types: dict[str, pa.DataType]  # of the columns to read
    separator: str
    names: list[str]  # of all columns
    has_header: bool


def open_file(
    path: Path, separator: str, header: Sequence[str], names: Sequence[str] | None
) -> TextFile:
    """Checks a text file for the columns of these names (all if None), and for rows.

    Args:
      path: the file.
      separator, header: as in `tabular.ColumnNames`.
      names: of the columns to read.
    """
    separator = separator or ("\t" if ".tsv" in path.suffixes else ",")
    if len(separator) != 1 or not separator.isascii() or separator in '"\r\n':
        raise ConfigError(
            f"separator {separator!r}: it must be a single character of ASCII, no quote or newline"
        )
    blocks = _whole_rows(path, separator, HEAD_BYTES)
    rows = (row.group() for block in blocks for row in _rows(block.text, separator))
    present = list(header) or _header(path, separator, next(rows, b""))
    names = present if names is None else names
    files.check_columns(path, names, present)
    if next(rows, None) is None:
        raise files.no_rows(path)
    return TextFile(path, dict.fromkeys(names, pa.string()), separator, present, not header)


def _header(path: Path, separator: str, row: bytes) -> list[str]:
    if not row:
        raise files.no_rows(path)
    if not _is_utf8(row):
        raise files.binary(path)
    layout = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    return pyarrow.csv.read_csv(pa.BufferReader(row), parse_options=layout).column_names


def read_text_rows(
    file: TextFile, block_bytes: int
) -> Iterator[tuple[int, Callable[[], FileRows]]]:
    """Yields each block's bytes and how to tell it into columns."""
    header = file.has_header
    for line, text, consumed in _whole_rows(file.path, file.separator, block_bytes):
        if header and (row := next(_rows(text, file.separator), None)):
            line += text.count(b"\n", 0, row.end())
            text, header = text[row.end() :], False
        yield consumed, functools.partial(_tell, file, line, text)


def _tell(file: TextFile, line: int, text: bytes) -> FileRows:
    """Tells rows, of which the first begins on this line, into columns.

    Arrow does it if all have the right number of fields. If not, those that have not are found one
    by one, and Arrow gets the others.
    """
    wrong: dict[int, int] = {}  # where malformed rows begin and end
    table = _parse(file, text)
    if table is None:
        rows = _rows(text, file.separator)
        wrong = {row.start(): row.end() for row in rows if _fault(file, row.group())}
        cuts = [0, *itertools.chain(*wrong.items()), len(text)]
        good = zip(cuts[::2], cuts[1::2], strict=True)
        table = _parse(file, b"".join(text[start:end] for start, end in good))

    def line_of(start: int) -> int:
        return line + text.count(b"\n", 0, start)

    def number(row: int) -> int:
        starts = (row.start() for row in _rows(text, file.separator) if row.start() not in wrong)
        return line_of(next(itertools.islice(starts, row, None)))

    first = itertools.islice(wrong.items(), EXAMPLES)
    found = ((start, _fault(file, text[start:end])) for start, end in first)
    examples = [(line_of(start), fault) for start, fault in found if fault]
    return FileRows(table, f"{file.path}:", number, len(wrong), examples)


def _parse(file: TextFile, text: bytes) -> pa.Table | None:
    """The columns to read of whole rows, as text; None if a row is malformed."""
    if not text.strip(b"\r\n"):
        return pa.schema(file.types).empty_table()
    if not _is_utf8(text):
        return None
    quoted = b'"' in text
    if text.startswith(codecs.BOM_UTF8):  # Arrow would drop it, wherever in the file the text is
        text = b"\n" + text
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(text),
            pyarrow.csv.ReadOptions(
                column_names=file.names, block_size=len(text), use_threads=False
            ),
            pyarrow.csv.ParseOptions(
                delimiter=file.separator,
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


def _fault(file: TextFile, row: bytes) -> str | None:
    """What is wrong with the fields of a row, if anything."""
    fields = len(_grammar(file.separator).field.findall(row))
    if fields != len(file.names):
        return f"{fields} fields, where a row has {len(file.names)}"
    return None if _is_utf8(row) else "the row is not in UTF-8"


def _is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False


# Where rows and fields end.


class _Grammar(NamedTuple):
    r"""Patterns of text whose quoted fields may hold separators, newlines and doubled quotes.

    A field is quoted if it begins with a quote; a quote further on is a letter like any other, as
    it is for Arrow. A row ends with '\n', or with '\r'.
    """

    field: re.Pattern[bytes]  # with the separator or newline that ends it
    row: re.Pattern[bytes]
    rows: re.Pattern[bytes]


@functools.cache
def _grammar(separator: str) -> _Grammar:
    cut = re.escape(separator.encode())
    rest = rb"[^%b\r\n]*+" % cut
    # Repeated groups are atomic by (?>...), not by *+, which Python before 3.11.5 gets wrong.
    field = rb'(?:"(?>(?:[^"]++|"")*)"%b|[^"%b\r\n]%b|)' % (rest, cut, rest)
    row = rb"(?>(?:%b%b)*)%b[\r\n]" % (field, cut, field)
    patterns = (rb"%b[%b\r\n]" % (field, cut), row, rb"(?>(?:%b)*)" % row)
    return _Grammar(*map(re.compile, patterns))


def _rows(text: bytes, separator: str) -> Iterator[re.Match[bytes]]:
    """The rows of whole rows, without blank lines."""
    return (row for row in _grammar(separator).row.finditer(text) if len(row.group()) > 1)


def _whole_rows(path: Path, separator: str, block_bytes: int) -> Iterator[files.Block]:
    """`files.read_blocks`, but no row, whatever newlines are quoted in it, is in two blocks."""
    line, rest, consumed = 1, b"", 0
    for block in files.read_blocks(path, block_bytes):
        text = rest + block.text
        consumed += block.consumed
        quoted = _grammar(separator).rows.match(text) if b'"' in text else None
        end = len(text) if quoted is None else quoted.end()
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
