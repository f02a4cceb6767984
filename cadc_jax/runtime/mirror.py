"""A work folder on a URL: work is done in a local folder, and what is finished is copied there.

An object store has no rename, so the manifest of a folder is copied last: a folder without one is
not there. A folder that is copied from the store is compared with the checksums of its manifest,
and gets its local name only when it is whole.

    mirror = Mirror(scratch, remote)
    mirror.pull(scratch / "prepare" / "0123456789ab")   # if it is in the store, and not here
    mirror.push(scratch / "prepare" / "0123456789ab")   # if it is here, and not in the store

Processes that do not see the same local folder write into their own, and copy their files to where
the finished folder will be (`put`, `push_files`), some of them in parts (see `runtime.parts`). The
first process copies the rest, and the manifest.

Without a URL (`remote` is None) all of it does nothing.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator

from cadc_jax.errors import ArtifactError, ConfigError, StorageError
from cadc_jax.runtime import artifacts, durable, manifest, parts, storage
from cadc_jax.runtime.storage import AnyPath, Remote

_AT_ONCE = 8  # files that are copied at the same time
_OWN = ("checkpoints", "logs")  # folders of a work folder that only its own runs need

_pushed: set[Remote] = set()  # folders that this process has seen in the store

Check = Callable[[pathlib.Path], object]  # raises ArtifactError, ValueError or OSError


def check_artifact(folder: pathlib.Path) -> None:
    """Compares the files of an artefact with the checksums of its manifest.

    Raises:
      ArtifactError: if they differ.
    """
    manifest.check_files(folder, manifest.read(folder).files, contents=True)


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A local folder and its copy in an object store.

    Attributes:
      local: the folder.
      remote: the copy, or None if there is none.
    """

    local: pathlib.Path
    remote: Remote | None = None

    def shown(self, path: pathlib.Path) -> AnyPath:
        """A path in the local folder, as users know it."""
        return path if self.remote is None else self._of(path)

    def names(self, folder: pathlib.Path) -> set[str]:
        """Names of the whole folders in the copy of a folder."""
        if self.remote is None:
            return set()
        names = (pathlib.PurePosixPath(name).parts for name in self._of(folder).files())
        return {parts[0] for parts in names if len(parts) == 2 and parts[1] == manifest.NAME}

    def manifest_of(self, folder: pathlib.Path) -> bytes | None:
        """The manifest of a folder's copy, or None if there is no whole one."""
        return None if self.remote is None else (self._of(folder) / manifest.NAME).read_bytes()

    def read_manifest(self, folder: pathlib.Path) -> manifest.Manifest:
        """The manifest of an artefact that is here, or in the store alone.

        Raises:
          ArtifactError: as `manifest.read`.
        """
        data = None if folder.exists() else self.manifest_of(folder)
        if data is None:
            return manifest.read(folder)
        with tempfile.TemporaryDirectory() as name:
            (pathlib.Path(name) / manifest.NAME).write_bytes(data)
            return manifest.read(pathlib.Path(name))

    def pull(self, folder: pathlib.Path, check: Check = check_artifact, same: bool = False) -> bool:
        """Copies a folder from the store, unless it is here.

        Args:
          folder: below the local one.
          check: of the copied files.
          same: whether one that is here is replaced if its manifest is not that in the store.

        Returns:
          Whether the folder is here.

        Raises:
          ArtifactError: if the copy in the store is damaged.
          StorageError: if the store cannot be read.
        """
        here = folder.exists()
        if self.remote is None or (here and not same):
            return here
        data = self.manifest_of(folder)
        if data is None or (here and _manifest_here(folder) == data):
            return here
        _download(self._of(folder), folder, check)
        return True

    def push(self, folder: pathlib.Path, rest: bool = False) -> None:
        """Copies a whole folder to the store, unless it is there.

        Args:
          folder: below the local one.
          rest: whether other processes have copied some of its files, which stay as they are.

        Raises:
          StorageError: if the store cannot be written.
        """
        if self.remote is None or (place := self._of(folder)) in _pushed:
            return
        if self.manifest_of(folder) is None:
            upload(folder, place, rest)
        _pushed.add(place)

    def put(self, folder: pathlib.Path, other: pathlib.Path) -> None:
        """Copies the files of a folder to the place of another folder in the store.

        Raises:
          StorageError: if the store cannot be written.
        """
        if self.remote is not None:
            upload(folder, self._of(other))

    def push_files(self, files: Iterable[pathlib.Path]) -> None:
        """Copies single files, and replaces the ones that are in the store.

        Raises:
          StorageError: if the store cannot be written.
        """
        if self.remote is not None:
            _in_parallel([(self._of(file).upload, file) for file in files if file.is_file()])

    def pull_files(self, files: Iterable[pathlib.Path]) -> None:
        """Copies single files from the store, if they are there and not here.

        Raises:
          StorageError: if the store cannot be read.
        """
        if self.remote is not None:
            _in_parallel([(self._pull_file, file) for file in files if not file.exists()])

    def _pull_file(self, file: pathlib.Path) -> None:
        if (place := self._of(file)).is_file():
            durable.make_folder(file.parent)
            with durable.replacing(file) as temporary:
                place.download(temporary)

    def pull_rest(self, folder: pathlib.Path) -> None:
        """Copies all files of a folder that are in the store and not here.

        Raises:
          StorageError: if the store cannot be read.
        """
        if self.remote is not None:
            self.pull_files(folder / name for name in self._of(folder).files())

    def remove(self, folder: pathlib.Path) -> None:
        """Deletes the copy of a folder, its manifest first, so that no rest passes for whole."""
        if self.remote is not None:
            place = self._of(folder)
            _pushed.discard(place)
            (place / manifest.NAME).delete()
            _in_parallel([((place / name).delete,) for name in place.files()])

    def _of(self, path: pathlib.Path) -> Remote:
        assert self.remote is not None
        relative = path.resolve().relative_to(self.local.resolve())  # either may be a link
        relative = artifacts.finished(relative)
        return self.remote / relative if relative.parts else self.remote


