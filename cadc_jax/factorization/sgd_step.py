"""Tables and steps of logistic SGD on the devices of a mesh.

Rows of users and of items are dealt out to the devices (`tables.dealt`). A row of the log is where
its user is, so that user rows never travel; item rows and their gradients do (`tables.exchange`,
`tables.owners`). On one device nothing is exchanged.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.factorization import sgd_rows
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.sgd_rows import Block, Penalties
from cadc_jax.runtime.checkpoints import Checkpoints, Facts
from cadc_jax.tables import dealt, exchange, owners
from cadc_jax.tables.rounds import Capacity

START_SCALE = 0.1  # standard deviation of factors at the start


@flax.struct.dataclass
class State:
    """Tables in the order of places, and their optimizer's state."""

    user: jax.Array  # [d * m, D + 1] f32; the last column is the bias
    item: jax.Array
    bias: jax.Array  # [] f32
    user_slots: sparse_optimizers.Slots
    item_slots: sparse_optimizers.Slots


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a program is compiled for.

    Attributes:
      optimizer: of the tables.
      negatives: drawn for each row, if the rows have no labels.
      num_items: I.
      capacity: room for the item rows of a round of an exchange; of no use on one device.
      mesh: the devices.
    """

    optimizer: str
    negatives: int
    num_items: int
    capacity: Capacity
    mesh: Mesh | AbstractMesh


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_block(
    state: State,
    rows: Block,
    order: jax.Array,
    penalties: Penalties,
    learning_rate: jax.Array,
    key: jax.Array,
    *,
    config: StepConfig,
) -> tuple[State, jax.Array]:
    """One pass over a block.

    Args:
      state: its memory is given up.
      rows: the block.
      order: [steps, d * slots] numbers of rows on their device; -1 for none.
      penalties: of users and items.
      learning_rate: [].
      key: of the negatives.
      config: see `StepConfig`.

    Returns:
      The state, and the mean loss.
    """
    one_pass = functools.partial(_pass, config)
    if config.mesh.size > 1:
        everywhere = sharding.REPLICATED
        states = _specs(state)
        where_penalties: Any = sharding.TABLE, everywhere
        one_pass = jax.shard_map(
            one_pass,
            mesh=config.mesh,
            in_specs=(
                *(states, sharding.TABLE, sharding.BATCHES),
                *(Penalties(*where_penalties), everywhere, everywhere),
            ),
            out_specs=(states, everywhere),
            check_vma=False,
        )
    return one_pass(state, rows, order, penalties, learning_rate, key)


def _pass(
    config: StepConfig,
    state: State,
    rows: Block,
    order: jax.Array,
    penalties: Penalties,
    learning_rate: jax.Array,
    key: jax.Array,
) -> tuple[State, jax.Array]:
    """`train_block` on one device of the mesh."""

    def step(state: State, ids: jax.Array) -> tuple[State, tuple[jax.Array, jax.Array]]:
        user, item, label, weight = _pairs(config, rows, ids, key)
        gradients, loss = _gradients(
            state.user[user],
            _item_rows(config, state.item, item),
            state.bias,
            label,
            weight,
            (penalties.user[user], penalties.item[item]),
        )
        state = _update(config, state, user, item, weight, gradients, learning_rate)
        return state, (loss, weight.sum())

    state, (losses, weights) = lax.scan(step, state, order)
    total, weight = _over_devices(config, (losses.sum(), weights.sum()))
    return state, total / weight


_Pairs = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _pairs(config: StepConfig, rows: Block, ids: jax.Array, key: jax.Array) -> _Pairs:
    """Users [B], their items [B, G], labels [B, G] and weights [B, G] of rows [B] of the device.

    Pairs of weight 0 do not count. On several devices they have the item -1, which nobody is asked
    for.
    """
    user, item = rows.user[ids], rows.item[ids][:, None]
    weight = jnp.broadcast_to((ids >= 0).astype(jnp.float32)[:, None], item.shape)
    if rows.label is None:
        numbers = ids if rows.number is None else rows.number[ids]
        drawn = sgd_rows.negatives(key, numbers, config.negatives, config.num_items)
        negative = ~sgd_rows.contains(rows, user[:, None], drawn)
        label = jnp.zeros((len(ids), 1 + config.negatives)).at[:, 0].set(1)
        item = jnp.concatenate([item, drawn], axis=1)
        weight = jnp.concatenate([weight, weight * negative], axis=1)
    else:
        label = rows.label[ids][:, None]
    if config.mesh.size > 1:
        item = jnp.where(weight > 0, item, -1)
    return user, item, label, weight


def _item_rows(config: StepConfig, table: jax.Array, item: jax.Array) -> jax.Array:
    """Rows [B, G, D + 1] of items [B, G]."""
    if config.mesh.size == 1:
        return table[item]
    found = exchange.lookup(table, item.reshape(-1), config.capacity)
    return found.reshape(*item.shape, -1)


_Gradients = tuple[jax.Array, jax.Array, jax.Array]  # of user rows, item rows and the bias


def _gradients(
    user: jax.Array,
    item: jax.Array,
    bias: jax.Array,
    label: jax.Array,
    weight: jax.Array,
    penalties: tuple[jax.Array, jax.Array],
) -> tuple[_Gradients, jax.Array]:
    """Gradients of the penalised log loss, summed over a batch.

    Args:
      user: [B, D + 1] the users' rows, each with its bias last.
      item: [B, G, D + 1] the rows of each user's G items.
      bias: [].
      label: [B, G] in {0, 1}.
      weight: [B, G], 0 for pairs that do not count.
      penalties: [B] of the user rows and [B, G] of the item rows.

    Returns:
      Gradients of the user rows, the item rows and the bias; and the loss without the penalty.
    """
    is_bias = jnp.arange(user.shape[1]) == user.shape[1] - 1
    ones = jnp.where(is_bias, 1, user)  # multiplies the item's bias by 1
    logits = jnp.einsum("bd,bgd->bg", ones, item) + user[:, -1:] + bias
    loss = jnp.sum(weight * optax.sigmoid_binary_cross_entropy(logits, label))
    error = weight * (jax.nn.sigmoid(logits) - label)
    user_penalty, item_penalty = penalties
    item_grads = error[..., None] * ones[:, None] + (item_penalty * weight)[..., None] * item
    user_grads = jnp.where(is_bias, error.sum(1)[:, None], jnp.einsum("bg,bgd->bd", error, item))
    user_grads += (user_penalty * weight.sum(1))[:, None] * user
    return (user_grads, item_grads, error.sum()), loss


def _update(
    config: StepConfig,
    state: State,
    user: jax.Array,
    item: jax.Array,
    weight: jax.Array,
    gradients: _Gradients,
    learning_rate: jax.Array,
) -> State:
    """One optimiser step on the rows of a batch, and a plain SGD step on the global bias."""
    user_grads, item_grads, bias_grad = gradients
    user_table, user_slots = sparse_optimizers.update(
        *(config.optimizer, state.user, state.user_slots, user, user_grads, learning_rate),
        mask=weight[:, 0] > 0,
    )
    ids, grads = item.reshape(-1), item_grads.reshape(-1, item_grads.shape[-1])
    items = config.optimizer, state.item, state.item_slots, ids, grads, learning_rate
    if config.mesh.size == 1:
        item_table, item_slots = sparse_optimizers.update(*items, mask=weight.reshape(-1) > 0)
    else:
        item_table, item_slots = owners.update(*items, None, config.capacity)
    bias_grad, total = _over_devices(config, (bias_grad, weight.sum()))
    # In the last block a batch may be all padding.
    bias = state.bias - learning_rate * bias_grad / jnp.maximum(total, 1)
    return State(user_table, item_table, bias, user_slots, item_slots)


def _over_devices(config: StepConfig, x: Any) -> Any:
    """Sums over all devices."""
    return x if config.mesh.size == 1 else lax.psum(x, sharding.EVERYWHERE)


@functools.partial(
    jax.jit, static_argnames=("num_users", "num_items", "factors", "optimizer", "mesh")
)
def random_state(
    key: jax.Array,
    bias: jax.Array,
    *,
    num_users: int,
    num_items: int,
    factors: int,
    optimizer: str,
    mesh: Mesh | AbstractMesh,
) -> State:
    """Normal factors with deviation START_SCALE, biases 0, the same on any devices.

    The bits of a number are a hash of its place in the order of ids, counted row by row.
    """
    user_key, item_key = jax.random.split(key)

    def table(key: jax.Array, size: int) -> jax.Array:
        part = -(-size // mesh.size)
        numbers = START_SCALE * jax.random.normal(key, (part, mesh.size, factors))
        ids = jnp.arange(part * mesh.size, dtype=jnp.int32).reshape(part, mesh.size, 1)
        numbers = jnp.pad(jnp.where(ids < size, numbers, 0), ((0, 0), (0, 0), (0, 1)))
        return numbers.swapaxes(0, 1).reshape(part * mesh.size, factors + 1)

    user, item = table(user_key, num_users), table(item_key, num_items)
    return _placed(State(user, item, bias, *_slots(optimizer, user, item)), mesh)


def state_of(init: Factors, optimizer: str, mesh: Mesh) -> State:
    """The state that starts from factors with biases, with a new optimiser state."""
    assert init.biases is not None
    user_bias, item_bias, bias = (np.asarray(sharding.local(x)) for x in init.biases)

    def table(factors: Any, bias: np.ndarray) -> jax.Array:
        whole = np.concatenate([np.asarray(sharding.local(factors)), bias[:, None]], 1)
        return dealt.put(whole.astype(np.float32), mesh)

    tables = table(init.user, user_bias), table(init.item, item_bias)
    bias = sharding.put(np.float32(bias), sharding.named(mesh, sharding.REPLICATED))
    return _with_slots(*tables, bias, optimizer=optimizer, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("optimizer", "mesh"))
def _with_slots(
    user: jax.Array, item: jax.Array, bias: jax.Array, *, optimizer: str, mesh: Mesh
) -> State:
    return _placed(State(user, item, bias, *_slots(optimizer, user, item)), mesh)


def _slots(optimizer: str, *tables: jax.Array) -> list[sparse_optimizers.Slots]:
    return [sparse_optimizers.init(optimizer, table) for table in tables]


def _specs(state: State) -> Any:
    """The PartitionSpec of each array of a state."""
    return jax.tree.map(lambda x: sharding.TABLE if x.ndim else sharding.REPLICATED, state)


def _placed(state: State, mesh: Mesh | AbstractMesh) -> State:
    where = jax.tree.map(functools.partial(sharding.named, mesh), _specs(state))
    placed: State = lax.with_sharding_constraint(state, where)
    return placed


@functools.partial(jax.jit, static_argnames="mesh")
def in_order(state: State, mesh: Mesh) -> State:
    """The state with rows in the order of ids, as checkpoints have it."""
    if mesh.size == 1:
        return state
    return jax.tree.map(lambda x: dealt.in_order(x, mesh) if x.ndim else x, state)


def restored(like: State, mesh: Mesh, saved: Checkpoints) -> tuple[State, Facts] | None:
    """The state of a checkpoint, in the order of places, and its facts; None if there is none.

    Args:
      like: shapes of the state.
      mesh: the devices.
      saved: the checkpoints.
    """
    shapes = jax.eval_shape(functools.partial(in_order, mesh=mesh), like)
    where = jax.tree.map(functools.partial(sharding.named, mesh), _specs(shapes))
    found = saved.restore(jax.tree.map(lambda x, to: x.update(sharding=to), shapes, where))
    if found is None:
        return None
    sizes = tuple(len(table) // mesh.size for table in (like.user, like.item))
    return _in_places(found[0], mesh, sizes), found[1]


@functools.partial(jax.jit, static_argnames=("mesh", "sizes"), donate_argnames="state")
def _in_places(state: State, mesh: Mesh, sizes: tuple[int, int]) -> State:
    if mesh.size == 1:
        return state

    def places(tree: Any, size: int) -> Any:
        return jax.tree.map(lambda x: dealt.in_places(x, mesh, size) if x.ndim else x, tree)

    users, items = sizes
    return State(
        user=places(state.user, users),
        item=places(state.item, items),
        bias=state.bias,
        user_slots=places(state.user_slots, users),
        item_slots=places(state.item_slots, items),
    )


def factors_of(state: State, mesh: Mesh, num_users: int, num_items: int) -> Factors:
    """The factors of a state, which every process can read."""
    state = in_order(state, mesh)
    user, item = sharding.local(state.user)[:num_users], sharding.local(state.item)[:num_items]
    return Factors(
        user=user[:, :-1],
        item=item[:, :-1],
        user_bias=user[:, -1],
        item_bias=item[:, -1],
        global_bias=sharding.local(state.bias),
    )
