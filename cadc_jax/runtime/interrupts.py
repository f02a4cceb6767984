"""Requests to end a run from outside: SIGTERM, as on preemption, and Ctrl-C.

A signal normally raises `Stopped` at once, since finished stages are always whole on disk. Work
that can save its state runs inside `Stop.deferred`: it asks from time to time whether to stop,
saves, and raises `Stopped` itself.
"""

import contextlib
import os
import signal
from collections.abc import Iterator


class Stopped(BaseException):
    """The run ends because it was asked to; the text says what was kept.

    Like `KeyboardInterrupt` it is no `Exception`, because code that handles failures must not catch
    it.
    """


class Stop:
    """Tells, when called, whether the run has been asked to end.

    Attributes:
      signal: the signal that asked, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._deferred = False

    def __call__(self) -> bool:
        return self.signal is not None

    def install(self) -> None:
        """Handles SIGTERM, SIGINT and SIGHUP; call it in the main thread of a program."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets the work inside end by itself when asked to; a second signal ends it at once.

        Raises:
          Stopped: on leaving, if the run was asked to end but the work finished normally.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self():
            raise Stopped("this stage is finished")

    def _handle(self, number: int, frame: object) -> None:
        del frame
        again, self.signal = self(), signal.Signals(number)
        if again or not self._deferred:
            for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(other, signal.SIG_IGN)  # one is enough: the program is on its way out
            raise Stopped("finished stages are kept")
        text = f"\ncadc: {self.signal.name}: saving after this step; a second signal ends at once\n"
        os.write(2, text.encode())  # `print` is not safe inside a signal handler
