"""Pieces of text files: together they are the file, block by block."""

import gzip

import numpy as np
import pytest

from cadc_jax.data.readers import files
from cadc_jax.errors import DataError

SIZE = 16  # bytes of a block; a line may be twice as long


def blocks_of(path, pieces):
    found = []
    for piece in pieces:
        for block in files.read_blocks(path, SIZE, piece=piece):
            found.append((piece.lines_before() + block.line, block.text, block.consumed))
    return found


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_blocks_of_pieces_are_those_of_the_whole(tmp_path, newline, mark):
    """With their lines' numbers, whatever a border falls into."""
    path = tmp_path / "x"
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(0, SIZE, 150)
        rows = [bytes([97 + row % 26]) * length for row, length in enumerate(lengths)]
        path.write_bytes(mark + newline.join(rows) + (newline if seed % 2 else b""))
        pieces = files.pieces(path, SIZE)
        assert len(pieces) == -(-path.stat().st_size // (SIZE * 32)) > 2
        found = blocks_of(path, pieces)
        assert found == blocks_of(path, [files.WHOLE])
        assert sum(consumed for *_, consumed in found) == path.stat().st_size


def test_a_compressed_file_is_a_single_piece(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(range(256)) * 40, 0))
    assert files.pieces(tmp_path / "x.gz", SIZE) == [files.WHOLE]


@pytest.mark.parametrize("name", ["nothing", "folder", "empty"])
def test_what_cannot_be_read_is_a_single_piece_whose_reading_says_why(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (piece,) = files.pieces(tmp_path / name, SIZE)
    with pytest.raises(DataError, match=str(tmp_path / name)):
        list(files.read_blocks(tmp_path / name, SIZE, piece=piece))


def test_a_line_that_is_too_long_is_told_by_its_number_in_the_file(tmp_path):
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
