"""One run on several processes, usually one on each host, by `jax.distributed`.

All processes run the same program. Their devices form one mesh, and they all start the same
computations in the same order. The first process (index 0) decides everything else: which files
exist, which are written, what is printed. The others get its decisions from the key-value store of
JAX's coordination service, where they can wait without a time limit.

All processes share one work folder. If it is on a URL, each machine may have a local one of its own
(`apart`). The first process of each machine then keeps that up to date (`leads`).

When one process fails, all end:

  an error that Python sees      the process reports it in the store, where the others look every
                                 second (`fail`, `_watch`);
  a process that disappears      misses its heartbeats, and JAX ends the others.

JAX ends a process with a fatal message of many lines on stderr and an abort. `last_words` turns the
message into one line.
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

from cadc_jax.errors import CadcError, ConfigError

HEARTBEAT_SECONDS = 30  # a process silent for this long counts as gone, and the others end
_FOREVER_MS = 7 * 24 * 3600 * 1000  # a wait ends earlier if the process waited for is gone
_SHARED_SECONDS = 15  # in which a file of one host must show up on the others
_FAILURE = "cadc/failure"
_KEPT_VALUES = 10_000  # in the store; the processes are never that many calls apart
_LAST_WORDS = pathlib.Path(__file__).with_name("last_words.py")

_apart = False  # whether there are several local work folders
_leads = True  # whether this process is the first one in its local work folder
_stopped = threading.Event()
_calls = itertools.count()  # numbers the keys in the store; the same in all processes


class DistributedError(CadcError):
    """The processes of a run cannot work together; the text says which one, and what to do."""


def count() -> int:
    """Number of processes; does not initialise devices."""
    return _state().num_processes if jax.distributed.is_initialized() else 1


def index() -> int:
    """Index of this process; does not initialise devices."""
    return _state().process_id if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that decides, writes and prints."""
    return index() == 0


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    detect: bool = False,
    join_seconds: int = 300,
    bind: str | None = None,
) -> None:
    """Joins the other processes of the run, if there are any; call it before any use of a device.

    A cluster is detected only with `detect`. Otherwise a shell in a Slurm allocation or on a single
    TPU host would wait for processes that nobody has started.

    Args:
      coordinator: host:port of the first process, which listens there; None in a run of one.
      num_processes: number of processes.
      process_id: index of this process.
      detect: whether JAX takes all three from Cloud TPU, GKE, Slurm or Open MPI.
      join_seconds: how long to wait for the others.
      bind: host:port on which the first process listens; None is the coordinator's port on all
        interfaces. Whoever can connect there can end the run.

    Raises:
      ConfigError: if some but not all of the three are given, one is out of range, or JAX detects
        no cluster.
      DistributedError: if this process cannot connect to the coordinator, or this version of JAX
        does not have what is needed.
    """
    if not detect and coordinator is None and num_processes is None and process_id is None:
        return
    _check_arguments(coordinator, num_processes, process_id, detect)
    _check_bind(bind, coordinator, process_id)
    _state()  # fails before anything is started
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own handler would keep SIGTERM from ending the process.
    jax.config.update("jax_enable_preemption_service", False)
    _redirect_stderr()
    _connect(coordinator, num_processes, process_id, join_seconds, bind)
    jax.devices()  # all processes have to ask for their devices at about the same time
    if not is_first():
        sys.stdout = open(os.devnull, "w")
    threading.Thread(target=_watch, daemon=True).start()


def _check_arguments(
    coordinator: str | None, num_processes: int | None, process_id: int | None, detect: bool
) -> None:
    if coordinator is None or num_processes is None or process_id is None:
        if detect:
            return
        values = {
            "--coordinator": coordinator,
            "--num_processes": num_processes,
            "--process_id": process_id,
        }
        missing = " and ".join(name for name, value in values.items() if value is None)
        raise ConfigError(
            f"{missing} not given: several processes need all of "
            "--coordinator=HOST:PORT, --num_processes=N and --process_id=K (or --distributed alone)"
        )
    _host_and_port("--coordinator", coordinator)
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id}: must be in [0, {num_processes}), as --num_processes is "
            f"{num_processes}"
        )


