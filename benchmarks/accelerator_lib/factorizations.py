"""ALS and logistic SGD: seconds, beside the limits of the device and the seconds of `cadc plan`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from benchmarks import factorization
from benchmarks.accelerator_lib import limits
from benchmarks.accelerator_lib.limits import Limits
from benchmarks.accelerator_lib.timing import row, timed
from cadc_jax import cost
from cadc_jax.factorization import als, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.factorization.sgd import SGDConfig, TrainingRows

TURNS, EPOCHS = 5, 4
Unit = tuple[str, Callable[[], Iterator[dict]]]  # name of a case, and what measures its rows


@dataclasses.dataclass(frozen=True)
class Log:
    """Random pairs with power-law popularity.

    Attributes:
      users: U.
      items: I.
      entries: E.
    """

    users: int
    items: int
    entries: int

    def __str__(self) -> str:
        return f"{self.entries:,} entries ({self.users:,} x {self.items:,})"

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """User [E] and item [E]."""
        return _pairs(self)

    @property
    def interactions(self) -> Interactions:
        """The pairs as a matrix."""
        return _interactions(self)

    @property
    def sizes(self) -> cost.Sizes:
        """What `cadc plan` knows of it."""
        matrix = self.interactions
        return cost.Sizes(
            *("ranking", self.entries, self.users, self.items),
            entries=self.entries,
            user_counts=matrix.by_user.counts,
            item_counts=matrix.by_item.counts,
        )


@functools.lru_cache(1)  # the largest takes gigabytes, and seconds
def _pairs(log: Log) -> tuple[np.ndarray, np.ndarray]:
    return factorization.power_law(log.users, log.items, log.entries)


@functools.lru_cache(1)
def _interactions(log: Log) -> Interactions:
    return Interactions.from_rows(*log.pairs, log.users, log.items)


SMALL, LARGE = Log(6_040, 3_706, 1_000_000), Log(138_000, 27_000, 20_000_000)
CLICKS = Log(138_000, 27_000, 4_000_000)
TINY = Log(600, 300, 20_000)


def als_units(log: Log, quick: bool, known: Limits) -> Iterator[Unit]:
    """An iteration at each rank with either solver; --quick: one rank."""
    for factors in (16,) if quick else (64, 128):
        for solver in ("cg", "exact"):
            config = ALSConfig(factors=factors, solver=solver)
            name = f"ALS, {log}, {factors} factors, {solver}"
            yield name, functools.partial(_als_rows, name, log, config, known)


def _als_rows(name: str, log: Log, config: ALSConfig, known: Limits) -> Iterator[dict]:
    users, items = als.prepare(log.interactions, config)
    normal = np.random.default_rng(0).normal(size=(log.items, config.factors))
    state = [users.empty_table(), items.table(normal.astype(np.float32) / config.factors**0.5)]

    def iterate() -> list[jax.Array]:
        state[0], _ = als.half_step(users, state[0], items, state[1])
        state[1], _ = als.half_step(items, state[1], users, state[0])
        return state

    times = timed(iterate, TURNS)
    metric = "seconds an iteration"
    plan = cost.als(log.sizes, config, platform=jax.devices()[0].platform)
    gathered = 2 * log.entries * config.factors * 4  # the rows of both half-steps
    least, what = limits.of_work(known, gathered, plan.flops, plan.precision)
    yield row(name, metric, times.median, least, what, times.least)
    yield row(name, "seconds of the first iteration", times.first, times.median, "a later one")
    if known.hardware:
        planned = plan.seconds(cost.HARDWARE[known.hardware])["total"]
        yield row(name, metric, times.median, planned, "cadc plan", times.least)


def sgd_units(quick: bool, known: Limits) -> Iterator[Unit]:
    """Epochs of a fit, on positives with drawn negatives and, unless --quick, on labelled rows."""
    log = TINY if quick else CLICKS
    for labelled in (False,) if quick else (False, True):
        for batch in (256,) if quick else (4096, 65_536):
            config = SGDConfig(batch_rows=batch, epochs=EPOCHS)
            kind = "labelled rows" if labelled else f"{config.negatives} negatives a row"
            name = f"logistic SGD, {log}, {kind}, batches of {batch:,}"
            yield name, functools.partial(_sgd_rows, name, log, config, labelled, known)


def _sgd_rows(
    name: str, log: Log, config: SGDConfig, labelled: bool, known: Limits
) -> Iterator[dict]:
    user, item = log.pairs
    label = np.random.default_rng(0).integers(0, 2, log.entries) if labelled else None
    rows = TrainingRows(user, item, log.users, log.items, label)
    ends: list[float] = []
    sgd.fit(rows, config, jax.random.key(0), progress=lambda *done: ends.append(done[2]))
    seconds = np.diff(ends)  # the first epoch compiles; a permutation on the host is included
    task = "click" if labelled else "ranking"
    sizes = cost.Sizes(task, log.entries, log.users, log.items, entries=log.entries)
    plan = cost.sgd_factorization(sizes, config, platform=jax.devices()[0].platform)
    steps = plan.units / config.epochs
    touched = config.batch_rows * (2 if labelled else 2 + config.negatives)
    gathered = touched * (config.factors + 1) * 4
    least, what = limits.of_work(known, gathered, plan.flops, plan.precision)
    rate, best = log.entries / np.median(seconds), log.entries / seconds.min()
    yield row(name, "rows a second", rate, log.entries / (steps * least), what, best)
    if known.hardware:
        planned = steps * plan.seconds(cost.HARDWARE[known.hardware])["total"]
        yield row(name, "rows a second", rate, log.entries / planned, "cadc plan", best)
