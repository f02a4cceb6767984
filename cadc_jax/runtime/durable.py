"""Durable, atomic writes: after a crash or a power cut a file or folder is whole, or not there.

A rename alone is atomic but not durable: a file system may write the new name before the data. So
data is flushed to the disk before the rename, and the folder that holds the name after it.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from cadc_jax.errors import ConfigError
from cadc_jax.runtime.storage import AnyPath

LOCK = ".lock"  # name of the file in a work folder that a run holds


def check_new(out: AnyPath, kind: str = "folder", flag: str = "out") -> None:
    """Raises ConfigError if the `kind` that a command is to make, by a flag, is there already."""
    if out.exists():
        raise ConfigError(f"--{flag}={out}: the {kind} exists; name another one, or delete it")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary file beside `path`, which replaces it on leaving; an error leaves `path` alone.

    The name is random, and the file is new: no link that someone left there is followed.

    Raises:
      OSError: if it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as indented JSON; raises ValueError if a number in it is not finite."""
    write_text(path, json.dumps(value, indent=2, default=list, allow_nan=False) + "\n")


def publish(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a finished folder its name `path`, after all files in it are on the disk.

    Raises:
      OSError: if a folder of that name exists and is not empty, or the disk fails.
    """
    sync_tree(temporary)
    temporary.rename(path)
    sync(path.parent)


def sync_tree(folder: pathlib.Path) -> None:
    """Flushes all files and folders below a folder, and the folder itself, to the disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(pathlib.Path(root, name))
        sync(pathlib.Path(root))


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder, and the ones above it that are missing, and flushes their names."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextlib.contextmanager
def wait_for(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other process holds this file, and holds it; the lock ends with the process.

    On file systems without locks it does nothing.
    """
    with open(path, "a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def lock(folder: pathlib.Path, flag: str = "workdir") -> Iterator[None]:
    """Holds a folder, given by a flag, for one run; the lock ends with the process.

    On file systems without locks it does nothing.

    Raises:
      ConfigError: if another run holds it.
    """
    make_folder(folder)
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--{flag}={folder}: another run is using it; wait for it, or choose another one"
            ) from None
        except OSError:
            pass
        yield


def sync(path: pathlib.Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_running(process: int) -> bool:
    """Whether there is a process of this number on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, but belongs to another user
        return True
    return True
