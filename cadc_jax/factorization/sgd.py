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

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cadc_jax import sparse_optimizers
from cadc_jax.errors import ConfigError, DataError, check_above, check_at_least, check_choice
from cadc_jax.factorization.factors import Factors, check_finite, check_sizes
from cadc_jax.factorization.interactions import Interactions, SparseRows
from cadc_jax.runtime import checkpoints
from cadc_jax.runtime.checkpoints import Checkpoints, Facts

BLOCK_ROWS = 1 << 24  # labelled rows that are on the device at a time
START_SCALE = 0.1  # standard deviation of factors at the start


@dataclasses.dataclass(frozen=True)
class SGDConfig:
    """Settings of `fit`.

    Attributes:
      factors: D, the rank.
      regularization: L2 penalty on the factors and biases of each row's user and item. It is paid
        for each row, beside the row's loss, so it means the same on logs of any size.
      learning_rate: of `optimizer`. The global bias is updated by plain SGD at the same rate.
      learning_rate_decay: share of the learning rate that is lost by the last epoch, linearly.
      optimizer: 'adagrad' (row-wise), 'adam' (lazy) or 'sgd'.
      batch_rows: B, training rows in a step.
      negatives: negatives drawn for each row, if the rows have no labels.
      epochs: passes over the rows.
    """

    factors: int = 64
    regularization: float = 0.0
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


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """Training rows on the host. The arrays may be memory-mapped.

    Attributes:
      user: [N] int user ids in [0, num_users).
      item: [N] int item ids in [0, num_items).
      num_users: U.
      num_items: I.
      label: [N] in {0, 1}; None if all rows are positive and negatives are to be drawn.
    """

    user: np.ndarray
    item: np.ndarray
    num_users: int
    num_items: int
    label: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user)


OnEpoch = Callable[[int, float, float], None]


