"""The device mesh and every PartitionSpec of the package, in one place.

The mesh has two axes. `data` splits the rows that ALS is solving; `model` splits the rows of
embedding tables too large for one device. Training batches are split over both, so that no device
repeats another's network. Everything small is replicated.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA = "data"
MODEL = "model"

REPLICATED = P()
BATCH = P((DATA, MODEL))  # leading axis of every array in a batch
BATCHES = P(None, (DATA, MODEL))  # second axis of every array in a stack of batches
TABLE = P(MODEL)  # rows of a sharded embedding table


def make_mesh(model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ('data', 'model') mesh over `devices` (default: all), `model` of them to a table.

    Raises:
      ValueError: if `model` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if model < 1 or len(devices) % model:
        raise ValueError(f"model={model} does not divide the {len(devices)} devices: use a divisor")
    return Mesh(np.array(devices).reshape(-1, model), (DATA, MODEL))


def named(mesh: Mesh, spec: P) -> NamedSharding:
    """`spec` on `mesh`."""
    return NamedSharding(mesh, spec)