def _check_bind(bind: str | None, coordinator: str | None, process_id: int | None) -> None:
    flag, address = "--coordinator", coordinator
    host = ""  # all interfaces
    if bind is not None:
        flag, address = "--coordinator_bind", bind
        host = _host_and_port(flag, bind)[0].strip("[]")
    if process_id != 0 or address is None:
        return
    port = _host_and_port(flag, address)[1]
    try:  # jaxlib would crash on a port that is taken
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{flag}={address}: process 0 cannot listen on port {port} ({error}); choose a free one"
        ) from None


def _host_and_port(flag: str, address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{flag}={address}: write HOST:PORT, such as host0:8476")
    return host, int(port)


def _connect(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    join_seconds: int,
    bind: str | None,
) -> None:
    """Calls `jax.distributed.initialize`, which detects the arguments that are None."""
    detect = None in (coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if detect else "deactivate",
            initialization_timeout=join_seconds,
            coordinator_bind_address=bind,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=2 * HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if detect:
            raise ConfigError(
                f"--distributed: JAX finds no cluster here ({error}); on other machines give "
                "--coordinator=HOST:PORT, --num_processes=N and --process_id=K"
            ) from None
        raise DistributedError(
            f"process {process_id} cannot start with the coordinator {coordinator}: {error}"
        ) from None


def _redirect_stderr() -> None:
    """Sends stderr through a small process, `last_words`, which survives an abort of this one.

    Output of C++ libraries on stdout goes the same way (Gloo reports every connection there).
    Python's own stdout is unaffected.
    """
    sys.stdout.flush()
    command = [sys.executable, "-I", "-S", str(_LAST_WORDS), str(HEARTBEAT_SECONDS)]
    # In a session of its own, Ctrl-C does not reach it; it ends when this process does.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    assert process.stdin is not None
    for target in (1, 2):
        os.dup2(process.stdin.fileno(), target)
    process.stdin.close()


def finish() -> None:
    """Leaves the other processes, which have to call it too; does nothing in a run of one."""
    if jax.distributed.is_initialized():
        barrier("finish")
        _stopped.set()
        jax.distributed.shutdown()


def fail(text: str) -> NoReturn:
    """Ends all processes with exit code 1; only the first one to fail prints its text."""
    _stopped.set()
    text = " ".join(text.split())
    where = "" if is_first() else f"process {index()} on {socket.gethostname()}: "
    try:
        _store().key_value_set(_FAILURE, f"{where}{text}")
        is_news = True
    except Exception as error:  # another process failed earlier, or the store is gone
        is_news = "ALREADY_EXISTS" not in str(error)
    if is_news:
        print(f"cadc: error: {where}{text}", file=sys.stderr, flush=True)
    _end()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of a collective only means that another process is gone."""
    return count() > 1 and any(word in str(error) for word in ("Gloo", "UNAVAILABLE"))


def wait_for_verdict() -> None:
    """Waits until JAX or a failing process reports why a process is gone, which ends this one."""
    time.sleep(HEARTBEAT_SECONDS + 10)


def of_first(value: Any) -> Any:
    """Returns the first process's value (JSON-able) in all processes; all have to call it."""
    if count() == 1:
        return value
    key = f"cadc/{next(_calls)}"
    if is_first():
        _store().key_value_set(key, json.dumps(value))
        if (old := int(key.rpartition("/")[2]) - _KEPT_VALUES) >= 0:
            _store().key_value_delete(f"cadc/{old}")
        return value
    return json.loads(_store().blocking_key_value_get(key, _FOREVER_MS))


def on_first(make: Callable[[], Any]) -> Any:
    """Calls `make` in the first process only, and returns its value (JSON-able) in all of them."""
    return of_first(make() if is_first() else None)


def in_any(holds: bool) -> bool:
    """Whether `holds` is true in any process; all have to call it."""
    if count() == 1:
        return holds
    key = f"cadc/{next(_calls)}"
    _store().key_value_set(f"{key}/{index()}", json.dumps(holds))
    return any(_told(key))


def to_first(key: str, value: Any) -> list[Any]:
    """The values (JSON-able) of all processes, by index, in the first one; none in the others.

    All processes have to call it, in any thread.

    Args:
      key: the same in all processes; used again only once the first process has returned.
      value: of this process.
    """
    if count() == 1:
        return [value]
    key = f"cadc/to_first/{key}"
    _store().key_value_set(f"{key}/{index()}", json.dumps(value))
    if not is_first():
        return []
    values = _told(key)
    _store().key_value_delete(key)
    return values


def _told(key: str) -> list[Any]:
    """What each process has set under a key; waits for all."""
    told = [_store().blocking_key_value_get(f"{key}/{k}", _FOREVER_MS) for k in range(count())]
    return list(map(json.loads, told))


def reported_by_any(event: str, happened: bool) -> bool:
    """Whether an event has happened here or, in the first process, been reported by any other.

    It does not wait for the other processes: their reports may arrive some calls later.

    Args:
      event: name of the event.
      happened: whether it has happened in this process, which is then reported to the first one.
    """
    if count() == 1 or (happened and is_first()):
        return happened
    if is_first():
        with contextlib.suppress(Exception):  # raised while there is no report
            _store().key_value_try_get(f"cadc/reported/{event}")
            return True
    elif happened:
        _store().key_value_set(f"cadc/reported/{event}", "", allow_overwrite=True)
    return happened


def barrier(name: str) -> None:
    """Waits until all processes have come to the barrier of that name."""
    if count() > 1:
        _store().wait_at_barrier(f"cadc/{name}/{next(_calls)}", _FOREVER_MS)


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code, when the others are about to end as well."""
    _stopped.set()
    _end(code)


def apart() -> bool:
    """Whether some processes have a local work folder that others do not see."""
    return _apart


def leads() -> bool:
    """Whether this process is the one that keeps its local work folder up to date.

    It is one of those that see the folder: of all processes the first one, unless they are `apart`.
    """
    return _leads if _apart else is_first()


def find_folders(folder: pathlib.Path, shared: bool) -> None:
    """Makes the work folder if needed, and finds out which processes see the same one.

    All processes have to call it. `apart` and `leads` tell what it has found.

    Args:
      folder: the path, on this machine.
      shared: whether all processes have to see the same folder.

    Raises:
      DistributedError: in a process that does not, though it has to.
    """
    global _apart, _leads
    if count() == 1:
        return
    mark = folder / of_first(f".shared-{os.getpid()}-{time.time_ns()}")
    folder.mkdir(parents=True, exist_ok=True)
    if is_first():
        mark.mkdir()
    barrier("mark")
    _leads = is_first() or _is_made(mark)
    if _leads and not is_first() and shared:
        mark.rmdir()
        raise _not_shared(folder)
    _apart = in_any(_leads and not is_first())
    if _leads:
        mark.rmdir()


def _is_made(folder: pathlib.Path) -> bool:
    """Makes a folder; False if it is there. A network file system's cache has no say in this."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _not_shared(path: pathlib.Path) -> DistributedError:
    return DistributedError(
        f"{path.absolute()}: not the same here as in the first process: --workdir must be a URL "
        "such as gs://bucket/run, or a folder on a file system that all processes share"
    )


def wait_until_seen(path: pathlib.Path) -> None:
    """Waits for a file of the first process, which a network file system may show late.

    Raises:
      DistributedError: if it does not show up.
    """
    deadline = time.monotonic() + _SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise _not_shared(path)
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # makes NFS look again


def _store() -> Any:
    return _state().client


def _state() -> Any:
    """What JAX knows of the processes: their number, this one's index, the client of the store.

    None of it has a public name, so this is the one private import of JAX in the package. A run of
    one process does without it.

    Raises:
      DistributedError: if this version of JAX keeps it elsewhere.
    """
    try:
        from jax._src import distributed

        state = distributed.global_state
        for name in ("client", "num_processes", "process_id"):
            getattr(state, name)
    except (ImportError, AttributeError) as error:
        raise DistributedError(
            f"jax {jax.__version__} does not have what runs of several processes need ({error}): "
            "install the version in constraints.txt"
        ) from None
    return state


def _watch() -> None:
    """Ends this process when another one reports a failure."""
    while not _stopped.wait(1.0):
        with contextlib.suppress(Exception):  # raised while there is no failure
            _store().key_value_try_get(_FAILURE)
            _end()


def _end(code: int = 1) -> NoReturn:
    """Ends this process at once; a normal exit would first wait for the other processes."""
    sys.stderr.flush()
    sys.stdout.flush()
    if is_first():
        time.sleep(3)  # the store ends with this process, and the others have to read it first
    os._exit(code)
