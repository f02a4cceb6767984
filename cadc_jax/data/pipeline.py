"""`tf.data` input: shuffled training batches of static shape, from a table or a sample of it.

Element k of the batch stream is a pure function of (table, config, k): an epoch's order is the
stateless permutation of `shuffle`, negatives are hashes of (seed, epoch, row). So a run resumes at
any step by starting the stream there, and each host of many makes its own part of a batch.

Speed comes from doing a lot at a time: a call from `tf.data` makes a block of many batches, by one
permutation of positions and one gather of whole rows a column; batches are views of it.
"""

import atexit
import dataclasses
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping

import numpy as np
import tensorflow as tf

from cadc_jax.data import negatives, sampling, shuffle
from cadc_jax.data.table import Columns
from cadc_jax.errors import ConfigError

tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's

RANGE = 1 << 15  # rows judged at a time by the sampling rule: they fit in a core's cache
BLOCK = 1 << 16  # items, drawn ones included, made at a time
Batch = Mapping[str, np.ndarray]


def sampled_ids(num_rows: int, rate: float, seed: int) -> np.ndarray:
    """Ids of the rows the sample keeps, in order.

    The rule looks at row numbers alone, so nothing is read or decoded for a dropped row.

    Args:
      num_rows: rows of the table, N.
      rate: share of rows to keep, in (0, 1].
      seed: of the rule.

    Returns:
      [kept], of `id_kind(N)`.

    Raises:
      ValueError: if rate is outside (0, 1].
    """
    kind = id_kind(num_rows)
    kept = [np.zeros(0, kind)]
    for start in range(0, num_rows, RANGE):
        ids = np.arange(start, min(start + RANGE, num_rows))
        kept.append(ids[sampling.keep(ids, rate, seed)].astype(kind))
    return np.concatenate(kept)


def id_kind(num_rows: int) -> type[np.signedinteger]:
    """int32 where it holds the ids of so many rows, or else int64."""
    return np.int32 if num_rows <= 1 << 31 else np.int64


@dataclasses.dataclass(frozen=True)
class NegativeSampling:
    """Negatives that go with each positive row.

    Attributes:
      count: negatives a positive.
      known: sorted, distinct `negatives.pair_keys` of all training rows.
      num_items: number of item ids, id 0 included.
    """

    count: int
    known: np.ndarray
    num_items: int


