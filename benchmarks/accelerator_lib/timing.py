"""Times of programs on a device, and rows of the table."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cadc_jax.runtime import compilation


class Skipped(Exception):
    """A case cannot be measured here. The message says why."""


class OutOfTime(BaseException):
    """The time of the whole run is over. No `except Exception` on its way holds it up."""


class Times(NamedTuple):
    """Seconds of the first run, which compiles, and of later ones."""

    first: float
    median: float
    least: float


def timed(run: Callable[[], Any], turns: int) -> Times:
    """Times `run` until its result is there.

    Args:
      run: starts programs on the device and returns an array or a tree that depends on them.
      turns: runs to time, after two others.

    Raises:
      RuntimeError: if a timed run compiled something.
    """

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    first, _ = once(), once()
    before = compilation.seconds()
    times = [once() for _ in range(turns)]
    if compilation.seconds() != before:
        raise RuntimeError("a timed run compiled a program")
    return Times(first, statistics.median(times), min(times))


def row(
    case: str,
    metric: str,
    ours: float,
    peer: float | None = None,
    peer_name: str = "none",
    least: float | None = None,
) -> dict[str, Any]:
    """A row of the table; without a peer there is no ratio.

    Args:
      case: what was measured.
      metric: name and unit of the figure.
      ours: the figure; of several times the median.
      peer: what it is compared with.
      peer_name: what that is.
      least: the figure of the fastest time.
    """
    found = {"case": case, "metric": metric, "ours": ours, "peer": peer, "peer_name": peer_name}
    found["ratio"] = None if peer is None else ours / peer if peer else math.inf
    return found if least is None else found | {"least": least}
