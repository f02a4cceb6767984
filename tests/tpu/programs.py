"""Compiles a program for a TPU and prints its figures as JSON.

python -m tests.tpu.programs training-adagrad v5e 4 64 compute_dtype=bfloat16
"""

import dataclasses
import functools
import json
import math
import re
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

from benchmarks import traffic
from cadc_jax import cost, sharding, sparse_optimizers
from cadc_jax.cost import hlo
from cadc_jax.cost.sides import both_sides
from cadc_jax.factorization import als, als_solver, sgd_rows, sgd_step, topk
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.als_solver import HalfStepConfig, SideData
from cadc_jax.factorization.interactions import Chunks
from cadc_jax.factorization.sgd import SGDConfig
from cadc_jax.factorization.sgd_rows import Block, Penalties
from cadc_jax.factorization.sgd_step import State, StepConfig
from cadc_jax.models import embeddings, scoring
from cadc_jax.models.dlrm import DLRM
from cadc_jax.resident import records
from cadc_jax.resident.batches import ResidentRows
from cadc_jax.tables import packed, rounds, trips
from cadc_jax.training import placement, step
from cadc_jax.training.placement import DeviceConfig
from cadc_jax.training.step import TrainConfig

SLICES = {
    "v5e": {1: "v5e:2x2", 4: "v5e:2x2", 64: "v5e:8x8"},
    "v5p": {1: "v5p:2x2x1", 4: "v5p:2x2x1"},
    "v6e": {256: "v6e:16x16"},
}
NUMBERS = 1 << 29  # of the tables of a chip: 2.1 GB
STEPS = 64  # in a program of resident rows
CONFIG = TrainConfig(batch_rows=8192, table_optimizer="adagrad")


class Program(NamedTuple):
    """A program of one chip.

    Attributes:
      lowered: what is compiled.
      tables: bytes of each table that the chip is given.
      expected: bytes that it should receive from other chips; None if nothing predicts them.
      bodies: runs of the loop in an ALS iteration.
    """

    lowered: jax.stages.Lowered
    tables: list[int]
    expected: float | None = None
    bodies: int | None = None


