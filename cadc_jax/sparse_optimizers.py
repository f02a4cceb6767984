"""Optimisers that update only the table rows that a batch uses.

A step costs time and memory by the number of ids in the batch, not by the size of the table, if
the caller donates `table` and `slots`: rows are then written in place. Other rows do not change,
and their moments do not decay either ('lazy').

Gradients are taken with respect to the *gathered* rows:

    rows = table[ids]                                     # [n, D]
    grads = jax.grad(loss)(rows)                          # [n, D]
    table, slots = update("adagrad", table, slots, ids, grads, learning_rate)

If an id occurs several times, its gradients are summed first. The result equals that of a dense
optimiser with the gradient of the whole table.

A bfloat16 table loses steps smaller than half the distance to the next number, about 1/256 of a
weight. With a `key`, rounding is random and right on average, and small steps add up (Gupta et
al. 2015, arXiv 1502.02551, section 3).

A table split by rows is updated inside `jax.shard_map`: each shard subtracts its first row from all
ids, and masks the ids outside its own rows.

Tables may be packed (see `tables.packed`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cadc_jax.tables import packed
from cadc_jax.tables.packed import AnyTable, Packed

OPTIMIZERS = ("sgd", "adagrad", "adam")

Slots = dict[str, AnyTable]

# Sorted gradients that a TPU adds up and applies at a time: 8 MB, that its lanes are filled up with
# counted. All of them at once take several times the memory of the batch's rows.
SORTED_ROWS = 1 << 14

_BETA1 = 0.9
_BETA2 = 0.999
_EPSILON = 1e-8


def init(name: str, table: AnyTable) -> Slots:
    """The initial optimiser state of `table`.

    Args:
      name: 'sgd' (no state), 'adagrad' (row-wise: one accumulator a row) or 'adam' (lazy).
      table: [V, ...] of any float dtype; the state is float32.

    Returns:
      'adagrad': {'accumulator': [V]}. 'adam': {'mean': [V, ...], 'variance': [V, ...], 'count': []}
      with the number of updates as `count`; moments have the form of the table. Both, and 'sgd' on
      bfloat16, also have 'scratch' [V] int32, working memory without meaning between updates.
      'sgd' on float32: {}.

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
        slots["mean"] = packed.zeros_like(table, jnp.float32)
        slots["variance"] = packed.zeros_like(table, jnp.float32)
        slots["count"] = jnp.zeros((), jnp.int32)
    return slots


