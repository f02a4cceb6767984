"""Where batches come from: rows in the memory of the devices, or batches that the host makes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cadc_jax import sharding
from cadc_jax.data import pipeline
from cadc_jax.errors import ConfigError
from cadc_jax.models.embeddings import Batch, HostBatch
from cadc_jax.resident import batches
from cadc_jax.resident.batches import ResidentRows
from cadc_jax.resident.records import Layout
from cadc_jax.resident.shuffle import MOST_ROWS
from cadc_jax.training import prefetch
from cadc_jax.training.step import TrainConfig

STEPS_ON_CPU, STEPS = 8, 64  # steps in one program

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Feed(Protocol):
    """The endless stream of training batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches that make an epoch."""

    def shapes(self, config: TrainConfig) -> Shapes:
        """Shapes and dtypes of a batch of all processes."""

    def calls(
        self, step: int, done: int, interval: int, size: int, mesh: Mesh
    ) -> Iterator[Batch | ResidentRows]:
        """What each call of `train_steps` takes, `size` steps at a time.

        Args:
          step: first step.
          done: steps of its interval before it. No call crosses the border of an interval; its last
            call may have fewer steps.
          interval: steps between evaluations.
          size: steps of a call, K.
          mesh: the devices.
        """


@dataclasses.dataclass(frozen=True)
class Choice:
    """Where the rows are during training.

    Attributes:
      resident: whether they are on the devices.
      split: whether each device then holds a part of them.
      why: a line for people.
    """

    resident: bool
    split: bool
    why: str


def choose(wanted: str, layout: Layout, num_rows: int, mesh: Mesh) -> Choice:
    """Chooses the input by its bytes.

    Args:
      wanted: `TrainConfig.input`.
      layout: of the rows' records.
      num_rows: rows to train on, N.
      mesh: the devices.
    """
    if wanted == "stream":
        return Choice(False, False, "input streams from the host")
    size, room = 4 * layout.words * num_rows, sharding.RESIDENT_SHARE * sharding.memory(mesh)
    split = size > room and mesh.size > 1
    part = size // mesh.size if split else size
    told = f"{num_rows:,} rows take {part / 1e6:,.1f} MB a device"
    fits = part <= room and num_rows <= MOST_ROWS
    if not fits and wanted == "auto":
        return Choice(False, False, f"input streams from the host: {told}, of {room / 1e6:,.0f}")
    if num_rows > MOST_ROWS:
        raise ConfigError(
            f"train.input='resident': at most {MOST_ROWS:,} rows, not {num_rows:,}; use 'stream'"
        )
    where = f"split over {mesh.size} devices" if split else "on each device"
    return Choice(True, split, f"input is resident: {told}, {where}")


def steps_of_call(config: TrainConfig, interval: int, mesh: Mesh) -> int:
    """Steps in one program, K.

    If none are given, intervals are divided into calls of about the same length, so that the last
    call of an interval has few steps less than the others.
    """
    most = config.steps_per_call or (STEPS_ON_CPU if sharding.is_cpu(mesh) else STEPS)
    if config.steps_per_call:
        return min(most, interval)
    return -(-interval // -(-interval // most))


@dataclasses.dataclass(frozen=True)
class HostFeed:
    """Batches that the host makes and sends while the devices work.

    Attributes:
      starting_at: step -> the batches from that step on. Each process makes its own part of them.
      steps_per_epoch: batches that make an epoch.
    """

    starting_at: Callable[[int], Iterator[HostBatch]]
    steps_per_epoch: int

    def shapes(self, config: TrainConfig) -> Shapes:
        """See `Feed`."""
        return {
            name: jax.ShapeDtypeStruct((config.batch_rows, *x.shape[1:]), x.dtype)
            for name, x in next(self.starting_at(0)).items()
        }

    def calls(
        self, step: int, done: int, interval: int, size: int, mesh: Mesh
    ) -> Iterator[Batch | ResidentRows]:
        """See `Feed`."""
        stacks = _stacks(self.starting_at(step), interval, size, done)
        return prefetch.device_batches(stacks, sharding.named(mesh, sharding.BATCHES), depth=1)


@dataclasses.dataclass(frozen=True)
class ResidentFeed:
    """Batches that the devices make of the rows that they hold.

    Attributes:
      rows: the rows.
    """

    rows: ResidentRows

    @property
    def steps_per_epoch(self) -> int:
        """See `Feed`."""
        return pipeline.steps_per_epoch(self.rows.num_rows, self.rows.batch_rows)

    def shapes(self, config: TrainConfig) -> Shapes:
        """See `Feed`."""
        del config  # the rows know their batches
        stack = jax.eval_shape(batches.make, self.rows, jax.ShapeDtypeStruct((), jnp.int32))
        return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in stack.items()}

    def calls(
        self, step: int, done: int, interval: int, size: int, mesh: Mesh
    ) -> Iterator[Batch | ResidentRows]:
        """See `Feed`."""
        rows = dataclasses.replace(self.rows, steps=size)
        if sharding.is_cpu(mesh):
            return _made_before(rows, step, done, interval)
        return itertools.repeat(rows)  # a call makes the batches of its state's step


def _made_before(
    rows: ResidentRows, step: int, done: int, interval: int
) -> Iterator[Mapping[str, jax.Array]]:
    """The batches of each call, made by a program of their own.

    A CPU starts another program at no cost, and arms with other rows share the one of the steps,
    which takes much longer to compile.
    """
    while True:
        for first in range(done, interval, rows.steps):
            yield _make(rows, np.int32(step))
            step += min(rows.steps, interval - first)
        done = 0


_make = jax.jit(batches.make)


def _stacks(
    batches: Iterator[HostBatch], interval: int, size: int, done: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Stacks of `size` batches, in order; the first is `done` batches into an interval.

    The last stack of an interval may hold fewer. Its last batch then fills the remaining places,
    because all stacks must have one shape.
    """
    while True:
        for first in range(done, interval, size):
            part = list(itertools.islice(batches, min(size, interval - first)))
            padded = part + part[-1:] * (size - len(part))
            yield {name: np.stack([batch[name] for batch in padded]) for name in part[0]}
        done = 0
