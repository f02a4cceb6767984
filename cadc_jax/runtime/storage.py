"""Paths that users give: local ones, and URLs of object stores, which only this module knows.

`path_of` makes a `pathlib.Path` or a `Remote` of a text. A `Remote` has the part of `pathlib.Path`
that readers of files use. Requests go through fsspec, to gcsfs for gs:// and s3fs for s3://, which
try again what fails for a moment. What fails for good is a `StorageError` of one line.

Credentials are those that the libraries find themselves. STORAGE_EMULATOR_HOST leads gs:// to an
emulator.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import io
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from cadc_jax.errors import ConfigError, StorageError
from cadc_jax.runtime.text import one_line

SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # -> package, our extra that installs it
_ALIASES = {"gcs": "gs", "s3a": "s3"}
_BLOCK_BYTES = 1 << 23  # read ahead
_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)
_TOO_MUCH = re.compile("quota|rate.?limit|too many requests|insufficient storage|slow ?down")
_FORBIDDEN = re.compile("forbidden|denied|unauthorized|anonymous caller|credentials")


@dataclasses.dataclass(frozen=True, order=True)
class Remote:
    """A place in an object store.

    Attributes:
      scheme: a key of SCHEMES.
      key: the bucket and the path in it, such as 'bucket/folder/file'.
    """

    scheme: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str | pathlib.PurePath) -> "Remote":
        return Remote(self.scheme, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return pathlib.PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        """The last ending of its name, such as '.gz'."""
        return pathlib.PurePosixPath(self.key).suffix

    @property
    def suffixes(self) -> list[str]:
        """All endings of its name."""
        return pathlib.PurePosixPath(self.key).suffixes

    def exists(self) -> bool:
        """Whether there is an object, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        with self._told():
            try:
                names = self._system.ls(self.key + "/", detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return any(name.strip("/") != self.key for name in names)

    def is_symlink(self) -> bool:
        """Never: an object store has no links."""
        return False

    def iterdir(self) -> Iterator["Remote"]:
        """The objects and folders in a folder."""
        with self._told():
            names = sorted(self._system.ls(self.key + "/", detail=False))
        for name in names:
            if name.strip("/") != self.key:  # some tools leave an object for the folder itself
                yield Remote(self.scheme, name.strip("/"))

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """The objects below a folder whose relative names match; no '**'."""
        for name in self.files():
            parts, wanted = name.split("/"), pattern.split("/")
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield self / name

    def files(self) -> dict[str, int]:
        """Sizes of all objects below it, by their names relative to it."""
        with self._told():
            found = self._system.find(self.key + "/", detail=True)
        prefix = self.key + "/"
        names = {name.lstrip("/").removeprefix(prefix): info for name, info in found.items()}
        return {
            name: info["size"]
            for name, info in names.items()
            if info["type"] == "file" and _is_relative(name)
        }

    def state(self) -> tuple[int, str]:
        """Size and version (the generation, or the entity tag) of the object.

        Raises:
          FileNotFoundError: if there is none.
        """
        info = self._info()
        if info is None:
            raise FileNotFoundError(str(self))
        known = ("generation", "ETag", "etag", "mtime", "created")
        version = next((str(info[name]) for name in known if info.get(name)), "")
        return info["size"], version

    def open(self, ahead: bool = True) -> io.RawIOBase:
        """Opens the object for reading.

        Args:
          ahead: whether to read ahead, for an object that is read from start to end.
        """
        options = {"block_size": _BLOCK_BYTES, "cache_type": "readahead" if ahead else "none"}
        with self._told():
            return _Reader(self, self._system.open(self.key, "rb", **options))

    def read_bytes(self) -> bytes | None:
        """The whole object, or None if there is none."""
        with self._told():
            try:
                return self._system.cat_file(self.key)
            except FileNotFoundError:
                return None

    def write_bytes(self, data: bytes, new: bool = False) -> None:
        """Writes the object.

        Args:
          data: its content.
          new: whether it must not be there yet. Not all emulators heed it.

        Raises:
          FileExistsError: if it must not be there and is.
        """
        with self._told(FileExistsError):
            self._system.pipe_file(self.key, data, mode="create" if new else "overwrite")

    def upload(self, file: pathlib.Path) -> None:
        """Writes the object from a local file."""
        with self._told():
            self._system.put_file(str(file), self.key)

    def download(self, file: pathlib.Path) -> None:
        """Writes the object to a local file."""
        with self._told():
            self._system.get_file(self.key, str(file))

    def delete(self) -> None:
        """Deletes the object, if it is there."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self.key)

    @property
    def _system(self) -> Any:
        return _system(self.scheme)

    def _info(self) -> Any:
        """What the store says of the object, or None if there is none."""
        with self._told():
            try:
                info = self._system.info(self.key)
            except FileNotFoundError:
                return None
        return info if info["type"] == "file" else None

    @contextlib.contextmanager
    def _told(self, *expected: type[Exception]) -> Iterator[None]:
        """Makes a StorageError of what the libraries raise, but for the expected exceptions."""
        try:
            yield
        except Exception as error:  # each library has exceptions of its own
            if isinstance(error, (StorageError, ConfigError, *expected)):
                raise
            if getattr(error, "errno", None) == errno.ENOSPC:  # of the local disk
                raise
            raise StorageError(f"{self}: {_explain(error)}") from None


AnyPath: TypeAlias = pathlib.Path | Remote


def path_of(text: str | AnyPath, field: str = "path") -> AnyPath:
    """The place that a text names.

    Args:
      text: a local path, file://..., or a URL of one of SCHEMES.
      field: name of the setting, such as '--workdir'.

    Raises:
      ConfigError: if the scheme is unknown, or the URL is none.
    """
    if not isinstance(text, str):
        return text
    found = _TEXT.fullmatch(text)
    if not found:
        return pathlib.Path(text)
    scheme, slashes, rest = found[1].lower(), found[2], found[3]
    scheme = _ALIASES.get(scheme, scheme)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    if scheme == "file":
        return pathlib.Path("/" + rest)
    if scheme not in SCHEMES:
        if slashes == "/" and pathlib.Path(text).exists():  # a file with a colon in its name
            return pathlib.Path(text)
        raise ConfigError(
            f"{field}={text}: {scheme}:// is not supported; give a local path (such as that of a "
            f"mounted folder), file:///path, or a URL of {known}"
        )
    parts = [part for part in rest.split("/") if part]
    if slashes != "//" or not parts or ".." in parts or "." in parts:
        raise ConfigError(f"{field}={text}: not a URL; write {scheme}://bucket/folder")
    return Remote(scheme, "/".join(parts))


def relative(path: AnyPath, folder: AnyPath) -> str:
    """A path below a folder, relative to it."""
    if isinstance(path, Remote) and isinstance(folder, Remote):
        return path.key.removeprefix(folder.key + "/")
    return str(pathlib.Path(str(path)).relative_to(str(folder)))


def local_path(text: str, field: str, why: str = "it takes a local path") -> pathlib.Path:
    """The local path that a text names.

    Raises:
      ConfigError: if it is a URL.
    """
    found = path_of(text, field)
    if isinstance(found, Remote):
        raise ConfigError(f"{field}={text}: {found.scheme}:// is not supported here: {why}")
    return found


def cache_folder() -> pathlib.Path:
    """Where copies of objects are kept: $CADC_CACHE_DIR, or in the user's cache."""
    if own := os.environ.get("CADC_CACHE_DIR"):
        return pathlib.Path(own)
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "cadc_jax" / "objects"


def scratch_folder(place: Remote) -> pathlib.Path:
    """The local folder in which work on a remote one is done."""
    return cache_folder() / place.scheme / place.key


class _Reader(io.RawIOBase):
    """An object that is read, with errors of one line."""

    def __init__(self, place: Remote, file: Any):
        self._place, self._file = place, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        with self._place._told():
            return self._file.read(-1 if size is None else size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def _system(scheme: str) -> Any:
    """The file system of a scheme; one in a process, which may be used by several threads."""
    package, extra = SCHEMES[scheme]
    logging.getLogger(package).setLevel(logging.CRITICAL)  # we say ourselves what is wrong
    # Its check of a bucket's kind is one more request, which needs a permission of its own.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError:
        raise ConfigError(
            f"{scheme}:// needs the package {package}: pip install 'cadc-jax[{extra}]'"
        ) from None
    except Exception as error:  # credentials are looked for
        raise StorageError(f"{scheme}://: {_explain(error)}") from None


def _explain(error: Exception) -> str:
    """What went wrong in a store, and what to do."""
    text = one_line(error)[:300]
    said, code = text.lower(), str(getattr(error, "code", ""))
    if isinstance(error, FileNotFoundError):
        return "no such bucket or object; check the URL"
    if code in ("429", "507") or _TOO_MUCH.search(said):
        return (
            f"the store has no room or takes no more requests ({text}); what is finished is kept "
            "here: raise the quota or free some room, and run the same command again"
        )
    denied = isinstance(error, PermissionError) or code in ("401", "403")
    if denied or _FORBIDDEN.search(said):
        return (
            f"no permission ({text}); sign in (for gs://: gcloud auth application-default login), "
            "or let the owner of the bucket allow it to you"
        )
    return (
        f"the store does not answer as it should ({type(error).__name__}: {text}); what is "
        "finished is kept here: run the same command again"
    )


def _is_relative(name: str) -> bool:
    """Whether a name of an object leads to a file below the folder it is copied to."""
    return bool(name) and not name.endswith("/") and not {"", ".", ".."} & set(name.split("/"))
