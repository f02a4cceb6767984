"""Opening raw files: plain, gzip or Zstandard, with errors that say what to do."""

import codecs
import difflib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from cadc_jax.errors import DataError

HINT = "check `data.path`"

_UTF8_BOM = b"\xef\xbb\xbf"
_PIECE_BLOCKS = 32  # blocks in a piece
_COMPRESSION = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}  # by the first two bytes of a file


class Block(NamedTuple):
    """Whole lines of a text file, each with its newline."""

    line: int  # number of the first one, from 1 where the piece begins
    text: bytes
    consumed: int  # bytes of the file, as it is stored, read since the block before


class Piece(NamedTuple):
    """A stretch of a text file: the lines that end in it."""

    start: int = 0
    stop: int | None = None  # None: the end of the file
    lines_before: Callable[[], int] = lambda: 0  # reads the file up to `start`


WHOLE = Piece()


def open_stream(path: str | Path, hint: str = HINT) -> pa.NativeFile:
    """Opens a file for reading, as it is stored.

    Args:
      path: the file.
      hint: what the user can do if it is not there; ends the error's text.

    Raises:
      DataError: no such file, a folder, an empty file, or one that may not be read.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; {hint}")
    if path.is_dir():
        raise DataError(f"{path}: a folder where a file is expected; {hint}")
    try:
        if not path.stat().st_size:
            raise empty(path)
        return pa.OSFile(str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {hint}") from error


def pieces(path: str | Path, size: int) -> list[Piece]:
    """The pieces of a text file, which `read_blocks` tells into the same blocks as the whole file.

    Only a plain file can be entered in its middle, so that a compressed one is a single piece; so
    is one that cannot be read, of which `read_blocks` will say why.

    Args:
      path: the file.
      size: of blocks.
    """
    length = size * _PIECE_BLOCKS
    starts = range(0, stored_size([path]), length)
    try:
        with open(path, "rb") as file:
            plain = file.read(2) not in _COMPRESSION
    except OSError:
        plain = False
    if not plain or len(starts) < 2:
        return [WHOLE]

    @functools.cache  # as every piece may ask for its line
    def lines_in(start: int) -> int:
        with open(path, "rb") as file:
            file.seek(start)
            return sum(file.read(size).count(b"\n") for _ in range(_PIECE_BLOCKS))

    def piece(start: int) -> Piece:
        stop = None if start == starts[-1] else start + length
        return Piece(start, stop, lambda: sum(map(lines_in, range(0, start, length))))

    return [piece(start) for start in starts]


def read_blocks(
    path: str | Path, size: int, hint: str = HINT, piece: Piece = WHOLE
) -> Iterator[Block]:
    r"""Yields the lines of a text file in blocks, so that it is never whole in memory.

    Args:
      path: a text file, plain or compressed. A UTF-8 byte-order mark is dropped, '\r\n' becomes
        '\n', and the last line gets the newline it may lack.
      size: bytes read at a time; a line may be at most twice as long.
      hint: as for `open_stream`.
      piece: the part of the file to read, of `pieces` for this size of blocks.

    Raises:
      DataError: as `open_stream`; a binary file; a truncated or damaged compressed file.
    """
    line, rest, told = 1, b"", piece.start
    with open_stream(path, hint) as file, _unpacked(file, path) as stream:

        def consumed() -> int:
            nonlocal told
            before, told = told, file.tell()
            return told - before

        def read() -> bytes:
            at_end = piece.stop is not None and file.tell() >= piece.stop
            return b"" if at_end else _read(stream, size, path)

        if piece.start:
            rest = _line_before(file, piece.start, 2 * size)
        chunk = read()
        if not piece.start:
            _check_text(path, chunk)
            chunk = chunk.removeprefix(_UTF8_BOM)
        while chunk:
            cut = chunk.rfind(b"\n") + 1
            if cut:
                whole = memoryview(chunk)[:cut]  # a slice of bytes would be one more copy
                text, rest = b"".join((rest, whole)), chunk[cut:]
                lines = chunk.count(b"\n")
                del whole, chunk
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
            raise empty(path)


def stored_size(paths: Iterable[str | Path]) -> int:
    """Bytes of files as they are stored; those that cannot be looked at count nothing."""
    return sum(os.path.getsize(path) for path in paths if os.path.exists(path))


def unchanged_since_now(paths: Sequence[str | Path]) -> Callable[[], None]:
    """Returns a check that raises DataError if one of the files has changed since this call."""
    before = [_state(path) for path in paths]

    def check() -> None:
        for path, state in zip(paths, before, strict=True):
            if _state(path) != state:
                raise DataError(
                    f"{path}: the file changed while it was read; run again when it is whole"
                )

    return check


def read_text(path: str | Path, hint: str = HINT) -> bytes:
    """Returns a whole text file, its lines as `read_blocks` yields them.

    Its encoding is the caller's affair; the errors are those of `open_stream`, and a DataError for
    a file with NUL bytes or a damaged compressed file.
    """
    with open_stream(path, hint) as file, _unpacked(file, path) as stream:
        text = _read(stream, None, path).removeprefix(_UTF8_BOM)
    if not text:
        raise empty(path)
    if b"\0" in text:
        raise binary(path)
    return _unix_lines(text if text.endswith(b"\n") else text + b"\n")


def empty(path: str | Path) -> DataError:
    """Returns the error for a file without any data."""
    return DataError(f"{path}: the file is empty; get a whole copy of it, or do not name it")


def no_rows(path: str | Path) -> DataError:
    """Returns the error for a table without rows."""
    return DataError(f"{path}: no rows; {HINT}, or do not name the file")


def damaged(path: str | Path, error: OSError) -> DataError:
    """Returns the error for a compressed file that cannot be unpacked."""
    return DataError(
        f"{path}: the compressed file is truncated or damaged ({error}); get a whole copy of it"
    )


def binary(path: str | Path) -> DataError:
    """Returns the error for a file that is not text."""
    return DataError(
        f"{path}: a binary file (or not in UTF-8) where text is expected; name the unpacked text"
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean 'user_id'?" if one of `names` is close to `name`, else ''."""
    match = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def check_columns(path: str | Path, names: Sequence[str], present: Sequence[str]) -> None:
    """Raises DataError unless each of `names` is there once among the columns of a file."""
    for name in names:
        if present.count(name) != 1:
            fault = "two columns" if name in present else "no column"
            shown = [repr(other[:40])[1:-1] for other in present]  # there may be newlines in it
            raise DataError(
                f"{path}: {fault} '{name}'; there are {', '.join(shown)}{nearest(name, shown)}"
            )


def _line_before(file: pa.NativeFile, place: int, longest: int) -> bytes:
    """What a line that goes on at `place` of a plain file has before it; leaves the file there."""
    start = max(place - longest, 0)
    file.seek(start)
    text = file.read(place - start)
    if not start:
        text = text.removeprefix(_UTF8_BOM)
    return text[text.rfind(b"\n") + 1 :]


def _unpacked(file: pa.NativeFile, path: str | Path) -> pa.NativeFile:
    """The file's content; its first bytes, not its name, say how it is compressed."""
    kind = _COMPRESSION.get(file.read(2))
    file.seek(0)
    return pa.CompressedInputStream(file, kind) if kind else file


def _state(path: str | Path) -> tuple[int, int] | None:
    """Size and time of change; None for a file that is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _read(stream: pa.NativeFile, size: int | None, path: str | Path) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        raise damaged(path, error) from error


def _unix_lines(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n") if b"\r" in text else text  # looking first is faster


def _check_text(path: str | Path, head: bytes) -> None:
    """Raises DataError unless the first bytes of a file are UTF-8 text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError as error:
        raise binary(path) from error
    if b"\0" in head:
        raise binary(path)
