"""Requests to end a run from outside: SIGTERM, as on preemption, and Ctrl-C.

Work that leaves nothing half-written when it breaks off ends at once. Work that can save where it
stands is `deferred`: it asks from time to time, saves, and ends by itself.
"""

import contextlib
import os
import signal
from collections.abc import Iterator


class Stopped(BaseException):
    """The run ends because it was asked to; the text says what was kept.

    Like `KeyboardInterrupt` no `Exception`, so that nothing on the way takes it for a failure.
    """


class Stop:
    """Calling it tells whether the run has been asked to end.

    Attributes:
      signal: the signal that asked, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._deferred = False

    def __call__(self) -> bool:
        return self.signal is not None

    def install(self) -> None:
        """Listens to SIGTERM and SIGINT, in the main thread of a program."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """What runs inside ends by itself once asked; if it gets done instead, it ends here.

        Raises:
          Stopped: on leaving, if the run was asked to end meanwhile.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self():
            raise Stopped("this stage is finished")

    def _ask(self, number: int, frame: object) -> None:
        del frame
        again, self.signal = self(), signal.Signals(number)
        if again or not self._deferred:
            raise Stopped("finished stages are kept")
        text = f"\ncadc: {self.signal.name}: saving after this step; once more to end at once\n"
        os.write(2, text.encode())  # printing is not safe inside a signal handler
