"""The part of `pipeline` that needs TensorFlow, which takes seconds to import."""

from collections.abc import Callable, Generator, Iterator, Mapping

import numpy as np
import tensorflow as tf

from cadc_jax.data import sampling
from cadc_jax.data.table import Columns
from cadc_jax.runtime.host_tensorflow import leave_accelerators

leave_accelerators()

PARALLEL = 2  # blocks that are made at the same time
_ALIGNMENT = 64  # bytes: TensorFlow's operations take no memory that begins elsewhere
# Functions without Python's control flow; looking for some takes half a second.
_as_it_is = tf.autograph.experimental.do_not_convert


def sampled_rows(columns: Columns, rate: float, seed: int, block_rows: int) -> Iterator[Columns]:
    """The blocks of `pipeline.sampled_rows`, each of which is chosen from `block_rows` rows."""
    num_rows = len(columns["user"])
    gather = {name: _gatherer(column) for name, column in columns.items()}

    @_as_it_is
    def kept(start: tf.Tensor) -> dict[str, tf.Tensor]:
        numbers = tf.range(start, tf.minimum(start + block_rows, num_rows))
        places = start + tf.where(sampling.keep_tf(numbers, rate, seed))  # [kept, 1]
        return {"row": places[:, 0]} | {name: rows(places) for name, rows in gather.items()}

    starts = tf.data.Dataset.range(0, max(1, num_rows), block_rows)
    blocks = starts.map(kept, num_parallel_calls=PARALLEL, deterministic=True)
    return blocks.with_options(options()).as_numpy_iterator()


def stream(
    make: Callable[[int], Columns], dtypes: Mapping[str, np.dtype], start: int, stride: int
) -> Generator[Columns]:
    """Yields make(start), make(start + stride), ... without end; `tf.data` makes them ahead.

    Args:
      make: a function that returns arrays of these names and dtypes.
      dtypes: name -> dtype of its arrays.
      start: first argument.
      stride: difference between successive arguments.
    """

    @_as_it_is
    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(
            lambda number: list(map(make(number).get, dtypes)), [number], list(dtypes.values())
        )
        return dict(zip(dtypes, arrays, strict=True))

    numbers = tf.data.Dataset.range(start, np.iinfo(np.int64).max, stride)
    blocks = numbers.map(load, num_parallel_calls=PARALLEL, deterministic=True).prefetch(1)
    yield from blocks.with_options(options()).as_numpy_iterator()


def options() -> tf.data.Options:
    """How `tf.data` runs: as it is told, and without copies of what its operations refer to."""
    made = tf.data.Options()
    # There is nothing to tune, and closing a stream would wait seconds for the tuner's next round.
    made.autotune.enabled = False
    # Nothing to rewrite either, and rewriting copies the columns into memory.
    made.experimental_optimization.apply_default_optimizations = False
    return made


def _gatherer(column: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function that gathers rows of a column: their numbers [n, 1] int64 -> [n, ...].

    Columns of a table begin at a multiple of 64 bytes of their file, and so of memory. NumPy
    gathers from a column that does not: one of a small file, which is read and not mapped.
    """
    if not column.size:
        return lambda places: tf.zeros((tf.shape(places)[0], *column.shape[1:]), column.dtype)
    if column.flags.c_contiguous and column.ctypes.data % _ALIGNMENT == 0:
        tensor = shared(column)
        return lambda places: tf.gather_nd(tensor, places)
    return lambda places: tf.numpy_function(
        lambda places: column.take(places[:, 0], axis=0), [places], column.dtype
    )


def shared(column: np.ndarray) -> tf.Tensor:
    """A tensor in the memory of an array, without a copy.

    Args:
      column: [N, ...] in C order; its memory begins at a multiple of 64 bytes, and does not change.
    """
    # Through DLPack; what TensorFlow reads of it cannot express that an array is read-only.
    return tf.experimental.dlpack.from_dlpack(np.asarray(_Writable(column)).__dlpack__())


class _Writable:
    """Makes NumPy take a read-only array for a writable one, to which nothing is written."""

    def __init__(self, column: np.ndarray):
        address, _ = column.__array_interface__["data"]
        self.__array_interface__ = column.__array_interface__ | {"data": (address, False)}
        self.column = column  # keeps the memory
