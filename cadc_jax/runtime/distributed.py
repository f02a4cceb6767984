"""One run on several processes, usually one a host, by `jax.distributed`.

All processes run the same program. Devices form one mesh, and whatever they compute together they
compute in the same order. All else is decided by the first process (index 0): what is on disk, what
is written there, what is printed. The others get its decisions from the key-value store of JAX's
coordination service, where waiting costs nothing and has no limit.

When one process fails, all end:

  an error that Python sees      its process says so in the store, which the others look into every
                                 second (`fail`, `_watch`);
  a process that is just gone    misses its heartbeats, for which JAX ends the others.

JAX ends a process by a fatal message of many lines on stderr and an abort. `last_words` makes
one line of it.
"""

import contextlib
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import distributed as _engine  # its client, the key-value store, has no public name

from cadc_jax.errors import CadcError, ConfigError

HEARTBEAT_SECONDS = 30  # a process not heard of for so long counts as gone, and the others end
_FOREVER = 7 * 24 * 3600 * 1000  # milliseconds; a peer that fails meanwhile ends the wait
_SHARED_SECONDS = 15  # in which a file of one host must show up on the others
_FAILURE = "cadc/failure"
_KEPT = 10_000  # values that the store keeps: the processes are never that far apart
_LAST_WORDS = pathlib.Path(__file__).with_name("last_words.py")
_FIELDS = ("coordinator", "num_processes", "process_id")

_stopped = threading.Event()
_calls = itertools.count()


class DistributedError(CadcError):
    """The processes of a run cannot work together; the text says which one, and what to do."""


def count() -> int:
    """Number of processes; asks no device."""
    return _engine.global_state.num_processes


def index() -> int:
    """Which of the processes this is; asks no device."""
    return _engine.global_state.process_id


def is_first() -> bool:
    """Whether this is the process that decides, writes and prints."""
    return index() == 0


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    detect: bool = False,
    join_seconds: int = 300,
) -> None:
    """Joins the other processes, if any are asked for; must come before any use of a device.

    Nothing is detected unless `detect`: a shell in a Slurm allocation or on a single TPU host would
    otherwise wait for processes that nobody has started.

    Args:
      coordinator: host:port of the first process, which listens there; None for a run of one.
      num_processes: how many there are.
      process_id: which this one is.
      detect: take all three from Cloud TPU, GKE, Slurm or Open MPI, as JAX does.
      join_seconds: how long to wait for the others.

    Raises:
      ConfigError: if some but not all of the three are given, or are out of range, or nothing is
        detected.
    """
    given = dict(zip(_FIELDS, (coordinator, num_processes, process_id), strict=True))
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given) and not detect:
        return
    if missing and not detect:
        raise ConfigError(
            f"{' and '.join(missing)} not given: several processes need all of "
            "--coordinator=HOST:PORT, --num_processes=N and --process_id=K (or --distributed alone)"
        )
    if coordinator is not None and num_processes is not None and process_id is not None:
        _check(coordinator, num_processes, process_id)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would keep SIGTERM from ending the process.
    jax.config.update("jax_enable_preemption_service", False)
    _filter_output()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if missing else "deactivate",
            initialization_timeout=join_seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=2 * HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if missing:
            raise ConfigError(
                f"--distributed: JAX finds no cluster here ({error}); on other machines give "
                "--coordinator=HOST:PORT, --num_processes=N and --process_id=K"
            ) from None
        raise DistributedError(
            f"process {process_id} cannot start with the coordinator {coordinator}: {error}"
        ) from None
    jax.devices()  # which all have to ask for at about the same time
    if not is_first():
        sys.stdout = open(os.devnull, "w")
    threading.Thread(target=_watch, daemon=True).start()


def finish() -> None:
    """Leaves the others, all of which have to come here; does nothing in a run of one process."""
    if jax.distributed.is_initialized():
        barrier("finish")
        _stopped.set()
        jax.distributed.shutdown()


