"""`tf.data` input: an endless stream of shuffled training batches of static shape.

Batch k is a pure function of (table, settings, k). An epoch's order is the stateless permutation of
`shuffle`, and negatives are hashes of (seed, epoch, row). A run therefore resumes at any step by
starting the stream there, and each of several hosts makes only its own part of a batch.

For speed, `tf.data` makes a block of many batches in one call: one permutation of positions and one
gather of whole rows per column. Batches are views of the block.
"""

import atexit
import dataclasses
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping

import numpy as np
import tensorflow as tf

from cadc_jax.data import negatives, sampling, shuffle
from cadc_jax.data.negatives import NegativeSampling, PairSet
from cadc_jax.data.table import Columns
from cadc_jax.errors import ConfigError

tf.config.set_visible_devices([], "GPU")  # leaves the accelerators to JAX

RULE_ROWS = 1 << 15  # rows that the sampling rule judges at a time: they fit in a core's cache
BLOCK_ITEMS = 1 << 16  # items of a block, negatives included
Batch = Mapping[str, np.ndarray]


def sampled_ids(num_rows: int, rate: float, seed: int) -> np.ndarray:
    """Ids of the rows that the sample keeps, in order.

    The rule depends on row numbers only, so rows that are dropped are never read or decoded.

    Args:
      num_rows: rows of the table, N.
      rate: share of rows to keep, in (0, 1].
      seed: seed of the rule.

    Returns:
      [kept], of `id_dtype(N)`.

    Raises:
      ValueError: if rate is outside (0, 1].
    """
    dtype = id_dtype(num_rows)
    kept = [np.zeros(0, dtype)]
    for start in range(0, num_rows, RULE_ROWS):
        ids = np.arange(start, min(start + RULE_ROWS, num_rows))
        kept.append(ids[sampling.keep(ids, rate, seed)].astype(dtype))
    return np.concatenate(kept)


def id_dtype(num_rows: int) -> type[np.signedinteger]:
    """int32 if it can hold the ids of `num_rows` rows, else int64."""
    return np.int32 if num_rows <= 1 << 31 else np.int64


