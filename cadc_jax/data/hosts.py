"""Several hosts prepare one table together: which share each reads, and how they exchange results.

The hosts share a folder on a common file system. Each host takes a contiguous share of the source,
and writes contiguous rows of the table. Results that the other hosts need go through files in the
folder. `Hosts.wait` is the barrier after which these files are complete. Hosts that share no folder
have a `Carrier`, which copies these files; the rows of a host are then files of their own.

A file of another host is only data. Its first line is JSON, Arrow tables in the IPC stream format
follow, and a line feed ends it. What it has to hold is checked before it is used.
"""

import dataclasses
import json
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from cadc_jax.errors import ArtifactError, ConfigError, DataError, TrainingError
from cadc_jax.runtime import manifest
from cadc_jax.runtime.text import one_line

_SNAP = 1 / 8  # part of a share by which its border may move to fall between two parts
_MAX_LINE = 1 << 26  # bytes of JSON in a file
# Errors that every host raises as what they are; others become a RuntimeError elsewhere.
_ERRORS = (ConfigError, DataError, ArtifactError, TrainingError, MemoryError)

T = TypeVar("T")


class Carrier(NamedTuple):
    """Copies files between hosts with a folder each.

    Attributes:
      give: copies files of this host to where the others can get them.
      take: copies files of other hosts here, unless they are here.
    """

    give: Callable[[Iterable[pathlib.Path]], None]
    take: Callable[[Iterable[pathlib.Path]], None]


