"""The log of a search: a row a result, as CSV, from which the search resumes."""

import csv
import io
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cadc_jax.runtime import distributed, durable

Trial = tuple[float, ...]  # one setting each, in the order of names that the search has
_RESULT = ("resource", "score", "seconds")


class Result(NamedTuple):
    """What a trial reached.

    Attributes:
      trial: the settings.
      resource: what it was given, such as a number of iterations.
      score: on the validation split, higher is better; -inf if it failed.
      seconds: wall time, less that of the lower resource it resumed from.
    """

    trial: Trial
    resource: int
    score: float
    seconds: float


class Log:
    """Results in the order in which they came.

    The first process alone reads and writes the file; the others get what it read.

    Attributes:
      names: of the settings.
      results: all of them, those of an earlier process included.
    """

    def __init__(
        self,
        names: Sequence[str],
        file: pathlib.Path | None = None,
        written: Callable[[], None] = lambda: None,
    ):
        """Reads the file, if there is one of these names; a damaged one is as good as none.

        Args:
          names: of the settings.
          file: the CSV file, rewritten after each result; None for no file.
          written: called after that.
        """
        self.names = tuple(names)
        self._file, self._written = file, written
        found = distributed.on_first(self._read)
        self.results = [Result(tuple(trial), *rest) for trial, *rest in found]

    def find(self, trial: Trial, resource: int) -> Result | None:
        """The result of a trial with this resource, if there is one."""
        wanted = (trial, resource)
        return next((x for x in self.results if (x.trial, x.resource) == wanted), None)

    def add(self, result: Result) -> None:
        """Adds a result, and writes the file."""
        self.results.append(result)
        if self._file is not None and distributed.is_first():
            durable.make_folder(self._file.parent)
            durable.write_text(self._file, self.text())
            self._written()

    def text(self) -> str:
        """The CSV: names, then `resource`, `score` and `seconds`, and a line a result."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*self.names, *_RESULT])
        for trial, resource, score, seconds in self.results:
            writer.writerow([*trial, resource, score, round(seconds, 3)])
        return out.getvalue()

    def _read(self) -> list[list]:
        if self._file is None or not self._file.is_file():
            return []
        lines = list(csv.reader(self._file.read_text().splitlines()))
        if lines[:1] != [[*self.names, *_RESULT]]:
            return []
        try:
            return [_parsed(line, len(self.names)) for line in lines[1:]]
        except ValueError:
            return []


def _parsed(line: Sequence[str], settings: int) -> list:
    resource, score, seconds = line[settings:]
    numbers = [*map(float, line[:settings])]
    if math.isnan(float(score)):
        raise ValueError("a score that is not a number")
    return [numbers, int(resource), float(score), float(seconds)]
