"""Tables and hints, written out by hand."""

import pytest

from cadc_jax.runtime import text


def test_columns_are_as_wide_as_their_widest_cell():
    lines = [["a", "bcd", "e"], ["fg", "h", "ij"]]
    assert text.aligned(lines) == ["a   bcd  e", "fg  h    ij"]


def test_chosen_columns_are_aligned_to_the_right():
    lines = [["name", "rows", "s"], ["x", "7", "10.5"]]
    assert text.aligned(lines, right=(1, 2)) == ["name  rows     s", "x        7  10.5"]


def test_lines_have_no_spaces_at_their_end():
    assert text.aligned([["a", "long title"], ["b", ""]]) == ["a  long title", "b"]


def test_a_table_without_lines_is_empty():
    assert text.aligned([]) == []


def test_lines_of_different_lengths_are_an_error():
    with pytest.raises(ValueError):
        text.aligned([["a", "b"], ["c"]])


def test_the_most_similar_known_word_is_suggested():
    known = ["train", "verify", "workdir"]
    assert text.nearest("verfy", known) == ", did you mean 'verify'?"
    assert text.nearest("verfy", iter(known), "--") == ", did you mean '--verify'?"


def test_nothing_is_suggested_for_a_word_unlike_all():
    assert text.nearest("xyz", ["train", "verify"]) == ""
    assert text.nearest("train", []) == ""


def test_control_characters_do_not_reach_a_terminal():
    assert text.printable("a\x1b[31mb\x07\tc\n") == "a\ufffd[31mb\ufffd\tc\n"
    assert text.printable("Amélie 千と千尋") == "Amélie 千と千尋"
