"""The input pipeline: samples, rows a second, the cost of an epoch of a sample, and of resuming.

    CADC_DATA_DIR=/raw/data python benchmarks/pipeline.py [--quick] [--json FILE]

The table is random and memory-mapped, in Criteo's shape: 13 dense and 26 categorical features, 168
bytes a row. The peers are the loops that one would write first: `tf.data` with a shuffle buffer of
100,000 rows, and NumPy with a permutation of the epoch and fancy indexing. For negatives the peer
is NumPy with a binary search of the known pairs. The pipeline must keep up with the training steps
of DLRM, in the size of `configs/criteo.py` and in that of the Kaggle benchmark (arXiv 1906.00091).
Two more peers are the pipeline itself: without TensorFlow, and with the permutation and the gathers
in TensorFlow operations. A sample is compared with NumPy's: the numbers of all kept rows, and then
the rows of one column after the other.

Ours and the peer take turns, so a busy machine slows both. Figures are medians over the turns, and
ratios are the medians of ours / peer in each turn: above 1 is better for rows a second, below 1 for
seconds.
"""

import argparse
import functools
import gzip
import itertools
import json
import os
import pathlib
import platform
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator, Mapping

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.sharding import PartitionSpec

from cadc_jax import configuration, sharding
from cadc_jax.data import negatives, pipeline, sampling, shuffle, tf_data
from cadc_jax.data.negatives import NegativeSampling
from cadc_jax.data.table import Columns, read_columns, write_blocks, write_columns, write_rows
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.embeddings import Content, stacked_offsets
from cadc_jax.training import prefetch, step

