"""Text for people: aligned columns, single lines, hints at the name that was probably meant."""

import difflib
from collections.abc import Collection, Iterable, Sequence


def aligned(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of a table whose columns are padded to their widest cell, two spaces between them.

    Args:
      lines: cells of each line; all lines have the same number.
      right: indices of the columns that are aligned to the right, as numbers are.

    Returns:
      A string for each line, without spaces at its end.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    )
    return ["  ".join(cells).rstrip() for cells in padded]


def printable(text: str) -> str:
    """Text without control characters, except line breaks and tabs: safe to show on a terminal."""
    return "".join(
        x if x.isprintable() or x in "\n\t" else "\N{REPLACEMENT CHARACTER}" for x in text
    )


def one_line(value: object) -> str:
    """The text of a value, such as an error of a library, with all white space as single spaces."""
    return " ".join(str(value).split())


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint at the known word most like `word`: ", did you mean 'x'?", or '' if none is close.

    Args:
      word: a misspelt word.
      known: the words there are.
      prefix: shown before the known word, such as '--' of an option.
    """
    match = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean '{prefix}{match[0]}'?" if match else ""
