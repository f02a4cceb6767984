"""Logistic matrix factorisation with biases by minibatch SGD (the model of arXiv 2407.08108).

    P(click of user u on item v) = sigmoid(u . v + b_u + b_v + b)

Rows either bring labels (clicks against impressions), or are all positive, and then each goes with
fresh negatives every epoch, drawn uniformly over the items; a draw that is a positive of the same
user counts for nothing. Updates are row-sparse, so that a step costs what its batch costs.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cadc_jax import sparse_optimizers
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.interactions import Interactions, SparseRows
from cadc_jax.runtime import checkpoints
from cadc_jax.runtime.checkpoints import Checkpoints, Facts

BLOCK_ROWS = 1 << 24  # labelled rows that are on the device at a time
_Gradients = tuple[jax.Array, jax.Array, jax.Array]  # of user rows, of item rows, of the bias


@dataclasses.dataclass(frozen=True)
class SGDConfig:
    """What `fit` computes.

    Attributes:
      factors: D, the rank.
      regularization: l2 penalty on the factors and biases of each row's user and item.
      learning_rate: of `optimizer`; the global bias follows plain SGD.
      learning_rate_decay: share of the learning rate lost by the last epoch, linearly.
      optimizer: 'adagrad' (row-wise), 'adam' (lazy) or 'sgd'.
      batch_rows: B, rows of the log in a step.
      negatives: drawn for each row, where rows bring no labels.
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
            if not getattr(self, name) > 0:
                raise ConfigError(f"sgd.{name}={getattr(self, name)}: must be above 0")
        if self.regularization < 0:
            raise ConfigError(f"sgd.regularization={self.regularization}: must not be negative")
        if not 0 <= self.learning_rate_decay <= 1:
            raise ConfigError(f"sgd.learning_rate_decay={self.learning_rate_decay}: not in [0, 1]")
        if self.optimizer not in sparse_optimizers.OPTIMIZERS:
            known = ", ".join(sparse_optimizers.OPTIMIZERS)
            raise ConfigError(f"sgd.optimizer={self.optimizer!r}: choose one of {known}")

    def refreshing(self, epochs: int) -> "SGDConfig":
        """These settings for a `fit` that goes on from other factors, at the last epoch's rate."""
        last = 1 - self.learning_rate_decay * (1 - 1 / self.epochs)
        return dataclasses.replace(
            self,
            epochs=epochs,
            learning_rate=self.learning_rate * last,
            learning_rate_decay=0.0,
        )


@flax.struct.dataclass
class _State:
    user: jax.Array  # [U, D + 1] f32; the last column is the bias
    item: jax.Array  # [I, D + 1] f32
    bias: jax.Array  # [] f32
    user_slots: sparse_optimizers.Slots
    item_slots: sparse_optimizers.Slots


@flax.struct.dataclass
class _Rows:
    """The log on the device, and for rows without labels what users are known to have touched."""

    user: jax.Array  # [N] int32
    item: jax.Array  # [N] int32
    label: jax.Array | None  # [N] f32
    offsets: jax.Array | None  # [U + 1] int32: a user's items are items[offsets[u]:offsets[u + 1]]
    items: jax.Array | None  # [nnz] int32, ascending within a user


