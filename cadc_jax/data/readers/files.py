"""Opens raw files, plain, gzip or Zstandard, with errors that say what to do.

`read_blocks` yields a text file in blocks of whole lines, so a file of any size fits in memory.
`pieces` divides a plain text file into parts for several threads or hosts.
"""

import codecs
import functools
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from cadc_jax.errors import DataError
from cadc_jax.runtime import storage
from cadc_jax.runtime import text as text_lib
from cadc_jax.runtime.storage import AnyPath, Remote

HINT = "check `data.path`"

# Content and negatives are read as a whole. A compressed file may unpack to a thousand times its
# size, so what it unpacks to is bounded.
MOST_BYTES = 1 << 30

_UTF8_BOM = b"\xef\xbb\xbf"
_PIECE_BLOCKS = 32  # blocks in a piece
_COUNTED_BYTES = 1 << 22  # decompressed at a time to count them
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}  # by the first two bytes of a file


class Block(NamedTuple):
    """Whole lines of a text file, each with its newline."""

    line: int  # number of the first line, counted from 1 at the start of the piece
    text: bytes
    consumed: int  # bytes of the stored file that were read since the previous block


def _no_lines() -> int:
    return 0


class Piece(NamedTuple):
    """A part of a text file: the lines that end in it. It can be pickled."""

    start: int = 0  # in bytes
    stop: int | None = None  # in bytes; None: the end of the file
    lines_before: Callable[[], int] = _no_lines  # counts the lines before `start`


WHOLE = Piece()


