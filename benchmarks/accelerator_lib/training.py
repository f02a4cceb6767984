"""Steps of a DLRM at the shape of Criteo Kaggle, and whether programs give the same bits twice."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import dlrm
from benchmarks.accelerator_lib import limits
from benchmarks.accelerator_lib.factorizations import SMALL, TINY, Log, Unit
from benchmarks.accelerator_lib.limits import Limits
from benchmarks.accelerator_lib.timing import Skipped, row, timed
from cadc_jax import cost
from cadc_jax.factorization import als
from cadc_jax.factorization.als import ALSConfig

TURNS, CALLS, ITERATIONS = 10, 5, 3  # CALLS of `Case.steps` make 20 steps
SAMPLES = "samples a second"
FULL = dlrm.Case(cap=2_000_000, steps=8, microbatch=0)  # 10.6 million rows of tables
QUICK = dlrm.Case("embeddings", cap=1_000, batch=128, microbatch=0)


def cases(quick: bool) -> list[dlrm.Case]:
    """Batches, optimizers and precisions; --quick: one batch in float32."""
    if quick:
        return [dataclasses.replace(QUICK, optimizer=name) for name in ("adagrad", "frozen")]
    return [
        dataclasses.replace(FULL, batch=batch, optimizer=optimizer, dtype=dtype)
        for batch in (8192, 65_536)
        for optimizer in ("adagrad", "frozen")
        for dtype in ("float32", "bfloat16")
    ]


def name_of(case: dlrm.Case) -> str:
    """Name of a case."""
    tables = f"{sum(case.vocabularies):,} rows of tables"
    return f"DLRM, {tables}, batches of {case.batch:,}, {case.optimizer}, {case.dtype}"


def step_units(quick: bool, known: Limits) -> Iterator[Unit]:
    """Our steps, beside the limits and the plan."""
    for case in cases(quick):
        yield name_of(case), functools.partial(_step_rows, case, known)


def _step_rows(case: dlrm.Case, known: Limits) -> Iterator[dict]:
    worker = dlrm.Ours(case)
    times = timed(functools.partial(_turn, worker), TURNS)
    samples, name = case.steps * case.batch, name_of(case)
    rate, best = samples / times.median, samples / times.least
    plan = planned(case, worker)
    gathered = case.batch * len(case.vocabularies) * case.layers[2] * 4
    least, what = limits.of_work(known, gathered, plan.flops, plan.precision)
    yield row(name, SAMPLES, rate, case.batch / least, what, best)
    if known.hardware:
        seconds = plan.seconds(cost.HARDWARE[known.hardware])["total"]
        yield row(name, SAMPLES, rate, case.batch / seconds, "cadc plan", best)


def _turn(worker: dlrm.Ours) -> Any:
    worker.steps()
    return worker.state.step


def planned(case: dlrm.Case, worker: dlrm.Ours) -> cost.Cost:
    """What `cadc plan` says of a step."""
    user, item, *others = case.vocabularies
    features = {"dense": (0, dlrm.DENSE, 0), "categorical": (0, len(others), 0)}
    sizes = cost.Sizes("click", case.batch, user, item, sum(others), **features)
    tables = cost.table_shapes(sizes, case.layers[2], case.layers[2])
    platform = jax.devices()[0].platform
    return cost.training(
        "step", worker.model, worker.config, sizes, tables, worker.frozen, platform=platform
    )


def torch_units(quick: bool) -> Iterator[Unit]:
    """Our steps in turns with PyTorch's on the same device."""
    for case in cases(quick):
        kinds = {"torch": dlrm.Torch}
        if not quick:  # compiling takes long on a CPU
            kinds["torch, one table, compiled"] = dlrm.StackedTorch
        turns = 2 if quick else TURNS
        name = f"{name_of(case)}, beside torch"
        yield name, functools.partial(_torch_rows, case, kinds, turns)


def _torch_rows(case: dlrm.Case, kinds: dict[str, type[dlrm.Torch]], turns: int) -> Iterator[dict]:
    device = _torch_device()
    workers = {"ours": dlrm.Ours(case)}
    workers |= {name: kind(case, device) for name, kind in kinds.items()}
    samples = case.steps * case.batch
    # One turn of each after another, so that a busy machine slows all of them alike.
    found = [
        {name: timed(functools.partial(_steps, worker), 1).least for name, worker in order}
        for order in (list(workers.items()), list(workers.items())[::-1]) * (turns // 2)
    ]
    rates = {name: [samples / turn[name] for turn in found] for name in workers}
    for name in kinds:
        ours, theirs = (float(np.median(rates[x])) for x in ("ours", name))
        yield row(name_of(case), SAMPLES, ours, theirs, name, max(rates["ours"]))


def _steps(worker: Any) -> None:
    worker.steps()  # waits for its end


def _torch_device() -> str:
    """The name that torch has for JAX's first device."""
    try:
        import torch
    except ImportError:
        raise Skipped("torch is not installed") from None
    platform = jax.devices()[0].platform
    if platform == "cpu":
        return "cpu"
    if platform != "gpu" or not torch.cuda.is_available():
        raise Skipped(f"torch has no {platform} here")
    torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
    return "cuda"


def equality_units(quick: bool) -> Iterator[Unit]:
    """Twenty steps twice, and ALS twice; --quick: one optimizer."""
    base = QUICK if quick else dataclasses.replace(FULL, cap=1_000_000, batch=8192, steps=4)
    for optimizer in ("adagrad",) if quick else ("adagrad", "adam"):
        case = dataclasses.replace(base, optimizer=optimizer)
        name = f"20 steps of a DLRM twice, {optimizer}"
        yield name, functools.partial(_equality_row, name, functools.partial(_trained, case))
    name = f"{ITERATIONS} iterations of ALS twice"
    fitted = functools.partial(_fitted, *((TINY, 16) if quick else (SMALL, 64)))
    yield name, functools.partial(_equality_row, name, fitted)


def _equality_row(name: str, run: Any) -> Iterator[dict]:
    equal = run() == run()
    yield row(name, "bits are equal (1: yes)", float(equal), 1.0, "equal")


def _trained(case: dlrm.Case) -> str:
    worker = dlrm.Ours(case)
    for _ in range(CALLS):
        worker.steps()
    return _bits(worker.state)


def _fitted(log: Log, factors: int) -> str:
    config = ALSConfig(factors=factors, iterations=ITERATIONS)
    return _bits(als.fit(log.interactions, config, jax.random.key(0)))


def _bits(tree: Any) -> str:
    """A checksum of all numbers of a tree."""
    found = hashlib.sha256()
    for x in jax.tree.leaves(tree):
        found.update(np.asarray(x).tobytes())
    return found.hexdigest()
