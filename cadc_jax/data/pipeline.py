"""`tf.data` input: the rows that a sample keeps, and an endless stream of training batches.

A sample is made from row numbers. `tf.data` applies the rule to ranges of them and gathers the kept
rows, in TensorFlow operations from one end to the other, so dropped rows are neither read nor
decoded.

Batch k of the stream is a pure function of (table, settings, k). An epoch's order is the stateless
permutation of `shuffle`, and negatives are hashes of (seed, epoch, row). A run therefore resumes at
any step by starting the stream there, and each of several hosts makes only its own part of a batch.
For speed, `tf.data` makes a block of many batches in one call of NumPy, whose permutation and
gathers of shuffled rows take half the time of TensorFlow's. Batches are views of the block.

Where TensorFlow is not installed, NumPy does all of this, with the same result.
"""

import atexit
import collections
import concurrent.futures
import dataclasses
import functools
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from types import ModuleType

import numpy as np
from absl import logging

from cadc_jax.data import negatives, sampling, shuffle
from cadc_jax.data.negatives import NegativeSampling, PairSet
from cadc_jax.data.table import Columns
from cadc_jax.errors import ConfigError

RULE_ROWS = 1 << 15  # rows that NumPy's rule judges at a time: they fit in a core's cache
SAMPLE_ROWS = 1 << 18  # rows of the table that a block of a sample is chosen from
BLOCK_ITEMS = 1 << 16  # items of a block of batches, negatives included
AHEAD = 2  # blocks of batches that threads make ahead
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


def sampled_rows(columns: Columns, rate: float, seed: int) -> Iterator[Columns]:
    """The rows that the sample keeps, in order, in blocks: memory holds a few blocks at a time.

    Args:
      columns: name -> [N, ...], `user` among them; of a table, they are memory-mapped.
      rate: share of rows to keep, in (0, 1].
      seed: seed of the rule.

    Yields:
      The kept ones of the next `SAMPLE_ROWS` rows: their numbers `row` [kept] int64, and all
      columns [kept, ...]. There is at least one block.

    Raises:
      ValueError: if rate is outside (0, 1].
    """
    tf_data = import_tf_data()
    make = _sampled_by_numpy if tf_data is None else tf_data.sampled_rows
    return make(columns, rate, seed, SAMPLE_ROWS)


def _sampled_by_numpy(
    columns: Columns, rate: float, seed: int, block_rows: int
) -> Iterator[Columns]:
    """`sampled_rows` in NumPy, the reference of `tf_data.sampled_rows`."""
    num_rows = len(columns["user"])
    for start in range(0, max(1, num_rows), block_rows):
        numbers = np.arange(start, min(start + block_rows, num_rows))
        row = numbers[sampling.keep(numbers, rate, seed)]
        yield {"row": row} | {name: column.take(row, axis=0) for name, column in columns.items()}


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
    tf_data = import_tf_data()
    stream = _stream_by_numpy if tf_data is None else tf_data.stream
    blocks = stream(maker.block, maker.dtypes, start, maker.steps)
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

    def block(self, first_step: int) -> Batch:
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


@functools.cache
def import_tf_data() -> ModuleType | None:
    """The module `tf_data`, which takes seconds to import; None if TensorFlow is not installed."""
    try:
        from cadc_jax.data import tf_data
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        logging.warning("TensorFlow is not installed: NumPy makes samples and batches instead")
        return None
    return tf_data


def _stream_by_numpy(
    make: Callable[[int], Batch], dtypes: Mapping[str, np.dtype], start: int, stride: int
) -> Generator[Batch]:
    """`tf_data.stream` with threads in place of `tf.data`."""
    del dtypes
    with concurrent.futures.ThreadPoolExecutor(AHEAD) as pool:
        waiting = collections.deque(pool.submit(make, start + i * stride) for i in range(AHEAD))
        while True:
            start += stride
            block = waiting.popleft().result()
            waiting.append(pool.submit(make, start + (AHEAD - 1) * stride))
            yield block


_open_streams: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Stops the threads of open streams, which would otherwise wait for a finished interpreter."""
    for stream in list(_open_streams):
        stream.close()
