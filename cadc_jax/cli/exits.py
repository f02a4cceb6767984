"""One-line errors for what a user can fix; all processes of a run exit together."""

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NoReturn

from cadc_jax.errors import CadcError
from cadc_jax.runtime.interrupts import Stop, Stopped
from cadc_jax.runtime.text import one_line, printable

_LONGEST = 2_000  # characters of an error that are shown

# Errors of the machine that a user can fix -> how.
_FREE_SPACE = "free some room, or choose another --workdir; finished stages are kept"
_FULL_DISK = ("No space left on device", "Disk quota exceeded")  # Orbax raises plain errors
_OTHER_PATH = "a file is where a folder has to be; choose another path"
_FIXES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EACCES: "ask for the permission, or choose another path",
    errno.EPERM: "ask for the permission, or choose another path",
    errno.EROFS: "choose a --workdir that can be written",
    errno.ENOTDIR: _OTHER_PATH,
    errno.EEXIST: _OTHER_PATH,
}
_LESS_MEMORY = (
    "finished stages and checkpoints are kept. 'cadc plan' says what a run needs; als.factors, "
    "dlrm.embedding_dim, train.microbatch_rows, train.table_dtype and, on several devices, "
    "devices.table_bytes make it less"
)


def guarded(command: Callable[[], None], stop: Stop) -> None:
    """Runs a command and exits as its user expects.

    A user's error, a full or read-only disk and too little memory are one line and exit code 1.
    SIGTERM exits with 0 and SIGINT with 130, after saving. Anything else is a bug and propagates.
    """
    stop.install()
    try:
        command()
    except Stopped as stopped:
        asked = stop.signal or signal.SIGTERM  # another process of this run got it
        text = f"cadc: stopped by {asked.name}: {stopped}; the same command resumes from there"
        print(text, file=sys.stderr)
        code = 0 if asked == signal.SIGTERM else 130
        if _joined():
            from cadc_jax.runtime import distributed

            distributed.leave(code)
        sys.exit(code)
    except CadcError as error:
        fail(error)
    except BrokenPipeError:
        drop_output()
    except OSError as error:
        if error.errno is None or error.errno not in _FIXES:
            _fail_unexpectedly(error)
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{os.strerror(error.errno)}; {_FIXES[error.errno]}")
    except (Exception, KeyboardInterrupt) as error:
        if any(text in str(error) for text in _FULL_DISK):
            fail(f"no space left on the disk; {_FREE_SPACE}")
        # XLA raises a plain error; only its text tells that memory ran out.
        if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
            fail(f"out of memory: {error}; {_LESS_MEMORY}")
        _fail_unexpectedly(error)


def show(text: str) -> NoReturn:
    """Prints a text and exits with code 0, even if nobody reads it to its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        drop_output()
    sys.exit(0)


def drop_output() -> None:
    """For when the reader of our output has closed it, as in '| head': nothing more is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: Exception | str) -> NoReturn:
    """Prints an error in one line, tells the other processes, and exits with code 1."""
    text = printable(one_line(error))
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    if _joined():
        from cadc_jax.runtime import distributed

        distributed.fail(text)
    print(f"cadc: error: {text}", file=sys.stderr)
    sys.exit(1)


def _fail_unexpectedly(error: BaseException) -> NoReturn:
    """Handles a bug, or, in one process of several, the loss of another process.

    A bug is one line, and a file with the traceback.
    """
    if _joined():
        from cadc_jax.runtime import distributed

        if distributed.is_lost_peer(error):
            distributed.wait_for_verdict()
    handle, name = tempfile.mkstemp(prefix="cadc-traceback-", suffix=".txt")
    with open(handle, "w") as file:
        traceback.print_exception(error, file=file)
    fail(f"this is a bug: {type(error).__name__}: {error}; please report it with {name}")


def _joined() -> bool:
    """Whether this process has joined others. Does not import JAX, which not all commands need."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()