def fail(text: str) -> NoReturn:
    """Ends all processes with exit code 1; the first of them to fail prints its text."""
    _stopped.set()
    text = " ".join(text.split())
    where = "" if is_first() else f"process {index()} on {socket.gethostname()}: "
    try:
        _store().key_value_set(_FAILURE, f"{where}{text}")
        is_news = True
    except Exception as error:  # another one was first, or the store is gone with its process
        is_news = "ALREADY_EXISTS" not in str(error)
    if is_news:
        print(f"cadc: error: {where}{text}", file=sys.stderr, flush=True)
    _end()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of a collective says no more than that a process is gone."""
    return count() > 1 and any(word in str(error) for word in ("Gloo", "UNAVAILABLE"))


def wait_for_verdict() -> None:
    """Waits until JAX, or a failing process, says why a process is gone, and ends this one."""
    time.sleep(HEARTBEAT_SECONDS + 10)


def of_first(value: Any) -> Any:
    """The first process's value (JSON-able), in all of them; all have to call it."""
    if count() == 1:
        return value
    key = f"cadc/{next(_calls)}"
    if is_first():
        _store().key_value_set(key, json.dumps(value))
        if (old := int(key.rpartition("/")[2]) - _KEPT) >= 0:
            _store().key_value_delete(f"cadc/{old}")
        return value
    return json.loads(_store().blocking_key_value_get(key, _FOREVER))


def in_any(holds: bool) -> bool:
    """Whether it holds in any process; all have to call it."""
    if count() == 1:
        return holds
    key = f"cadc/{next(_calls)}"
    _store().key_value_set(f"{key}/{index()}", json.dumps(holds))
    answers = [_store().blocking_key_value_get(f"{key}/{k}", _FOREVER) for k in range(count())]
    return any(map(json.loads, answers))


def any_process_has_said(what: str, holds: bool) -> bool:
    """Whether it holds here, or in the first process, has been known to hold in any before."""
    if count() == 1 or (holds and is_first()):
        return holds
    if is_first():
        with contextlib.suppress(Exception):  # there is no such key, as long as nobody has said so
            _store().key_value_try_get(f"cadc/heard/{what}")
            return True
    elif holds:
        _store().key_value_set(f"cadc/heard/{what}", "", allow_overwrite=True)
    return holds


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code, others being about to end as well."""
    _stopped.set()
    _end(code)


def on_first(make: Callable[[], Any]) -> Any:
    """`make()` as the first process alone calls it, in all of them; the others wait."""
    return of_first(make() if is_first() else None)


def barrier(name: str) -> None:
    """Returns when all processes have come to the barrier of that name."""
    if count() > 1:
        _store().wait_at_barrier(f"cadc/{name}/{next(_calls)}", _FOREVER)


def check_shared(folder: pathlib.Path) -> None:
    """Makes sure that all processes see what the first one writes into `folder`, made if needed.

    Raises:
      DistributedError: in a process that does not.
    """
    if count() == 1:
        return
    mark = folder / f".shared-{os.getpid()}-{time.time_ns()}"

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        return mark.name

    wait_until_seen(folder / on_first(write))
    barrier("shared")
    if is_first():
        mark.unlink()


def wait_until_seen(path: pathlib.Path) -> None:
    """Waits for what the first process has written; a network file system may show it late.

    Raises:
      DistributedError: if it does not show up.
    """
    deadline = time.monotonic() + _SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise DistributedError(
                f"{path.absolute()}: not seen here, though the first process wrote it: --workdir "
                "must be a folder on a file system that all processes share"
            )
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # has NFS look anew


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator={coordinator}: write HOST:PORT, such as host0:8476")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id}: must be in [0, {num_processes}), as --num_processes is "
            f"{num_processes}"
        )
    if process_id == 0:  # jaxlib would crash
        try:
            socket.create_server(("", int(port))).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--coordinator={coordinator}: process 0 cannot listen on port {port} ({error}); "
                "choose a free one"
            ) from None


def _store() -> Any:
    return _engine.global_state.client


def _watch() -> None:
    """Ends this process when another one says that it has failed."""
    while not _stopped.wait(1.0):
        with contextlib.suppress(Exception):  # there is no such key, as long as all goes well
            _store().key_value_try_get(_FAILURE)
            _end()


def _end(code: int = 1) -> NoReturn:
    """Ends this process at once: JAX would first wait for the others to end in good order."""
    sys.stderr.flush()
    sys.stdout.flush()
    if is_first():
        time.sleep(3)  # it holds the store, which the others have to read first
    os._exit(code)


def _filter_output() -> None:
    """Sends stderr by way of a small process, `last_words`, which outlives an abort.

    Python's stdout stays as it is; what libraries in C++ write there (Gloo tells of every
    connection) goes the same way.
    """
    sys.stdout.flush()
    command = [sys.executable, "-I", "-S", str(_LAST_WORDS), str(HEARTBEAT_SECONDS)]
    # A session of its own, as Ctrl-C is not for it: it ends when this process does.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    assert process.stdin is not None  # a pipe, as asked for
    for target in (1, 2):
        os.dup2(process.stdin.fileno(), target)
    process.stdin.close()
