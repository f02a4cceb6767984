"""Predictions of `cadc plan` against compiled programs, on 1 to 8 virtual devices.

    python benchmarks/plan.py [--quick] [--json FILE]

Nothing is run. Arguments and temporaries come from `memory_analysis()`. FLOPs and bytes between
devices are counted in the optimised program. Training: DLRM with all tables split, or as without
a limit to their memory, trained and frozen. ALS: an iteration with the fixed side gathered and
sharded. The autoencoder: a fit. --quick: 1 and 8 devices, and tables of a tenth of the size. A
ratio is predicted / compiled.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
from collections.abc import Iterator

import jax
import numpy as np
from flax import linen as nn

from cadc_jax import cost, sharding
from cadc_jax.cost import hlo
from cadc_jax.factorization import als, autoencoder, gram
from cadc_jax.factorization import autoencoder_solver as solver
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.models import embeddings
from cadc_jax.models.dlrm import DLRM
from cadc_jax.training import placement, step
from cadc_jax.training.placement import DeviceConfig
from cadc_jax.training.step import TrainConfig

RANK = 16
ARGUMENTS, TEMPORARIES = "MB of arguments", "MB of temporaries"
FLOPS, RECEIVED = "MFLOP of matrix products", "MB received"

Pairs = dict[str, tuple[float, float]]  # figure -> (predicted, compiled), in bytes or FLOPs


def main() -> None:
    """Compares all cases and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two numbers of devices, less data")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    rows = []
    print(f"{'case':44} {'figure of a device':26} {'predicted':>11} {'compiled':>11} {'ratio':>6}")
    for case, pairs in cases(arguments.quick):
        for metric, (predicted, found) in pairs.items():
            ratio = predicted / found if found else float(predicted == found)
            print(f"{case:44} {metric:26} {predicted / 1e6:11.3f} {found / 1e6:11.3f} {ratio:6.3f}")
            rows.append(
                {
                    "case": case,
                    "metric": f"{metric}, predicted / compiled",
                    "ours": predicted / 1e6,
                    "peer": found / 1e6,
                    "peer_name": "compiled program",
                    "ratio": ratio,
                }
            )
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        result = {"machine": machine, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1))


