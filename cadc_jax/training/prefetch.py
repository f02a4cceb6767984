"""Sends batches to the devices while the devices work on earlier ones."""

import collections
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Sharding


def device_batches(
    batches: Iterable[Mapping[str, np.ndarray]], sharding: Sharding, depth: int = 2
) -> Iterator[Mapping[str, jax.Array]]:
    """The same batches as arrays on devices; `depth` of them are sent ahead of the one in use.

    Sending does not wait: batches are made and copied during the steps on earlier ones.

    Args:
      batches: the batches of this host. Their arrays must not be changed afterwards: a CPU device
        may still use their memory.
      sharding: of every array. Over several hosts, each gives its own part of the arrays, as
        `training_batches(host_index=...)` makes it.
      depth: batches sent ahead; 0 sends each when it is asked for.

    Returns:
      As many batches, in the same order.
    """
    waiting: collections.deque[Mapping[str, jax.Array]] = collections.deque()
    for batch in batches:
        waiting.append(_send(batch, sharding))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def _send(batch: Mapping[str, np.ndarray], sharding: Sharding) -> Mapping[str, jax.Array]:
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
