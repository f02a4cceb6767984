"""States, which are pytrees of arrays, in folders that Orbax writes.

An array may be split over the devices of several processes. If these see the same folder, Orbax
writes the state into it. Otherwise (`distributed.apart`) each process writes its shards into a
folder of its own, every shard to a file. The files of all processes together are the state. They go
to the store, from where any number of processes reads the whole.
"""

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from cadc_jax.runtime import distributed, durable
from cadc_jax.runtime.mirror import Mirror


class Checkpointers:
    """What writes and reads states of these processes; close it.

    Attributes:
      writer: saves in the background.
      reader: restores; each process that is `apart` from others from a whole copy of its own.
    """

    def __init__(self) -> None:
        self._apart = distributed.apart()
        # With no primary host every process does all that its own folder needs.
        processes = ocp.options.MultiprocessingOptions(primary_host=None if self._apart else 0)
        options: dict[str, Any] = {"multiprocessing_options": processes}
        standard = ocp.StandardCheckpointHandler(**options)
        apart = ocp.PyTreeCheckpointHandler(use_ocdbt=False, **options)
        self.writer = ocp.AsyncCheckpointer(apart if self._apart else standard, **options)
        self.reader = ocp.Checkpointer(standard, **options)

    def save(self, path: pathlib.Path, state: Any) -> None:
        """Starts to save a state; `writer.wait_until_finished` waits for its end."""
        args = ocp.args.PyTreeSave(state) if self._apart else ocp.args.StandardSave(state)
        self.writer.save(path, args=args, force=True)

    def restore(self, path: pathlib.Path, target: Any) -> Any:
        """Reads a state; arrays of the target may have more or fewer rows than the saved ones."""
        return self.reader.restore(path, args=ocp.args.StandardRestore(target, strict=False))

    def close(self) -> None:
        """Waits for a save under way."""
        self.writer.close()
        self.reader.close()


def own_folder(path: pathlib.Path) -> pathlib.Path:
    """Where this process writes its files of a folder."""
    return path.with_name(f".{path.name}.{distributed.index()}") if distributed.apart() else path


def put_own(folder: pathlib.Path, path: pathlib.Path, mirror: Mirror) -> None:
    """Copies this process' files of the folder `path` to the store.

    Args:
      folder: the one that it wrote, with a state or several in it. Files that are not of an array
        are the same in all processes: only the first one keeps them.
      path: the folder that the files of all processes make up.
      mirror: leads to the store.

    Raises:
      StorageError: if the store cannot be written.
    """
    if not distributed.is_first():
        for file in folder.glob("*/*"):
            if file.is_file():
                file.unlink()
    mirror.put(folder, path)


def save(path: pathlib.Path, state: Any, mirror: Mirror) -> None:
    """Writes a state into a folder that does not exist, in the first process as a whole.

    All processes have to call it.

    Args:
      path: the folder, such as `ARTEFACT/state`.
      state: pytree of arrays.
      mirror: leads to the store through which processes that are `apart` tell their shards.
    """
    own = own_folder(path) if distributed.apart() else path.parent
    durable.make_folder(own)
    checkpointers = Checkpointers()
    try:
        checkpointers.save(own.resolve() / path.name, state)
        checkpointers.writer.wait_until_finished()
    finally:
        checkpointers.close()
    if not distributed.apart():
        return
    if not distributed.is_first():
        put_own(own, path.parent, mirror)
    distributed.barrier("state")
    if distributed.is_first():
        (own / path.name).rename(path)
        own.rmdir()
        mirror.pull_rest(path)
