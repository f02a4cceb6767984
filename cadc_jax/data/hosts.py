"""Several hosts that prepare one table together: who reads what, and what they tell each other.

They share a file system, and one folder on it. Work is divided by contiguous shares of the source,
so that what a host writes is contiguous too. What others have to know goes through files of the
folder, and `Hosts.wait` says when these are there.
"""

import dataclasses
import pathlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np

_SNAP = 1 / 8  # of a share: how far its border moves to fall between two parts

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """A host among those that work together.

    Attributes:
      index: which of them it is, from 0.
      count: how many there are.
      wait: a barrier. All hosts call it with the same names in the same order; it returns when all
        have, and raises if one does not come (how long to wait is the caller's affair).
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None


ALONE = Hosts()


def share_of(hosts: Hosts, sizes: Sequence[int]) -> tuple[float, float]:
    """The share of a host in parts of these sizes, laid end to end: [from, to).

    Shares are about equal. Where it costs little balance they have whole parts, as some parts (of
    compressed files) can only be entered at their beginning.
    """
    edges = np.concatenate([[0], np.cumsum(sizes, dtype=np.float64)])
    fair = float(edges[-1]) / hosts.count

    def border(number: int) -> float:
        place = number * fair
        nearest = float(edges[np.argmin(np.abs(edges - place))])
        return nearest if abs(nearest - place) <= _SNAP * fair else place

    first, last = hosts.index == 0, hosts.index == hosts.count - 1
    return (
        -np.inf if first else border(hosts.index),
        np.inf if last else border(hosts.index + 1),
    )


def exchange(hosts: Hosts, folder: pathlib.Path, name: str, work: Callable[[], T]) -> Iterator[T]:
    """Does a piece of work on every host, and yields on every host what it gave on each.

    Args:
      hosts: all of them call this with the same name.
      folder: is shared.
      name: of the files and of the barrier; used once.
      work: is done at once; its results can be pickled. They are read one by one, when asked for.

    Raises:
      Whatever `work` raised on the first host on which it failed: the same on every host.
    """
    if hosts.count == 1:
        return iter([work()])
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # is raised below, on every host
        failure = error
    files = [folder / f"{name}.{index}" for index in range(hosts.count)]
    with open(files[hosts.index], "wb") as file:
        pickle.dump(failure, file)
        pickle.dump(result, file)
    hosts.wait(f"prepare/{name}")
    for index, path in enumerate(files):
        with open(path, "rb") as file:
            told = pickle.load(file)
        if told is not None:
            raise failure if failure is not None and index == hosts.index else told
    own = cast(T, result)  # there is one, as nothing has failed
    return (own if index == hosts.index else _second(path) for index, path in enumerate(files))


def _second(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        pickle.load(file)
        return pickle.load(file)