@dataclasses.dataclass(frozen=True)
class Hosts:
    """One host among those that work together.

    Attributes:
      index: number of this host, from 0.
      count: number of hosts.
      wait: a barrier. All hosts call it with the same names in the same order; it returns once all
        have called it, and raises if one does not. The caller decides how long it waits.
      carrier: copies files, if the hosts share no folder.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None
    carrier: Carrier | None = None

    def give(self, files: Iterable[pathlib.Path]) -> None:
        """Makes files of this host seen by the others, after the next `wait`."""
        if self.carrier is not None:
            self.carrier.give(files)

    def take(self, files: Iterable[pathlib.Path]) -> None:
        """Makes files that other hosts have given seen here."""
        if self.carrier is not None:
            self.carrier.take(files)


SINGLE_HOST = Hosts()


def share_of(hosts: Hosts, sizes: Sequence[int]) -> tuple[float, float]:
    """The share of this host in parts laid end to end: [from, to).

    Shares are about equal. A border moves to the nearest border of a part if that is near, because
    some parts (compressed files) can only be read from their beginning.

    Args:
      hosts: this host and their number.
      sizes: sizes of the parts, in any unit; the share is in the same unit. The first share begins
        at -inf and the last one ends at inf.
    """
    edges = np.concatenate([[0], np.cumsum(sizes, dtype=np.float64)])
    equal = float(edges[-1]) / hosts.count

    def border(number: int) -> float:
        place = number * equal
        nearest = float(edges[np.argmin(np.abs(edges - place))])
        return nearest if abs(nearest - place) <= _SNAP * equal else place

    first, last = hosts.index == 0, hosts.index == hosts.count - 1
    return (
        -np.inf if first else border(hosts.index),
        np.inf if last else border(hosts.index + 1),
    )


class Message(NamedTuple):
    """A result as a host tells it to the others.

    Attributes:
      plain: numbers, texts, lists and dictionaries, as JSON has them.
      tables: name -> Arrow table.
    """

    plain: Any = None
    tables: Mapping[str, pa.Table] = {}

    def table(self, name: str, *schemas: pa.Schema) -> pa.Table:
        """The table of this name, which has one of these schemas and no missing values.

        Raises:
          ValueError: if there is no such table.
        """
        table = self.tables.get(name)
        if table is None or table.schema not in schemas:
            raise ValueError(f"no table '{name}' of {' or '.join(map(_columns, schemas))}")
        if any(column.null_count for column in table.columns):
            raise ValueError(f"table '{name}' has missing values")
        return table


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


class Form(NamedTuple, Generic[T]):
    """How the results of a piece of work are told.

    Attributes:
      pack: makes a message of a result.
      unpack: makes the result again; raises ValueError if another host's message is not like it.
    """

    pack: Callable[[T], Message]
    unpack: Callable[[Message], T]


def exchange(
    hosts: Hosts, folder: pathlib.Path, name: str, work: Callable[[], T], form: Form[T]
) -> Iterator[T]:
    """Calls `work` on every host and returns the results of all hosts, in their order.

    Args:
      hosts: all of them call this with the same name.
      folder: the folder of the files; shared, or that of this host.
      name: name of the files and of the barrier; used only once.
      work: called at once. Results of other hosts are read one at a time, when the iterator reaches
        them.
      form: how its results are told to the other hosts.

    Raises:
      Exception: the exception of the first host whose `work` failed; every host raises it (see
        `error_of`).
      DataError: if another host's file is not what `form` writes.
    """
    if hosts.count == 1:
        return iter([work()])
    files = [folder / f"{name}.{index}" for index in range(hosts.count)]
    own = _tell(files[hosts.index], work, form)
    hosts.give([files[hosts.index]])
    hosts.wait(f"prepare/{name}")
    hosts.take(files)
    for index, path in enumerate(files):
        failure = own.exception() if index == hosts.index else _read(path, _failure)
        if failure is not None:
            raise failure

    def result_of(index: int) -> T:
        if index == hosts.index:
            return own.result()
        return _read(files[index], lambda line, file: form.unpack(_message(line, file)))

    return map(result_of, range(hosts.count))


ERROR: manifest.Kind = ({"kind": str, "text": str}, type(None))  # what `told_error` returns


def told_error(error: BaseException | None) -> dict[str, str] | None:
    """An error, or None, as JSON."""
    if error is None:
        return None
    for kind in _ERRORS:
        if isinstance(error, kind):
            return {"kind": kind.__name__, "text": str(error)}
    return {"kind": "other", "text": f"{type(error).__name__}: {error}"}


def error_of(told: Mapping[str, str] | None) -> Exception | None:
    """The error that another host told: of the same class if it is one of ours."""
    if told is None:
        return None
    kinds = {kind.__name__: kind for kind in _ERRORS}
    return kinds.get(told["kind"], RuntimeError)(told["text"])


_LINE: manifest.Kind = {"failure": ERROR, "tables": [str]}  # and `plain`, of any kind


def _tell(path: pathlib.Path, work: Callable[[], T], form: Form[T]) -> Future[T]:
    """Calls `work`, and writes its result or its exception to a file."""
    done: Future[T] = Future()
    try:
        result = work()
        message = form.pack(result)
        line = _line(None, message)
        done.set_result(result)
    except Exception as error:  # every host will raise it
        message = Message()
        line = _line(error, message)
        done.set_exception(error)
    with open(path, "wb") as file:
        file.write(line)
        for table in message.tables.values():
            with pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table)
        file.write(b"\n")
    return done


def _line(failure: Exception | None, message: Message) -> bytes:
    fields = {
        "failure": told_error(failure),
        "plain": message.plain,
        "tables": list(message.tables),
    }
    return json.dumps(fields).encode() + b"\n"


def _read(path: pathlib.Path, take: Callable[[Mapping[str, Any], BinaryIO], T]) -> T:
    """Calls `take(line, file)` on another host's file after its first line.

    Raises:
      DataError: if it cannot be read, or `take` finds a fault.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("no plain file")
        with open(path, "rb") as file:
            text = file.readline(_MAX_LINE)
            if not text.endswith(b"\n"):
                raise ValueError("its first line does not end")
            line = json.loads(text)
            manifest.check(line, _LINE, "the line")
            return take(line, file)
    except (OSError, KeyError, TypeError, ValueError, RecursionError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: not what another host of this run writes ({one_line(error)}); "
            "use the same version of cadc_jax on all hosts and run again"
        ) from None


def _failure(line: Mapping[str, Any], file: BinaryIO) -> Exception | None:
    return error_of(line["failure"])


def _message(line: Mapping[str, Any], file: BinaryIO) -> Message:
    rest = pa.BufferReader(file.read())  # all of it, so no table can claim more than there is
    message = Message(line["plain"], {name: _read_table(rest) for name in line["tables"]})
    if rest.read(2) != b"\n":
        raise ValueError("it does not end after its tables")
    return message


def _read_table(file: pa.NativeFile) -> pa.Table:
    with pa.ipc.open_stream(file) as stream:
        table = stream.read_all()
    table.validate(full=True)  # no offset or index leads outside of it
    return table