def upload(folder: pathlib.Path, place: Remote, rest: bool = False) -> None:
    """Copies a folder to a store, its manifest last, and compares the sizes.

    Args:
      folder: the folder.
      place: where to.
      rest: whether files that are there in the same size stay, and others are deleted.

    Raises:
      StorageError: if the store cannot be written.
    """
    files = {x.relative_to(folder).as_posix(): x for x in folder.rglob("*") if x.is_file()}
    last = files.pop(manifest.NAME, None)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    before = parts.by_file(place.files()) if rest else {}
    kept = {name for name, there in before.items() if sum(there.values()) == sizes.get(name)}
    gone = [part for name, there in before.items() if name not in kept for part in there]
    _in_parallel([((place / name).delete,) for name in gone])
    _in_parallel([((place / name).upload, files[name]) for name in files if name not in kept])
    there = parts.by_file(place.files())
    for name, size in sizes.items():
        found = sum(there[name].values()) if name in there else "no"
        if found != size:
            raise StorageError(
                f"{place / name}: {found} bytes arrived of {size}; does another run write there? "
                "Run the same command again"
            )
    if last is not None:
        (place / manifest.NAME).upload(last)


def local_copy(place: AnyPath, flag: str = "from") -> pathlib.Path:
    """A folder that is here: a local one as it is, another one copied to the cache.

    Of a work folder everything is copied but checkpoints and logs. What the cache has already is
    not copied again.

    Args:
      place: a folder.
      flag: the flag that names it, for messages.

    Raises:
      ConfigError: if there is no such folder.
      ArtifactError: if an artefact in it is damaged.
      StorageError: if the store cannot be read.
    """
    if not isinstance(place, Remote):
        return place
    names = [pathlib.PurePosixPath(name) for name in place.files()]
    names = [name for name in names if name.parts[0] not in _OWN and name.name[0] != "."]
    if not names:
        raise ConfigError(f"--{flag}={place}: no such folder; check the URL")
    root = storage.scratch_folder(place)
    whole = {name.parent for name in names if name.name == manifest.NAME}
    for folder in sorted(whole):
        _refresh(place / folder if folder.parts else place, root / folder)
    if pathlib.PurePosixPath(".") in whole:
        return root
    rest = [name for name in names if not whole & set(name.parents)]
    rest = [name for name in rest if len(name.parts) == 1 or name.parts[0] == "reports"]
    for name in rest:
        durable.make_folder((root / name).parent)
    _in_parallel([((place / name).download, root / name) for name in rest])
    durable.make_folder(root)
    return root


@contextlib.contextmanager
def destination(place: AnyPath, kind: str = "folder", flag: str = "out") -> Iterator[pathlib.Path]:
    """A local path to make what a flag names: the path itself, or one that is then copied.

    Raises:
      ConfigError: if it is there already.
      StorageError: if the store cannot be written.
    """
    durable.check_new(place, kind, flag)
    if not isinstance(place, Remote):
        yield place
        return
    durable.make_folder(storage.cache_folder())
    with tempfile.TemporaryDirectory(dir=storage.cache_folder(), prefix=".out-") as name:
        made = pathlib.Path(name) / place.name
        yield made
        if made.is_dir():
            upload(made, place)
        else:
            place.upload(made)


def _refresh(place: Remote, folder: pathlib.Path) -> None:
    """Copies an artefact from a store, unless the same one is here."""
    there = (place / manifest.NAME).read_bytes()
    if there is None or _manifest_here(folder) != there:
        _download(place, folder, check_artifact)


def _manifest_here(folder: pathlib.Path) -> bytes | None:
    try:
        return (folder / manifest.NAME).read_bytes()
    except OSError:
        return None


def _download(place: Remote, folder: pathlib.Path, check: Check) -> None:
    """Copies a folder from a store; it appears whole or not at all, and replaces an old one."""
    durable.make_folder(folder.parent)
    temporary = artifacts.temporary_folder(folder)
    temporary.mkdir()
    try:
        files = _listed(place)
        names = [part for there in files.values() for part in there]
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        _in_parallel([((place / name).download, temporary / name) for name in names])
        for name, there in files.items():
            if list(there) != [name]:
                parts.join([temporary / part for part in there], temporary / name)
        try:
            check(temporary)
        except (ArtifactError, ValueError) as error:
            text = str(error).replace(f"{temporary}/", "").replace(f"{temporary}: ", "")
            text = text.removesuffix(f"; {manifest.ADVICE}")
            raise ArtifactError(f"{place}: {text}; {manifest.ADVICE}") from None
        if folder.exists():
            if _manifest_here(folder) == _manifest_here(temporary):
                return  # another process was faster, and may be reading
            shutil.rmtree(folder)
        durable.publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _listed(place: Remote) -> dict[str, dict[str, int]]:
    """Files in the store that the manifest there lists, and itself, with their parts.

    Others are of an upload that was cut off.
    """
    found, listed = parts.by_file(place.files()), None
    with contextlib.suppress(ValueError, TypeError, KeyError):  # the check tells what is wrong
        listed = {*json.loads((place / manifest.NAME).read_bytes() or b"")["files"], manifest.NAME}
    return {name: there for name, there in found.items() if listed is None or name in listed}


def _in_parallel(calls: Iterable[tuple]) -> None:
    """Calls functions, each with its arguments, several at a time.

    Raises:
      StorageError: of the first one that fails.
    """
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        running = [pool.submit(*call) for call in calls]
        try:
            for one in running:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
