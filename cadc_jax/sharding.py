"""The device mesh and every PartitionSpec of the package, in one place.

The mesh has one axis. It splits training batches, the rows that ALS solves, and the rows of
embedding tables that are too large for one device. Everything small is replicated.

With several processes a mesh has the devices of all of them, and the devices of one process follow
one another. All processes together create an array on such a mesh and compute with it. A
process can only read an array as a whole if it is replicated. `put` places arrays on the mesh, and
`local` reads them back.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

EVERYWHERE = "data"  # the axis of all devices

REPLICATED = P()
BATCH = P(EVERYWHERE)  # leading axis of every array in a batch
BATCHES = P(None, EVERYWHERE)  # second axis of every array in a stack of batches
TABLE = P(EVERYWHERE)  # rows of a split embedding table

RESIDENT_SHARE = 1 / 4  # of a device's memory for the rows of a split, unless asked for more
_LOCAL_BYTES = 1 << 28  # bytes of an array that `local` replicates at a time
_SUMMED_ROWS = 1 << 20  # numbers that `sum_over_processes` sums at a time


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the devices; None for all of them.

    Slices follow one another, in a slice processes, and in a process its devices. On a TPU most of
    those that follow one another are neighbours on the torus.
    """
    devices = jax.devices() if devices is None else list(devices)
    # Each process makes one part of a batch, so its devices stay together.
    groups = [[getattr(device, "slice_index", 0), device.process_index] for device in devices]
    keys = np.array(groups)
    if devices[0].platform == "tpu":
        keys = _along_the_torus(keys, np.array([device.coords for device in devices]))
    order = np.lexsort(keys.T[::-1])  # stable: where nothing else decides, as they were given
    return Mesh(np.array(devices)[order], (EVERYWHERE,))


def _along_the_torus(groups: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """Keys [n, k] that sort chips into a path over the torus.

    The path goes from process to process in rows along x, to and fro. Within a process it begins at
    the side that it comes from, and ends at the one that it leaves by.

    Args:
      groups: [n, 2] slice and process of each chip.
      coords: [n, 3] its x, y and z in the slice.
    """
    corner = np.empty_like(coords)
    for group in np.unique(groups, axis=0):
        own = (groups == group).all(axis=1)
        corner[own] = coords[own].min(axis=0)
    places = [np.unique(axis, return_inverse=True)[1] for axis in corner.T[::-1]]
    process = _to_and_fro(np.stack(places, axis=1))  # z, y, x
    inside = coords - corner
    backwards = process[:, -1] < 0
    backwards |= (process[:, -1] == 0) & (np.sum(places[:-1], axis=0) % 2 == 1)
    inside[:, 0] = np.where(backwards, -inside[:, 0] + inside[:, 0].max(), inside[:, 0])
    return np.concatenate([groups[:, :1], process, groups[:, 1:], _to_and_fro(inside)], axis=1)


def _to_and_fro(places: np.ndarray) -> np.ndarray:
    """Keys that sort cells [n, k] of a grid into a path of single steps, the last axis first."""
    slower = np.cumsum(places, axis=1) - places
    return np.where(slower % 2, -places, places)


@functools.cache  # later calls return the result of the first call
def split_cores() -> bool:
    """Makes each core of the CPU a device. ALS keeps only about one core busy with each device.

    Call it before any use of a device. It does nothing if the number of CPU devices is already set
    by $JAX_NUM_CPU_DEVICES or $XLA_FLAGS.

    Returns:
      Whether it changed the number of devices.
    """
    devices = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    if devices >= 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return False
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    return True


def is_tpu(mesh: Mesh | AbstractMesh) -> bool:
    """Whether the devices of a mesh are TPUs; an abstract mesh has none."""
    return isinstance(mesh, Mesh) and platform(mesh) == "tpu"


def named(mesh: Mesh | AbstractMesh, spec: P) -> NamedSharding:
    """`spec` on `mesh`."""
    return NamedSharding(mesh, spec)


def mesh_of(array: jax.Array) -> Mesh:
    """The mesh of an array that was made by `put` or computed from such arrays."""
    where = array.sharding
    assert isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh)
    return where.mesh


def is_cpu(mesh: Mesh | AbstractMesh) -> bool:
    """Whether the devices of a mesh are CPUs; an abstract mesh has none."""
    return isinstance(mesh, Mesh) and platform(mesh) == "cpu"


def platform(mesh: Mesh) -> str:
    """What the devices of a mesh are: 'cpu', 'gpu' or 'tpu'."""
    return mesh.devices.flat[0].platform


