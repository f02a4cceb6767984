"""Holds a folder in an object store for one run, as far as a store without locks allows.

An object names the run that holds the folder, and changes as long as that lives. A run that finds
such an object waits whether it changes. If it does, the folder is in use; if not, its run is dead
(killed, perhaps with its machine) and the folder is taken over. No clocks are compared.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cadc_jax.errors import ConfigError, StorageError
from cadc_jax.runtime import durable
from cadc_jax.runtime.storage import Remote

NAME = ".lock.json"
BEAT_SECONDS = 10.0  # between changes
DEAD_SECONDS = 45.0  # without a change
_POLL_SECONDS = 2.0


@contextlib.contextmanager
def held(folder: Remote, flag: str = "workdir") -> Iterator[None]:
    """Holds a folder, which a flag gives, for one run.

    Raises:
      ConfigError: if another run holds it.
      StorageError: if the store cannot be read or written.
    """
    place = folder / NAME
    _wait_until_free(place, f"--{flag}={folder}")
    own = {"run": secrets.token_hex(8), "host": socket.gethostname(), "process": os.getpid()}
    stop = threading.Event()
    with contextlib.suppress(FileExistsError):  # of a run that began just now: seen below
        _write(place, own, 0, new=place.read_bytes() is None)
    if _read(place).get("run") != own["run"]:
        raise _in_use(f"--{flag}={folder}", _read(place))
    beating = threading.Thread(target=_beat, args=(place, own, stop), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        with contextlib.suppress(StorageError):  # then it is taken for dead later
            if _read(place).get("run") == own["run"]:
                place.delete()


def _wait_until_free(place: Remote, what: str) -> None:
    """Returns once nobody holds the folder; raises ConfigError if somebody alive does."""
    first = _read(place)
    if not first or _is_dead_here(first):
        return
    end = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        now = _read(place)
        if not now:
            return
        if now != first:
            raise _in_use(what, now)


def _is_dead_here(found: Mapping[str, Any]) -> bool:
    """Whether the run that an object names was one of this machine, and is gone."""
    if found.get("host") != socket.gethostname() or not isinstance(found.get("process"), int):
        return False
    # In a container all may be number 1.
    return found["process"] == os.getpid() or not durable.is_running(found["process"])


def _beat(place: Remote, own: Mapping[str, Any], stop: threading.Event) -> None:
    count = 0
    while not stop.wait(BEAT_SECONDS):
        count += 1
        with contextlib.suppress(StorageError):  # the next one may succeed
            if _read(place).get("run") not in (own["run"], None):
                print(
                    f"*** ANOTHER RUN HAS TAKEN {place}: stop one of them ***",
                    file=sys.stderr,
                    flush=True,
                )
                return
            _write(place, own, count)


def _read(place: Remote) -> dict[str, Any]:
    """What the object says; empty if there is none, or another one."""
    try:
        found = json.loads(place.read_bytes() or b"{}")
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _write(place: Remote, own: Mapping[str, Any], count: int, new: bool = False) -> None:
    place.write_bytes(json.dumps({**own, "count": count}).encode(), new)


def _in_use(what: str, found: Mapping[str, Any]) -> ConfigError:
    return ConfigError(
        f"{what}: another run is using it (process {found.get('process')} on "
        f"{found.get('host')}); wait for it, or choose another one"
    )
