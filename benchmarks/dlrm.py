"""DLRM training against PyTorch: samples a second, epochs on a sample, and AUC.

    pip install -e '.[bench]'
    python benchmarks/dlrm.py [--quick] [--json FILE] [--auc] [--rounds N]

There are two architectures. 'kaggle' is the usual one for Criteo Kaggle: bottom 512-256-64-16, top
512-256-1, and 26 tables of width 16 with the vocabularies of Kaggle's columns up to a cap.
'embeddings' is mostly tables: bottom 64-64, top 64-1, width 64. The peer is the same network from
`torch.nn`: `EmbeddingBag(sparse=True)` with sparse SGD or Adagrad. Both sides train the MLPs with
Adam, and use 2 threads and float32.

Each library has its own process for a case, and the two take turns of a few steps. Other programs
on the machine can only make a turn slower, and they slow OpenMP's barriers far more than XLA's
tasks. So a ratio, ours / peer, compares the 20th percentiles of the times of both sides. Above 1 is
faster for samples a second, below 1 for seconds.

The peer 'GEMM limit' is the matrix products of the MLPs alone, forward and backward, by the faster
library in the same turns, as if all other work were free.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

THREADS = 2
# Values of C1..C26 in the Criteo Kaggle training set.
VALUES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
DENSE = 13
STEPS = 4  # of a turn
POOL = 8  # different batches, which are used in turn


@dataclasses.dataclass(frozen=True)
class Case:
    """A case, which one pair of processes measures.

    Attributes:
      shape: 'kaggle' or 'embeddings'.
      cap: largest number of rows of a table.
      batch: rows of a batch.
      optimizer: of the tables: 'sgd' or 'adagrad'; 'frozen' if they are not trained.
      rows: rows of an epoch with the input pipeline; 0 for steps on batches in memory.
      steps: steps of a turn.
      microbatch: rows that go through our network at a time; 0 for all.
      dtype: of activations and matrix products.
    """

    shape: str = "kaggle"
    cap: int = 1_000_000
    batch: int = 2048
    optimizer: str = "adagrad"
    rows: int = 0
    steps: int = STEPS
    microbatch: int = 1024
    dtype: str = "float32"

    def __str__(self) -> str:
        epoch = f", epoch of {self.rows:,} rows" if self.rows else ""
        return (
            f"{self.shape}, cap {self.cap // 10**6} M, batch {self.batch}, {self.optimizer}{epoch}"
        )

    @property
    def layers(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Hidden layers of the bottom and top MLP, and the width of embeddings."""
        return ((512, 256, 64), (512, 256), 16) if self.shape == "kaggle" else ((64,), (64,), 64)

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """Rows of each table. 'embeddings' has no room for the three largest tables."""
        sizes = [min(size, self.cap) for size in VALUES]
        if self.shape != "kaggle":
            largest = sorted(range(26), key=VALUES.__getitem__)[-3:]
            sizes = [size for i, size in enumerate(sizes) if i not in largest]
        return tuple(sizes)

    def products(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every layer of both MLPs."""
        bottom, top, dim = self.layers
        vectors = len(self.vocabularies) + 1
        bottom = (DENSE, *bottom, dim)
        top = (dim + vectors * (vectors - 1) // 2, *top, 1)
        return [*zip(bottom, bottom[1:], strict=False), *zip(top, top[1:], strict=False)]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="frozen steps and epochs of batch 2,048, 3 turns"
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the table to")
    parser.add_argument("--auc", action="store_true", help="only compare AUC after one epoch")
    parser.add_argument("--auc-rows", type=int, default=2_000_000, help="rows of that comparison")
    parser.add_argument("--rounds", type=int, default=0, help="turns of a case")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        library, fields = arguments.worker
        case = Case(**json.loads(fields))
        serve(Ours(case) if library == "ours" else Torch(case))
        return
    if arguments.auc:
        rows = auc_rows(arguments.auc_rows)
    else:
        rows = speed_rows(arguments.quick, arguments.rounds or (3 if arguments.quick else 15))
        rows += epoch_rows(50_000 if arguments.quick else 1_000_000)
    show(rows)
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        pathlib.Path(arguments.json).write_text(
            json.dumps({"machine": machine, "rows": rows}, indent=1)
        )


def speed_rows(quick: bool, rounds: int) -> list[dict]:
    """Samples a second of steps on batches in memory."""
    if quick:
        cases = [Case(optimizer="frozen")]  # epochs show the trainable one
    else:
        cases = [
            Case(batch=batch, optimizer=name)
            for batch in (2048, 8192)
            for name in ("adagrad", "sgd", "frozen")
        ]
        cases += [Case("embeddings", 10_000_000, 8192, name) for name in ("adagrad", "frozen")]
        cases += [Case("kaggle", 10_000_000, batch) for batch in (2048, 8192)]
    rows, times = [], {}
    for case in cases:
        found = take_turns(case, ("steps", "products"), rounds)
        seconds = {name: fastest(turns["steps"]) for name, turns in found.items()}
        limit = min(fastest(turns["products"]) for turns in found.values())
        times[case] = seconds["ours"]
        samples = case.steps * case.batch
        ours, peer = (samples / seconds[name] for name in ("ours", "torch"))
        rows.append(row(case, "samples a second", ours, peer, "torch"))
        rows.append(row(case, "samples a second", ours, samples / limit, "GEMM limit"))
    for case, large in times.items():
        small = times.get(dataclasses.replace(case, cap=1_000_000))
        if small and case.cap > 1_000_000:
            rows.append(row(case, "seconds of 4 steps", large, small, "ours, cap 1 M"))
    return rows


def epoch_rows(size: int) -> list[dict]:
    """Epochs with the input pipeline: all rows and trained tables, a tenth and frozen tables."""
    full, sample = Case(rows=size), Case(rows=size // 10, optimizer="frozen")
    seconds, rows = {}, []
    for case, rounds in ((full, 2), (sample, 5)):
        turns = take_turns(case, ("epoch",), rounds)
        for name, times in turns.items():
            seconds[name, case] = min(times["epoch"])
        ours, peer = (case.rows / seconds[name, case] for name in ("ours", "torch"))
        rows.append(row(case, "samples a second", ours, peer, "torch"))
    ours = seconds["ours", sample]
    rows.append(row(sample, "seconds", ours, seconds["ours", full], "our full epoch"))
    rows.append(row(sample, "seconds", ours, seconds["torch", full], "torch's full epoch"))
    return rows


def take_turns(case: Case, what: tuple[str, ...], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Times a case in both libraries.

    Args:
      case: the case.
      what: methods of `Ours` and `Torch` to time: 'steps', 'products' or 'epoch'.
      rounds: number of turns.

    Returns:
      library -> method -> seconds of each turn.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--worker", name, json.dumps(dataclasses.asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in ("ours", "torch")
    }

    def ask(name: str, command: str) -> float:
        worker = workers[name]
        assert worker.stdout is not None
        print(command, file=worker.stdin, flush=True)
        answer = worker.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {name} died in {case}")
        return float(answer)

    times: dict[str, dict[str, list[float]]]
    times = {name: {command: [] for command in what} for name in workers}
    for turn in range(rounds + 1):
        for command in what:
            for name in workers if turn % 2 else reversed(workers):
                seconds = ask(name, command)
                if turn:  # the first turn compiles
                    times[name][command].append(seconds)
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    medians = {n: {c: statistics.median(t) for c, t in found.items()} for n, found in times.items()}
    print(f"  {case}: {medians}", file=sys.stderr, flush=True)
    return times


def serve(worker: "Ours | Torch") -> None:
    """Reads names of methods from the standard input, and answers each with its seconds."""
    for line in sys.stdin:
        start = time.perf_counter()
        seconds = getattr(worker, line.strip())()
        print(time.perf_counter() - start if seconds is None else seconds, flush=True)


def row(case: object, metric: str, ours: float, peer: float, peer_name: str) -> dict:
    """A row of the table."""
    found = {"ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ours / peer}
    return {"case": str(case), "metric": metric} | found


def fastest(times: list[float]) -> float:
    """Seconds of a turn that other programs hardly slowed down."""
    return float(np.percentile(times, 20))


def show(rows: list[dict]) -> None:
    """Prints the table."""
    print(f"| {'case':62s} | {'metric':18s} | {'peer':18s} |     ours |     peer | ratio |")
    print("|" + "---|" * 6)
    for entry in rows:
        names = f"{entry['case']:62s} | {entry['metric']:18s} | {entry['peer_name']:18s}"
        numbers = f"{entry['ours']:8.4g} | {entry['peer']:8.4g} | {entry['ratio']:5.3f}"
        print(f"| {names} | {numbers} |")


def draw(case: Case, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random dense features [rows, 13], ids [rows, tables] with long tails, and labels [rows]."""
    rng = np.random.default_rng(seed)
    sizes = np.array(case.vocabularies)
    ids = (sizes * rng.random((rows, len(sizes)), np.float32) ** 3).astype(np.int32)
    dense = rng.random((rows, DENSE), np.float32)
    return dense, np.minimum(ids, sizes - 1), (rng.random(rows) < 0.25).astype(np.float32)


class Ours:
    """DLRM of this package. The first two tables stand for users and items."""

    def __init__(self, case: Case):
        import jax
        import jax.numpy as jnp

        from cadc_jax.models.dlrm import DLRM
        from cadc_jax.models.embeddings import Content, stacked_offsets
        from cadc_jax.training.step import TrainConfig

        self.jax, self.case = jax, case
        bottom, top, dim = case.layers
        user, item, *others = case.vocabularies
        self.model = DLRM(embedding_dim=dim, bottom=bottom, top=top)
        self.config = TrainConfig(
            batch_rows=case.batch,
            table_optimizer="sgd" if case.optimizer == "frozen" else case.optimizer,
            table_learning_rate=0.01,
            microbatch_rows=min(case.batch, case.microbatch),
            steps_per_call=case.steps,
            compute_dtype=case.dtype,
            max_evaluations=2,
            patience=2,
        )
        self.content = Content(
            user_dense=jnp.zeros((user, 0)),
            user_categorical=jnp.zeros((user, 0), jnp.int32),
            item_dense=jnp.zeros((item, 0)),
            item_categorical=jnp.zeros((item, 0), jnp.int32),
            context_offsets=jnp.asarray(stacked_offsets(others)),
        )
        sizes = {"user": user, "item": item, "features": sum(others)}
        keys = jax.random.split(jax.random.key(0), 3)
        self.tables = {
            name: jax.random.uniform(key, (size, dim), minval=-0.1, maxval=0.1)
            for key, (name, size) in zip(keys, sizes.items(), strict=True)
        }
        self.frozen = frozenset(sizes) if case.optimizer == "frozen" else frozenset()
        if not case.rows:
            self._prepare_steps()

    def _prepare_steps(self) -> None:
        from cadc_jax import sharding
        from cadc_jax.models.embeddings import lookup_ids
        from cadc_jax.training import placement
        from cadc_jax.training.step import init_state

        jax, case = self.jax, self.case
        batches = [self.batch(*draw(case, case.batch, seed)) for seed in range(POOL)]
        self.stacks = [
            jax.device_put(jax.tree.map(lambda *x: np.stack(x), *batches[i : i + case.steps]))
            for i in range(0, POOL, case.steps)
        ]
        shapes = jax.eval_shape(lookup_ids, self.content, batches[0])
        self.placed = placement.plan_placement(
            sharding.make_mesh(devices=jax.devices()[:1]),
            self.tables,
            self.tables.keys() - self.frozen,
            self.config.table_optimizer,
            {name: len(x) for name, x in shapes.items()},
        )
        tables = placement.put(self.placed, self.tables)
        constant = {name: x for name, x in tables.items() if name in self.frozen}
        trained = {name: x for name, x in tables.items() if name not in self.frozen}
        self.constant, self.turn, self.key = constant, 0, jax.random.key(1)
        self.state = init_state(
            *(self.model, self.config, trained, constant, self.content, batches[0], self.key),
            self.placed,
        )

    def batch(self, dense: np.ndarray, ids: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
        """A batch as the network takes it."""
        columns = self.columns(dense, ids, label)
        columns["item"], columns["label"] = columns["item"][:, None], columns["label"][:, None]
        return columns | {"weight": np.ones(len(label), np.float32)}

    def columns(
        self, dense: np.ndarray, ids: np.ndarray, label: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Columns as the input pipeline takes them."""
        return {
            "user": ids[:, 0],
            "item": ids[:, 1],
            "categorical": ids[:, 2:],
            "dense": dense,
            "label": label,
        }

    def steps(self) -> None:
        """Runs the steps of a turn."""
        from cadc_jax.training.step import train_steps

        stack = self.stacks[self.turn % len(self.stacks)]
        self.turn += 1
        self.state, loss = train_steps(
            *(self.model, self.config, self.state, self.constant, self.content),
            *(stack, self.case.steps, self.key, self.placed),
        )
        loss.block_until_ready()

    def products(self) -> float:
        """Seconds of the matrix products of the MLPs, on pieces of the size that a step uses."""
        jax, piece = self.jax, self.config.microbatch_rows
        if not hasattr(self, "multiply"):
            normal = jax.random.normal
            key = jax.random.key(0)
            self.operands = [
                (normal(key, (piece, a)), normal(key, (a, b)), normal(key, (piece, b)))
                for a, b in self.case.products()
            ]

            # Each product replaces the operand of its shape, so the compiler keeps all of them.
            # The numbers soon overflow, which takes no longer.
            def once(i, operands):
                return [
                    (g @ w.T if number else x, x.T @ g, x @ w)  # dense features need no gradient
                    for number, (x, w, g) in enumerate(operands)
                ]

            repeats = self.case.steps * self.case.batch // piece
            self.multiply = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, once, x))
        start = time.perf_counter()
        jax.block_until_ready(self.multiply(self.operands))
        return time.perf_counter() - start

    def epoch(self) -> float:
        """Seconds of the second epoch, from validation to validation; the first one compiles."""
        from cadc_jax.data import pipeline
        from cadc_jax.training import feeds, loop

        rows = self.columns(*draw(self.case, self.case.rows, 0))
        ends = []

        def validate(params, tables):
            self.jax.block_until_ready((params, tables))
            ends.append(time.perf_counter())
            return float(len(ends))

        loop.fit(
            self.model,
            self.config,
            loop.StartTables(self.tables, self.frozen),
            self.content,
            feeds.HostFeed(
                functools.partial(pipeline.training_batches, rows, self.case.batch, 0),
                pipeline.steps_per_epoch(self.case.rows, self.case.batch),
            ),
            validate,
            self.jax.random.key(0),
        )
        return ends[-1] - ends[-2]


class Torch:
    """DLRM as users of PyTorch write it."""

    def __init__(self, case: Case, device: str = "cpu"):
        import torch

        torch.set_num_threads(THREADS)
        torch.manual_seed(0)
        self.torch, self.case, self.device = torch, case, torch.device(device)
        tables, bottom, top = torch_network(torch, case)
        self.bottom, self.top = bottom.to(self.device), top.to(self.device)
        self.tables = self.tables_of(tables).to(self.device)
        mlps = [*self.bottom.parameters(), *self.top.parameters()]
        self.optimizers = [torch.optim.Adam(mlps, lr=1e-3)]
        if case.optimizer == "frozen":
            self.tables.requires_grad_(False)
        else:
            kind = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[case.optimizer]
            self.optimizers.append(kind(self.tables.parameters(), lr=0.01))
        self.loss = torch.nn.BCEWithLogitsLoss()
        self.turn = 0
        vectors = len(case.vocabularies) + 1
        self.lower = torch.tril_indices(vectors, vectors, -1, device=self.device)
        if not case.rows:
            drawn = (draw(case, case.batch, seed) for seed in range(POOL))
            self.pool = [
                tuple(
                    torch.tensor(x, dtype=dtype, device=self.device)
                    for x, dtype in ((d, torch.float32), (i.T.copy(), torch.int64), (y, None))
                )
                for d, i, y in drawn
            ]

    def tables_of(self, tables: Any) -> Any:
        """The module that holds the tables."""
        return tables

    def vectors(self, ids: Any) -> Any:
        """Rows of the tables: [B, D] of each table for ids [tables, B]."""
        start = self.torch.arange(ids.shape[1], device=self.device)
        return [table(column, start) for table, column in zip(self.tables, ids, strict=True)]

    def network(self, dense: Any, vectors: Any) -> Any:
        """Logits [B] of dense features [B, 13] and rows of the tables."""
        x = self.bottom(dense)
        return self.interact(x, self.torch.stack([x, *vectors], dim=1))

    def interact(self, x: Any, vectors: Any) -> Any:
        """Logits [B] of the dense vector [B, D] and all vectors [B, 1 + tables, D]."""
        torch = self.torch
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.lower[0], self.lower[1]]
        return self.top(torch.cat([x, dots], dim=1))[:, 0]

    def logits(self, dense: Any, ids: Any) -> Any:
        """Logits [B] of dense features [B, 13] and ids [tables, B]."""
        return self.network(dense, self.vectors(ids))

    def train(self, dense: Any, ids: Any, label: Any) -> None:
        """One step."""
        torch = self.torch
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        narrow = self.case.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
            loss = self.loss(self.logits(dense, ids), label)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def steps(self) -> None:
        """Runs the steps of a turn."""
        for _ in range(self.case.steps):
            self.train(*self.pool[self.turn % POOL])
            self.turn += 1
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def products(self) -> float:
        """Seconds of the matrix products of the MLPs."""
        torch = self.torch
        if not hasattr(self, "operands"):
            self.operands = [
                (
                    torch.randn(self.case.batch, a),
                    torch.randn(a, b),
                    torch.randn(self.case.batch, b),
                )
                for a, b in self.case.products()
            ]
        start = time.perf_counter()
        for _ in range(self.case.steps):
            for number, (x, w, g) in enumerate(self.operands):
                x @ w, x.T @ g
                if number:
                    g @ w.T
        return time.perf_counter() - start

    def epoch(self) -> float:
        """Seconds of an epoch."""
        torch = self.torch
        dense, ids, label = (torch.tensor(x) for x in draw(self.case, self.case.rows, 0))
        start = time.perf_counter()
        self.one_epoch(dense, ids, label)
        return time.perf_counter() - start

    def one_epoch(self, dense: Any, ids: Any, label: Any) -> None:
        """Trains on shuffled batches of tensors in memory; the last batch is smaller."""
        for rows in self.torch.randperm(len(label)).split(self.case.batch):
            self.train(dense[rows], ids[rows].T.long(), label[rows])


class StackedTorch(Torch):
    """The same with one table for all features, and the network compiled."""

    def __init__(self, case: Case, device: str = "cpu"):
        super().__init__(case, device)
        sizes = self.torch.tensor((0, *case.vocabularies[:-1]), device=self.device)
        self.offsets = sizes.cumsum(0)[:, None]
        self.network = self.torch.compile(self.network)

    def tables_of(self, tables: Any) -> Any:
        """One embedding of all tables' rows."""
        rows = self.torch.cat([table.weight.detach() for table in tables])
        return self.torch.nn.Embedding.from_pretrained(rows, freeze=False, sparse=True)

    def vectors(self, ids: Any) -> Any:
        """Rows [B, tables, D]."""
        return self.tables((ids + self.offsets).T)

    def network(self, dense: Any, vectors: Any) -> Any:
        """Logits [B]."""
        x = self.bottom(dense)
        return self.interact(x, self.torch.cat([x[:, None], vectors], dim=1))


def torch_network(torch: Any, case: Case) -> tuple[Any, Any, Any]:
    """The tables, the bottom MLP and the top MLP."""
    bottom, top, dim = case.layers
    tables = torch.nn.ModuleList()
    for size in case.vocabularies:
        weight = torch.empty(size, dim).uniform_(-0.1, 0.1)
        tables.append(torch.nn.EmbeddingBag(size, dim, mode="sum", sparse=True, _weight=weight))
    products = case.products()

    def mlp(layers, last_relu):
        modules = []
        for a, b in layers:
            modules += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        return torch.nn.Sequential(*(modules if last_relu else modules[:-1]))

    count = len(bottom) + 1
    return tables, mlp(products[:count], True), mlp(products[count:], False)


# AUC of both libraries after one epoch on the same rows.


def auc_rows(rows: int) -> list[dict]:
    """Test AUC on synthetic rows in Criteo's format; the last seventh tests."""
    import torch

    from cadc_jax import metrics

    sizes, dense, ids, label = synthetic(rows)
    case = Auc(batch=2048, optimizer="adagrad", rows=1, sizes=sizes)
    train = slice(0, rows * 6 // 7)
    test = slice(rows * 6 // 7, rows)
    found = {}
    for name, changes in PRECISIONS.items():
        scores = auc_ours(case, changes, dense, ids, label, train, test)
        found[name] = float(metrics.auc(label[test], scores))
    worker = Torch(case)
    tensors = (torch.tensor(x[train]) for x in (dense, ids, label))
    worker.one_epoch(*tensors)
    with torch.no_grad():
        scores = worker.logits(torch.tensor(dense[test]), torch.tensor(ids[test].T.copy()).long())
    peer = float(metrics.auc(label[test], scores.numpy()))
    print(f"difference of the AUCs: {found['float32'] - peer:+.5f}", file=sys.stderr)
    name = f"synthetic Criteo, {rows:,} rows, one epoch"
    return [row(f"{name}, {key}", "AUC", auc, peer, "torch float32") for key, auc in found.items()]


@dataclasses.dataclass(frozen=True)
class Auc(Case):
    """The Kaggle network on tables of other sizes."""

    sizes: tuple[int, ...] = ()

    @property
    def vocabularies(self) -> tuple[int, ...]:
        return self.sizes


PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16 products": {"compute_dtype": "bfloat16"},
    "bfloat16 tables": {"table_dtype": "bfloat16"},
    "bfloat16 tables, rounded at random": {
        "table_dtype": "bfloat16",
        "stochastic_rounding": True,
    },
}


def synthetic(rows: int) -> tuple:
    """Vocabulary sizes, log(1 + x) of the integers [rows, 13], ids [rows, 26], labels [rows]."""
    import pyarrow as pa
    from pyarrow import csv

    from cadc_jax.data.readers import criteo
    from cadc_jax.data.readers.synthetic import write_criteo

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "train.txt"
        write_criteo(path, rows, seed=0)
        names = list(criteo.FIELDS)
        types = dict.fromkeys(criteo.CATEGORICAL, pa.string())
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=names),
            csv.ParseOptions(delimiter="\t"),
            csv.ConvertOptions(column_types=types),
        )
    dense = [table[name].fill_null(0).to_numpy() for name in criteo.DENSE]
    dense = np.log1p(np.maximum(np.stack(dense, axis=1), 0)).astype(np.float32)
    codes = [table[name].combine_chunks().dictionary_encode() for name in criteo.CATEGORICAL]
    ids = np.stack([code.indices.fill_null(-1).to_numpy() + 1 for code in codes], axis=1)
    label = table[names[0]].to_numpy().astype(np.float32)
    sizes = tuple(int(ids[:, i].max()) + 1 for i in range(ids.shape[1]))
    return sizes, dense, ids.astype(np.int32), label


def auc_ours(
    case: Case,
    changes: dict[str, Any],
    dense: np.ndarray,
    ids: np.ndarray,
    label: np.ndarray,
    train: slice,
    test: slice,
) -> np.ndarray:
    """Our scores of the test rows after one epoch, with `changes` in the training settings."""
    from cadc_jax.data import pipeline
    from cadc_jax.models.scoring import predict
    from cadc_jax.training import feeds, loop

    worker = Ours(case)
    config = dataclasses.replace(worker.config, max_evaluations=1, **changes)
    columns = worker.columns(dense[train], ids[train], label[train])
    fitted = loop.fit(
        worker.model,
        config,
        loop.StartTables(worker.tables, worker.frozen),
        worker.content,
        feeds.HostFeed(
            functools.partial(pipeline.training_batches, columns, case.batch, 0),
            pipeline.steps_per_epoch(len(columns["label"]), case.batch),
        ),
        lambda params, tables: time.perf_counter(),  # every later state counts as better
        worker.jax.random.key(0),
    )
    batch = worker.batch(dense[test], ids[test], label[test])
    parts = [
        predict(
            worker.model,
            fitted.params,
            fitted.tables,
            worker.content,
            {name: x[i : i + 8192] for name, x in batch.items()},
        )
        for i in range(0, len(batch["user"]), 8192)
    ]
    return np.concatenate([np.asarray(part)[:, 0] for part in parts])


if __name__ == "__main__":
    main()
