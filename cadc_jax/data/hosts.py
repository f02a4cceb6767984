"""Several hosts prepare one table together: which share each reads, and how they exchange results.

The hosts share a folder on a common file system. Each host takes a contiguous share of the source,
and writes contiguous rows of the table. Results that the other hosts need go through files in the
folder. `Hosts.wait` is the barrier after which these files are complete.
"""

import dataclasses
import pathlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np

_SNAP = 1 / 8  # part of a share by which its border may move to fall between two parts

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """One host among those that work together.

    Attributes:
      index: number of this host, from 0.
      count: number of hosts.
      wait: a barrier. All hosts call it with the same names in the same order; it returns once all
        have called it, and raises if one does not. The caller decides how long it waits.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None


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


def exchange(hosts: Hosts, folder: pathlib.Path, name: str, work: Callable[[], T]) -> Iterator[T]:
    """Calls `work` on every host and returns the results of all hosts, in their order.

    Args:
      hosts: all of them call this with the same name.
      folder: the shared folder.
      name: name of the files and of the barrier; used only once.
      work: called at once; its result can be pickled. Results of other hosts are read one at a
        time, when the iterator reaches them.

    Raises:
      Exception: the exception of the first host whose `work` failed; every host raises it.
    """
    if hosts.count == 1:
        return iter([work()])
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # raised below, on every host
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
    own = cast(T, result)  # not None, because `work` did not fail
    return (own if index == hosts.index else _read_result(path) for index, path in enumerate(files))


def _read_result(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        pickle.load(file)  # the failure, None
        return pickle.load(file)
