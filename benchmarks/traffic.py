"""What a device receives in a training step for a split table, on more and more devices.

    python benchmarks/traffic.py [--quick] [--json FILE]

Nothing is run: bytes are counted in compiled programs of the lookup and the update (Adagrad) of a
table of 100 million rows x 64, for 2 to 32 virtual CPU devices, and ahead of time for slices of
8 to 256 chips of TPU v5e and v6e if libtpu is installed. A device has 8,192 rows of 24 features.
Ids are drawn uniformly from the whole table ('uniform'), or from columns of the sizes of Criteo
1 TB with a long tail ('clicks').

A ratio is received / 2 (n / d) (4 + 4 D): n distinct ids of d devices, each once as an id and a row
of width D, to its owner and back. Padding counts as received. A program does not say how many rows
cross in a ragged exchange: these are counted in ids that are drawn for all devices, as is how many
steps of STEPS need a second round, in which all bytes but those of ragged rows count again. The
rows of a buffer are compared with n / d, and temporaries with the rows of a device's part of the
batch, 4 D bytes for each id, repeated or not.

--quick: 2 and 8 devices, and 1,024 rows.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import platform

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from cadc_jax import sharding
from cadc_jax.cost import hlo
from cadc_jax.tables import packed
from cadc_jax.tables.rounds import Capacity
from cadc_jax.training import placement

COLUMNS = 24
CARDINALITIES = (  # of Criteo 1 TB without the two columns that are users and items, hashed
    *(4_194_305, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 4_194_305, 10, 2_209),
    *(11_938, 155, 4, 976, 14, 4_194_305, 4_194_305, 4_194_305, 590_152, 12_973, 108, 36),
)
V, D = COLUMNS * 4_194_305, 64
PARTS = 4  # devices whose ids are drawn to count the distinct ones of each; all devices are alike
STEPS = 2  # whose ids are drawn for all devices
SLICES = {
    "16 v5e": "v5e:4x4",
    "64 v5e": "v5e:8x8",
    "256 v5e": "v5e:16x16",
    "8 v6e": "v6e:2x4",
    "64 v6e": "v6e:8x8",
    "256 v6e": "v6e:16x16",
}
RECEIVED, TEMPORARIES = "bytes received a device and step", "bytes of temporaries of a device"
BUFFER, ROUNDS = "bytes of rows in a buffer of a device", "rounds of a step"


def main() -> None:
    """Compiles all cases and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two numbers of devices, fewer rows")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 32)
    batch_rows = 1024 if arguments.quick else 8192
    meshes = {
        f"{devices} CPU devices": sharding.make_mesh(jax.devices()[:devices])
        for devices in ((2, 8) if arguments.quick else (2, 4, 8, 16, 32))
    }
    if arguments.quick or importlib.util.find_spec("libtpu") is None:
        print("No programs for TPUs: --quick, or libtpu is not installed.")
    else:
        meshes |= {name: slice_of(topology) for name, topology in SLICES.items()}
    rows = []
    print(f"{'ids':8} {'devices':16} {'distinct':>9} {'figure':37} {'MB':>9} {'ratio':>6}")
    for ids in ("uniform", "clicks"):
        distinct = distinct_ids(ids, batch_rows)
        for name, mesh in meshes.items():
            for metric, (size, least) in figures(mesh, batch_rows, ids, distinct).items():
                ratio, amount = size / least, size if metric == ROUNDS else size / 1e6
                print(f"{ids:8} {name:16} {distinct:9,.0f} {metric:37} {amount:9.2f} {ratio:6.3f}")
                rows.append(
                    {
                        "case": f"{ids}, {name}",
                        "metric": metric,
                        "ours": size,
                        "peer": least,
                        "peer_name": "least",
                        "ratio": ratio,
                    }
                )
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        result = {"machine": machine, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1))


def slice_of(name: str) -> jax.sharding.Mesh:
    """A mesh of TPUs that need not exist."""
    return sharding.make_mesh(topologies.get_topology_desc(name, platform="tpu").devices)


def distinct_ids(ids: str, batch_rows: int) -> float:
    """Distinct ids in a device's part of a batch, the mean of PARTS parts."""
    rng = np.random.default_rng(0)
    return float(np.mean([len(np.unique(draw(ids, batch_rows, rng))) for _ in range(PARTS)]))


