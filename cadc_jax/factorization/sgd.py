"""Logistic matrix factorisation with biases by minibatch SGD (the model of arXiv 2407.08108).

    P(click of user u on item v) = sigmoid(u . v + b_u + b_v + b)

If the training rows have labels, they are clicks and impressions. Without labels every row is a
positive, and each epoch draws new negatives for it, uniformly over the items; drawn items that are
positives of the same user are ignored. Updates are row-sparse: the cost of a step depends on the
batch and not on the size of the tables.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.errors import ConfigError, check_above, check_at_least, check_choice
from cadc_jax.factorization import sgd_step
from cadc_jax.factorization.factors import Factors, check_finite, check_sizes
from cadc_jax.factorization.sgd_rows import Blocks, TrainingRows
from cadc_jax.factorization.sgd_step import State, StepConfig
from cadc_jax.runtime.checkpoints import Checkpoints, Facts


@dataclasses.dataclass(frozen=True)
class SGDConfig:
    """Settings of `fit`.

    Attributes:
      factors: D, the rank.
      regularization: L2 penalty on the factors and biases of each row's user and item. It is paid
        for each row, beside the row's loss, so it means the same on logs of any size.
      frequency_exponent: nu. A user or item with n rows pays in an epoch for n^nu rows, and those
        with the mean number of rows as many as they have. With 1 each row pays the same; with 0
        each user and item does, whatever n is (a Gaussian prior).
      learning_rate: of `optimizer`. The global bias is updated by plain SGD at the same rate.
      learning_rate_decay: share of the learning rate that is lost by the last epoch, linearly.
      optimizer: 'adagrad' (row-wise), 'adam' (lazy) or 'sgd'.
      batch_rows: B, training rows in a step.
      negatives: negatives drawn for each row, if the rows have no labels.
      epochs: passes over the rows.
    """

    factors: int = 64
    regularization: float = 0.0
    frequency_exponent: float = 0.5
    learning_rate: float = 0.05
    learning_rate_decay: float = 0.9
    optimizer: str = "adagrad"
    batch_rows: int = 4096
    negatives: int = 4
    epochs: int = 20

    def __post_init__(self) -> None:
        for name in ("factors", "learning_rate", "batch_rows", "negatives", "epochs"):
            check_above(f"sgd.{name}", getattr(self, name), 0)
        check_at_least("sgd.regularization", self.regularization, 0)
        check_at_least("sgd.frequency_exponent", self.frequency_exponent, 0)
        if not 0 <= self.learning_rate_decay <= 1:
            decay = self.learning_rate_decay
            raise ConfigError(f"sgd.learning_rate_decay={decay}: must be in [0, 1]")
        check_choice("sgd.optimizer", self.optimizer, sparse_optimizers.OPTIMIZERS)

    def refreshing(self, epochs: int) -> "SGDConfig":
        """These settings for a `fit` that starts from other factors, at the last epoch's rate."""
        last = 1 - self.learning_rate_decay * (1 - 1 / self.epochs)
        return dataclasses.replace(
            self,
            epochs=epochs,
            learning_rate=self.learning_rate * last,
            learning_rate_decay=0.0,
        )


OnEpoch = Callable[[int, float, float], None]