RATE, SEED = 0.1, 0
USERS, ITEMS, VOCABULARY = 12_000, 5_000, 40_000  # ids of each of the 26 features
STACK = 16  # batches that are sent to the device together
MODELS = {
    "small DLRM": DLRM(16, (32,), (64, 32)),
    "Kaggle DLRM": DLRM(16, (512, 256, 64), (512, 256)),
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 million rows, 3 turns")
    parser.add_argument("--json", metavar="FILE", help="file to write the table to")
    arguments = parser.parse_args()
    num_rows, turns = (4_000_000, 3) if arguments.quick else (20_000_000, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_table(folder / "all", num_rows)
        rows = read_columns(folder / "all")
        write_columns(folder / "sample", sample_of(rows))
        results = [
            *samples(rows, folder, turns),
            *throughput(rows, turns),
            *epochs(rows, read_columns(folder / "sample"), turns),
            *resuming(rows, turns),
            *with_negatives(turns),
            *steps(rows, (2048,) if arguments.quick else (2048, 8192), turns),
        ]
    show(results)
    if arguments.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        pathlib.Path(arguments.json).write_text(
            json.dumps({"machine": machine, "rows": results}, indent=1)
        )


# Measurements.


def samples(rows: Columns, folder: pathlib.Path, turns: int) -> Iterator[dict]:
    """Seconds to write the rows that a sample keeps."""

    def in_numpy() -> None:
        ids = pipeline.sampled_ids(len(rows["user"]), RATE, SEED)
        write_columns(folder / "peer", {"row": ids.astype(np.int64)})
        write_rows(folder / "peer", rows, ids)

    systems = {
        "ours": lambda: write_blocks(folder / "ours", pipeline.sampled_rows(rows, RATE, SEED)),
        "NumPy": in_numpy,
    }
    seconds = take_turns(systems, turns)
    for file in (folder / "peer").iterdir():
        assert file.read_bytes() == (folder / "ours" / file.name).read_bytes()
    yield line(f"10 % of {len(rows['user']):,} rows, written", seconds, "ours", "NumPy")


def throughput(rows: Columns, turns: int) -> Iterator[dict]:
    """Rows a second of the pipeline, and of its batches on the device."""
    num_rows = len(rows["user"])
    for size in (2048, 8192):
        systems = {
            "ours": (pipeline.training_batches(rows, size, SEED), num_rows // size),
            "without TensorFlow": (without_tensorflow(rows, size), num_rows // size),
            "its operations": (in_operations(rows, size), num_rows // size),
            "NumPy loop": (numpy_loop(rows, size), num_rows // size),
            "tf.data": (usual_tf_data(rows, size), 65_536 // size),  # few: it is slow
        }
        seconds = seconds_a_row(systems, size, turns)
        for peer in list(systems)[1:]:
            yield line(f"Criteo rows, batches of {size}", seconds, "ours", peer, per_row=True)

    mesh = sharding.make_mesh()
    one_by_one = pipeline.training_batches(rows, 2048, SEED)
    stacked = stacks(pipeline.training_batches(rows, 2048, SEED))
    spec = PartitionSpec(None, *sharding.BATCH)
    to_device = prefetch.device_batches
    on_device = {
        "stacked": (to_device(stacked, sharding.named(mesh, spec)), 480 // STACK),
        "unstacked": (to_device(one_by_one, sharding.named(mesh, sharding.BATCH)), 480),
    }
    seconds = seconds_a_row(on_device, 2048, turns)
    seconds["stacked"] = [x / STACK for x in seconds["stacked"]]  # an element is STACK batches
    case = f"batches of 2048 on the device, {STACK} a stack"
    yield line(case, seconds, "stacked", "unstacked", per_row=True)


def epochs(rows: Columns, sample: Columns, turns: int) -> Iterator[dict]:
    """Seconds of an epoch, from opening the stream to its last batch, and of the sampling rule."""
    num_rows, size = len(rows["user"]), 2048

    def epoch(columns: Columns) -> None:
        batches = pipeline.training_batches(columns, size, SEED)
        exhaust(batches, pipeline.steps_per_epoch(len(columns["user"]), size))

    systems = {
        "all rows": lambda: epoch(rows),
        "written": lambda: epoch(sample),
        "rule": lambda: pipeline.sampled_ids(num_rows, RATE, SEED),
        "rng.random() < rate": lambda: np.flatnonzero(
            np.random.default_rng(SEED).random(num_rows) < RATE
        ),
    }
    seconds = take_turns(systems, turns)
    yield line("epoch of a 10 % sample, written", seconds, "written", "all rows")
    yield line(f"choose the rows of {num_rows:,}", seconds, "rule", "rng.random() < rate")


def resuming(rows: Columns, turns: int) -> Iterator[dict]:
    """Seconds to the first batch of a stream that starts in the middle."""

    def first(batches: Callable[..., Iterator], **options: int) -> Callable[[], None]:
        return lambda: exhaust(batches(rows, 2048, **options), 1)

    ours = functools.partial(pipeline.training_batches, seed=SEED)
    systems = {"far": first(ours, start=10**6), "step 10": first(ours, start=10)}
    seconds = take_turns(systems, 4 * turns)
    yield line("first batch at step 1,000,000", seconds, "far", "step 10")
    systems = {"ours": first(ours, start=50), "tf.data skip": first(usual_tf_data, skip=50)}
    yield line("first batch at step 50", take_turns(systems, 1), "ours", "tf.data skip")


def with_negatives(turns: int) -> Iterator[dict]:
    """Rows a second with four negatives for each."""
    user, item, num_items = movielens()
    known = np.unique(negatives.pair_keys(user, item, num_items))
    rows = {"user": user, "item": item}
    sampler = NegativeSampling(4, known, num_items)
    for size in (2048, 8192):
        batches = pipeline.training_batches(rows, size, SEED, sampler=sampler)
        alone = without_tensorflow(rows, size, sampler)
        systems = {
            "ours": (batches, len(user) // size),
            "without TensorFlow": (alone, len(user) // size),
            "NumPy loop": (numpy_loop_of_negatives(rows, size, sampler), len(user) // size),
        }
        seconds = seconds_a_row(systems, size, turns)
        case = f"MovieLens 1M, 4 negatives, batches of {size}"
        for peer in list(systems)[1:]:
            yield line(case, seconds, "ours", peer, per_row=True)


def steps(rows: Columns, sizes: tuple[int, ...], turns: int) -> Iterator[dict]:
    """Rows a second of the pipeline, against a training step on its batches."""
    for (name, model), size in itertools.product(MODELS.items(), sizes):
        systems = {
            "ours": (pipeline.training_batches(rows, size, SEED), 2**20 // size),
            f"{name} step": (training(model, rows, size), 2**14 // size),
        }
        seconds = seconds_a_row(systems, size, turns)
        case = f"pipeline beside a training step, batches of {size}"
        yield line(case, seconds, "ours", f"{name} step", per_row=True)


def training(model: DLRM, rows: Columns, size: int) -> Iterator[None]:
    """Training steps, all on the same batch."""
    key = jax.random.key(SEED)
    batch = jax.device_put(next(pipeline.training_batches(rows, size, SEED)))
    config = step.TrainConfig(batch_rows=size, table_optimizer="adagrad")
    content = Content(
        user_dense=jnp.zeros((USERS, 0)),
        user_categorical=jnp.zeros((USERS, 0), jnp.int32),
        item_dense=jnp.zeros((ITEMS, 0)),
        item_categorical=jnp.zeros((ITEMS, 0), jnp.int32),
        context_offsets=jnp.asarray(stacked_offsets([VOCABULARY] * 26)),
    )
    lengths = {"user": USERS, "item": ITEMS, "features": 26 * VOCABULARY}
    tables = {name: jnp.zeros((length, 16)) for name, length in lengths.items()}
    state = step.init_state(model, config, tables, {}, content, batch, key)
    while True:
        state, loss = step.train_step(model, config, state, {}, content, batch, key)
        loss.block_until_ready()
        yield


def seconds_a_row(
    systems: Mapping[str, tuple[Iterator, int]], size: int, turns: int
) -> dict[str, list[float]]:
    """Seconds a row of each stream in each turn.

    Args:
      systems: name -> (stream of batches, batches to take in a turn).
      size: rows of a batch.
      turns: number of turns.
    """
    runs = {
        name: functools.partial(exhaust, stream, count) for name, (stream, count) in systems.items()
    }
    seconds = take_turns(runs, turns)
    return {name: [x / (systems[name][1] * size) for x in seconds[name]] for name in systems}


def take_turns(systems: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each system in each turn, after a turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(turns + 1):
        for name, run in systems.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: x[1:] for name, x in seconds.items()}


def line(
    case: str, seconds: dict[str, list[float]], ours: str, peer: str, per_row: bool = False
) -> dict:
    """A line of the table: seconds, or rows a second if `seconds` are of a single row."""
    x, y = np.array(seconds[ours]), np.array(seconds[peer])
    if per_row:
        x, y = 1 / x, 1 / y
    return {
        "case": case,
        "metric": "rows/s (larger is better)" if per_row else "seconds (smaller is better)",
        "ours": float(np.median(x)),
        "peer": float(np.median(y)),
        "peer_name": peer,
        "ratio": float(np.median(x / y)),
    }


def show(rows: list[dict]) -> None:
    """Prints the table."""
    print(f"| {'case':50s} | {'metric':27s} | {'peer':19s} |     ours |     peer |  ratio |")
    print("|" + "---|" * 6)
    for line in rows:
        numbers = f"{line['ours']:8.3g} | {line['peer']:8.3g} | {line['ratio']:6.3g}"
        print(
            f"| {line['case']:50s} | {line['metric']:27s} | {line['peer_name']:19s} | {numbers} |"
        )


def exhaust(stream: Iterator, count: int) -> None:
    """Takes `count` elements."""
    for _ in itertools.islice(stream, count):
        pass


def stacks(batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """STACK batches at a time, stacked along a new first axis."""
    while True:
        part = list(itertools.islice(batches, STACK))
        yield {name: np.stack([batch[name] for batch in part]) for name in part[0]}


# The peers.


def numpy_loop(rows: Columns, batch_rows: int) -> Iterator[dict]:
    """Batches as a map-style loader makes them: a permutation of the epoch, and fancy indexing."""
    num_rows = len(rows["user"])
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(num_rows)
        for start in range(0, num_rows - batch_rows + 1, batch_rows):
            ids = order[start : start + batch_rows]
            yield {name: column[ids] for name, column in rows.items()}


def numpy_loop_of_negatives(
    rows: Columns, batch_rows: int, sampler: NegativeSampling
) -> Iterator[dict]:
    """The same with negatives, which are drawn again while they are known pairs."""
    rng = np.random.default_rng(SEED)
    for batch in numpy_loop(rows, batch_rows):
        items = rng.integers(1, sampler.num_items, (batch_rows, sampler.count))
        left = np.arange(items.size)
        users = np.repeat(batch["user"], sampler.count)
        flat = items.reshape(-1)
        for _ in range(negatives.ATTEMPTS):
            keys = negatives.pair_keys(users[left], flat[left], sampler.num_items)
            left = left[negatives.contains(sampler.known, keys)]
            flat[left] = rng.integers(1, sampler.num_items, len(left))
        yield batch | {"item": np.concatenate([batch["item"][:, None], items], axis=1)}


def without_tensorflow(
    rows: Columns, batch_rows: int, sampler: NegativeSampling | None = None
) -> Iterator[Mapping[str, np.ndarray]]:
    """Our batches, made by threads in place of `tf.data`."""
    with unittest.mock.patch.object(pipeline, "import_tf_data", lambda: None):
        return pipeline.training_batches(rows, batch_rows, SEED, sampler=sampler)


def in_operations(rows: Columns, batch_rows: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Our batches, with the permutation and the gathers in TensorFlow operations."""
    num_rows, steps = len(rows["user"]), max(1, pipeline.BLOCK_ITEMS // batch_rows)
    per_epoch = pipeline.steps_per_epoch(num_rows, batch_rows)
    columns = {name: tf_data.shared(column) for name, column in rows.items()}

    def block(first: tf.Tensor) -> dict[str, tf.Tensor]:
        numbers = first + tf.range(steps, dtype=tf.int64)[:, None]
        epoch = numbers // per_epoch
        places = (numbers - epoch * per_epoch) * batch_rows + tf.range(batch_rows, dtype=tf.int64)
        chosen = permute_in_operations(tf.minimum(places, num_rows - 1), num_rows, epoch)
        made = {name: tf.gather(column, chosen) for name, column in columns.items()}
        made |= {name: made[name][..., None] for name in ("item", "label")}
        return made | {"weight": tf.cast(places < num_rows, tf.float32)}

    starts = tf.data.Dataset.range(0, 1 << 62, steps)
    blocks = starts.map(block, num_parallel_calls=tf_data.PARALLEL, deterministic=True).prefetch(1)
    batches = (
        {name: array[step] for name, array in block.items()}
        for block in blocks.with_options(tf_data.options()).as_numpy_iterator()
        for step in range(steps)
    )
    first, expected = next(batches), next(pipeline.training_batches(rows, batch_rows, SEED))
    assert all(np.array_equal(first[name], expected[name]) for name in expected)
    return batches


def permute_in_operations(positions: tf.Tensor, n: int, epoch: tf.Tensor) -> tf.Tensor:
    """`shuffle.permute` in TensorFlow operations, of epochs [S, 1] and positions [S, R]."""
    bits = (n - 1).bit_length() // 2
    divisor = -(-n >> bits)
    xor, right_shift = tf.bitwise.bitwise_xor, tf.bitwise.right_shift

    def number(value: int) -> tf.Tensor:
        return tf.constant(value, tf.uint64)

    def mixed(x: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        x = (x + key) * number(sampling.MULTIPLIERS[0])
        return xor(x, right_shift(x, number(32))) * number(sampling.MULTIPLIERS[1])

    def feistel(x: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
        numbers = epoch[None] * 2 * shuffle.ROUNDS
        numbers += tf.reshape(tf.range(2 * shuffle.ROUNDS, dtype=tf.int64), (-1, 1, 1))
        keys = sampling.mix64_tf(numbers, SEED)
        left = right_shift(x, number(bits))
        right = tf.bitwise.bitwise_and(x, number((1 << bits) - 1))
        for i in range(shuffle.ROUNDS):
            part = right_shift(mixed(right, keys[2 * i]), number(32)) * number(divisor)
            left += right_shift(part, number(32))
            left = tf.minimum(left, left - number(divisor))
            right = xor(right, right_shift(mixed(left, keys[2 * i + 1]), number(64 - bits)))
        return tf.bitwise.bitwise_or(tf.bitwise.left_shift(left, number(bits)), right)

    def again(x: tf.Tensor) -> list[tf.Tensor]:
        outside = tf.where(x >= number(n))
        epochs = tf.gather(epoch, outside[:, 0])
        inside = feistel(tf.gather_nd(x, outside)[:, None], epochs)
        return [tf.tensor_scatter_nd_update(x, outside, inside[:, 0])]

    x = feistel(tf.cast(positions, tf.uint64), epoch)
    (x,) = tf.while_loop(lambda x: tf.reduce_any(x >= number(n)), again, [x])
    return tf.cast(x, tf.int64)


def usual_tf_data(rows: Columns, batch_rows: int, skip: int = 0) -> Iterator[dict]:
    """The usual `tf.data` pipeline: a shuffle buffer of 100,000 rows, batch, prefetch."""
    part = {name: np.asarray(column[:200_000]) for name, column in rows.items()}  # it copies them
    dataset = tf.data.Dataset.from_tensor_slices(part).repeat().shuffle(100_000, seed=SEED)
    dataset = dataset.batch(batch_rows, drop_remainder=True, num_parallel_calls=2)
    return dataset.skip(skip).prefetch(2).as_numpy_iterator()


# Data.


def write_table(path: pathlib.Path, num_rows: int) -> None:
    """Writes random columns in Criteo's shape."""
    rng = np.random.default_rng(SEED)
    write_columns(
        path,
        {
            "user": rng.integers(0, USERS, num_rows, np.int32),
            "item": rng.integers(0, ITEMS, num_rows, np.int32),
            "label": rng.integers(0, 2, num_rows, np.int8).astype(np.float32),
            "dense": rng.random((num_rows, 13), np.float32),
            "categorical": rng.integers(0, VOCABULARY, (num_rows, 26), np.int32),
        },
    )


def sample_of(rows: Columns) -> Columns:
    """The rows that the sampling rule keeps."""
    kept = np.flatnonzero(sampling.keep(np.arange(len(rows["user"])), RATE, SEED))
    return {name: column[kept] for name, column in rows.items()}


def movielens() -> tuple[np.ndarray, np.ndarray, int]:
    """Users, items and number of item ids of MovieLens 1M, or of random pairs of that size."""
    file = configuration.data_folder() / "ml-1m-implicit" / "train.csv.gz"
    if file.exists():
        with gzip.open(file, "rt") as lines:
            user, item = np.loadtxt(lines, delimiter=",", skiprows=1, dtype=np.int64)[:, :2].T
    else:
        print(f"{file} is missing: random pairs of its size instead")
        rng = np.random.default_rng(SEED)
        user = (6_040 * rng.random(1_000_000) ** 2).astype(np.int64)
        item = (3_706 * rng.random(1_000_000) ** 2).astype(np.int64)
    user, item = (
        (1 + np.unique(column, return_inverse=True)[1]).astype(np.int32) for column in (user, item)
    )
    return user, item, int(item.max()) + 1


if __name__ == "__main__":
    main()