def main():
    name, chip, chips, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    described = topologies.get_topology_desc(platform="tpu", topology_name=SLICES[chip][chips])
    mesh = sharding.make_mesh(described.devices[:chips])
    settings = dict(x.split("=") for x in sys.argv[5:])  # of TrainConfig, strings
    kind, _, variant = name.partition("-")
    if kind == "training":
        made = training(mesh, width, variant, settings)
    elif kind == "als":
        made = half_step(mesh, width, variant)
    else:
        programs = {"sgd": logistic, "scoring": predict, "ranking": rank, "topk": retrieve}
        programs["exchange"] = exchange
        made = programs[kind](mesh, width)
    compiled = made.lowered.compile()
    text = compiled.as_text()
    found = {
        "tables": sum(made.tables),
        "largest": max(made.tables),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "moved_tables": moved(text, max(made.tables) // 8),
        "received": sum(hlo.received_bytes(text).values()),
        "ragged": hlo.received_bytes(text)["ragged-all-to-all"],
        "expected": made.expected,
        "bodies": made.bodies,
        "sorts": [numbers(x) for x in re.findall(r"= \(?\w+\[([\d,]*)\][^=]* sort\(", text)],
        "host": len(re.findall(r" (?:infeed|outfeed|send|recv)\(|MoveToHost|callback", text)),
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


def bytes_of(mesh, tree):
    """Bytes that a chip holds of each array."""
    return [
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    ]


def place(mesh, tables, trained=(), ids=0):
    """A placement that splits every table over all chips, and the room that asks for it."""
    batch = ids if isinstance(ids, dict) else dict.fromkeys(tables, ids)
    no_ids = dict.fromkeys(tables, 0)  # for which no table is split
    whole = placement.plan_placement(mesh, tables, trained, "adagrad", no_ids)
    held = [table.device_bytes for table in whole.tables]
    # One byte too little unless every table is split.
    room = sum(held) / mesh.size + (1 - 1 / mesh.size) * min(held) - 1 if mesh.size > 1 else 0
    limits = DeviceConfig(room)
    placed = placement.plan_placement(mesh, tables, trained, "adagrad", batch, limits.room)
    assert mesh.size == 1 or all(table.split for table in placed.tables)
    return placed, limits


def there(placed, trees):
    return {name: placement.like(placed, name, tree) for name, tree in trees.items()}


def training(mesh, width, variant, settings):
    """Up to eight steps of a DLRM on 8,192 rows each; tables are split over all chips.

    'resident': STEPS steps on batches that are made of rows on the chips.
    """
    config = dataclasses.replace(CONFIG, **settings)
    fixed = {"user", "item"} if variant == "frozen" else set()
    model, sizes = DLRM(width, (512, 256), (512, 256)), sizes_of(width, mesh.size)
    tables = cost.table_shapes(sizes, width, width)
    content, batch = cost.content_shapes(sizes), cost.batch_shapes(sizes, config)
    ids = {k: len(x) for k, x in jax.eval_shape(embeddings.lookup_ids, content, batch).items()}
    trained = set(tables) - fixed
    placed, limits = place(mesh, tables, trained, ids)
    expected = cost.training(
        *("step", model, config, sizes, tables, frozenset(fixed), mesh.size, limits)
    )
    forms = {name: placement.shape(placed, name, x) for name, x in tables.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    start = {name: forms[name] for name in trained}
    constant = {name: forms[name] for name in fixed}
    state = jax.eval_shape(
        lambda t, f, c, b, k: step.init_state(model, config, t, f, c, b, k),
        *(start, constant, content, batch, key),
    )
    network = on(mesh, state.replace(tables={}, slots={}))
    held = there(placed, state.tables)
    state = network.replace(tables=held, slots=there(placed, state.slots))
    constant = there(placed, constant)
    if variant == "resident":
        run, source, count = step.train_steps_of, resident_rows(mesh), STEPS
    else:
        batches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((8, *x.shape), x.dtype), batch)
        run, source = step.train_steps, on(mesh, batches, sharding.BATCHES)
        count = on(mesh, jax.ShapeDtypeStruct((), jnp.int32))
    lowered = run.lower(
        *(model, config, state, constant, on(mesh, content), source, count, on(mesh, key), placed)
    )
    return Program(lowered, bytes_of(mesh, (held, constant)), sum(expected.received.values()))


def resident_rows(mesh):
    """A tenth of Criteo Kaggle on the chips: 13 dense and 24 categorical features of any size."""
    few = {
        "user": np.full(1, 1 << 20, np.int32),
        "item": np.full(1, 1 << 20, np.int32),
        "label": np.ones(1, np.float32),
        "dense": np.full((1, 13), 0.5, np.float32),
        "categorical": np.repeat(np.int32([[9, 999, 1 << 20]]), 8, axis=1),
    }
    layout, rows = records.plan(few, lanes=True), 4_580_000
    together = packed.rows_together(layout.words)
    wide = jax.ShapeDtypeStruct((-(-rows // together), packed.LANES), jnp.uint32)
    table = packed.Packed(on(mesh, wide), layout.words)
    start = on(mesh, jax.ShapeDtypeStruct((2,), jnp.uint32))
    return ResidentRows(table, None, start, layout, rows, CONFIG.batch_rows, STEPS, False, mesh)


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
    users, items = both_sides(sizes, als.chunking(config, "tpu"), mesh.size)
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
    static = HalfStepConfig("implicit", solver, config.cg_steps, users.chunk_rows)
    lowered = als_solver.half_step.lower(
        *(table, side, fixed, fixed_penalty, scalar, scalar, static, mesh)
    )
    both = cost.als(sizes, config, mesh.size).received
    share = items.table_rows / (users.table_rows + items.table_rows)
    expected = both["fixed side"] * share + both["K x K matrix"] / 2
    bodies = (users.chunks + items.chunks) // mesh.size
    return Program(lowered, bytes_of(mesh, (table, fixed)), expected, bodies)


def logistic(mesh, width):
    """Logistic SGD on a block of 1,024 batches of 8,192 rows a chip, with row-wise Adagrad."""
    chips, config = mesh.size, SGDConfig(factors=width - 1, batch_rows=8192 * mesh.size)  # a bias
    rows = NUMBERS * chips // width // 2
    sizes = cost.Sizes("click", 1 << 23, rows, rows, 0, entries=1 << 23)
    ragged = trips.can_be_ragged(mesh)
    capacity = sgd_rows.item_capacity(config.batch_rows, 0, rows, chips, 1 / rows, ragged=ragged)
    static = StepConfig(config.optimizer, 0, rows, capacity, mesh)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    tables = [jax.ShapeDtypeStruct((rows, width), jnp.float32)] * 2
    init = functools.partial(sparse_optimizers.init, config.optimizer)
    state = State(*tables, number, *(jax.eval_shape(init, table) for table in tables))
    row, label = (jax.ShapeDtypeStruct((chips << 23,), x) for x in (jnp.int32, jnp.float32))
    state = jax.tree.map(lambda x: on(mesh, x, sharding.TABLE if x.ndim else P()), state)
    order = jax.ShapeDtypeStruct((1 << 10, config.batch_rows), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    penalty = jax.ShapeDtypeStruct((rows,), jnp.float32)
    lowered = sgd_step.train_block.lower(
        *(state, on(mesh, Block(row, row, label), sharding.TABLE)),
        on(mesh, order, sharding.BATCHES),
        Penalties(on(mesh, penalty, sharding.TABLE), on(mesh, penalty)),
        *on(mesh, (number, key)),
        config=static,
    )
    expected = sum(cost.sgd_factorization(sizes, config, chips, "tpu").received.values())
    return Program(lowered, bytes_of(mesh, (state.user, state.item)), expected)


def exchange(mesh, width):
    """The lookup and the update of a split table, for 8,192 rows a chip of 24 distinct ids."""
    assert width == traffic.D
    ids = 8192 * traffic.COLUMNS
    lowered, room = traffic.lowered_exchange(mesh, ids, ids)
    expected = 2 * rounds.received_bytes(room, mesh.size, 4 * width)
    return Program(lowered, [4 * width * traffic.V // mesh.size], expected)


def predict(mesh, width):
    """Scores of a DLRM of 256 users for 64 items each, with features of the row."""
    batch = {
        "user": jax.ShapeDtypeStruct((256,), jnp.int32),
        "item": jax.ShapeDtypeStruct((256, 64), jnp.int32),
        "dense": jax.ShapeDtypeStruct((256, 13), jnp.float32),
        "categorical": jax.ShapeDtypeStruct((256, 24), jnp.int32),
    }
    return network(mesh, width, sizes_of(width, mesh.size), on(mesh, batch, sharding.BATCH))


def rank(mesh, width):
    """Scores of a DLRM of 64 users for the same 4,096 items, with features of users and items."""
    rows = NUMBERS * mesh.size // width
    sizes = cost.Sizes(
        *("ranking", 10**8, rows // 2, rows // 4, rows // 4), dense=(0, 0, 0), categorical=(4, 0, 3)
    )
    users = {
        "user": jax.ShapeDtypeStruct((64,), jnp.int32),
        "dense": jax.ShapeDtypeStruct((64, 0), jnp.float32),
        "categorical": jax.ShapeDtypeStruct((64, 0), jnp.int32),
    }
    items = {"item": jax.ShapeDtypeStruct((1, 4096), jnp.int32)}
    return network(mesh, width, sizes, on(mesh, users, sharding.BATCH) | on(mesh, items))


def network(mesh, width, sizes, batch):
    """Scores of a network whose tables are split over all chips, as it evaluates in training."""
    model = DLRM(width, (512, 256), (512, 256))
    shapes = cost.table_shapes(sizes, width, width)
    placed, _ = place(mesh, shapes)
    tables = there(placed, {name: placement.shape(placed, name, x) for name, x in shapes.items()})
    content = on(mesh, cost.content_shapes(sizes))
    params = on(mesh, scoring.parameter_shapes(model, tables, content, sizes.dense[1]))
    lowered = scoring.predict.lower(model, params, tables, content, batch, mesh.size)
    return Program(lowered, bytes_of(mesh, tables))


def retrieve(mesh, width):
    """The 100 best of a million items a chip for 256 users."""
    table = on(mesh, jax.ShapeDtypeStruct((mesh.size << 20, width), jnp.float32), sharding.BATCH)
    queries = on(mesh, jax.ShapeDtypeStruct((256, width), jnp.float32))
    exclude = on(mesh, jax.ShapeDtypeStruct((256, 100), jnp.int32))
    spread = mesh if mesh.size > 1 else None
    lowered = topk.retrieve.lower(queries, table, 100, exclude, mesh=spread)
    scores_and_ids = (mesh.size - 1) * 256 * 100 * 8
    return Program(lowered, bytes_of(mesh, table), scores_and_ids)


if __name__ == "__main__":
    main()