def cases(quick: bool) -> Iterator[tuple[str, Pairs]]:
    """Name and figures of each case."""
    scale = 10 if quick else 1
    sizes = cost.Sizes(
        *("click", 10**6, 200_000 // scale, 50_000 // scale, 1_000_000 // scale),
        dense=(0, 13, 0),
        categorical=(0, 24, 0),
    )
    matrix = random_interactions(100_000 // scale, 20_000 // scale, 1_000_000 // scale)
    config = TrainConfig(batch_rows=1024, table_optimizer="adagrad")
    model = DLRM(RANK, (64, 32), (128, 64))
    for devices in (1, 8) if quick else (1, 2, 4, 8):
        for frozen in ((), ("user", "item")):
            for split in (False, True) if devices > 1 else (False,):
                how = f"{'all split' if split else 'no limit'}, {'frozen' if frozen else 'trained'}"
                pairs = training_pairs(model, config, sizes, frozenset(frozen), devices, split)
                yield f"dlrm, {how}, {devices} devices", pairs
        for fixed_side in ("gathered", "sharded"):
            pairs = als_pairs(matrix, als.ALSConfig(factors=32, fixed_side=fixed_side), devices)
            yield f"als, {fixed_side}, {devices} devices", pairs
        pairs = autoencoder_pairs(matrix, AutoencoderConfig(factors=32), devices)
        yield f"autoencoder, {devices} devices", pairs


def training_pairs(
    model: nn.Module,
    config: TrainConfig,
    sizes: cost.Sizes,
    frozen: frozenset[str],
    devices: int,
    split: bool,
) -> Pairs:
    """Figures of a training step; `split` splits all tables over all devices."""
    tables = cost.table_shapes(sizes, RANK, RANK)
    limits = DeviceConfig()
    if split:
        limits = DeviceConfig(_bytes_that_split_all(config, sizes, tables, frozen, devices))
    predicted = cost.training("step", model, config, sizes, tables, frozen, devices, limits, "cpu")
    program = compiled_step(model, config, sizes, tables, frozen, devices, limits)
    memory, text = program.memory_analysis(), program.as_text()
    batch = cost.batch_shapes(sizes, config)
    parts = predicted.memory
    arguments = sum(x.size * x.dtype.itemsize for x in batch.values()) / devices + sum(
        parts[name]
        for name in (
            "tables",
            "their optimizer's state",
            "network and its optimizer's state",
            "content of users and items",
        )
    )
    temporaries = parts["activations"] + parts["rows of the batch and gradients"]
    return {
        ARGUMENTS: (arguments, memory.argument_size_in_bytes),
        TEMPORARIES: (temporaries, memory.temp_size_in_bytes),
        FLOPS: (predicted.flops, hlo.product_flops(text)),
        RECEIVED: (sum(predicted.received.values()), sum(hlo.received_bytes(text).values())),
    }


def _bytes_that_split_all(config, sizes, tables, frozen, devices: int) -> float:
    """Memory for tables that is one byte too small unless every table is split."""
    no_ids = dict.fromkeys(tables, 0)  # for which no table is split
    whole = cost.place(tables, config, frozen, no_ids, devices, DeviceConfig())
    held = [table.device_bytes for table in whole.tables]
    return (sum(held) - min(held)) / devices + min(held) - 1


def _batch_ids(config: TrainConfig, sizes: cost.Sizes) -> dict[str, int]:
    """Name of a table -> ids in a batch of all devices."""
    content, batch = cost.content_shapes(sizes), cost.batch_shapes(sizes, config)
    return {k: len(x) for k, x in jax.eval_shape(embeddings.lookup_ids, content, batch).items()}


def compiled_step(
    model: nn.Module,
    config: TrainConfig,
    sizes: cost.Sizes,
    tables: dict[str, jax.ShapeDtypeStruct],
    frozen: frozenset[str],
    devices: int,
    limits: DeviceConfig,
) -> jax.stages.Compiled:
    """The program of a training step, compiled for shapes."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    content, batch = cost.content_shapes(sizes), cost.batch_shapes(sizes, config)
    ids, trained = _batch_ids(config, sizes), set(tables) - frozen
    placed = placement.plan_placement(
        mesh, tables, trained, config.table_optimizer, ids, limits.room
    )

    def on(tree, spec):
        where = sharding.named(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    def there(trees):
        return {name: placement.like(placed, name, tree) for name, tree in trees.items()}

    everywhere = sharding.REPLICATED
    whole = {name: placement.shape(placed, name, x) for name, x in tables.items()}
    constant = {name: x for name, x in whole.items() if name in frozen}
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = functools.partial(step.init_state, model, config)
    start = {name: x for name, x in whole.items() if name in trained}
    state = jax.eval_shape(init, start, constant, content, batch, key)
    network = on(state.replace(tables={}, slots={}), everywhere)
    state = network.replace(tables=there(state.tables), slots=there(state.slots))
    constant = there(constant)
    lowered = step.train_step.lower(
        *(model, config, state, constant, on(content, everywhere), on(batch, sharding.BATCH)),
        *(on(key, everywhere), placed),
    )
    return lowered.compile()


def als_pairs(matrix: Interactions, config: als.ALSConfig, devices: int) -> Pairs:
    """Figures of an ALS iteration; memory of the larger half-step."""
    predicted = cost.als(_sizes(matrix), config, devices, platform="cpu")
    parts = predicted.memory
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    programs = compiled_half_steps(matrix, config, mesh)
    memory = [program.memory_analysis() for program in programs]
    texts = [program.as_text() for program in programs]
    # Each half-step is given both tables and the entries of one side.
    arguments = parts["entries, by user and by item"] + 2 * (
        parts["tables of users and items"] + parts["regularization of their rows"]
    )
    temporaries = parts["copy of the fixed side"] + parts["solved rows, a chunk and its exchange"]
    return {
        ARGUMENTS: (arguments, sum(x.argument_size_in_bytes for x in memory)),
        TEMPORARIES: (temporaries, max(x.temp_size_in_bytes for x in memory)),
        FLOPS: (predicted.flops, sum(map(hlo.product_flops, texts))),
        RECEIVED: (
            sum(predicted.received.values()),
            sum(sum(hlo.received_bytes(text).values()) for text in texts),
        ),
    }


def compiled_half_steps(
    matrix: Interactions, config: als.ALSConfig, mesh: jax.sharding.Mesh
) -> list[jax.stages.Compiled]:
    """The programs that solve the users and the items."""
    users, items = als.prepare(matrix, config, mesh)
    user, item = users.empty_table(), items.empty_table()
    halves = ((users, user, items, item), (items, item, users, user))
    return [als.lower_half_step(*half).compile() for half in halves]


def autoencoder_pairs(matrix: Interactions, config: AutoencoderConfig, devices: int) -> Pairs:
    """Figures of a fit; memory of its two larger programs."""
    sizes = _sizes(matrix)
    predicted = cost.autoencoder(sizes, config, devices, platform="cpu")
    phases = cost.autoencoder_phases(sizes, config, devices, platform="cpu")
    programs = compiled_fit(matrix, config, sharding.make_mesh(devices=jax.devices()[:devices]))
    names = {"start": "images", "passes": "improve_encoder"}
    memory = [programs[names[phase]][1].memory_analysis() for phase in phases]
    held = ("tables of items", "weights of users", "entries, by user and by item")
    numbers = "four numbers of each item"
    unused = {"start": 0.75, "passes": 0.25}  # share of the numbers that the program is not given
    arguments = temporaries = 0.0
    for name, parts in phases.items():
        given = sum(parts[x] for x in held) + parts[numbers]
        arguments += given - unused[name] * parts[numbers]
        temporaries = max(temporaries, sum(parts.values()) - given)
    texts = [(times, program.as_text()) for times, program in programs.values()]
    return {
        ARGUMENTS: (arguments, sum(x.argument_size_in_bytes for x in memory)),
        TEMPORARIES: (temporaries, max(x.temp_size_in_bytes for x in memory)),
        FLOPS: (predicted.flops, sum(times * hlo.product_flops(text) for times, text in texts)),
        RECEIVED: (
            sum(predicted.received.values()),
            sum(times * sum(hlo.received_bytes(text).values()) for times, text in texts),
        ),
    }


def compiled_fit(
    matrix: Interactions, config: AutoencoderConfig, mesh: jax.sharding.Mesh
) -> dict[str, tuple[int, jax.stages.Compiled]]:
    """The programs of a fit with matrix products, and how often each of them runs."""
    rank, wide = config.factors, config.factors + autoencoder.EXTRA
    placed = gram.place(matrix, np.ones(matrix.num_users), rank, mesh)
    rows = placed.items.table_rows
    split = sharding.named(mesh, jax.sharding.PartitionSpec(mesh.axis_names))

    def table(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), np.float32, sharding=split)

    def small(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.float32)

    items, basis, q = solver.Items(*4 * [table()]), table(wide), table(rank)
    encoder = solver.Encoder(q, q)
    lowered = {
        "images": solver.images.lower(placed.gram, items, basis),
        "multiply": solver.multiply.lower(basis, small(wide, wide)),
        "start": solver.start.lower(items, basis, basis, small(wide, rank)),
        "metric": solver.metric.lower(encoder, items),
        "solve_items": solver.solve_items.lower(encoder, items, small(rank, rank)),
        "spread": solver.spread.lower(items, q),
        "improve_encoder": solver.improve_encoder.lower(
            placed.gram, items, encoder, q, small(rank, rank), config.cg_steps
        ),
        "user_product": gram.user_product.lower(placed.gram, q),
    }
    rounds, passes = config.start_rounds, config.passes
    times = [rounds, rounds - 1, 1, passes, passes, passes - 1, passes - 1, 1]
    programs = zip(lowered.items(), times, strict=True)
    return {name: (count, program.compile()) for (name, program), count in programs}


def _sizes(matrix: Interactions) -> cost.Sizes:
    return cost.Sizes(
        *("ranking", matrix.num_entries, matrix.num_users, matrix.num_items),
        entries=matrix.num_entries,
        user_counts=matrix.by_user.counts,
        item_counts=matrix.by_item.counts,
    )


def random_interactions(users: int, items: int, entries: int) -> Interactions:
    """Items by a power law: some have more entries than a chunk, and repeated pairs add values."""
    rng = np.random.default_rng(0)
    item = rng.zipf(1.3, entries) % items
    return Interactions.from_rows(rng.integers(0, users, entries), item, users, items)


if __name__ == "__main__":
    main()
