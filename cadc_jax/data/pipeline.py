"""`tf.data` input: the sampling rule over ranges of rows, and batches of static shape.

Element k of the batch stream is a pure function of (table, config, k): an epoch's order is the
stateless permutation of `shuffle`, negatives are hashes of (seed, epoch, row). So a run resumes at
any step by starting the stream there.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from cadc_jax.data import negatives, sampling, shuffle
from cadc_jax.data.table import Columns

tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's

RANGE = 1 << 16  # rows judged at a time by the sampling rule
Batch = Mapping[str, np.ndarray]


def sampled_ids(num_rows: int, rate: float, seed: int) -> tf.data.Dataset:
    """Ids of the rows the sample keeps, in order: a dataset of [<= RANGE] int64.

    The rule looks at row numbers alone, so nothing is read or decoded for a dropped row.
    """
    ids = tf.data.Dataset.range(num_rows).batch(RANGE)
    return ids.map(lambda i: tf.boolean_mask(i, sampling.keep_tf(i, rate, seed))).prefetch(2)


@dataclasses.dataclass(frozen=True)
class NegativeSampling:
    """Negatives that go with each positive row.

    Attributes:
      count: negatives a positive.
      known: sorted `negatives.pair_keys` of all training rows.
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
) -> Iterator[Batch]:
    """The endless stream of shuffled training batches, from step `start` on.

    Args:
      rows: columns of the training rows (or of the sample).
      batch_rows: rows of the table in a batch, B.
      seed: of order and negatives.
      start: first step.
      sampler: for positive-only rows, the negatives to add.

    Returns:
      Batches: `user` [B] int32, `item` [B, G] int32, `label` [B, G] float32, the features `dense`
      [B, F] float32 and `categorical` [B, C] int32, and `weight` [B] float32. G is 1 for labelled
      rows; with a sampler it is 1 + count, the positive first. An epoch's last batch is filled up
      with rows of weight 0.
    """
    num_rows = len(rows["user"])
    steps = steps_per_epoch(num_rows, batch_rows)

    def make(step: np.int64) -> list[np.ndarray]:
        epoch, place = divmod(int(step), steps)
        places = np.arange(place * batch_rows, (place + 1) * batch_rows)
        ids = shuffle.permute(np.minimum(places, num_rows - 1), num_rows, seed, epoch)
        batch = {name: np.asarray(column[ids]) for name, column in rows.items()}
        batch["item"] = batch["item"][:, None]
        if sampler is None:
            batch["label"] = batch["label"][:, None]
        else:
            draws = epoch * num_rows + ids
            drawn = negatives.draw_for_training(
                batch["user"], draws, sampler.known, sampler.num_items, sampler.count, seed
            )
            batch["item"] = np.concatenate([batch["item"], drawn], axis=1)
            batch["label"] = np.zeros(batch["item"].shape, np.float32)
            batch["label"][:, 0] = 1
        batch["weight"] = (places < num_rows).astype(np.float32)
        return [batch[name] for name in names]

    names = sorted({*rows, "label", "weight"})
    first = make(np.int64(start))
    specs = [tf.TensorSpec(array.shape, array.dtype) for array in first]

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(make, [step], [spec.dtype for spec in specs])
        for array, spec in zip(arrays, specs, strict=True):
            array.set_shape(spec.shape)
        return dict(zip(names, arrays, strict=True))

    stream = tf.data.Dataset.range(start, np.iinfo(np.int64).max).map(
        load, num_parallel_calls=2, deterministic=True
    )
    return stream.prefetch(4).as_numpy_iterator()
