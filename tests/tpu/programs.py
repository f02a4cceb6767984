"""Compiles a program for a TPU and prints its figures as JSON.

python -m tests.tpu.programs training-adagrad v5e 4 64
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from cadc_jax import cost, sharding
from cadc_jax.cost import hlo
from cadc_jax.cost.sides import both_sides
from cadc_jax.evaluation import scorers
from cadc_jax.factorization import als, als_solver, topk
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.als_solver import HalfStepConfig, SideData
from cadc_jax.factorization.interactions import Chunks
from cadc_jax.models import embeddings, scoring
from cadc_jax.models.dlrm import DLRM
from cadc_jax.training import placement, step
from cadc_jax.training.placement import DeviceConfig
from cadc_jax.training.step import TrainConfig

SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1"}
NUMBERS = 1 << 29  # of the tables of a chip: 2.1 GB
CONFIG = TrainConfig(batch_rows=8192, table_optimizer="adagrad")


def main():
    name, chip, chips, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    described = topologies.get_topology_desc(platform="tpu", topology_name=SLICES[chip])
    mesh = sharding.make_mesh(chips, described.devices[:chips])
    kind, _, variant = name.partition("-")
    expected = None
    if kind == "training":
        frozen = {"user", "item"} if variant == "frozen" else set()
        program, expected = training(mesh, width, frozen)
    elif kind == "als":
        program, expected = half_step(mesh, width, variant)
    else:
        program = {"scoring": predict, "grid": grid, "topk": retrieve}[kind](mesh, width)
    text, memory = program.as_text(), program.memory_analysis()
    largest = NUMBERS // 2  # numbers of the largest table of a chip
    found = {
        "tables": 4 * NUMBERS,
        "temporaries": memory.temp_size_in_bytes,
        "moved_tables": moved(text, largest // 2),
        "received": sum(hlo.received_bytes(text).values()),
        "expected": expected,
        "sorts": [numbers(x) for x in re.findall(r"= \(?\w+\[([\d,]*)\][^=]* sort\(", text)],
        "gathers": len(re.findall(r"= \S+ gather\(", text)),
        "bfloat16": len(re.findall(r"\bbf16\[", text)),
    }
    print(json.dumps(found))


def moved(text, least):
    """Copies, transposes and gatherings from other chips of at least `least` numbers."""
    kinds = "copy|copy-start|transpose|all-gather|all-gather-start"
    made = re.findall(rf"= \(?\w+\[([\d,]+)\].*? (?:{kinds})\(", text)
    return sum(numbers(dims) >= least for dims in made)


def numbers(dims):
    total = 1
    for n in filter(None, dims.split(",")):
        total *= int(n)
    return total


def sizes_of(width, chips=1):
    rows = NUMBERS * chips // width
    return cost.Sizes(
        *("click", 10**8, rows // 2, rows // 4, rows // 4),
        dense=(0, 13, 0),
        categorical=(0, 24, 0),
    )


def on(mesh, tree, spec=sharding.REPLICATED):
    where = sharding.named(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def training(mesh, width, frozen):
    """A step of a DLRM on 8,192 rows; tables are split over all chips."""
    model, sizes = DLRM(width, (512, 256), (512, 256)), sizes_of(width, mesh.size)
    tables = cost.table_shapes(sizes, width, width)
    content, batch = cost.content_shapes(sizes), cost.batch_shapes(sizes, CONFIG)
    ids = {k: len(x) for k, x in jax.eval_shape(embeddings.lookup_ids, content, batch).items()}
    trained = set(tables) - frozen
    whole = placement.plan_placement(mesh, tables, trained, "adagrad", ids)
    held = [table.device_bytes for table in whole.tables]
    # One byte too little unless every table is split.
    room = sum(held) / mesh.size + (1 - 1 / mesh.size) * min(held) - 1 if mesh.size > 1 else 0
    limits = DeviceConfig(mesh.size, room)
    expected = cost.training(
        *("step", model, CONFIG, sizes, tables, frozenset(frozen), mesh.size, limits)
    )
    placed = placement.plan_placement(mesh, tables, trained, "adagrad", ids, limits.room)
    assert mesh.size == 1 or all(table.split for table in placed.tables)
    forms = {name: placement.shape(placed, name, x) for name, x in tables.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    start = {name: forms[name] for name in trained}
    constant = {name: forms[name] for name in frozen}
    state = jax.eval_shape(
        lambda t, f, c, b, k: step.init_state(model, CONFIG, t, f, c, b, k),
        *(start, constant, content, batch, key),
    )

    def there(trees):
        return {name: placement.like(placed, name, tree) for name, tree in trees.items()}

    network = on(mesh, state.replace(tables={}, slots={}))
    state = network.replace(tables=there(state.tables), slots=there(state.slots))
    lowered = step.train_step.lower(
        *(model, CONFIG, state, there(constant), on(mesh, content)),
        *(on(mesh, batch, sharding.BATCH), on(mesh, key), placed),
    )
    return lowered.compile(), sum(expected.received.values())


def half_step(mesh, width, solver):
    """The users' half of an ALS iteration: 20 million entries with the tail of MovieLens 20M."""
    config, rng = ALSConfig(factors=width, solver=solver), np.random.default_rng(0)
    counts = [
        np.maximum(1, 20e6 * rng.dirichlet(np.full(rows, 0.5))).astype(np.int64)
        for rows in (138_000, 27_000)
    ]
    sizes = cost.Sizes(
        *("ranking", 0, len(counts[0]), len(counts[1]), 0),
        entries=int(counts[0].sum()),
        user_counts=counts[0],
        item_counts=counts[1],
    )
    users, items = both_sides(sizes, als.chunking(config, mesh.size, on_cpu=False), mesh.size)
    assert not users.long_rows  # each row is solved in a single chunk
    cells = (users.chunks, users.segments)
    index = jax.ShapeDtypeStruct((*cells, users.segment), jnp.int32)
    row = jax.ShapeDtypeStruct(cells, jnp.int32)
    short = Chunks(index=index, row=row, length=row, value=None)
    none = jax.tree.map(lambda x: jax.ShapeDtypeStruct((0, *x.shape[1:]), x.dtype), short)
    vectors = [jax.ShapeDtypeStruct((x.table_rows,), jnp.float32) for x in (users, items)]
    tables = [jax.ShapeDtypeStruct((len(x), width), jnp.float32) for x in vectors]
    spread = jax.sharding.PartitionSpec(mesh.axis_names)
    table, side, fixed, fixed_penalty = on(
        mesh, (tables[0], SideData(vectors[0], short, none), tables[1], vectors[1]), spread
    )
    scalar = on(mesh, jax.ShapeDtypeStruct((), jnp.float32))
    static = HalfStepConfig("implicit", solver, config.cg_steps, "gathered", users.chunk_rows)
    lowered = als_solver.half_step.lower(
        *(table, side, fixed, fixed_penalty, scalar, scalar, static, mesh)
    )
    both = cost.als(sizes, config, mesh.size).received
    share = items.table_rows / (users.table_rows + items.table_rows)
    expected = both["fixed side"] * share + both["K x K matrix"] / 2
    return lowered.compile(), expected


