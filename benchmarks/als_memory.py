"""Memory of each device for an ALS half-step, on 1 to 8 virtual devices, from compiled programs.

    python benchmarks/als_memory.py [--quick] [--json FILE]

Random interactions of 500,000 users and 100,000 items (--quick: a tenth), 64 factors. 'gathered'
copies the fixed side to every device, 'sharded' leaves it split.
"""

import argparse
import json
import os
import pathlib
import platform

import jax
import numpy as np

from cadc_jax import sharding
from cadc_jax.factorization import als
from cadc_jax.factorization.interactions import Interactions


def main() -> None:
    """Compiles the half-steps and prints their memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    interactions = random_interactions(10 if arguments.quick else 1)
    rows = []
    print("fixed side  devices  tables and entries MB  temporaries MB   of one device")
    for fixed_side in ("gathered", "sharded"):
        config = als.ALSConfig(fixed_side=fixed_side)
        first = None
        for devices in (1, 2, 4, 8):
            held, temporary = megabytes(interactions, config, devices)
            print(f"{fixed_side:10s}  {devices:7d}  {held:21.1f}  {temporary:14.1f}", flush=True)
            first = first or held + temporary
            rows.append(
                {
                    "case": f"{fixed_side}, {devices} devices",
                    "metric": "MB of each device, peer: one device",
                    "ours": held + temporary,
                    "peer": first,
                    "peer_name": "ours, 1 device",
                    "ratio": (held + temporary) / first,
                }
            )
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        result = {"machine": machine, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1))


def random_interactions(scale: int) -> Interactions:
    """Uniformly random interactions; `scale` divides the size."""
    users, items, entries = 500_000 // scale, 100_000 // scale, 4_000_000 // scale
    rng = np.random.default_rng(0)
    return Interactions.from_rows(
        rng.integers(0, users, entries), rng.integers(0, items, entries), users, items
    )


def megabytes(
    interactions: Interactions, config: als.ALSConfig, devices: int
) -> tuple[float, float]:
    """MB of each device while the items are solved: tables and entries, and temporaries.

    The fixed side is the users', the larger one.
    """
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    users, items = als.prepare(interactions, config, mesh)
    program = als.lower_half_step(items, items.empty_table(), users, users.empty_table()).compile()
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held -= memory.alias_size_in_bytes
    return held / 1e6, memory.temp_size_in_bytes / 1e6


if __name__ == "__main__":
    main()
