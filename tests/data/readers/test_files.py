"""Raw files: blocks and pieces of text files, compression, and errors for unreadable files."""

import gzip
import os

import numpy as np
import pyarrow as pa
import pytest

from cadc_jax.data.readers import files
from cadc_jax.errors import DataError

SIZE = 16  # bytes of a block; a line may be twice as long


def blocks_of(path, **more):
    return [(block.line, block.text) for block in files.read_blocks(path, SIZE, **more)]


# Blocks.


def test_a_block_is_as_many_whole_lines_as_fit_and_the_start_of_one_goes_to_the_next(tmp_path):
    (tmp_path / "x").write_bytes(b"one\ntwo\nthree\nfour\nfive\nsix")
    expected = [(1, b"one\ntwo\nthree\n"), (4, b"four\nfive\n"), (6, b"six\n")]
    assert blocks_of(tmp_path / "x") == expected


def test_line_ends_become_newlines_and_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert blocks_of(tmp_path / "x") == [(1, b"a\nb\rc\n")]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_file_has_the_blocks_of_its_text(tmp_path, compression):
    text = b"".join(b"line %d\n" % line for line in range(20))
    (tmp_path / "plain").write_bytes(text)
    with pa.CompressedOutputStream(str(tmp_path / "packed"), compression) as stream:
        stream.write(text)
    assert blocks_of(tmp_path / "packed") == blocks_of(tmp_path / "plain")


def test_the_consumed_bytes_of_all_blocks_are_the_stored_size(tmp_path):
    for name in ("x", "x.gz"):
        text = b"some line\n" * 100
        (tmp_path / name).write_bytes(gzip.compress(text) if name == "x.gz" else text)
        consumed = sum(block.consumed for block in files.read_blocks(tmp_path / name, SIZE))
        assert consumed == files.stored_size([tmp_path / name])


# Pieces.


def blocks_of_pieces(path, pieces):
    found = []
    for piece in pieces:
        for block in files.read_blocks(path, SIZE, piece=piece):
            found.append((piece.lines_before() + block.line, block.text, block.consumed))
    return found


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_pieces_have_the_blocks_and_line_numbers_of_the_whole_file(tmp_path, newline, mark):
    path = tmp_path / "x"
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(0, SIZE, 150)
        rows = [bytes([97 + row % 26]) * length for row, length in enumerate(lengths)]
        path.write_bytes(mark + newline.join(rows) + (newline if seed % 2 else b""))
        pieces = files.pieces(path, SIZE)
        assert len(pieces) == -(-path.stat().st_size // (SIZE * 32)) > 2
        found = blocks_of_pieces(path, pieces)
        assert found == blocks_of_pieces(path, [files.WHOLE])
        assert sum(consumed for *_, consumed in found) == path.stat().st_size


def test_a_compressed_file_is_a_single_piece(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(range(256)) * 40, 0))
    assert files.pieces(tmp_path / "x.gz", SIZE) == [files.WHOLE]


@pytest.mark.parametrize("name", ["nothing", "folder", "empty"])
def test_a_file_that_cannot_be_read_is_a_single_piece_and_reading_it_raises(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (piece,) = files.pieces(tmp_path / name, SIZE)
    with pytest.raises(DataError, match=str(tmp_path / name)):
        list(files.read_blocks(tmp_path / name, SIZE, piece=piece))


def test_a_line_that_is_too_long_is_named_by_its_number_in_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc\n" * 200 + b"a" * 2000 + b"\n" + b"abc\n" * 200)
    messages = []
    for piece in files.pieces(path, SIZE):
        try:
            list(files.read_blocks(path, SIZE, piece=piece))
        except DataError as error:
            messages.append(str(error))
    with pytest.raises(DataError) as whole:
        list(files.read_blocks(path, SIZE))
    assert messages[0] == str(whole.value) and f"{path}:201: the line is longer" in messages[0]


# Encodings and faults.


def test_text_of_any_encoding_is_read_if_asked_for(tmp_path):
    (tmp_path / "x").write_bytes(b"caf\xe9\r\nbar")
    blocks = files.read_blocks(tmp_path / "x", 100, utf8=False)
    assert b"".join(block.text for block in blocks) == b"caf\xe9\nbar\n"
    with pytest.raises(DataError, match="a binary file"):
        list(files.read_blocks(tmp_path / "x", 100))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"a\0b\n", "a binary file"),
        (gzip.compress(b"a\n" * 1000, mtime=0)[:-10], "truncated or damaged"),
    ],
)
def test_empty_binary_and_damaged_files_are_errors(tmp_path, content, message):
    path = tmp_path / "x"
    path.write_bytes(content)
    for utf8 in (True, False):
        with pytest.raises(DataError, match=f"^{path}: .*{message}"):
            list(files.read_blocks(path, 1 << 20, utf8=utf8))


def test_a_missing_file_and_a_folder_are_errors_with_the_hint(tmp_path):
    with pytest.raises(DataError, match="x: no such file; look elsewhere"):
        files.open_stream(tmp_path / "x", "look elsewhere")
    with pytest.raises(DataError, match="a folder where a file is expected; check `data.path`"):
        files.open_stream(tmp_path)


def test_the_stored_size_is_that_of_the_files_that_exist(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123")
    assert files.stored_size([tmp_path / "a", tmp_path / "missing", tmp_path / "b"]) == 8


@pytest.mark.parametrize("change", ["longer", "newer", "gone"])
def test_a_file_that_changes_is_named(tmp_path, change):
    path = tmp_path / "x"
    path.write_text("a")
    (tmp_path / "same").write_text("a")
    check = files.unchanged_since_now([tmp_path / "same", path])
    check()
    if change == "longer":
        path.write_text("ab")
    elif change == "newer":
        os.utime(path, (0, 0))
    else:
        path.unlink()
    with pytest.raises(DataError, match=f"^{path}: the file changed while it was read"):
        check()


# Columns.


def test_a_missing_column_is_named_with_the_nearest_and_all_columns():
    message = "no column 'user', did you mean 'users'?; there are users, item"
    with pytest.raises(DataError) as error:
        files.check_columns("x", ["item", "user"], ["users", "item"])
    assert str(error.value) == f"x: {message}"


def test_a_repeated_column_is_an_error_only_if_it_is_read():
    files.check_columns("x", ["a"], ["a", "b", "b"])
    with pytest.raises(DataError, match="x: two columns 'b'; there are a, b, b"):
        files.check_columns("x", ["a", "b"], ["a", "b", "b"])


def test_the_name_of_a_column_is_shown_on_one_line_and_cut():
    with pytest.raises(DataError) as error:
        files.check_columns("x", ["a"], ["two\nlines", "l" * 50])
    assert str(error.value) == "x: no column 'a'; there are two\\nlines, " + "l" * 40
