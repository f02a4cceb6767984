"""Memory of each device for an ALS half-step, on 1 to 8 virtual devices, from compiled programs.

    python benchmarks/als_memory.py [--quick] [--json FILE]

Random interactions of 500,000 users and 100,000 items (--quick: a tenth), 64 factors. 'gathered'
copies the fixed side to every device, 'sharded' leaves it in pieces.
"""

import argparse
import json
import os
import pathlib
import platform

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax import sharding
from cadc_jax.factorization import als
from cadc_jax.factorization.als_solver import half_step
from cadc_jax.factorization.interactions import Interactions


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    scale = 10 if arguments.quick else 1
    users, items, entries = 500_000 // scale, 100_000 // scale, 4_000_000 // scale
    rng = np.random.default_rng(0)
    interactions = Interactions.from_rows(
        rng.integers(0, users, entries), rng.integers(0, items, entries), users, items
    )
    rows = []
    print("fixed side  devices  tables and entries MB  temporaries MB   of one device")
    for fixed_side in ("gathered", "sharded"):
        config = als.ALSConfig(fixed_side=fixed_side)
        first = None
        for devices in (1, 2, 4, 8):
            mesh = sharding.make_mesh(devices=jax.devices()[:devices])
            memory = compiled(interactions, config, mesh).memory_analysis()
            held = (memory.argument_size_in_bytes + memory.output_size_in_bytes) / 1e6
            held -= memory.alias_size_in_bytes / 1e6
            temporary = memory.temp_size_in_bytes / 1e6
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


def compiled(interactions: Interactions, config: als.ALSConfig, mesh: jax.sharding.Mesh):
    """The program that solves the items, the users' table being the larger, fixed one."""
    users, items = als._prepare(interactions, config, mesh)
    user = als._table(users, jnp.zeros((interactions.num_users, config.factors)), config)
    item = als._table(items, jnp.zeros((interactions.num_items, config.factors)), config)
    arguments = als._arguments(items, item, users, user, config, 0.0)
    return half_step.lower(*arguments).compile()


if __name__ == "__main__":
    main()
