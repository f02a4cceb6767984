"""Requests to end a run from outside: SIGTERM, as on preemption, and Ctrl-C.

A signal normally raises `Stopped` at once, since finished stages are always whole on disk. Work
that can save its state runs inside `Stop.deferred`: it asks from time to time whether to stop,
saves, and raises `Stopped` itself.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

_AGAIN = 0.01  # seconds
_KEPT = "finished stages are kept"


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
        signal.signal(signal.SIGALRM, self._handle_again)
        self._report_unraisable, sys.unraisablehook = sys.unraisablehook, self._handle_unraisable

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
            raise Stopped(_KEPT)
        text = f"\ncadc: {self.signal.name}: saving after this step; a second signal ends at once\n"
        os.write(2, text.encode())  # `print` is not safe inside a signal handler

    def _handle_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Raises `Stopped` a little later, if Python has just ignored it.

        Python ignores what is raised in a finalizer or in a callback of the garbage collector, and
        JAX has such a callback, in which signals are often handled.
        """
        if isinstance(unraisable.exc_value, Stopped):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            self._report_unraisable(unraisable)

    def _handle_again(self, number: int, frame: object) -> None:
        del number, frame
        if self() and not self._deferred:  # work that can save its state asks by itself
            raise Stopped(_KEPT)