def update(
    name: str,
    table: AnyTable,
    slots: Slots,
    ids: jax.Array,
    grads: jax.Array,
    learning_rate: float | jax.Array,
    *,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    sort: bool | None = None,
) -> tuple[AnyTable, Slots]:
    """One step on the rows `ids` of `table`.

    'sgd' subtracts learning_rate * g. 'adagrad' (row-wise) adds mean(g ** 2) to the accumulator a
    of the row, then subtracts learning_rate * g / (sqrt(a) + 1e-8). That is Duchi et al. 2011 with
    one accumulator for a row instead of one for each weight. 'adam' is algorithm 1 of Kingma & Ba
    (arXiv 1412.6980) on the rows in the batch; its bias correction counts updates of the table.

    Args:
      name: the optimiser that made `slots`.
      table: [V, ...], float32 or bfloat16; the arithmetic is float32.
      slots: as `init` or the last `update` returned them.
      ids: [n] int32. Ids outside [0, V) are dropped. V + n must fit in int32.
      grads: [n, ...] gradients with respect to `table[ids]`.
      learning_rate: scalar.
      mask: [n] bool; None for all True. False entries are treated as if they were not in the batch.
      key: for a bfloat16 table: PRNG key of stochastic rounding; None rounds to nearest.
      sort: whether gradients of equal ids are added up after a sort, in a fixed order, or through
        the scratch cells of the table; None: the faster way, which is to sort on all devices but
        CPUs, and for packed tables. On TPUs, and if True, the sorted gradients are added up and
        applied SORTED_ROWS at a time.

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
    ids = jnp.where(kept, ids, size)  # out of range: every scatter below drops them
    grads = grads.astype(jnp.float32)
    if name == "sgd" and table.dtype == jnp.float32:  # linear: no need to sum first
        return packed.add(table, ids, -learning_rate * grads), slots

    if name == "adam":
        slots = slots | {"count": slots["count"] + 1}
    rule = functools.partial(_change_rows, name, learning_rate=learning_rate)
    by_scratch = functools.partial(_update_by_scratch, rule, key)
    by_sort = functools.partial(_update_by_sort, rule, key)
    in_parts = functools.partial(by_sort, most_rows=SORTED_ROWS)
    if sort is None and not isinstance(table, Packed):
        return jax.lax.platform_dependent(
            *(table, slots, ids, grads), cpu=by_scratch, tpu=in_parts, default=by_sort
        )
    return (by_scratch if sort is False else in_parts)(table, slots, ids, grads)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds float32 to one of the two nearest bfloat16, at random and right on average.

    bfloat16 is the upper half of float32. Adding 16 random bits to the lower half carries into the
    upper half with the right probability. A number that bfloat16 can represent does not change.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


_State = tuple[AnyTable, Slots]


def _change_rows(
    name: str,
    state: _State,
    rows: jax.Array,
    total: jax.Array,
    key: jax.Array | None,
    *,
    learning_rate: float | jax.Array,
    ascending: bool,
) -> _State:
    """The update of unique rows [n] by their gradients [n, ...]; rows past the end are dropped."""
    table, slots = state
    if name == "sgd":
        step = learning_rate * total
    elif name == "adagrad":
        step, slots = _adagrad_step(slots, rows, total, learning_rate)
    else:
        step, slots = _adam_step(slots, rows, total, learning_rate, ascending)
    if table.dtype == jnp.float32:
        return packed.add(table, rows, -step, unique=True, ascending=ascending), slots
    old = packed.read(table, rows)
    new = old.astype(jnp.float32) - step
    new = new.astype(table.dtype) if key is None else stochastic_round(new, key)
    return packed.write(table, rows, old, new, ascending=ascending), slots


def _adagrad_step(
    slots: Slots, rows: jax.Array, grads: jax.Array, learning_rate: float | jax.Array
) -> tuple[jax.Array, Slots]:
    square = jnp.mean(grads**2, axis=tuple(range(1, grads.ndim)))
    before = packed.read(slots["accumulator"], rows)
    accumulator = before + square
    scale = learning_rate / (jnp.sqrt(accumulator) + _EPSILON)
    step = scale.reshape((-1,) + (1,) * (grads.ndim - 1)) * grads
    new = packed.write(slots["accumulator"], rows, before, accumulator)
    return step, slots | {"accumulator": new}


def _adam_step(
    slots: Slots,
    rows: jax.Array,
    grads: jax.Array,
    learning_rate: float | jax.Array,
    ascending: bool,
) -> tuple[jax.Array, Slots]:
    count = slots["count"]
    before = {name: packed.read(slots[name], rows) for name in ("mean", "variance")}
    mean = _BETA1 * before["mean"] + (1 - _BETA1) * grads
    variance = _BETA2 * before["variance"] + (1 - _BETA2) * grads**2
    corrected = jnp.sqrt(variance / (1 - _BETA2**count)) + _EPSILON
    step = learning_rate * (mean / (1 - _BETA1**count)) / corrected
    after = {"mean": mean, "variance": variance}
    moments = {
        name: packed.write(slots[name], rows, before[name], after[name], ascending=ascending)
        for name in after
    }
    return step, slots | moments


def _update_by_sort(
    rule: Callable[..., _State],
    key: jax.Array | None,
    table: AnyTable,
    slots: Slots,
    ids: jax.Array,
    grads: jax.Array,
    *,
    most_rows: int | None = None,
) -> _State:
    """Sorts the ids, then adds up and applies the gradients of `most_rows` of them at a time.

    The last entry of an id owns it. What a part has of an id that continues in the next one is
    handed on. No two entries write to one place, so that the order of additions is the same on
    every run.
    """
    size, n = len(table), len(ids)
    part = min(n, most_rows or n)
    if not n:
        return table, slots
    ids = jnp.pad(ids, (0, -n % part), constant_values=size)
    ids, order = jax.lax.sort_key_val(ids, jnp.arange(len(ids), dtype=jnp.int32))
    owns = jnp.append(ids[1:] != ids[:-1], True) & (ids < size)

    def apply(
        nth: int | jax.Array, carry: tuple[_State, jax.Array, jax.Array]
    ) -> tuple[_State, jax.Array, jax.Array]:
        state, last_id, last_sum = carry
        own_ids, own_order, is_owner = (
            jax.lax.dynamic_slice_in_dim(x, nth * part, part) for x in (ids, order, owns)
        )
        kept = own_ids < size
        own = grads.at[own_order].get(mode="clip")
        sums = sums_of_runs(own_ids, kept, jnp.where(_column(kept, own), own, 0))
        sums += jnp.where(_column(own_ids == last_id, own), last_sum, 0)
        rows = jnp.where(is_owner, own_ids, size + jnp.arange(part, dtype=jnp.int32))
        total = jnp.where(_column(is_owner, own), sums, 0)
        own_key = None if key is None else jax.random.fold_in(key, nth)
        state = rule(state, rows, total, own_key, ascending=True)
        return state, own_ids[-1], sums[-1]

    # Zeros that vary over the same axes as the ids in `jax.shard_map`.
    start = (table, slots), ids[0], jnp.zeros(grads.shape[1:]) * ids[0]
    if len(ids) == part:
        return apply(0, start)[0]
    return jax.lax.fori_loop(0, len(ids) // part, apply, start)[0]


def sums_of_runs(ids: jax.Array, kept: jax.Array, grads: jax.Array) -> jax.Array:
    """Sums [n, ...] of the gradients [n, ...] up to each entry, from the first of equal ids [n] on.

    Where `kept` [n] is False, the gradients are 0.

    Each entry adds up the entries of its id before it: 1, 2, 4, ... of them at a time, until the
    longest run is done.
    """
    n = len(ids)
    position = jnp.arange(n, dtype=jnp.int32)
    first = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])
    before = position - jax.lax.cummax(jnp.where(first, position, 0))  # entries of the same id

    def double(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        done, sums = state
        shifted = jnp.concatenate([jnp.zeros_like(sums), sums])
        shifted = jax.lax.dynamic_slice_in_dim(shifted, n - done, n)
        return 2 * done, sums + jnp.where(_column(before >= done, sums), shifted, 0)

    longest = jnp.max(jnp.where(kept, before, 0))
    return jax.lax.while_loop(lambda state: state[0] <= longest, double, (jnp.int32(1), grads))[1]


def _column(x: jax.Array, like: jax.Array) -> jax.Array:
    """x [n] with as many axes as `like` [n, ...]."""
    return x.reshape((-1,) + (1,) * (like.ndim - 1))


def _update_by_scratch(
    rule: Callable[..., _State],
    key: jax.Array | None,
    table: AnyTable,
    slots: Slots,
    ids: jax.Array,
    grads: jax.Array,
) -> _State:
    """Sums the gradients of equal ids without sorting.

    Every entry writes its position into the scratch cell of its id. The entry that is found there
    afterwards owns the id, and all entries of that id add their gradients to the owner's.

        ids          7  3  7  V      grads  a  b  c  d     (V, the size of the table: drop)
        scratch[ids] 2  1  2  .
        rows         .  3  7  .      total  0  b  a+c  0   (. is an id past the table)

    Only cells of `scratch` that are written in the same call are read.
    """
    size, n = len(table), len(ids)
    position = jnp.arange(n, dtype=jnp.int32)
    scratch = slots["scratch"].at[ids].set(position, mode="drop")
    owner = jnp.where(ids < size, scratch.at[ids].get(mode="clip"), n)
    total = jnp.zeros_like(grads).at[owner].add(grads, mode="drop")
    rows = jnp.where(owner == position, ids, size + position)
    return rule((table, slots | {"scratch": scratch}), rows, total, key, ascending=False)


def _check(name: str) -> None:
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is not one of {', '.join(OPTIMIZERS)}")
