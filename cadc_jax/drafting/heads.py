"""The first rows of a file, in whatever format it is, as columns of text."""

import collections
import csv
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from cadc_jax.data.readers import files, tabular_arrow, tabular_parquet
from cadc_jax.errors import DataError

ROWS = 20_000  # of a head, at most
_BYTES = 1 << 20  # of text that is looked at
_SEPARATORS = ("::", "\t", ",", ";", "|", " ")  # the first one wins among equals
_CRITEO_FIELDS = 40
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

TABLE, ADJACENCY, CRITEO = "table", "adjacency", "criteo"


@dataclasses.dataclass(frozen=True)
class Head:
    """The first rows of a file.

    Attributes:
      path: the file.
      columns: name -> [n] values as text, '' if missing; names are made up if there is no header.
      format: TABLE, ADJACENCY (columns 'user' and 'item') or CRITEO (no columns).
      separator: of a text file; '' if its name says it, or it is none.
      header: the made-up names of a text file without a header, else ().
      whole: whether these are all rows.
      skipped: columns with values that no reader takes, such as lists.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    format: str = TABLE
    separator: str = ""
    header: tuple[str, ...] = ()
    whole: bool = False
    skipped: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """n."""
        return len(next(iter(self.columns.values()), ()))

    def kind(self, name: str) -> str:
        """What most values of a column are: 'integer', 'number', 'date' or 'text'."""
        return _kinds(tuple(self.columns[name]))


@functools.lru_cache(1024)
def _kinds(values: tuple[str, ...]) -> str:
    present = [value for value in values if value]
    if present and all(value.lstrip("-").isdecimal() for value in present):
        return "integer"
    if present and all(map(is_number, present)):
        return "number"
    is_date = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9:.]+)?(Z|[+-][0-9:]+)?").fullmatch
    return "date" if present and all(map(is_date, present)) else "text"


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    return _NUMBER.fullmatch(text) is not None


def read_head(path: Path) -> Head:
    """Reads the first rows of a file.

    Raises:
      DataError: if it cannot be read as rows.
    """
    if path.suffix == ".parquet":
        return _parquet_head(path)
    if path.suffix == ".arrow":
        return _arrow_head(path)
    return _text_head(path)


def _parquet_head(path: Path) -> Head:
    files.open_stream(path).close()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, skipped = _split_nested(file.schema_arrow)
            file.close()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file; {files.HINT}") from error
    opened = tabular_parquet.open_file(path, names)
    blocks = (parse().table for _, parse in tabular_parquet.read_parquet_rows(opened))
    columns = _first_rows(blocks, names)
    whole = opened.metadata.num_rows <= ROWS
    return Head(path, columns, whole=whole, skipped=skipped)


def _arrow_head(path: Path) -> Head:
    names, skipped = _split_nested(tabular_arrow.schema_of(path))
    opened = tabular_arrow.open_file(path, names)
    blocks = (parse().table for _, parse in tabular_arrow.read_arrow_rows(opened))
    columns = _first_rows(blocks, names, ROWS + 1)
    whole = len(next(iter(columns.values()))) <= ROWS
    return Head(path, {name: x[:ROWS] for name, x in columns.items()}, whole=whole, skipped=skipped)


def _split_nested(schema: pa.Schema) -> tuple[list[str], tuple[str, ...]]:
    """Names of the columns of single values, and of the others."""
    nested = tuple(field.name for field in schema if pa.types.is_nested(field.type))
    return [name for name in schema.names if name not in nested], nested


def _first_rows(
    blocks: Iterable[pa.Table], names: Sequence[str], count: int = ROWS
) -> dict[str, list[str]]:
    """The first rows of tables as text: booleans as 0 and 1, times as dates."""
    found: dict[str, list[str]] = {name: [] for name in names}
    left = count
    for table in blocks:
        for name in names:
            found[name] += map(_as_text, table[name].slice(0, left).to_pylist())
        left = max(0, left - len(table))
        if not left:
            break
    return found


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def _text_head(path: Path) -> Head:
    blocks = files.read_blocks(path, _BYTES)
    text = next(blocks).text
    whole = next(blocks, None) is None
    lines = [line for line in text.decode(errors="replace").split("\n") if line.strip()]
    if not lines:
        raise files.no_rows_error(path)
    if len(lines) > ROWS:
        lines, whole = lines[:ROWS], False
    if _is_criteo(lines):
        return Head(path, {}, CRITEO, whole=whole)
    separator = _separator_of(lines)
    if separator is None and _is_adjacency(lines):
        pairs = [(line.split()[0], item) for line in lines for item in line.split()[1:]]
        user, item = map(list, zip(*pairs, strict=True))
        return Head(path, {"user": user, "item": item}, ADJACENCY, whole=whole)
    if separator is None:
        raise DataError(
            f"{path}: no separator that all its lines have; it has to be CSV, TSV, Parquet, Arrow, "
            "or lines 'user item item ...'"
        )
    rows = _fields(lines, separator)
    width = collections.Counter(map(len, rows)).most_common(1)[0][0]
    rows = [row for row in rows if len(row) == width]
    header = () if _has_header(rows) else _made_up(width)
    names = header or tuple(rows.pop(0))
    if not rows:
        raise files.no_rows_error(path)
    by_name = "\t" if ".tsv" in path.suffixes else ","
    return Head(
        path,
        dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
        separator="" if separator == by_name else separator,
        header=header,
        whole=whole,
    )


def _is_criteo(lines: Sequence[str]) -> bool:
    first = lines[0].split("\t")
    return len(first) == _CRITEO_FIELDS and first[0] in ("0", "1")


def _is_adjacency(lines: Sequence[str]) -> bool:
    """Whether lines are words of any number, mostly of numbers."""
    words = [word for line in lines[:100] for word in line.split()]
    return sum(word.isdecimal() for word in words) > 0.9 * len(words)


def _separator_of(lines: Sequence[str]) -> str | None:
    """The separator by which all of the first lines have the same number of fields, above one."""
    lines = lines[:100]
    for separator in _SEPARATORS:
        widths = set(map(len, _fields(lines, separator)))
        if len(widths) == 1 and widths.pop() > 1:
            return separator
    # A line that is malformed, or cut by a quoted newline, is no reason to know nothing.
    for separator in _SEPARATORS[:-1]:
        width, count = collections.Counter(map(len, _fields(lines, separator))).most_common(1)[0]
        if width > 1 and count > 0.9 * len(lines):
            return separator
    return None


def _fields(lines: Sequence[str], separator: str) -> list[list[str]]:
    if separator == "::":
        return [line.split("::") for line in lines]
    return [row for row in csv.reader(lines, delimiter=separator) if row]


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: no number in it, and, in some column, others."""
    first, rest = rows[0], rows[1:]
    if any(map(is_number, first)) or len(set(first)) < len(first) or not all(first):
        return False
    columns = list(zip(*rest[:1000], strict=True))
    if any(all(is_number(x) for x in column if x) for column in columns):
        return True
    return bool(columns) and not any(
        name in column for name, column in zip(first, columns, strict=True)
    )


def _made_up(width: int) -> tuple[str, ...]:
    return tuple(f"column_{place}" for place in range(1, width + 1))