def memory(mesh: Mesh) -> float:
    """Bytes of memory of a device of this process; CPU devices share the host's."""
    devices = mesh.local_devices
    found = devices[0].memory_stats()
    if found and "bytes_limit" in found:
        return float(found["bytes_limit"])
    return host_memory() / len(devices)


def host_memory() -> int:
    """Bytes of memory that this host has, or that its container may use."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        size = min(size, int(text))
    return size


def put(tree: Any, where: Sharding) -> Any:
    """Places a tree of arrays on the devices of `where`.

    With several processes all of them call it, and each has the whole arrays, as NumPy arrays or on
    one of its own devices.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    return jax.tree.map(lambda x: _put(x, where), tree)


def _put(array: Any, where: Sharding) -> jax.Array:
    """`put` for one array. A process sends only the parts of its own devices."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, where)
    if jnp.issubdtype(jax.dtypes.result_type(array), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(array), where))
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, where, lambda part: array[part])


def own_parts(mesh: Mesh) -> list[int]:
    """Which parts of an array that is split over the whole mesh this process has, in order."""
    return [
        part
        for part, device in enumerate(mesh.devices.flat)
        if device.process_index == jax.process_index()
    ]


def put_own(tree: Any, mesh: Mesh) -> Any:
    """Places a tree of arrays, split over the whole mesh by their leading axis.

    All processes call it, and each gives nothing but its `own_parts` of the arrays, end to end.
    """
    where = named(mesh, P(mesh.axis_names))
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    own = own_parts(mesh)

    def put_one(array: np.ndarray) -> jax.Array:
        rows = len(array) // len(own)

        def part(at: tuple[slice, ...] | None) -> np.ndarray:
            assert at is not None
            first = own.index((at[0].start or 0) // rows) * rows if rows else 0
            return array[first : first + rows]

        shape = (rows * mesh.size, *array.shape[1:])
        return jax.make_array_from_callback(shape, where, part)

    return jax.tree.map(put_one, tree)


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """The sums [N] int64 of the arrays [N] int64 of all processes, which all call it.

    Floats can be shared as well, in disjoint places: the sum of their bits and of zeros is exact.
    """
    if jax.process_count() == 1:
        return array
    # Devices add 32 bits. Sums of 16 bits of up to 65,536 processes fit.
    parts = np.ascontiguousarray(array, np.int64).view(np.uint16).reshape(-1, 4)
    total = np.zeros(len(parts), np.uint64)
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([firsts[process] for process in sorted(firsts)]), ("process",))
    spread = named(mesh, P("process"))
    for start in range(0, len(parts), _SUMMED_ROWS):
        block = parts[start : start + _SUMMED_ROWS].astype(np.uint32)[None]
        shape = (mesh.size, *block.shape[1:])
        whole = jax.make_array_from_process_local_data(spread, block, shape)
        summed = np.asarray(_sum_of_first_axis(whole, mesh)).astype(np.uint64)
        total[start : start + len(summed)] = np.sum(
            summed << np.array([0, 16, 32, 48], np.uint64), axis=1, dtype=np.uint64
        )
    return total.view(np.int64)


def largest(array: np.ndarray, mesh: Mesh) -> int:
    """The largest of numbers [N] int32, split over the whole mesh as by `put_own`; 0 for none."""
    if jax.process_count() == 1 or not len(array):
        return int(array.max(initial=0))
    return int(_largest(put_own(array, mesh), mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _largest(array: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(array), named(mesh, REPLICATED))


@functools.partial(jax.jit, static_argnames="mesh")
def _sum_of_first_axis(array: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.sum(array, 0), named(mesh, REPLICATED))


def local(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The array itself if this process can read all of it, otherwise a copy on the host.

    All processes have to call it. The copy is made in blocks of rows: no device needs room for the
    whole array.
    """
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return array
    if array.is_fully_replicated:
        return np.asarray(array)
    whole = np.empty(array.shape, array.dtype)
    rows = max(1, _LOCAL_BYTES // max(1, whole[:1].nbytes))
    for start in range(0, len(whole), rows):
        start = min(
            start, max(0, len(whole) - rows)
        )  # all blocks have the same size and share a program
        block = _block(array, start, min(rows, len(whole)), mesh_of(array))
        whole[start : start + rows] = np.asarray(block)
    return whole


@functools.partial(jax.jit, static_argnames=("rows", "mesh"))
def _block(array: jax.Array, start: int, rows: int, mesh: Mesh) -> jax.Array:
    """A block of rows of a split array, replicated."""
    block = jax.lax.dynamic_slice_in_dim(array, start, rows)
    return jax.lax.with_sharding_constraint(block, named(mesh, REPLICATED))
