"""How the program ends: one line for what a user can mend, and of several processes none alone."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from cadc_jax.errors import CadcError
from cadc_jax.runtime.interrupts import Stop, Stopped

# Faults of the machine that a user can mend, and how.
_MEND_SPACE = "free some room, or choose another --workdir; finished stages are kept"
_MEND_PLACE = "a file is where a folder has to be; choose another path"
_NOT_OURS = {
    errno.ENOSPC: _MEND_SPACE,
    errno.EDQUOT: _MEND_SPACE,
    errno.EACCES: "ask for the permission, or choose another path",
    errno.EPERM: "ask for the permission, or choose another path",
    errno.EROFS: "choose a --workdir that can be written",
    errno.ENOTDIR: _MEND_PLACE,
    errno.EEXIST: _MEND_PLACE,
}
_MEND_MEMORY = (
    "finished stages and checkpoints are kept. 'cadc plan' says what a run needs; als.factors, "
    "dlrm.embedding_dim, train.microbatch_rows, train.table_dtype and, on several devices, "
    "devices.model make it less"
)


def guarded(command: Callable[[], None], stop: Stop) -> None:
    """Runs a command to an end that tells its user what to do.

    Errors of the user's, of a full or forbidden disk and of too little memory are a line and exit
    code 1, signals exit with 0 (SIGTERM) or 130 after saving. What is left is the program's
    fault, and raised.
    """
    stop.install()
    try:
        command()
    except Stopped as stopped:
        asked = stop.signal or signal.SIGTERM  # or another process of this run was
        text = f"cadc: stopped by {asked.name}: {stopped}; the same command goes on from there"
        print(text, file=sys.stderr)
        code = 0 if asked == signal.SIGTERM else 130
        if _joined():
            from cadc_jax.runtime import distributed

            distributed.leave(code)
        sys.exit(code)
    except CadcError as error:
        fail(error)
    except BrokenPipeError:  # who reads our output has had enough, as in '| head'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno is None or error.errno not in _NOT_OURS:
            _fail_unexpectedly(error)
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{os.strerror(error.errno)}; {_NOT_OURS[error.errno]}")
    except (Exception, KeyboardInterrupt) as error:
        # XLA's is a plain error that only its text tells from others.
        if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
            fail(f"out of memory: {error}; {_MEND_MEMORY}")
        _fail_unexpectedly(error)


def fail(error: Exception | str) -> NoReturn:
    """Says what is wrong in one line, to the other processes too, and ends with exit code 1."""
    text = " ".join(str(error).split())
    if _joined():
        from cadc_jax.runtime import distributed

        distributed.fail(text)
    print(f"cadc: error: {text}", file=sys.stderr)
    sys.exit(1)


def _fail_unexpectedly(error: BaseException) -> NoReturn:
    """A fault of the program, or in one process of several the loss of another."""
    if not _joined():
        raise error
    from cadc_jax.runtime import distributed

    if distributed.is_lost_peer(error):
        distributed.wait_for_verdict()
    traceback.print_exception(error)
    distributed.fail(f"{type(error).__name__}: {error}")


def _joined() -> bool:
    """Whether this process has joined others; a run of one may have no need of JAX."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()
