"""Reads files of lines 'user item item ...', a user's items in one line, without a header.

This is the format of LightGCN's data sets. Fields are separated by spaces or tabs. A user may have
several lines, and a line of a user alone has no row.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data.readers import files
from cadc_jax.data.readers.tabular_rows import EXAMPLES, FileRows
from cadc_jax.runtime.storage import AnyPath

USER, ITEM = "user", "item"  # names of the columns
_HEAD_BYTES = 1 << 23  # a line may have as many


class AdjacencyFile(NamedTuple):
    """A file of a user's items in each line."""

    path: AnyPath
    types: dict[str, pa.DataType]


def open_file(path: AnyPath) -> AdjacencyFile:
    """Opens a file, and checks that it has a row.

    Raises:
      DataError: the file is missing, empty or binary, or no line has an item.
    """
    for block in files.read_blocks(path, _HEAD_BYTES):
        if any(len(line.split(maxsplit=1)) > 1 for line in block.text.splitlines()):
            return AdjacencyFile(path, {USER: pa.string(), ITEM: pa.string()})
    raise files.no_rows_error(path)


def read_adjacency_rows(
    file: AdjacencyFile, block_bytes: int
) -> Iterator[tuple[int, Callable[[], FileRows]]]:
    """Yields (bytes, function that parses the rows) of each block of about `block_bytes`."""
    for block in files.read_blocks(file.path, block_bytes):
        yield block.consumed, functools.partial(_parse, file, block)


def _parse(file: AdjacencyFile, block: files.Block) -> FileRows:
    lines = block.text.split(b"\n")
    bad = [] if block.text.isascii() else [n for n, x in enumerate(lines) if not files.is_utf8(x)]
    for number in bad:
        lines[number] = b""
    fields = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(pa.array(lines, pa.string())))
    starts, ends = fields.offsets.to_numpy()[:-1], fields.offsets.to_numpy()[1:]
    words = fields.values
    is_item = np.ones(len(words), bool)
    is_item[starts[ends > starts]] = False
    # The split of an empty text is one empty word.
    items = np.maximum(ends - starts - 1, 0)
    line_of = np.repeat(np.arange(len(lines), dtype=np.int32), items)
    users = words.take(pa.array(starts))
    table = pa.table(
        {
            USER: pa.DictionaryArray.from_arrays(pa.array(line_of), users),
            ITEM: words.filter(pa.array(is_item)),
        }
    )
    examples = [(block.line + number, "the line is not in UTF-8") for number in bad[:EXAMPLES]]

    def number_of(row: int) -> int:
        return block.line + int(line_of[row])

    return FileRows(table, f"{file.path}:", number_of, len(bad), examples)