def draw(ids: str, batch_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Ids [batch_rows * COLUMNS] of a device's part of a batch."""
    if ids == "uniform":
        return rng.integers(0, V, batch_rows * COLUMNS)
    # The logarithm of an id is uniform: p(id) is about 1 / id, as in logs of clicks.
    offsets = np.cumsum((0, *CARDINALITIES[:-1]))
    sizes = np.array(CARDINALITIES)
    return (offsets + sizes ** rng.random((batch_rows, COLUMNS)) - 1).astype(np.int64).reshape(-1)


@functools.cache
def asked(ids: str, batch_rows: int, devices: int) -> np.ndarray:
    """Rows [STEPS, d, d] that each device asks of each owner."""
    rng = np.random.default_rng(1)
    counts = np.zeros((STEPS, devices, devices), np.int64)
    for step, device in itertools.product(range(STEPS), range(devices)):
        own = np.unique(draw(ids, batch_rows, rng)) % devices
        counts[step, device] = np.bincount(own, minlength=devices)
    return counts


def rounds_of(counts: np.ndarray, room: Capacity) -> float:
    """Mean rounds of a step: one, or two if some device has too many rows for one."""
    more = (counts > room.pair).any(axis=(1, 2))
    if room.ragged:
        more |= np.maximum(counts.sum(axis=1), counts.sum(axis=2)).max(axis=1) > room.total
    return float(1 + np.mean(more))


def ragged_bytes(counts: np.ndarray) -> float:
    """Bytes of rows that a device receives in a lookup and an update, in the mean."""
    together = packed.rows_together(D)
    rows = -(-counts // together) * together
    others = rows.sum(axis=(1, 2)) - np.trace(rows, axis1=1, axis2=2)
    return float(np.mean(others) / counts.shape[1] * 2 * 4 * D)


def figures(
    mesh: jax.sharding.Mesh, batch_rows: int, ids: str, distinct: float
) -> dict[str, tuple[float, float]]:
    """Figure -> (its size, the least that there could be)."""
    lowered, room = lowered_exchange(mesh, batch_rows * COLUMNS, distinct)
    compiled = lowered.compile()
    counts = asked(ids, batch_rows, mesh.size)
    kinds = hlo.received_bytes(compiled.as_text())
    ragged, rounds = kinds.pop("ragged-all-to-all"), rounds_of(counts, room)
    received = rounds * sum(kinds.values()) + (ragged_bytes(counts) if ragged else 0)
    held = room.total if room.ragged else mesh.size * room.pair
    return {
        RECEIVED: (received, 2 * distinct * (4 + 4 * D)),
        ROUNDS: (rounds, 1),
        BUFFER: (held * 4 * D, distinct * 4 * D),
        TEMPORARIES: (compiled.memory_analysis().temp_size_in_bytes, batch_rows * COLUMNS * 4 * D),
    }


def lowered_exchange(
    mesh: jax.sharding.Mesh, ids_a_device: int, distinct: float
) -> tuple[jax.stages.Lowered, Capacity]:
    """The lookup and the update of a table that is split over all devices, and their room."""
    table = jax.ShapeDtypeStruct((V, D), jnp.float32)
    ids = ids_a_device * mesh.size
    placed = placement.plan_placement(
        *(mesh, {"t": table}, {"t"}, "adagrad", {"t": ids}, 4 * V * D),
        distinct={"t": distinct},
    )
    stored = placement.shape(placed, "t", table)
    slots = jax.eval_shape(functools.partial(placement.init_slots, None, "adagrad", "t"), stored)
    split = sharding.named(mesh, sharding.BATCH)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(table, slots, ids, scale):
        rows = placement.lookup(placed, {"t": table}, {"t": ids})["t"]
        grads = rows * scale[:, None]
        return placement.update(placed, "adagrad", "t", table, slots, ids, grads, 0.1)

    lowered = step.lower(
        *(placement.like(placed, "t", tree) for tree in (stored, slots)),
        *(jax.ShapeDtypeStruct((ids,), kind, sharding=split) for kind in (jnp.int32, jnp.float32)),
    )
    return lowered, placed["t"].capacity


if __name__ == "__main__":
    main()