def steps_per_epoch(num_rows: int, batch_rows: int) -> int:
    """Batches it takes to see every row once."""
    return -(-num_rows // batch_rows)


def training_batches(
    rows: Columns,
    batch_rows: int,
    seed: int,
    start: int = 0,
    sampler: NegativeSampling | None = None,
    ids: np.ndarray | None = None,
    host_index: int = 0,
    host_count: int = 1,
    stack: int | None = None,
) -> Iterator[Batch]:
    """The endless stream of shuffled training batches, from step `start` on.

    Args:
      rows: columns of the training rows (or of a written sample).
      batch_rows: rows of the table in a batch of all hosts together, B.
      seed: of order and negatives.
      start: first step.
      sampler: for positive-only rows, the negatives to add.
      ids: rows to train on, such as `sampled_ids`; all by default. The stream is the one of a table
        that holds these rows alone.
      host_index: which part of each batch to make: rows [host_index * B / host_count,
        (host_index + 1) * B / host_count) of it.
      host_count: number of parts.
      stack: batches in an element of the stream, for a loop on the device: arrays get a leading
        axis of that size, and elements are of steps start, start + stack, ...

    Returns:
      Batches: `user` [B] int32, `item` [B, G] int32, `label` [B, G] float32, the features `dense`
      [B, F] float32 and `categorical` [B, C] int32, and `weight` [B] float32; B / host_count for B
      with several hosts. G is 1 for labelled rows; with a sampler it is 1 + count, the positive
      first. An epoch's last batch is filled up with rows of weight 0. Arrays may be read-only.

    Raises:
      ConfigError: if there are no rows, or host_count does not divide B.
      ValueError: if an id or host_index is outside its range.
    """
    # Whole rows are gathered, which is fast (and copies nothing first) from contiguous columns.
    columns = {name: np.ascontiguousarray(column) for name, column in rows.items()}
    table_rows = len(columns["user"])
    num_rows = table_rows if ids is None else len(ids)
    _check(table_rows, ids, batch_rows, host_index, host_count)
    own_rows = batch_rows // host_count
    own_places = host_index * own_rows + np.arange(own_rows)
    epoch_steps = steps_per_epoch(num_rows, batch_rows)
    element_steps = stack or 1
    element_items = element_steps * own_rows * (1 if sampler is None else 1 + sampler.count)
    block_steps = element_steps * max(1, BLOCK // element_items)
    known = None if sampler is None else negatives.PairSet.of(sampler.known)

    def make(first: np.int64) -> Batch:
        """The batches of the steps from `first` on: arrays [block_steps, own_rows, ...]."""
        steps = int(first) + np.arange(block_steps)[:, None]
        epoch, step = np.divmod(steps, epoch_steps)
        places = step * batch_rows + own_places
        # The places that fill up the last batch repeat its last row.
        chosen = shuffle.permute(np.minimum(places, num_rows - 1), num_rows, seed, epoch)
        found = chosen if ids is None else ids.take(chosen).astype(np.intp)
        # All are in range; 'clip' keeps `take` from making sure.
        block = {name: x.take(found, axis=0, mode="clip") for name, x in columns.items()}
        block["item"] = block["item"][..., None]
        if sampler is None or known is None:
            block["label"] = block["label"][..., None]
        else:
            draws = epoch * num_rows + chosen
            drawn = negatives.draw_for_training(
                block["user"].ravel(), draws.ravel(), known, sampler.num_items, sampler.count, seed
            ).reshape(*draws.shape, sampler.count)
            block["item"] = np.concatenate([block["item"], drawn], axis=-1)
            block["label"] = np.zeros(block["item"].shape, np.float32)
            block["label"][..., 0] = 1
        block["weight"] = (places < num_rows).astype(np.float32)
        return block

    kinds = {name: x.dtype for name, x in columns.items()} | {"weight": np.dtype(np.float32)}
    if sampler is not None:
        kinds["label"] = np.dtype(np.float32)
    blocks = _stream(make, kinds, start, block_steps)
    _streams.add(blocks)
    return (
        {name: array[i if stack is None else slice(i, i + stack)] for name, array in block.items()}
        for block in blocks
        for i in range(0, block_steps, element_steps)
    )


def _check(
    table_rows: int, ids: np.ndarray | None, batch_rows: int, host_index: int, host_count: int
) -> None:
    """Raises what `training_batches` says it does."""
    if not table_rows or (ids is not None and not len(ids)):
        raise ConfigError("there are no rows to train on: raise the rate")
    if ids is not None and not 0 <= ids.min() <= ids.max() < table_rows:
        raise ValueError(f"ids must be in [0, {table_rows}), the rows of the table")
    if batch_rows % host_count:
        raise ConfigError(
            f"train.batch_rows={batch_rows} does not split evenly over {host_count} hosts"
        )
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index={host_index} is not in [0, {host_count})")


def _stream(
    make: Callable[[np.int64], Batch], kinds: Mapping[str, np.dtype], start: int, stride: int
) -> Generator[Batch]:
    """make(start), make(start + stride), ... without end, made ahead of time by `tf.data`.

    Args:
      make: any function that gives arrays of these kinds.
      kinds: name -> dtype of its arrays.
      start: first argument.
      stride: between arguments.
    """

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(
            lambda number: list(map(make(number).get, kinds)), [number], list(kinds.values())
        )
        return dict(zip(kinds, arrays, strict=True))

    numbers = tf.data.Dataset.range(start, np.iinfo(np.int64).max, stride)
    blocks = numbers.map(load, num_parallel_calls=2, deterministic=True).prefetch(1)
    # There is nothing to tune, and closing a stream would wait seconds for the tuner's next round.
    options = tf.data.Options()
    options.autotune.enabled = False
    yield from blocks.with_options(options).as_numpy_iterator()


_streams: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Stops the threads of streams left open: they would wait for an interpreter that is gone."""
    for stream in list(_streams):
        stream.close()
