"""Losses of training on split tables and a batch in which one id fills half of all places.

python -m tests.training.split_runs PORT PROCESSES PROCESS FILE: in several processes together, of
one device each; the losses go to FILE, as JSON.
"""

import dataclasses
import itertools
import json
import math
import sys

import jax

from cadc_jax import sharding
from cadc_jax.errors import ConfigError
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.runtime import distributed
from cadc_jax.training import loop, placement
from cadc_jax.training.feeds import HostFeed
from cadc_jax.training.loop import FitOptions, StartTables
from cadc_jax.training.step import TrainConfig
from tests.training.examples import batch, content, tables

CONFIG = TrainConfig(
    batch_rows=16,
    negatives=2,
    max_evaluations=2,
    patience=9,
    evaluation_steps=3,
    table_learning_rate=0.1,
)
RUNS = {  # name -> optimizer, and the tables that it does not train
    "frozen": ("adagrad", ("user", "item")),
    "adagrad": ("adagrad", ()),
    "adam": ("adam", ()),
}


def rows():
    """A batch in which a user has half of all rows, and an item half of all places."""
    made = batch(rows=CONFIG.batch_rows)
    made["user"][::2] = 1
    made["item"].reshape(-1)[::2] = 3
    return made


def losses(name, mesh):
    """Mean losses of three steps each."""
    optimizer, frozen = RUNS[name]
    config = dataclasses.replace(CONFIG, table_optimizer=optimizer)
    own = sharding.own_parts(mesh)
    size = CONFIG.batch_rows // mesh.size
    part = {k: x[own[0] * size : (own[-1] + 1) * size] for k, x in rows().items()}
    values = itertools.count()
    fitted = loop.fit(
        *(TwoTower((4,)), config, StartTables(tables(), frozenset(frozen)), content()),
        HostFeed(lambda start: itertools.repeat(part), 3),
        lambda params, tables: next(values),
        jax.random.key(0),
        FitOptions(mesh, room_to_split_all(mesh, optimizer, frozen)),
    )
    return [entry["loss"] for entry in fitted.history[1:]]


def room_to_split_all(mesh, optimizer, frozen):
    """The memory of a device with which every table is split, if there are several devices."""
    if mesh.size == 1:
        return math.inf
    given = tables()
    plan = [mesh, given, set(given) - set(frozen), optimizer, dict.fromkeys(given, 0)]
    whole = placement.plan_placement(*plan)
    room = sum(table.device_bytes for table in whole.tables) // mesh.size
    while True:
        try:
            placed = placement.plan_placement(*plan, room)
        except ConfigError:
            room += 1
        else:
            assert all(table.split for table in placed.tables)
            return room


def main():
    port, processes, process, file = sys.argv[1:]
    jax.config.update("jax_disable_most_optimizations", True)  # a third less time, for compiling
    distributed.initialize(f"localhost:{port}", int(processes), int(process))
    mesh = sharding.make_mesh()
    found = {name: losses(name, mesh) for name in RUNS}
    with open(file, "w") as out:
        json.dump(found, out)
    distributed.finish()


if __name__ == "__main__":
    main()
