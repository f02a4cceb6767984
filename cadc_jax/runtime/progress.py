"""Progress of long work: a bar on a terminal, and in a pipe a new line now and then."""

import shutil
import sys
import time

from tqdm import tqdm

from cadc_jax.runtime import distributed

_FORMAT = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, at most {remaining} "
    "left{postfix}"
)
_ROWS = 24  # some terminals say that they have none, and tqdm then draws nothing
_SCALED = 100_000  # larger numbers have a unit such as k or M


class _Bar(tqdm):
    """A bar without tqdm's thread that redraws slow ones."""

    monitor_interval = 0


class Progress:
    """Shows progress, rate and remaining time of a loop on stderr, in the first process only.

    On a terminal that is a bar of tqdm, which disappears in the end.

    Attributes:
      label: what is being done.
      total: amount of work.
      unit: what is counted, in the plural.
    """

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.start = self.shown = time.monotonic()
        self.interval = 0.5 if sys.stderr.isatty() else 20.0
        self.bar: tqdm | None = None

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
        if sys.stderr.isatty():
            self._draw(done, note)
        else:
            self._print(done, note, done / (now - self.start))

    def _print(self, done: int, note: str, rate: float) -> None:
        text = f"{self.label}: {done:,}/{self.total:,} {self.unit}, {rate:,.1f}/s"
        if rate:
            text += f", at most {(self.total - done) / rate:,.0f} s left"
        print(text + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    def _draw(self, done: int, note: str) -> None:
        if self.bar is None:
            self.bar = _Bar(
                desc=self.label,
                unit=f" {self.unit}",
                file=sys.stderr,
                bar_format=_FORMAT,
                ncols=1,
                nrows=_ROWS,
                leave=False,
                smoothing=0,  # the rate is that of all work so far
                delay=1e-9,  # nothing is drawn before there is something to show
            )
            self.bar.start_t -= time.monotonic() - self.start
        self.bar.ncols = shutil.get_terminal_size().columns - 1
        self.bar.total, self.bar.n = self.total, done
        self.bar.unit_scale = self.total > _SCALED
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.refresh()

    def close(self) -> None:
        """Removes the bar."""
        if self.bar is not None:
            self.bar.close()
