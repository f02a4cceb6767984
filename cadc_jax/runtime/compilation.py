"""Compiled programs: kept on disk between runs, and the seconds that compiling takes.

JAX writes the files of its persistent compilation cache in place. A process that is killed would
leave half of one, which nobody replaces. So each process has a folder of its own, with hard links
to the programs that are there. `publish` moves its new programs to the shared folder, where a file
is whole or not there.
"""

import atexit
import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import socket
import time

import jax

from cadc_jax.runtime import durable

CACHE_BYTES = 1 << 30  # of the shared folder; the newest programs are kept
LEAST_SECONDS = 0.1  # of compiling a program that is worth a file
_OWN = ".own-"  # begins the name of a process's folder
_COMPILING = ("jaxpr_to_mlir_module_duration", "backend_compile_duration")  # ends of events
_DEAD_SECONDS = 24 * 3600.0  # after which another host's folder is taken for left over


class _Clock:
    """Adds up what JAX reports. It is the one listener, as listeners stay for good."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith(_COMPILING):
            self.seconds += duration_secs


_clock = _Clock()
_own: pathlib.Path | None = None  # this process's folder


def seconds() -> float:
    """Seconds that this process has spent on lowering and compiling, or on reading programs."""
    return _clock.seconds


def default_folder() -> pathlib.Path:
    """Where programs are kept, in the user's cache: apart by version of JAX and kind of CPU."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    kind = hashlib.sha256(_cpu().encode()).hexdigest()[:8]
    return pathlib.Path(cache) / "cadc_jax" / f"jax-{jax.__version__}-{kind}"


def _cpu() -> str:
    """What the CPU can do: a program that was compiled for another may not run."""
    found = {platform.machine()}
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        found |= {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return " ".join(sorted(found))


def use_cache(folder: pathlib.Path) -> None:
    """Keeps compiled programs in a folder, which several processes may share.

    It does nothing if the user has told JAX of a cache, or to have none. A folder that cannot be
    written is no error: programs are then compiled as without a cache.
    """
    global _own
    wanted = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if jax.config.jax_compilation_cache_dir or not wanted:  # type: ignore[attr-defined]
        return
    own = folder / f"{_OWN}{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)  # programs are code
        _remove_left_over(folder)
        _shrink(folder)
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        for file in _programs(folder):
            with contextlib.suppress(FileNotFoundError):  # another process is shrinking it
                os.link(file, own / file.name)
    except OSError:
        shutil.rmtree(own, ignore_errors=True)
        return
    _own = own
    atexit.register(end_cache)
    jax.config.update("jax_compilation_cache_dir", str(own))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    # XLA's own caches would make the folder's name a part of what is compiled.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def publish() -> None:
    """Moves the new programs of this process to the shared folder. Nothing may be compiling."""
    if _own is None:
        return
    with contextlib.suppress(OSError):
        for file in _programs(_own):
            if file.stat().st_nlink == 1:
                with contextlib.suppress(FileExistsError):
                    os.link(file, _own.parent / file.name)


def end_cache() -> None:
    """Publishes what there is, and removes the folder of this process."""
    global _own
    if _own is not None:
        publish()
        shutil.rmtree(_own, ignore_errors=True)
        jax.config.update("jax_compilation_cache_dir", None)
        _own = None


def _programs(folder: pathlib.Path) -> list[pathlib.Path]:
    return [file for file in folder.iterdir() if file.is_file()]


def _shrink(folder: pathlib.Path) -> None:
    """Deletes programs, the oldest first, until the rest fits."""
    room = CACHE_BYTES
    times = {file: file.stat() for file in _programs(folder)}
    for file, found in sorted(times.items(), key=lambda pair: -pair[1].st_mtime):
        room -= found.st_size
        if room < 0:
            file.unlink(missing_ok=True)


def _remove_left_over(folder: pathlib.Path) -> None:
    """Removes the folders of processes that were killed."""
    host = f"{_OWN}{socket.gethostname()}-"
    for own in folder.glob(f"{_OWN}*"):
        process = own.name.removeprefix(host)
        if process.isdecimal():
            dead = not durable.is_running(int(process))
        else:
            dead = time.time() - own.stat().st_mtime > _DEAD_SECONDS
        if dead:
            shutil.rmtree(own, ignore_errors=True)
