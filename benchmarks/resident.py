"""Training on rows that are on the device, against batches from the host and against steps alone.

    python benchmarks/resident.py [--quick] [--json FILE]

Rows are random, in the sizes of MovieLens 1M and of Criteo. All three run the same steps.
'resident' makes its batches on the device, 'stream' on the host, and 'step alone' repeats the
batches that are there. They take turns. Figures are the medians of the milliseconds a step, and of
the ratio in each turn: below 1 means that resident is faster.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadc_jax import sharding
from cadc_jax.data import pipeline
from cadc_jax.data.likely import LikelyItems
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.data.table import Columns
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.embeddings import Content, Tables, stacked_offsets
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.resident import batches, records
from cadc_jax.training import feeds, step
from cadc_jax.training.feeds import HostFeed, ResidentFeed
from cadc_jax.training.step import TrainConfig

RATE, SEED = 0.1, 0
CALLS = 6  # of a turn
ON_CPU = jax.devices()[0].platform == "cpu"
STEPS = feeds.STEPS_ON_CPU if ON_CPU else feeds.STEPS  # of a call
USERS, ITEMS, VOCABULARY = 12_000, 5_000, 40_000  # of the Criteo shape


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 turns")
    parser.add_argument("--json", metavar="FILE", help="file to write the table to")
    arguments = parser.parse_args()
    rows = []
    print(f"{'case':44} {'resident':>9} {'alone':>9} {'ratio':>6} {'stream':>9} {'ratio':>6}")
    for case, make in CASES.items():
        sides = make()
        seconds = take_turns(sides, 3 if arguments.quick else 9)
        ours = np.array(seconds["resident"])
        text = f"{case:44} {1e3 * np.median(ours):9.2f}"
        for peer in ("step alone", "stream"):
            other = np.array(seconds[peer])
            row = {"case": case, "metric": "ms a step (smaller is better)", "peer_name": peer}
            row |= {"ours": 1e3 * float(np.median(ours)), "peer": 1e3 * float(np.median(other))}
            row["ratio"] = float(np.median(ours / other))
            rows.append(row)
            text += f" {row['peer']:9.2f} {row['ratio']:6.3f}"
        print(text, flush=True)
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        text = json.dumps({"machine": machine, "rows": rows}, indent=1)
        pathlib.Path(arguments.json).write_text(text)


def take_turns(sides: Mapping[str, "Side"], turns: int) -> dict[str, list[float]]:
    """Seconds a step of each side in each turn, after a turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns + 1):
        for name, side in sides.items():
            seconds[name].append(side.turn())
    return {name: x[1:] for name, x in seconds.items()}


class Side:
    """Training that takes its batches from one place."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        content: Content,
        tables: Tables,
        calls: Iterator,
        frozen: bool,
    ):
        self.calls = calls
        fixed = tables if frozen else {name: tables[name] for name in ("user", "item")}
        trained = {name: jnp.copy(x) for name, x in tables.items() if name not in fixed}
        first = next(calls)
        shapes = first
        if isinstance(first, batches.ResidentRows):
            shapes = jax.eval_shape(batches.make, first, jax.ShapeDtypeStruct((), jnp.int32))
        shapes = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in shapes.items()}
        self.state = step.init_state(
            model, config, trained, fixed, content, shapes, jax.random.key(SEED)
        )
        steps = step.train_steps if ON_CPU else step.train_steps_of
        self.run = functools.partial(steps, model, config)
        self.rest = fixed, content

    def turn(self) -> float:
        """Seconds a step of some calls, each started before the last one ends."""
        start, before = time.perf_counter(), jnp.zeros(())
        for _ in range(CALLS):
            source = next(self.calls)
            self.state, loss = self.run(self.state, *self.rest, source, STEPS, jax.random.key(SEED))
            before.block_until_ready()
            before = loss
        before.block_until_ready()
        return (time.perf_counter() - start) / (CALLS * STEPS)


def sides_of(
    model: nn.Module,
    config: TrainConfig,
    content: Content,
    tables: Tables,
    rows: Columns,
    sampler: NegativeSampling | None = None,
    frozen: bool = False,
) -> dict[str, Side]:
    """The three sides on the same rows."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    users = len(content.user_dense)
    put = batches.put(
        rows, records.plan(rows), sampler, users, SEED, config.batch_rows, mesh, split=False
    )
    host = HostFeed(
        lambda start: pipeline.training_batches(rows, config.batch_rows, SEED, start, sampler),
        pipeline.steps_per_epoch(len(rows["user"]), config.batch_rows),
    )
    place = 0, 0, host.steps_per_epoch, STEPS, mesh
    same = next(host.calls(*place))
    calls = {
        "resident": ResidentFeed(put).calls(*place),
        "step alone": iter(lambda: same, None),
        "stream": host.calls(*place),
    }
    return {
        name: Side(model, config, content, tables, call, frozen) for name, call in calls.items()
    }


