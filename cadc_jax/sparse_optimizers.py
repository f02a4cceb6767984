"""Optimisers that update only the rows of a table that a batch has touched.

A step costs time and memory by the number of ids in the batch, whatever the size of the table,
provided the caller donates `table` and `slots`, so that the rows are written in place. Rows that
are not in the batch do not move: their moments do not decay either ('lazy').

Gradients are those with respect to the *gathered* rows:

    rows = table[ids]                                     # [n, D]
    grads = jax.grad(loss)(rows)                          # [n, D]
    table, slots = sparse.update("adagrad", table, slots, ids, grads, learning_rate)

An id may occur several times. Its gradients are summed before anything that is not linear, so the
result is that of a dense optimiser which sees the gradient of the whole table.

A bfloat16 table loses steps that are smaller than half the distance to its next number, about 1 in
256 of a weight. With a `key` it rounds up or down at random instead, right on average, so that
such steps add up (Gupta et al. 2015, arXiv 1502.02551, section 3).

A row-sharded table is updated inside `jax.shard_map`: each shard subtracts its first row from all
ids, and masks those that fall outside its own rows.
"""

from typing import Any

import jax
import jax.numpy as jnp

OPTIMIZERS = ("sgd", "adagrad", "adam")

Slots = dict[str, jax.Array]

_BETA1 = 0.9
_BETA2 = 0.999
_EPSILON = 1e-8


def init(name: str, table: jax.Array) -> Slots:
    """The optimiser state that belongs to `table`.

    Args:
      name: 'sgd' (no state), 'adagrad' (row-wise: one accumulator a row) or 'adam' (lazy).
      table: [V, ...] of any float dtype; the state is float32.

    Returns:
      {} for 'sgd' on float32; {'accumulator': [V]} for 'adagrad'; {'mean': [V, ...],
      'variance': [V, ...], 'count': []} for 'adam', `count` being the number of updates so far. All
      but the first also hold 'scratch' [V] int32, working memory whose contents mean nothing
      between updates.

    Raises:
      ValueError: if `name` is not one of OPTIMIZERS.
    """
    _check(name)
    slots: Slots = {}
    if name != "sgd" or table.dtype != jnp.float32:
        slots["scratch"] = jnp.zeros(table.shape[:1], jnp.int32)
    if name == "adagrad":
        slots["accumulator"] = jnp.zeros(table.shape[:1], jnp.float32)
    elif name == "adam":
        slots["mean"] = jnp.zeros(table.shape, jnp.float32)
        slots["variance"] = jnp.zeros(table.shape, jnp.float32)
        slots["count"] = jnp.zeros((), jnp.int32)
    return slots


def update(
    name: str,
    table: jax.Array,
    slots: Slots,
    ids: jax.Array,
    grads: jax.Array,
    learning_rate: float | jax.Array,
    *,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Slots]:
    """One step on the rows `ids` of `table`.

    'sgd' subtracts learning_rate * g. 'adagrad' (row-wise) first adds mean(g ** 2) to the row's
    accumulator a, then subtracts learning_rate * g / (sqrt(a) + 1e-8); Duchi et al. 2011, with one
    accumulator a row instead of one a weight. 'adam' is algorithm 1 of Kingma & Ba
    (arXiv 1412.6980) on the touched rows, the bias correction counting the table's updates.

    Args:
      name: the optimiser that made `slots`.
      table: [V, ...], float32 or bfloat16; the arithmetic is float32.
      slots: as `init` returned, or the last `update`.
      ids: [n] int32. Ids outside [0, V) are dropped. V + n must fit in int32.
      grads: [n, ...] gradients with respect to `table[ids]`.
      learning_rate: scalar.
      mask: [n] bool, or None for all True. Entries that are False are dropped, as if they were not
        in the batch: a row of which every entry is dropped does not move, nor does its state.
      key: for a bfloat16 table, PRNG key of stochastic rounding; None rounds to nearest.

    Returns:
      (table, slots), of the same shapes and dtypes.

    Raises:
      ValueError: if `name` is not one of OPTIMIZERS.
    """
    _check(name)
    size = table.shape[0]
    kept = (ids >= 0) & (ids < size)
    if mask is not None:
        kept &= mask
    ids = jnp.where(kept, ids, size)  # out of range: dropped by every scatter below
    grads = grads.astype(jnp.float32)
    if name == "sgd" and table.dtype == jnp.float32:  # linear: repeated ids may come one by one
        return table.at[ids].add(-learning_rate * grads, mode="drop"), slots

    rows, total, scratch = _sum_duplicates(ids, grads, slots["scratch"])
    slots = slots | {"scratch": scratch}
    at: Any = {"mode": "drop", "unique_indices": True}

    def read(array: jax.Array) -> jax.Array:
        return array.at[rows].get(mode="clip")

    if name == "sgd":
        step = learning_rate * total
    elif name == "adagrad":
        square = jnp.mean(total**2, axis=tuple(range(1, total.ndim)))
        accumulator = read(slots["accumulator"]) + square
        scale = learning_rate / (jnp.sqrt(accumulator) + _EPSILON)
        step = scale.reshape((-1,) + (1,) * (total.ndim - 1)) * total
        slots["accumulator"] = slots["accumulator"].at[rows].set(accumulator, **at)
    else:
        count = slots["count"] + 1
        mean = _BETA1 * read(slots["mean"]) + (1 - _BETA1) * total
        variance = _BETA2 * read(slots["variance"]) + (1 - _BETA2) * total**2
        corrected = jnp.sqrt(variance / (1 - _BETA2**count)) + _EPSILON
        step = learning_rate * (mean / (1 - _BETA1**count)) / corrected
        slots["mean"] = slots["mean"].at[rows].set(mean, **at)
        slots["variance"] = slots["variance"].at[rows].set(variance, **at)
        slots["count"] = count
    if table.dtype == jnp.float32:
        return table.at[rows].add(-step, **at), slots
    new = read(table).astype(jnp.float32) - step
    new = new.astype(table.dtype) if key is None else stochastic_round(new, key)
    return table.at[rows].set(new, **at), slots


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds float32 to one of the two nearest bfloat16, either as likely as the other is far.

    bfloat16 is the upper half of float32: adding 16 random bits to the lower half carries into the
    upper one with just that probability. A number that is a bfloat16 already stays itself.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _sum_duplicates(
    ids: jax.Array, grads: jax.Array, scratch: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums the gradients of equal ids, without sorting.

    Every entry writes its position into the scratch cell of its id. Whichever entry is found there
    afterwards stands for all entries of that id: they add their gradients to its.

        ids          7  3  7  V      grads  a  b  c  d     (V, the table's size: drop)
        scratch[ids] 2  1  2  .
        rows         .  3  7  .      total  0  b  a+c  0   (. is an id past the table)

    Returns:
      rows: [n] int32, unique; entries that stand for no id are past the end of the table.
      total: [n, ...] summed gradients of those rows.
      scratch: [V] int32. Only cells written in the same call are ever read.
    """
    size, n = scratch.shape[0], ids.shape[0]
    position = jnp.arange(n, dtype=jnp.int32)
    scratch = scratch.at[ids].set(position, mode="drop")
    owner = jnp.where(ids < size, scratch.at[ids].get(mode="clip"), n)
    total = jnp.zeros_like(grads).at[owner].add(grads, mode="drop")
    rows = jnp.where(owner == position, ids, size + position)
    return rows, total, scratch


def _check(name: str) -> None:
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is not one of {', '.join(OPTIMIZERS)}")
