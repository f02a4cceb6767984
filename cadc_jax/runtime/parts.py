"""Files in parts, of which each process writes one: NAME.part0, NAME.part1, ...

The parts are the bytes of the file in order. Joined they are the file that one process would write.
"""

import pathlib
import re
import shutil
from collections.abc import Mapping

_PART = re.compile(r"(?P<whole>.+)\.part(?P<number>\d+)")


def part_of(file: pathlib.Path, number: int) -> pathlib.Path:
    """The path of a part of a file."""
    return file.with_name(f"{file.name}.part{number}")


def by_file(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The parts of each file, in order.

    Args:
      sizes: name -> bytes, of files and of parts.

    Returns:
      Name of a file -> names of its parts -> bytes. A file that is whole is its only part.
    """
    found: dict[str, dict[str, int]] = {}
    parts = {name: match for name in sizes if (match := _PART.fullmatch(name))}
    for name in sorted(parts, key=lambda name: int(parts[name]["number"])):
        found.setdefault(parts[name]["whole"], {})[name] = sizes[name]
    return found | {name: {name: sizes[name]} for name in sizes if name not in parts}


def join(files: list[pathlib.Path], whole: pathlib.Path) -> None:
    """Makes a file of its parts, which are gone then."""
    first, *others = files
    with open(first, "ab") as out:
        for file in others:
            with open(file, "rb") as part:
                shutil.copyfileobj(part, out, 1 << 20)
            file.unlink()
    first.rename(whole)