def steps_per_epoch(num_rows: int, batch_rows: int) -> int:
    """Number of batches that hold every row once; the last one may be filled up."""
    return -(-num_rows // batch_rows)


def training_batches(
    rows: Columns,
    batch_rows: int,
    seed: int,
    start: int = 0,
    sampler: NegativeSampling | None = None,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[Batch]:
    """The endless stream of shuffled training batches, starting at step `start`.

    Args:
      rows: columns of the training rows, or of a sample of them.
      batch_rows: rows of the table in a batch, over all hosts, B.
      seed: seed of the order and of the negatives.
      start: first step.
      sampler: negatives to add to each row, if rows are positives only.
      host_index: which part of each batch to make: its rows [host_index * B / host_count,
        (host_index + 1) * B / host_count).
      host_count: number of parts.

    Returns:
      Batches: `user` [B] int32, `item` [B, G] int32, `label` [B, G] float32, the features `dense`
      [B, F] float32 and `categorical` [B, C] int32, and `weight` [B] float32. With several hosts B
      is B / host_count here. G is 1 for rows with labels; with a sampler it is 1 + count, the
      positive first. An epoch's last batch is filled up with rows of weight 0. Arrays may be
      read-only.

    Raises:
      ConfigError: if there are no rows, or host_count does not divide B.
      ValueError: if host_index is outside its range.
    """
    num_rows = len(rows["user"])
    if not num_rows:
        raise ConfigError("there are no rows to train on: raise the rate")
    if batch_rows % host_count:
        raise ConfigError(
            f"train.batch_rows={batch_rows} does not split evenly over {host_count} hosts"
        )
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index={host_index} is not in [0, {host_count})")
    own_rows = batch_rows // host_count
    items_per_batch = own_rows * (1 if sampler is None else 1 + sampler.count)
    maker = _BlockMaker(
        # Gathering whole rows is fast from contiguous columns, and copies nothing first.
        columns={name: np.ascontiguousarray(column) for name, column in rows.items()},
        num_rows=num_rows,
        batch_rows=batch_rows,
        seed=seed,
        own_places=host_index * own_rows + np.arange(own_rows),
        draw_negatives=None if sampler is None else _drawer(sampler, seed),
        steps=max(1, BLOCK_ITEMS // items_per_batch),
    )
    blocks = _stream(maker.block, maker.dtypes, start, maker.steps)
    _open_streams.add(blocks)
    return (
        {name: array[step] for name, array in block.items()}
        for block in blocks
        for step in range(maker.steps)
    )


@dataclasses.dataclass(frozen=True)
class _BlockMaker:
    """Makes blocks of batches.

    Attributes:
      columns: contiguous columns of the rows.
      num_rows: number of rows.
      batch_rows: rows of a batch, over all hosts.
      seed: seed of the order and of the negatives.
      own_places: [R] places, within a batch, of the R rows that this host makes.
      draw_negatives: (users [n], numbers of draws [n]) -> [n, count] items; None for rows with
        labels.
      steps: S, batches in a block.
    """

    columns: Columns
    num_rows: int
    batch_rows: int
    seed: int
    own_places: np.ndarray
    draw_negatives: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    steps: int

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Name -> dtype of the arrays of a block."""
        dtypes = {name: column.dtype for name, column in self.columns.items()}
        added = ("weight",) if self.draw_negatives is None else ("weight", "label")
        return dtypes | dict.fromkeys(added, np.dtype(np.float32))

    def block(self, first_step: np.int64) -> Batch:
        """The batches of S steps: arrays [S, R, ...]."""
        steps = int(first_step) + np.arange(self.steps)[:, None]
        epoch, step = np.divmod(steps, steps_per_epoch(self.num_rows, self.batch_rows))
        places = step * self.batch_rows + self.own_places
        # Places past the end of the epoch, which fill up its last batch, repeat its last row.
        inside = np.minimum(places, self.num_rows - 1)
        chosen = shuffle.permute(inside, self.num_rows, self.seed, epoch)
        # All rows are in range; mode 'clip' saves `take` a check of that.
        block = {name: x.take(chosen, axis=0, mode="clip") for name, x in self.columns.items()}
        block["item"] = block["item"][..., None]
        if self.draw_negatives is None:
            block["label"] = block["label"][..., None]
        else:
            draws = epoch * self.num_rows + chosen
            drawn = self.draw_negatives(block["user"].ravel(), draws.ravel())
            drawn = drawn.reshape(*draws.shape, -1)
            block["item"] = np.concatenate([block["item"], drawn], axis=-1)
            block["label"] = np.zeros(block["item"].shape, np.float32)
            block["label"][..., 0] = 1
        block["weight"] = (places < self.num_rows).astype(np.float32)
        return block


def _drawer(sampler: NegativeSampling, seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`negatives.draw_for_training` for this sampler and seed, as a function of users and draws."""
    known = PairSet.of(sampler.known)

    def draw(user: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return negatives.draw_for_training(
            user, draws, known, sampler.num_items, sampler.count, seed, sampler.likely
        )

    return draw


def _stream(
    make: Callable[[np.int64], Batch], dtypes: Mapping[str, np.dtype], start: int, stride: int
) -> Generator[Batch]:
    """Yields make(start), make(start + stride), ... without end; `tf.data` makes them ahead.

    Args:
      make: a function that returns arrays of these names and dtypes.
      dtypes: name -> dtype of its arrays.
      start: first argument.
      stride: difference between successive arguments.
    """

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(
            lambda number: list(map(make(number).get, dtypes)), [number], list(dtypes.values())
        )
        return dict(zip(dtypes, arrays, strict=True))

    numbers = tf.data.Dataset.range(start, np.iinfo(np.int64).max, stride)
    blocks = numbers.map(load, num_parallel_calls=2, deterministic=True).prefetch(1)
    # There is nothing to tune, and closing a stream would wait seconds for the tuner's next round.
    options = tf.data.Options()
    options.autotune.enabled = False
    yield from blocks.with_options(options).as_numpy_iterator()


_open_streams: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Stops the threads of open streams, which would otherwise wait for a finished interpreter."""
    for stream in list(_open_streams):
        stream.close()