def predict(mesh, width):
    """Scores of 256 users for 64 items each."""
    sizes, model = sizes_of(width), DLRM(width, (512, 256), (512, 256))
    shapes = cost.table_shapes(sizes, width, width)
    placed = placement.plan_placement(mesh, shapes, (), "sgd", dict.fromkeys(shapes, 0))
    tables = {
        name: placement.like(placed, name, placement.shape(placed, name, x))
        for name, x in shapes.items()
    }
    content = on(mesh, cost.content_shapes(sizes))
    params = on(mesh, scoring.parameter_shapes(model, tables, content, 13))
    batch = {
        "user": jax.ShapeDtypeStruct((256,), jnp.int32),
        "item": jax.ShapeDtypeStruct((256, 64), jnp.int32),
        "dense": jax.ShapeDtypeStruct((256, 13), jnp.float32),
        "categorical": jax.ShapeDtypeStruct((256, 24), jnp.int32),
    }
    return scoring.predict.lower(model, params, tables, content, on(mesh, batch)).compile()


def grid(mesh, width):
    """Scores of 64 users for all of 262,144 items, by factors."""
    tables = {
        "user": jax.ShapeDtypeStruct((1 << 20, width), jnp.float32),
        "item": jax.ShapeDtypeStruct((1 << 18, width), jnp.float32),
    }
    batch = {
        "user": jax.ShapeDtypeStruct((64,), jnp.int32),
        "item": jax.ShapeDtypeStruct((1, 1 << 18), jnp.int32),
    }
    return scorers.dot_products.lower(*on(mesh, (tables, batch))).compile()


def retrieve(mesh, width):
    """The 100 best of a million items a chip."""
    table = on(mesh, jax.ShapeDtypeStruct((mesh.size << 20, width), jnp.float32), sharding.BATCH)
    queries = on(mesh, jax.ShapeDtypeStruct((256, width), jnp.float32))
    exclude = on(mesh, jax.ShapeDtypeStruct((256, 100), jnp.int32))
    spread = mesh if mesh.size > 1 else None
    return topk.retrieve.lower(queries, table, 100, exclude, mesh=spread).compile()


if __name__ == "__main__":
    main()
