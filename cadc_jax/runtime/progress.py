"""Progress of long work: a line that is redrawn on a terminal, or a new line now and then."""

import sys
import time

from cadc_jax.runtime import distributed


class Progress:
    """Shows progress, rate and remaining time of a loop on stderr, in the first process only.

    Attributes:
      label: what is being done.
      total: amount of work.
      unit: what is counted, in the plural.
    """

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.start = self.shown = time.monotonic()
        self.interval = 0.5 if sys.stderr.isatty() else 20.0

    def update(self, done: int, note: str = "") -> None:
        """Shows how much is done, unless that was shown a short time ago.

        Args:
          done: amount of work done so far.
          note: text to add, such as the best result so far.
        """
        now = time.monotonic()
        if now - self.shown < self.interval or not distributed.is_first():
            return
        self.shown = now
        rate = done / (now - self.start)
        text = f"{self.label}: {done:,}/{self.total:,} {self.unit}, {rate:,.1f}/s"
        if rate:
            text += f", at most {(self.total - done) / rate:,.0f} s left"
        text += f", {note}" if note else ""
        end = "" if sys.stderr.isatty() else "\n"
        print(f"\r\033[K{text}" if not end else text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clears the line on a terminal."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