def fit(
    user: np.ndarray,
    item: np.ndarray,
    num_users: int,
    num_items: int,
    config: SGDConfig,
    key: jax.Array,
    label: np.ndarray | None = None,
    *,
    progress: Callable[[int, float, float], None] | None = None,
    saved: Checkpoints | None = None,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factorises.

    Args:
      user: [N] int user ids in [0, num_users).
      item: [N] int item ids in [0, num_items).
        Both may be memory-mapped; of labelled rows, BLOCK_ROWS are in memory at a time, blocks in
        another order each epoch and rows shuffled within their block.
      num_users: U.
      num_items: I.
      config: see `SGDConfig`.
      key: PRNG key of the start, the order of rows and the negatives.
      label: [N] in {0, 1}, or None if all rows are positive and negatives are to be drawn.
      progress: called after each epoch with its number (from 1), its mean loss, and the seconds
        since `fit` was called.
      saved: checkpoints to go on from, and to save to between blocks of rows. The result is bit for
        bit that of a fit without a break, on the same machine and device.
      init: factors to go on from, of these users and items, instead of random ones.

    Returns:
      factors: float32, with biases. Rows of users and items that do not occur stay near 0.
      losses: [epochs] float64, mean log loss of each epoch, in nats, before each update.

    Raises:
      ConfigError: by `SGDConfig`, if there are no rows, or if `init` has another shape or no
        biases.
      DataError: if ids are outside their range, or a label is neither 0 nor 1.
      Stopped: by `saved`, once it is asked to end.
    """
    if not len(user):
        raise ConfigError("there are no interactions to factorise")
    start = time.perf_counter()
    size = len(user) if label is None else min(len(user), BLOCK_ROWS)
    starts = np.arange(0, len(user), size)
    if label is None:  # negatives need all that users are known to have touched
        known = Interactions.from_rows(user, item, num_users, num_items).by_user
        blocks = {0: _block(user, item, None, size, known)}
        share = 1 / (1 + config.negatives)
    else:
        blocks = {}
        share = _check_rows(user, item, label, num_users, num_items, size)
    init_key, order_key, key = jax.random.split(key, 3)
    # The order is drawn on the host: the sort behind jax.random.permutation takes as long as an
    # epoch on a CPU.
    shuffle = np.random.default_rng(np.asarray(jax.random.key_data(order_key)))
    batch = min(config.batch_rows, size)
    if init is None:
        start_state = functools.partial(_init, num_users, num_items, config, share, init_key)
    else:
        start_state = functools.partial(_given, init, num_users, num_items, config)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = None
    if saved is not None:
        found = saved.restore(checkpoints.like(jax.eval_shape(start_state), here))
    losses, total, order_of_blocks, done = [], 0.0, [], 0
    if found is None:
        state = start_state()
    else:
        state, facts = found
        losses, total = facts["losses"], facts["total"]
        order_of_blocks, done = facts["order_of_blocks"], facts["done"]
        shuffle.bit_generator.state = facts["shuffle"]

    def snapshot() -> tuple[_State, Facts]:
        return state, {
            "losses": losses,
            "total": total,
            "order_of_blocks": order_of_blocks,
            "done": done,
            "shuffle": shuffle.bit_generator.state,
        }

    for epoch in range(len(losses), config.epochs):
        decay = 1 - config.learning_rate_decay * epoch / config.epochs
        if not order_of_blocks:  # drawn already if resumed
            several = len(starts) > 1
            order_of_blocks = (shuffle.permutation(starts) if several else starts).tolist()
        for first in order_of_blocks[done:]:
            if saved is not None:
                saved.maybe_save(epoch * len(starts) + done, snapshot)
            part = slice(first, first + size)
            count = len(user[part])
            if label is not None and (len(starts) > 1 or not blocks):
                blocks = {first: _block(user[part], item[part], label[part], size)}
            order = shuffle.permutation(count).astype(np.int32)
            order = np.pad(order, (0, size - count + -size % batch), constant_values=-1)
            state, loss = _epoch(
                state,
                blocks[first],
                order.reshape(-1, batch),
                jnp.float32(config.learning_rate * decay),
                jnp.float32(config.regularization),
                jax.random.fold_in(key, epoch * len(starts) + first // size),
                optimizer=config.optimizer,
                negatives=config.negatives,
            )
            total += float(loss) * count
            done += 1
        losses.append(total / len(user))
        total, order_of_blocks, done = 0.0, [], 0
        if progress is not None:
            progress(epoch + 1, losses[-1], time.perf_counter() - start)
    factors = Factors(
        user=state.user[:, :-1],
        item=state.item[:, :-1],
        user_bias=state.user[:, -1],
        item_bias=state.item[:, -1],
        global_bias=state.bias,
    )
    return factors, np.array(losses)


def _check_rows(
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    num_users: int,
    num_items: int,
    size: int,
) -> float:
    """Checks labelled rows, `size` at a time; returns the share of clicks."""
    clicks = 0.0
    for first in range(0, len(user), size):
        part = slice(first, first + size)
        for name, ids, most in (("user", user[part], num_users), ("item", item[part], num_items)):
            if ids.min() < 0 or ids.max() >= most:
                raise DataError(
                    f"{name} ids must lie in [0, {most}); they go from {ids.min()} to {ids.max()}"
                )
        if not ((label[part] == 0) | (label[part] == 1)).all():
            raise DataError("labels must be 0 or 1: a rating or a count is not a click")
        clicks += float(np.sum(label[part], dtype=np.float64))
    return clicks / len(user)


def _block(
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray | None,
    size: int,
    known: SparseRows | None = None,
) -> _Rows:
    """Rows on the device, filled up to `size` so that all blocks share a program."""
    fill = (0, size - len(user))
    return _Rows(
        user=jnp.asarray(np.pad(user, fill), jnp.int32),
        item=jnp.asarray(np.pad(item, fill), jnp.int32),
        label=None if label is None else jnp.asarray(np.pad(label, fill), jnp.float32),
        offsets=None if known is None else jnp.asarray(known.offsets, jnp.int32),
        items=None if known is None else jnp.asarray(known.columns),
    )


def _init(
    num_users: int, num_items: int, config: SGDConfig, share: float, key: jax.Array
) -> _State:
    """Factors normal with standard deviation 0.1; biases 0, the global one the log-odds of 1."""
    share = np.clip(share, 1e-6, 1 - 1e-6)
    user_key, item_key = jax.random.split(key)

    def table(key: jax.Array, size: int) -> jax.Array:
        factors = 0.1 * jax.random.normal(key, (size, config.factors))
        return jnp.pad(factors, ((0, 0), (0, 1)))

    user, item = table(user_key, num_users), table(item_key, num_items)
    return _State(
        user=user,
        item=item,
        bias=jnp.float32(np.log(share / (1 - share))),
        user_slots=sparse_optimizers.init(config.optimizer, user),
        item_slots=sparse_optimizers.init(config.optimizer, item),
    )


def _given(init: Factors, num_users: int, num_items: int, config: SGDConfig) -> _State:
    """The state of these factors; the optimiser's starts anew."""
    found = init.user.shape, init.item.shape
    wanted = (num_users, config.factors), (num_items, config.factors)
    if found != wanted:
        raise ConfigError(f"init has factors of shapes {found}; this fit has {wanted}")
    if init.biases is None:
        raise ConfigError("init has no biases, as this fit has: take factors that it has made")
    user_bias, item_bias, global_bias = init.biases
    user = jnp.concatenate([init.user, user_bias[:, None]], 1)
    item = jnp.concatenate([init.item, item_bias[:, None]], 1)
    slots = (
        sparse_optimizers.init(config.optimizer, user),
        sparse_optimizers.init(config.optimizer, item),
    )
    return _State(user, item, jnp.array(global_bias), *slots)


@functools.partial(jax.jit, static_argnames=("optimizer", "negatives"), donate_argnames="state")
def _epoch(
    state: _State,
    rows: _Rows,
    order: jax.Array,  # [steps, B] int32 row numbers; -1 for padding
    learning_rate: jax.Array,
    regularization: jax.Array,
    key: jax.Array,
    *,
    optimizer: str,
    negatives: int,
) -> tuple[_State, jax.Array]:
    """All rows once, in the order given. Returns the state and the mean loss."""

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
            fair = ~_contains(rows, user[:, None], drawn)
            label = jnp.zeros((len(ids), 1 + negatives)).at[:, 0].set(1)
            item = jnp.concatenate([item, drawn], axis=1)
            weight = jnp.concatenate([weight, weight * fair], axis=1)
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
      item: [B, G, D + 1] the rows of the items that go with each.
      bias: [].
      label: [B, G] in {0, 1}.
      weight: [B, G], 0 for what is to be left out.
      regularization: [].

    Returns:
      (of user, of item, of bias), and the loss without the penalty.
    """
    is_bias = jnp.arange(user.shape[1]) == user.shape[1] - 1
    ones = jnp.where(is_bias, 1, user)  # so that the item's bias meets a 1
    logits = jnp.einsum("bd,bgd->bg", ones, item) + user[:, -1:] + bias
    loss = jnp.sum(weight * optax.sigmoid_binary_cross_entropy(logits, label))
    error = weight * (jax.nn.sigmoid(logits) - label)
    of_item = error[..., None] * ones[:, None] + regularization * weight[..., None] * item
    of_user = jnp.where(is_bias, error.sum(1)[:, None], jnp.einsum("bg,bgd->bd", error, item))
    of_user += regularization * weight.sum(1)[:, None] * user
    return (of_user, of_item, error.sum()), loss


def _update(
    state: _State,
    user: jax.Array,
    item: jax.Array,
    weight: jax.Array,
    gradients: _Gradients,
    optimizer: str,
    learning_rate: jax.Array,
) -> _State:
    """One step on the rows of a batch, and one of plain SGD on the global bias."""
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
    # A batch may be all padding, in the last block of rows.
    bias = state.bias - learning_rate * bias_grad / jnp.maximum(weight.sum(), 1)
    return _State(user_table, item_table, bias, user_slots, item_slots)


def _contains(rows: _Rows, user: jax.Array, item: jax.Array) -> jax.Array:
    """Whether each item is among its user's: [B, 1], [B, n] -> [B, n] bool, by binary search."""
    offsets, items = rows.offsets, rows.items
    assert offsets is not None and items is not None  # rows without labels have them
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
