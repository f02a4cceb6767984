"""The stages of the main job as functions of the library, without a configuration."""

import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cadc_jax as cadc
from benchmarks.accelerator_lib.factorizations import Unit
from benchmarks.accelerator_lib.timing import row
from cadc_jax.data import prepare
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.readers import criteo, synthetic
from cadc_jax.data.table import Columns, Table, open_table
from cadc_jax.models import embeddings

RATE = 0.1
# As configs/criteo.py has them.
PREPARE = PrepareConfig(
    *("click", "order"),
    validation=1 / 14,
    test=1 / 7,
    min_count=4,
    user_features=("C7",),
    item_features=("C11",),
    log_dense=True,
)
SGD = cadc.SGDConfig(factors=14, epochs=20, learning_rate=0.2, regularization=0.05)
TRAIN = cadc.TrainConfig(
    batch_rows=1024,
    learning_rate=2e-3,
    table_optimizer="adagrad",
    table_learning_rate=0.05,
    l2=0.003,
)
MODEL = cadc.DLRM(embedding_dim=16, bottom=(32,), top=(64, 32))


def units(quick: bool) -> Iterator[Unit]:
    """The stages, one after another."""
    rows = 5_000 if quick else 1_000_000
    name = f"main job on {rows:,} synthetic rows"
    yield name, lambda: _stages(name, rows)


def _stages(name: str, rows: int) -> Iterator[dict]:
    def stage(what: str, run: Callable[[], Any]) -> tuple[Any, dict]:
        start = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - start
        return found, row(f"{name}: {what}", "seconds, compiling included", seconds)

    with tempfile.TemporaryDirectory() as folder:
        log, prepared = pathlib.Path(folder) / "train.txt", pathlib.Path(folder) / "table"
        _, seconds = stage("synthetic rows", lambda: synthetic.write_criteo(log, rows, 0))
        yield seconds
        _, seconds = stage(
            "prepare", lambda: prepare.write_table(prepared, criteo.open_logs([log]), PREPARE)
        )
        yield seconds
        table = open_table(prepared)
        train = table.splits["train"]
        kept, seconds = stage("sample", lambda: sampled(train))
        yield seconds
        factors, seconds = stage("factorize", lambda: factorized(table))
        yield seconds
        model, seconds = stage("train", lambda: trained(table, kept, factors))
        yield seconds
        auc, seconds = stage("evaluate", lambda: evaluated(model, table))
        yield seconds
        yield row(f"{name}: quality", "test AUC (larger is better)", auc)


def sampled(train: Columns) -> dict[str, np.ndarray]:
    """The kept rows."""
    ids = cadc.sample(len(train["user"]), RATE)
    return {name: np.asarray(column[ids]) for name, column in train.items()}


def factorized(table: Table) -> cadc.Factors:
    """Factors of all training rows."""
    train, schema = table.splits["train"], table.schema
    sizes = schema.num_users, schema.num_items
    return cadc.factorize(train["user"], train["item"], *sizes, SGD, label=train["label"])


def trained(table: Table, kept: Columns, factors: cadc.Factors) -> cadc.Model:
    """The network, on the kept rows with frozen factors."""
    return cadc.train(
        *(MODEL, kept, dict(table.splits["validation"]), TRAIN),
        factors=factors,
        content=embeddings.content_of(table),
        num_features=embeddings.num_feature_rows(table),
        rate=RATE,
    )


def evaluated(model: cadc.Model, table: Table) -> float:
    """AUC on the test rows."""
    test = dict(table.splits["test"])
    label = test.pop("label")
    return float(cadc.metrics.auc(label, cadc.score(model, test)))