def two_tower(batch_rows: int, negatives: int, rank: int) -> dict[str, Side]:
    """A sample of MovieLens 1M, frozen random factors, negatives among the unlikely items."""
    users, items, count, draw = 6_041, 3_707, 100_000, np.random.default_rng(SEED)
    rows = {
        "user": (1 + (users - 1) * draw.random(count) ** 2).astype(np.int32),
        "item": (1 + (items - 1) * draw.random(count) ** 2).astype(np.int32),
        "dense": np.zeros((count, 0), np.float32),
        "categorical": np.zeros((count, 0), np.int32),
    }
    sizes = {"user": (users, rank), "item": (items, rank), "features": (48, 16)}
    tables = {name: draw.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    likely = LikelyItems.of((tables["user"], tables["item"]), rows["user"], RATE)
    content = Content(
        user_dense=jnp.zeros((users, 0)),
        user_categorical=jnp.asarray(draw.integers(0, 30, (users, 3)), jnp.int32),
        item_dense=jnp.zeros((items, 0)),
        item_categorical=jnp.asarray(30 + draw.integers(0, 18, (items, 1)), jnp.int32),
        context_offsets=jnp.zeros(0, jnp.int32),
    )
    return sides_of(
        TwoTower(hidden=(), gate=32),
        TrainConfig(batch_rows=batch_rows, negatives=negatives, loss="softmax"),
        content,
        jax.tree.map(jnp.asarray, tables),
        rows,
        NegativeSampling.of(rows, negatives, items, likely),
    )


def kaggle(batch_rows: int, frozen: bool = False) -> dict[str, Side]:
    """Rows in Criteo's shape for the network of the Kaggle benchmark; all tables may be frozen."""
    draw, count = np.random.default_rng(SEED), 400_000
    rows = {
        "user": draw.integers(0, USERS, count, np.int32),
        "item": draw.integers(0, ITEMS, count, np.int32),
        "label": draw.integers(0, 2, count, np.int8).astype(np.float32),
        "dense": draw.random((count, 13), np.float32),
        "categorical": draw.integers(0, VOCABULARY, (count, 26), np.int32),
    }
    sizes = {"user": (USERS, 16), "item": (ITEMS, 16), "features": (26 * VOCABULARY, 16)}
    tables = {n: jnp.asarray(draw.normal(size=s), jnp.float32) for n, s in sizes.items()}
    content = Content(
        user_dense=jnp.zeros((USERS, 0)),
        user_categorical=jnp.zeros((USERS, 0), jnp.int32),
        item_dense=jnp.zeros((ITEMS, 0)),
        item_categorical=jnp.zeros((ITEMS, 0), jnp.int32),
        context_offsets=jnp.asarray(stacked_offsets([VOCABULARY] * 26)),
    )
    return sides_of(
        DLRM(16, (512, 256, 64), (512, 256)),
        TrainConfig(
            batch_rows=batch_rows, table_optimizer="adagrad", microbatch_rows=1024 * ON_CPU
        ),
        content,
        tables,
        rows,
        frozen=frozen,
    )


CASES = {
    "ML-1M two-tower, B = 1,024, 16 negatives": functools.partial(two_tower, 1024, 16, 256),
    "ML-1M two-tower, B = 2,048, 4 negatives": functools.partial(two_tower, 2048, 4, 64),
    "Kaggle DLRM, B = 2,048": functools.partial(kaggle, 2048),
    "Kaggle DLRM, B = 8,192": functools.partial(kaggle, 8192),
    "Kaggle DLRM, B = 8,192, frozen": functools.partial(kaggle, 8192, frozen=True),
}
if not ON_CPU:
    CASES |= {
        "Kaggle DLRM, B = 65,536": functools.partial(kaggle, 65536),
        "Kaggle DLRM, B = 65,536, frozen": functools.partial(kaggle, 65536, frozen=True),
    }

if __name__ == "__main__":
    main()
