"""Two-tower training steps that compute each item once, against once for each row that asks for it.

    python benchmarks/towers.py [--quick] [--json FILE]

The sizes are from configs/movielens_1m_ncf.py, and the numbers are random. Both sides run the same
code and take turns. The item table of the peer has unused items at its end, so many that a step
computes an item for each row. Figures are milliseconds a step, in the fastest of all turns.
"""

import argparse
import json
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.models import scoring
from cadc_jax.models.embeddings import Content
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.training import step
from cadc_jax.training.step import TrainConfig

USERS, ITEMS, RANK = 6_040, 3_700, 192
CONFIG = TrainConfig(batch_rows=1024, negatives=16, loss="softmax")
ASKED = CONFIG.batch_rows * (1 + CONFIG.negatives)
MODEL = TwoTower(hidden=(), gate=32)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 turns")
    parser.add_argument("--json", metavar="FILE", help="file to write the table to")
    arguments = parser.parse_args()
    rows = []
    print(f"{'embeddings':12} {'once a step':>12} {'once a row':>12} {'ratio':>6}")
    for frozen in (("user", "item"), ()):
        sides = [Side(ITEMS, frozen), Side(ASKED // 2 + 1, frozen)]
        for _ in range(3 if arguments.quick else 15):
            for side in sides:
                side.turn()
        ours, peer = (1e3 * side.fastest for side in sides)
        case = "frozen" if frozen else "trained"
        print(f"{case:12} {ours:12.2f} {peer:12.2f} {peer / ours:6.2f}")
        row = {"case": case, "metric": "ms a step", "ours": ours, "peer": peer}
        rows.append(row | {"peer_name": "items once a row", "ratio": peer / ours})
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        text = json.dumps({"machine": machine, "rows": rows}, indent=1)
        pathlib.Path(arguments.json).write_text(text)


class Side:
    """Training on random rows, with an item table of `num_items`; only the first ITEMS are used."""

    def __init__(self, num_items: int, frozen: tuple[str, ...]):
        draw = np.random.default_rng(0)
        count = CONFIG.steps_per_call
        item = draw.integers(0, ITEMS, (count, CONFIG.batch_rows, 1 + CONFIG.negatives))
        self.batches = {
            "user": draw.integers(0, USERS, item.shape[:2]).astype(np.int32),
            "item": item.astype(np.int32),
            "label": np.zeros(item.shape, np.float32),
            "weight": np.ones(item.shape[:2], np.float32),
            "dense": np.zeros((*item.shape[:2], 0), np.float32),
            "categorical": np.zeros((*item.shape[:2], 0), np.int32),
        }
        self.content = Content(
            user_dense=jnp.zeros((USERS, 0)),
            user_categorical=jnp.asarray(draw.integers(0, 30, (USERS, 3)), jnp.int32),
            item_dense=jnp.zeros((num_items, 0)),
            item_categorical=jnp.asarray(30 + draw.integers(0, 18, (num_items, 1)), jnp.int32),
            context_offsets=jnp.zeros(0, jnp.int32),
        )
        sizes = {"user": (USERS, RANK), "item": (num_items, RANK), "features": (48, 16)}
        tables = {n: jnp.asarray(draw.normal(size=s), jnp.float32) for n, s in sizes.items()}
        self.frozen = {name: tables.pop(name) for name in frozen}
        first = {name: x[0] for name, x in self.batches.items()}
        arguments = (MODEL, CONFIG, tables, self.frozen, self.content, first, jax.random.key(0))
        self.state = step.init_state(*arguments)
        assert scoring.shares_items(MODEL, ASKED, num_items) == (num_items == ITEMS)
        self.fastest = np.inf
        self.turn()  # compiles
        self.fastest = np.inf

    def turn(self) -> None:
        """Runs some steps and keeps the time if it is the fastest."""
        count, start = CONFIG.steps_per_call, time.perf_counter()
        arguments = (self.frozen, self.content, self.batches, count, jax.random.key(1))
        self.state, loss = step.train_steps(MODEL, CONFIG, self.state, *arguments)
        loss.block_until_ready()
        self.fastest = min(self.fastest, (time.perf_counter() - start) / count)


if __name__ == "__main__":
    main()