def open_stream(path: str | AnyPath, hint: str = HINT, ahead: bool = True) -> pa.NativeFile:
    """Opens a file and reads it as it is stored.

    Args:
      path: the file.
      hint: what the user can do if the file is missing; the end of the error message.
      ahead: whether it is read from start to end, so that a store is asked for more at a time.

    Raises:
      DataError: the file is missing, a folder, empty, or not readable.
    """
    path = storage.path_of(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; {hint}")
    if path.is_dir():
        raise DataError(f"{path}: a folder where a file is expected; {hint}")
    try:
        if not stored_size([path]):
            raise _empty_error(path)
        if isinstance(path, Remote):
            return pa.PythonFile(path.open(ahead), mode="r")
        return pa.OSFile(str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {hint}") from error


def pieces(path: str | AnyPath, size: int) -> list[Piece]:
    """Divides a text file into pieces, which have the same blocks as the whole file.

    A compressed file is one piece, because it can only be read from its start. A file that cannot
    be read is one piece, too: `read_blocks` raises the error.

    Args:
      path: the file.
      size: bytes of a block, as for `read_blocks`.
    """
    length = size * _PIECE_BLOCKS
    starts = range(0, stored_size([path]), length)
    try:
        with _open(path) as file:
            plain = file.read(2) not in _COMPRESSIONS
    except OSError:
        plain = False
    if not plain or len(starts) < 2:
        return [WHOLE]

    lines = _LineCounts(path, size)

    def piece(start: int) -> Piece:
        stop = None if start == starts[-1] else start + length
        return Piece(start, stop, functools.partial(lines.before, start))

    return [piece(start) for start in starts]


class _LineCounts:
    """Counts the lines of a file before its pieces. Counts are kept: every later piece asks."""

    def __init__(self, path: str | AnyPath, size: int):
        self.path, self.size = path, size
        self.counts: dict[int, int] = {}

    def before(self, start: int) -> int:
        return sum(map(self._lines_of, range(0, start, self.size * _PIECE_BLOCKS)))

    def _lines_of(self, start: int) -> int:
        if start not in self.counts:
            with _open(self.path) as file:
                file.seek(start)
                blocks = (file.read(self.size) for _ in range(_PIECE_BLOCKS))
                self.counts[start] = sum(block.count(b"\n") for block in blocks)
        return self.counts[start]


def read_blocks(
    path: str | AnyPath, size: int, hint: str = HINT, piece: Piece = WHOLE, utf8: bool = True
) -> Iterator[Block]:
    r"""Yields the lines of a text file in blocks.

    Args:
      path: a text file, plain or compressed. A UTF-8 byte-order mark is dropped, '\r\n' becomes
        '\n', and the last line gets a newline if it has none.
      size: bytes read at a time; a line may be at most twice as long.
      hint: as for `open_stream`.
      piece: the part of the file to read, from `pieces` with the same `size`.
      utf8: whether text that does not begin in UTF-8 is refused as a binary file.

    Raises:
      DataError: as `open_stream`; a binary file; a truncated or damaged compressed file; a line
        that is too long.
    """
    line, rest, reported = 1, b"", piece.start
    with open_stream(path, hint) as file, _decompressed(file) as stream:

        def read() -> bytes:
            at_end = piece.stop is not None and file.tell() >= piece.stop
            return b"" if at_end else _read(stream, size, path)

        def consumed() -> int:
            nonlocal reported
            before, reported = reported, file.tell()
            return reported - before

        if piece.start:
            rest = _start_of_line(file, piece.start, 2 * size)
        chunk = read()
        if not piece.start:
            _check_text(path, chunk, utf8)
            chunk = chunk.removeprefix(_UTF8_BOM)
        while chunk:
            cut = chunk.rfind(b"\n") + 1
            if cut:
                whole = memoryview(chunk)[:cut]  # a slice of bytes would be one more copy
                text, rest = b"".join((rest, whole)), chunk[cut:]
                lines = chunk.count(b"\n")
                del whole, chunk  # frees the memory before the caller uses the block
                yield Block(line, _unix_lines(text), consumed())
                line += lines
            elif len(rest) < size:
                rest += chunk
            else:
                line += piece.lines_before()
                raise DataError(f"{path}:{line}: the line is longer than {size} bytes; {hint}")
            chunk = read()
        if piece.stop is not None:
            return  # the rest ends in the next piece
        if rest:
            yield Block(line, _unix_lines(rest + b"\n"), consumed())
        elif line == 1 and not piece.start:
            raise _empty_error(path)


def stored_size(paths: Iterable[str | AnyPath]) -> int:
    """Bytes of the files as they are stored; a missing file counts 0."""
    found = (_state(path) for path in paths)
    return sum(state[0] for state in found if state is not None)


def unpacked_size(paths: Iterable[str | AnyPath]) -> int:
    """Bytes of the files' content: decompressed, or the plain values of a Parquet file's columns.

    Raises:
      DataError: a file is missing or damaged.
    """
    return sum(map(_unpacked_size, paths))


def _unpacked_size(path: str | AnyPath) -> int:
    with open_stream(path) as file:
        head = file.read(4)
        if head == b"PAR1":
            file.seek(0)
            groups = parquet.read_metadata(file)
            return sum(groups.row_group(i).total_byte_size for i in range(groups.num_row_groups))
        if head[:2] not in _COMPRESSIONS:
            return stored_size([path])
        file.seek(0)
        stream = _decompressed(file)
        return sum(map(len, iter(lambda: _read(stream, _COUNTED_BYTES, path), b"")))


def unchanged_since_now(paths: Sequence[str | AnyPath]) -> Callable[[], None]:
    """Returns a check that raises DataError if a file has changed since this call."""
    before = [_state(path) for path in paths]

    def check() -> None:
        for path, state in zip(paths, before, strict=True):
            if _state(path) != state:
                raise DataError(
                    f"{path}: the file changed while it was read; run again when it is whole"
                )

    return check


def is_utf8(text: bytes) -> bool:
    """Whether bytes are text in UTF-8."""
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False


def check_columns(path: str | AnyPath, names: Sequence[str], present: Sequence[str]) -> None:
    """Checks the columns of a file.

    Args:
      path: the file, for messages.
      names: columns that the file must have once.
      present: columns of the file.

    Raises:
      DataError: a column is missing or occurs more than once.
    """
    shown = [repr(name[:40])[1:-1] for name in present]  # a name may contain newlines
    for name in names:
        if name not in present:
            fault = f"no column '{name}'{text_lib.nearest(name, shown)}"
        elif present.count(name) > 1:
            fault = f"two columns '{name}'"
        else:
            continue
        raise DataError(f"{path}: {fault}; there are {', '.join(shown)}")


def too_large_error(path: str | AnyPath, most: str) -> DataError:
    """Returns the error for a file that is read as a whole and holds more than `most`."""
    return DataError(
        f"{path}: more than {most}, too much for a file that is read as a whole; make it smaller"
    )


def no_rows_error(path: str | AnyPath) -> DataError:
    """Returns the error for a table without rows."""
    return DataError(f"{path}: no rows; {HINT}, or do not name the file")


def binary_error(path: str | AnyPath) -> DataError:
    """Returns the error for a file that is not text."""
    return DataError(
        f"{path}: a binary file (or not in UTF-8) where text is expected; name the unpacked text"
    )


def _empty_error(path: str | AnyPath) -> DataError:
    return DataError(f"{path}: the file is empty; get a whole copy of it, or do not name it")


def _start_of_line(file: pa.NativeFile, position: int, longest: int) -> bytes:
    """The part before `position` of the line there; leaves a plain file at `position`."""
    start = max(position - longest, 0)
    file.seek(start)
    text = file.read(position - start)
    if not start:
        text = text.removeprefix(_UTF8_BOM)
    return text[text.rfind(b"\n") + 1 :]


def _decompressed(file: pa.NativeFile) -> pa.NativeFile:
    """The content of a file; its first bytes, not its name, say how it is compressed."""
    compression = _COMPRESSIONS.get(file.read(2))
    file.seek(0)
    return pa.CompressedInputStream(file, compression) if compression else file


def _read(stream: pa.NativeFile, size: int, path: str | AnyPath) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        raise DataError(
            f"{path}: the compressed file is truncated or damaged ({error}); get a whole copy of it"
        ) from error


def _check_text(path: str | AnyPath, head: bytes, utf8: bool) -> None:
    """Raises DataError unless the first bytes of a file are text, if `utf8` in UTF-8."""
    try:
        if utf8:
            codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError as error:
        raise binary_error(path) from error
    if b"\0" in head:
        raise binary_error(path)


def _unix_lines(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n") if b"\r" in text else text  # the test makes it faster


def _open(path: str | AnyPath) -> BinaryIO | io.RawIOBase:
    """Opens a file that may be missing; raises OSError then."""
    place = storage.path_of(path)
    return place.open() if isinstance(place, Remote) else open(place, "rb")


def _state(path: str | AnyPath) -> tuple[int, int | str] | None:
    """Size, and modification time or version, of a file; None if it is missing."""
    place = storage.path_of(path)
    try:
        if isinstance(place, Remote):
            return place.state()
        stat = os.stat(place)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