def fit(
    rows: TrainingRows,
    config: SGDConfig,
    key: jax.Array,
    *,
    mesh: Mesh | None = None,
    progress: OnEpoch | None = None,
    saved: Checkpoints | None = None,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factorises the training rows.

    Args:
      rows: training rows. If they are labelled, only BLOCK_ROWS of them are in memory at a time:
        the blocks change their order in each epoch, and rows are shuffled within their block.
      config: see `SGDConfig`.
      key: PRNG key of the initial factors, the order of rows and the negatives, none of which
        depends on the mesh.
      mesh: devices to deal users and items out to; None for one device of this process. If it has
        devices of several processes, all of them call this with the same arguments.
      progress: called after each epoch with its number (from 1), its mean loss, and the seconds
        since `fit` was called.
      saved: checkpoints to resume from, and to save to between blocks of rows. A resumed fit gives
        bit for bit the result of an uninterrupted one, on the same machine and devices. It may
        resume on another mesh.
      init: factors of these users and items to start from, instead of random ones.

    Returns:
      factors: float32, with biases. Rows of users and items that do not occur stay near 0.
      losses: [epochs] float64, mean log loss of each epoch in nats, measured before each update.

    Raises:
      ConfigError: if there are no rows, or if `init` has other shapes or no biases.
      DataError: if an id is out of range, or a label is neither 0 nor 1.
      Stopped: by `saved`, after saving, if it was asked to stop.
    """
    if not len(rows):
        raise ConfigError(
            "there are no interactions to factorise: give more rows, or, with "
            "factor_rows='unsampled', lower the rate"
        )
    start = time.perf_counter()
    mesh = sharding.make_mesh(jax.local_devices()[:1]) if mesh is None else mesh
    blocks = Blocks(rows, config.batch_rows, mesh)
    init_key, order_key, key = jax.random.split(key, 3)
    state, done = _start(rows, config, blocks, mesh, (init_key, order_key), saved, init)
    negatives = config.negatives if rows.label is None else 0
    capacity = blocks.capacity(negatives)
    step = StepConfig(config.optimizer, negatives, rows.num_items, capacity, mesh)
    everywhere = sharding.named(mesh, sharding.REPLICATED)
    penalties = blocks.penalties(config.regularization, config.frequency_exponent, negatives)

    def snapshot() -> tuple[State, Facts]:
        # Gloo would mix its exchange up with those of the next block.
        return jax.block_until_ready(sgd_step.in_order(state, mesh)), done.facts()

    for epoch in range(len(done.losses), config.epochs):
        done.start_epoch(blocks.starts)
        blocks_before = epoch * len(blocks.starts)
        decay = 1 - config.learning_rate_decay * epoch / config.epochs
        rate = np.float32(config.learning_rate * decay)
        for first in done.blocks[done.count :]:
            if saved is not None:
                saved.maybe_save(blocks_before + done.count, snapshot)
            order, count = blocks.order(first, done.shuffle)
            own_key = jax.random.fold_in(key, blocks_before + first // blocks.size)
            block = blocks.on_devices(first)
            arguments = sharding.put((rate, own_key), everywhere)
            state, loss = sgd_step.train_block(
                state, block, order, penalties, *arguments, config=step
            )
            done.add_block(float(loss) * count)
        done.end_epoch(len(rows))
        if progress is not None:
            progress(epoch + 1, done.losses[-1], time.perf_counter() - start)
    factors = sgd_step.factors_of(state, mesh, rows.num_users, rows.num_items)
    return check_finite(factors, "lower sgd.learning_rate"), np.array(done.losses)


@dataclasses.dataclass
class _Done:
    """The progress of a fit, as a checkpoint keeps it.

    Attributes:
      shuffle: order of blocks, and of rows within a block.
      losses: mean loss of each finished epoch.
      total: summed loss of the current epoch.
      blocks: first rows of the current epoch's blocks, in order; empty between epochs.
      count: how many of these blocks are done.
    """

    shuffle: np.random.Generator
    losses: list[float] = dataclasses.field(default_factory=list)
    total: float = 0.0
    blocks: list[int] = dataclasses.field(default_factory=list)
    count: int = 0

    def start_epoch(self, starts: Sequence[int]) -> None:
        """Draws the order of blocks, unless the epoch was resumed."""
        if not self.blocks:
            several = len(starts) > 1
            self.blocks = self.shuffle.permutation(starts).tolist() if several else list(starts)

    def add_block(self, loss: float) -> None:
        self.total += loss
        self.count += 1

    def end_epoch(self, rows: int) -> None:
        self.losses.append(self.total / rows)
        self.total, self.blocks, self.count = 0.0, [], 0

    def facts(self) -> Facts:
        return {
            "losses": self.losses,
            "total": self.total,
            "order_of_blocks": self.blocks,
            "done": self.count,
            "shuffle": self.shuffle.bit_generator.state,
        }

    def restore(self, facts: Facts) -> None:
        self.losses, self.total = facts["losses"], facts["total"]
        self.blocks, self.count = facts["order_of_blocks"], facts["done"]
        self.shuffle.bit_generator.state = facts["shuffle"]


def _start(
    rows: TrainingRows,
    config: SGDConfig,
    blocks: Blocks,
    mesh: Mesh,
    keys: tuple[jax.Array, jax.Array],
    saved: Checkpoints | None,
    init: Factors | None,
) -> tuple[State, _Done]:
    """The state and the progress to start from: those of a checkpoint if there is one.

    `keys` are of the factors and of the order of rows.
    """
    init_key, order_key = keys
    done = _Done(np.random.default_rng(np.asarray(jax.random.key_data(order_key))))
    share = blocks.clicks if rows.label is not None else 1 / (1 + config.negatives)
    share = np.clip(share, 1e-6, 1 - 1e-6)
    everywhere = sharding.named(mesh, sharding.REPLICATED)
    key, bias = sharding.put((init_key, np.float32(np.log(share / (1 - share)))), everywhere)
    random = functools.partial(
        sgd_step.random_state,
        key,
        bias,
        num_users=rows.num_users,
        num_items=rows.num_items,
        factors=config.factors,
        optimizer=config.optimizer,
        mesh=mesh,
    )
    if init is not None:
        check_sizes(init, rows.num_users, rows.num_items, config.factors)
        if init.biases is None:
            raise ConfigError(
                "init has no biases, but this fit needs them: use factors of an SGD fit"
            )
    if saved is not None:
        found = sgd_step.restored(jax.eval_shape(random), mesh, saved)
        if found is not None:
            state, facts = found
            done.restore(facts)
            return state, done
    return random() if init is None else sgd_step.state_of(init, config.optimizer, mesh), done