def fit(
    rows: TrainingRows,
    config: SGDConfig,
    key: jax.Array,
    *,
    progress: OnEpoch | None = None,
    saved: Checkpoints | None = None,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factorises the training rows.

    Args:
      rows: training rows. If they are labelled, only BLOCK_ROWS of them are in memory at a time:
        the blocks change their order in each epoch, and rows are shuffled within their block.
      config: see `SGDConfig`.
      key: PRNG key of the initial factors, the order of rows and the negatives.
      progress: called after each epoch with its number (from 1), its mean loss, and the seconds
        since `fit` was called.
      saved: checkpoints to resume from, and to save to between blocks of rows. A resumed fit gives
        bit for bit the result of an uninterrupted one, on the same machine and device.
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
    blocks = _Blocks(rows, config)
    init_key, order_key, key = jax.random.split(key, 3)
    if init is None:
        start_state = functools.partial(_random_state, rows, config, blocks.click_share, init_key)
    else:
        start_state = functools.partial(_state_of, init, rows, config)
    state, done = _start(start_state, order_key, saved)

    def snapshot() -> tuple[_State, Facts]:
        return state, done.facts()

    for epoch in range(len(done.losses), config.epochs):
        done.start_epoch(blocks.starts)
        blocks_before = epoch * len(blocks.starts)
        decay = 1 - config.learning_rate_decay * epoch / config.epochs
        for first in done.blocks[done.count :]:
            if saved is not None:
                saved.maybe_save(blocks_before + done.count, snapshot)
            order, count = blocks.order(first, done.shuffle)
            state, loss = _train_block(
                state,
                blocks.on_device(first),
                order,
                jnp.float32(config.learning_rate * decay),
                jnp.float32(config.regularization),
                jax.random.fold_in(key, blocks_before + first // blocks.size),
                optimizer=config.optimizer,
                negatives=config.negatives,
            )
            done.add_block(float(loss) * count)
        done.end_epoch(len(rows))
        if progress is not None:
            progress(epoch + 1, done.losses[-1], time.perf_counter() - start)
    return check_finite(_factors(state), "lower sgd.learning_rate"), np.array(done.losses)


@flax.struct.dataclass
class _State:
    user: jax.Array  # [U, D + 1] f32; the last column is the bias
    item: jax.Array  # [I, D + 1] f32
    bias: jax.Array  # [] f32
    user_slots: sparse_optimizers.Slots
    item_slots: sparse_optimizers.Slots


@flax.struct.dataclass
class _Block:
    """Training rows on the device and, if they have no labels, the known items of each user."""

    user: jax.Array  # [N] int32
    item: jax.Array  # [N] int32
    label: jax.Array | None  # [N] f32
    offsets: jax.Array | None  # [U + 1] int32: a user's items are items[offsets[u]:offsets[u + 1]]
    items: jax.Array | None  # [nnz] int32, ascending within a user


class _Blocks:
    """The training rows as blocks of one size. All blocks share a program.

    Rows without labels are a single block: negatives need the known items of all users.

    Attributes:
      size: rows of a block; the last block is padded.
      starts: first row of each block.
      click_share: share of clicks, negatives included.
    """

    def __init__(self, rows: TrainingRows, config: SGDConfig):
        """Checks the rows. Raises DataError as `fit`."""
        self._rows = rows
        self._known: SparseRows | None = None
        self._loaded: tuple[int, _Block] | None = None
        if rows.label is None:
            self.size = len(rows)
            shape = rows.num_users, rows.num_items
            self._known = Interactions.from_rows(rows.user, rows.item, *shape).by_user
            self.click_share = 1 / (1 + config.negatives)
        else:
            self.size = min(len(rows), BLOCK_ROWS)
            self.click_share = _check_labelled(rows, rows.label, self.size)
        self.starts = range(0, len(rows), self.size)
        self._batch = min(config.batch_rows, self.size)

    def order(self, first: int, shuffle: np.random.Generator) -> tuple[np.ndarray, int]:
        """A random order of the block from row `first` on: [steps, B] int32; and its row count.

        It is drawn on the host: the sort behind jax.random.permutation takes as long as an epoch on
        a CPU.
        """
        count = min(self.size, len(self._rows) - first)
        order = shuffle.permutation(count).astype(np.int32)
        padding = self.size - count + -self.size % self._batch
        return np.pad(order, (0, padding), constant_values=-1).reshape(-1, self._batch), count

    def on_device(self, first: int) -> _Block:
        """The block from row `first` on. The last block stays on the device."""
        if self._loaded is None or self._loaded[0] != first:
            self._loaded = first, self._load(first)
        return self._loaded[1]

    def _load(self, first: int) -> _Block:
        rows, known, part = self._rows, self._known, slice(first, first + self.size)
        padding = (0, self.size - len(rows.user[part]))
        label = None if rows.label is None else np.pad(rows.label[part], padding)
        return _Block(
            user=jnp.asarray(np.pad(rows.user[part], padding), jnp.int32),
            item=jnp.asarray(np.pad(rows.item[part], padding), jnp.int32),
            label=None if label is None else jnp.asarray(label, jnp.float32),
            offsets=None if known is None else jnp.asarray(known.offsets, jnp.int32),
            items=None if known is None else jnp.asarray(known.columns),
        )


def _check_labelled(rows: TrainingRows, label: np.ndarray, size: int) -> float:
    """Checks labelled rows, `size` at a time; returns the share of clicks."""
    clicks = 0.0
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        for name, ids, end in (
            ("user", rows.user[part], rows.num_users),
            ("item", rows.item[part], rows.num_items),
        ):
            if ids.min() < 0 or ids.max() >= end:
                raise DataError(
                    f"{name} ids must be in [0, {end}); they go from {ids.min()} to {ids.max()}"
                )
        if not ((label[part] == 0) | (label[part] == 1)).all():
            raise DataError("labels must be 0 or 1: a rating or a count is not a click")
        clicks += float(np.sum(label[part], dtype=np.float64))
    return clicks / len(rows)


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
    start_state: Callable[[], _State], order_key: jax.Array, saved: Checkpoints | None
) -> tuple[_State, _Done]:
    """The state and the progress to start from: those of a checkpoint if there is one."""
    done = _Done(np.random.default_rng(np.asarray(jax.random.key_data(order_key))))
    if saved is not None:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        found = saved.restore(checkpoints.like(jax.eval_shape(start_state), here))
        if found is not None:
            state, facts = found
            done.restore(facts)
            return state, done
    return start_state(), done


def _random_state(
    rows: TrainingRows, config: SGDConfig, click_share: float, key: jax.Array
) -> _State:
    """Normal factors with deviation START_SCALE, biases 0, global bias the log-odds of a click."""
    share = np.clip(click_share, 1e-6, 1 - 1e-6)
    user_key, item_key = jax.random.split(key)

    def table(key: jax.Array, size: int) -> jax.Array:
        factors = START_SCALE * jax.random.normal(key, (size, config.factors))
        return jnp.pad(factors, ((0, 0), (0, 1)))

    user, item = table(user_key, rows.num_users), table(item_key, rows.num_items)
    return _new_state(user, item, jnp.float32(np.log(share / (1 - share))), config)


def _state_of(init: Factors, rows: TrainingRows, config: SGDConfig) -> _State:
    """The state that starts from factors, with a new optimiser state."""
    check_sizes(init, rows.num_users, rows.num_items, config.factors)
    if init.biases is None:
        raise ConfigError("init has no biases, but this fit needs them: use factors of an SGD fit")
    user_bias, item_bias, global_bias = init.biases
    user = jnp.concatenate([init.user, user_bias[:, None]], 1)
    item = jnp.concatenate([init.item, item_bias[:, None]], 1)
    return _new_state(user, item, jnp.array(global_bias), config)


def _new_state(user: jax.Array, item: jax.Array, bias: jax.Array, config: SGDConfig) -> _State:
    slots = (sparse_optimizers.init(config.optimizer, table) for table in (user, item))
    return _State(user, item, bias, *slots)


def _factors(state: _State) -> Factors:
    return Factors(
        user=state.user[:, :-1],
        item=state.item[:, :-1],
        user_bias=state.user[:, -1],
        item_bias=state.item[:, -1],
        global_bias=state.bias,
    )


_Gradients = tuple[jax.Array, jax.Array, jax.Array]  # of user rows, item rows and the bias


@functools.partial(jax.jit, static_argnames=("optimizer", "negatives"), donate_argnames="state")
def _train_block(
    state: _State,
    rows: _Block,
    order: jax.Array,  # [steps, B] int32 row numbers; -1 for padding
    learning_rate: jax.Array,
    regularization: jax.Array,
    key: jax.Array,
    *,
    optimizer: str,
    negatives: int,
) -> tuple[_State, jax.Array]:
    """One pass over a block in the given order. Returns the state and the mean loss."""

    def step(
        state: _State, x: tuple[jax.Array, jax.Array]
    ) -> tuple[_State, tuple[jax.Array, jax.Array]]:
        ids, number = x
        user, item = rows.user[ids], rows.item[ids][:, None]
        weight = jnp.broadcast_to((ids >= 0).astype(jnp.float32)[:, None], item.shape)
        if rows.label is None:
            drawn = jax.random.randint(
                jax.random.fold_in(key, number), (len(ids), negatives), 0, len(state.item)
            )
            negative = ~_contains(rows, user[:, None], drawn)
            label = jnp.zeros((len(ids), 1 + negatives)).at[:, 0].set(1)
            item = jnp.concatenate([item, drawn], axis=1)
            weight = jnp.concatenate([weight, weight * negative], axis=1)
        else:
            label = rows.label[ids][:, None]
        gradients, loss = _gradients(
            state.user[user], state.item[item], state.bias, label, weight, regularization
        )
        state = _update(state, user, item, weight, gradients, optimizer, learning_rate)
        return state, (loss, weight.sum())

    state, (losses, weights) = jax.lax.scan(step, state, (order, jnp.arange(len(order))))
    return state, losses.sum() / weights.sum()


def _gradients(
    user: jax.Array,
    item: jax.Array,
    bias: jax.Array,
    label: jax.Array,
    weight: jax.Array,
    regularization: jax.Array,
) -> tuple[_Gradients, jax.Array]:
    """Gradients of the penalised log loss, summed over a batch.

    Args:
      user: [B, D + 1] the users' rows, each with its bias last.
      item: [B, G, D + 1] the rows of each user's G items.
      bias: [].
      label: [B, G] in {0, 1}.
      weight: [B, G], 0 for pairs that do not count.
      regularization: [].

    Returns:
      Gradients of the user rows, the item rows and the bias; and the loss without the penalty.
    """
    is_bias = jnp.arange(user.shape[1]) == user.shape[1] - 1
    ones = jnp.where(is_bias, 1, user)  # multiplies the item's bias by 1
    logits = jnp.einsum("bd,bgd->bg", ones, item) + user[:, -1:] + bias
    loss = jnp.sum(weight * optax.sigmoid_binary_cross_entropy(logits, label))
    error = weight * (jax.nn.sigmoid(logits) - label)
    item_grads = error[..., None] * ones[:, None] + regularization * weight[..., None] * item
    user_grads = jnp.where(is_bias, error.sum(1)[:, None], jnp.einsum("bg,bgd->bd", error, item))
    user_grads += regularization * weight.sum(1)[:, None] * user
    return (user_grads, item_grads, error.sum()), loss


def _update(
    state: _State,
    user: jax.Array,
    item: jax.Array,
    weight: jax.Array,
    gradients: _Gradients,
    optimizer: str,
    learning_rate: jax.Array,
) -> _State:
    """One optimiser step on the rows of a batch, and a plain SGD step on the global bias."""
    user_grads, item_grads, bias_grad = gradients
    user_table, user_slots = sparse_optimizers.update(
        optimizer,
        state.user,
        state.user_slots,
        user,
        user_grads,
        learning_rate,
        mask=weight[:, 0] > 0,
    )
    item_table, item_slots = sparse_optimizers.update(
        optimizer,
        state.item,
        state.item_slots,
        item.reshape(-1),
        item_grads.reshape(-1, item_grads.shape[-1]),
        learning_rate,
        mask=weight.reshape(-1) > 0,
    )
    # In the last block a batch may be all padding.
    bias = state.bias - learning_rate * bias_grad / jnp.maximum(weight.sum(), 1)
    return _State(user_table, item_table, bias, user_slots, item_slots)


def _contains(rows: _Block, user: jax.Array, item: jax.Array) -> jax.Array:
    """Whether each item is a known item of its user, by binary search.

    Users [B, 1] and items [B, n] -> [B, n] bool.
    """
    offsets, items = rows.offsets, rows.items
    assert offsets is not None and items is not None  # set if there are no labels
    low = jnp.broadcast_to(offsets[user], item.shape)
    end = jnp.broadcast_to(offsets[user + 1], item.shape)
    high = end

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        below = (low < high) & (items[middle] < item)
        return jnp.where(below, middle + 1, low), jnp.where(below, high, jnp.maximum(middle, low))

    halvings = max(1, len(items)).bit_length()
    low, _ = jax.lax.fori_loop(0, halvings, halve, (low, high))
    return (low < end) & (items[jnp.minimum(low, len(items) - 1)] == item)
