"""Alternating least squares, implicit and explicit, on one device or many.

`fit` packs both sides once and then solves the users with the items fixed and the items with the
users fixed, by turns; what is solved, and how, is in `half_step`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding
from cadc_jax.errors import ConfigError
from cadc_jax.factorization.als_solver import Form, half_step
from cadc_jax.factorization.factors import Array, Factors
from cadc_jax.factorization.interactions import (
    Chunks,
    Interactions,
    Layout,
    SparseRows,
    make_layout,
    pack,
)
from cadc_jax.runtime import checkpoints
from cadc_jax.runtime.checkpoints import Checkpoints, Facts


@dataclasses.dataclass(frozen=True)
class ALSConfig:
    """What `fit` computes.

    Attributes:
      factors: D, the rank.
      regularization: lambda, at least a little over 0.
      frequency_exponent: nu of the frequency-scaled lambda of a row with n entries. Implicit:
        lambda * (n + number of columns / alpha) ** nu (Rendle et al. 2021, arXiv 2110.14037,
        eq. 14, whose alpha_0 is 1 / alpha here). Explicit: lambda * n ** nu, nu = 1 being the
        'weighted lambda' of Zhou et al. 0 gives every row the same lambda.
      alpha: implicit: confidence of an entry is 1 + alpha * |value|.
      iterations: each solves the users, then the items.
      feedback: 'implicit' or 'explicit'.
      solver: 'cg' (conjugate gradients from the last factors) or 'cholesky' (exact: forms every
        matrix and eliminates, in blocks).
      cg_steps: conjugate-gradient steps in each solve.
      tolerance: stop once an iteration improves the objective by less than this share of it.
      dtype: of the tables, 'float32' or 'bfloat16'. Solves are in float32 either way.
      fixed_side: over several devices: 'gathered' copies the fixed table to each of them;
        'sharded' leaves it in pieces and exchanges the rows of each chunk.
      chunk: entries gathered at once; None for half a MiB of factors, which stays in cache.
    """

    factors: int = 64
    regularization: float = 30.0
    frequency_exponent: float = 0.0
    alpha: float = 9.0
    iterations: int = 15
    feedback: str = "implicit"
    solver: str = "cg"
    cg_steps: int = 3
    tolerance: float = 0.0
    dtype: str = "float32"
    fixed_side: str = "gathered"
    chunk: int | None = None

    def __post_init__(self) -> None:
        choices = {
            "feedback": ("implicit", "explicit"),
            "solver": ("cg", "exact"),
            "dtype": ("float32", "bfloat16"),
            "fixed_side": ("gathered", "sharded"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"als.{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}"
                )
        for name in ("factors", "iterations", "cg_steps", "regularization", "alpha"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"als.{name}={getattr(self, name)}: must be above 0")

    def refreshing(self, iterations: int) -> "ALSConfig":
        """These settings for a `fit` that goes on from other factors."""
        return dataclasses.replace(self, iterations=iterations)


OnIteration = Callable[[int, float, float], None]


def fit(
    interactions: Interactions,
    config: ALSConfig,
    key: jax.Array,
    *,
    mesh: Mesh | None = None,
    progress: OnIteration | None = None,
    saved: Checkpoints | None = None,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factorises.

    Args:
      interactions: training entries.
      config: see `ALSConfig`.
      key: PRNG key of the initial item factors. The start does not depend on the mesh.
      mesh: devices to spread both sides over (all its axes); None for one device of this process.
        Over several processes, all of them call this with the same arguments, and each sends its
        own devices their parts of the entries.
      progress: called after each iteration with its number (from 1), the objective, and the
        seconds since `fit` was called.
      saved: checkpoints to go on from, and to save to between iterations. The result is bit for bit
        that of a fit without a break, on the same machine and devices.
      init: factors to go on from, of these users and items, instead of random ones: a result of
        `fit` on other interactions. A few iterations then reach what these interactions say, and
        stay in the basis of `init`, so that what was trained on its factors takes the new ones.

    Returns:
      factors: of `config.dtype`, biases (float32) only if explicit. Rows without entries are 0.
      losses: [iterations done] float64, the objective after each: the weighted squared error over
        all pairs (implicit) or all entries (explicit), plus the regularisation.

    Raises:
      ConfigError: by `ALSConfig`, if there are no interactions, or if `init` has another shape or
        no biases for explicit feedback.
      Stopped: by `saved`, once it is asked to end.
    """
    if interactions.num_entries == 0:
        raise ConfigError("there are no interactions to factorise")
    start = time.perf_counter()
    users, items = _prepare(interactions, config, _one_device() if mesh is None else mesh)
    width = config.factors + (config.feedback == "explicit")
    sizes = interactions.num_users, interactions.num_items
    shapes = [jax.ShapeDtypeStruct((size, width), config.dtype) for size in sizes]
    whole = sharding.named(sharding.mesh_of(users.regularization), sharding.REPLICATED)
    found = None if saved is None else saved.restore(checkpoints.like(shapes, whole))
    losses: list[float] = []
    if found is not None:
        (start_user, start_item), facts = found
        user, item = _table(users, start_user, config), _table(items, start_item, config)
        losses = facts["losses"]
    elif init is not None:
        start_user, start_item = _given(init, users, items, config)
        user, item = _table(users, start_user, config), _table(items, start_item, config)
    else:
        user = _zeros(users, width, config)
        item = _table(items, _initial(config, key, items), config)
    mean = 0.0
    if config.feedback == "explicit":
        mean = float(interactions.by_user.values.mean(dtype=np.float64))

    def snapshot() -> tuple[list[jax.Array], Facts]:
        # In the order of ids, which other devices share, unlike that of a table.
        return [_rows(user, users), _rows(item, items)], {"losses": losses}

    for iteration in range(len(losses) + 1, config.iterations + 1):
        if saved is not None:
            saved.maybe_save(iteration - 1, snapshot)
        user, _ = _solve(users, user, items, item, config, mean)
        item, loss = _solve(items, item, users, user, config, mean)
        losses.append(float(loss))
        if progress is not None:
            progress(iteration, losses[-1], time.perf_counter() - start)
        if iteration > 1 and losses[-2] - losses[-1] < config.tolerance * abs(losses[-2]):
            break
    user, item = _rows(sharding.local(user), users), _rows(sharding.local(item), items)
    return _factors(user, item, mean, config), np.array(losses)


def fold_in(
    factors: Factors,
    interactions: Interactions,
    config: ALSConfig,
    *,
    side: str = "user",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Factors of new users (or items) from their interactions alone, the other side as it is.

    The problem solved is that of the last half-step of `fit` on that side, with the same
    regularisation, but exactly whatever `config.solver` says.

    Args:
      factors: a result of `fit`.
      interactions: of N new users with the I items of the model (side='user'), or of the U users
        of the model with N new items (side='item').
      config: that of the fit.
      side: which side is new.
      mesh: as for `fit`.

    Returns:
      [N, D] factors, and [N] biases (None if implicit).

    Raises:
      ConfigError: if `side` is neither, the known side's size is not that of the model, or the
        model has no biases for explicit feedback.
    """
    if side not in ("user", "item"):
        raise ConfigError(f"side={side!r}: choose user or item")
    user_is_new = side == "user"
    known = factors.item if user_is_new else factors.user
    sizes = interactions.num_users, interactions.num_items
    if sizes[user_is_new] != len(known):
        raise ConfigError(
            f"interactions have {sizes[user_is_new]} known rows, the model has {len(known)}"
        )
    config = dataclasses.replace(config, factors=known.shape[1], solver="exact")
    mesh = _one_device() if mesh is None else mesh
    new, old = _prepare(interactions, config, mesh)[:: 1 if user_is_new else -1]
    mean: float | Array = 0.0
    if config.feedback == "explicit":
        user_bias, item_bias, mean = _biases(factors)
        bias = item_bias if user_is_new else user_bias
        known = jnp.concatenate([known, bias[:, None].astype(known.dtype)], 1)
    fixed = _table(old, known, config)
    start = _zeros(new, known.shape[1], config)
    solved, _ = _solve(new, start, old, fixed, config, mean)
    solved = _rows(solved, new)
    if config.feedback == "implicit":
        return solved, None
    return solved[:, :-1], solved[:, -1].astype(jnp.float32)


class _Side(NamedTuple):
    """Users or items, ready to be solved. Device arrays are split by their leading axis."""

    layout: Layout
    regularization: jax.Array  # [table rows] f32
    short: Chunks
    long: Chunks


def _prepare(interactions: Interactions, config: ALSConfig, mesh: Mesh) -> tuple[_Side, _Side]:
    """Packs both sides and puts them on the devices."""
    chunk = config.chunk or max(256, 2**17 // config.factors)
    both = (interactions.by_user, interactions.by_item)
    layouts = [make_layout(rows.counts, chunk, mesh.size) for rows in both]
    spread = _spread(mesh)

    def side(rows: SparseRows, layout: Layout, fixed: Layout) -> _Side:
        scale = np.maximum(layout.counts, 1.0)
        if config.feedback == "implicit":
            scale = layout.counts + len(fixed.counts) / config.alpha
        regularization = np.ones(layout.table_rows, np.float32)  # of unused places: any but 0
        regularization[layout.position] = config.regularization * scale**config.frequency_exponent
        short, long = pack(rows, layout, fixed.position)
        return _Side(layout, *sharding.put((regularization, short, long), spread))

    return side(both[0], *layouts), side(both[1], *reversed(layouts))


def _initial(config: ALSConfig, key: jax.Array, items: _Side) -> jax.Array:
    """[I, K] items to start from: factors normal with variance 1 / D, biases 0; unseen items 0."""
    seen = (items.layout.counts > 0)[:, None]
    return _normal(key, seen, config.factors, config.feedback == "explicit")


@functools.partial(jax.jit, static_argnames=("factors", "biased"))
def _normal(key: jax.Array, seen: jax.Array, factors: int, biased: bool) -> jax.Array:
    start = jax.random.normal(key, (len(seen), factors)) / np.sqrt(factors)
    return jnp.pad(start * seen, ((0, 0), (0, biased)))


def _given(init: Factors, users: _Side, items: _Side, config: ALSConfig) -> tuple[Array, Array]:
    """[U, K] users and [I, K] items of `init`, biases last if explicit; unseen ones 0."""
    found = init.user.shape, init.item.shape
    wanted = tuple((len(side.layout.counts), config.factors) for side in (users, items))
    if found != wanted:
        raise ConfigError(f"init has factors of shapes {found}; this fit has {wanted}")

    explicit = config.feedback == "explicit"
    user_bias, item_bias, _ = _biases(init) if explicit else (None, None, None)

    def start(rows: Array, bias: Array | None, side: _Side) -> Array:
        rows = np.asarray(rows)
        if bias is not None:
            rows = np.concatenate([rows, np.asarray(bias)[:, None].astype(rows.dtype)], 1)
        return rows * (side.layout.counts > 0)[:, None].astype(rows.dtype)

    return start(init.user, user_bias, users), start(init.item, item_bias, items)


def _biases(factors: Factors) -> tuple[Array, Array, Array]:
    """The biases that explicit feedback needs; raises ConfigError if there are none."""
    if factors.biases is None:
        raise ConfigError("feedback='explicit' needs factors with biases, and these have none")
    return factors.biases


def _zeros(side: _Side, width: int, config: ALSConfig) -> jax.Array:
    """The table of `side` before any of its rows is solved, on its devices."""
    table = np.zeros((side.layout.table_rows, width), jnp.dtype(config.dtype))
    return sharding.put(table, side.regularization.sharding)


def _table(side: _Side, rows: Array, config: ALSConfig) -> jax.Array:
    """The table of `side` that holds `rows` [N, K], on its devices."""
    table = _placed(
        sharding.local(rows), side.layout.position, side.layout.table_rows, config.dtype
    )
    return sharding.put(table, side.regularization.sharding)


@functools.partial(jax.jit, static_argnames=("size", "dtype"))
def _placed(rows: Array, position: Array, size: int, dtype: str) -> jax.Array:
    table = jnp.zeros((size, rows.shape[1]), dtype)
    return table.at[position].set(rows.astype(dtype), unique_indices=True)


def _rows(table: Array, side: _Side) -> jax.Array:
    """[N, K] rows of the table of `side`, in the order of ids."""
    return _taken(table, side.layout.position)


@jax.jit
def _taken(table: jax.Array, position: jax.Array) -> jax.Array:
    return table.at[position].get(mode="promise_in_bounds")


def _one_device() -> Mesh:
    return Mesh(np.array(jax.local_devices()[:1]), (sharding.DATA,))


def _spread(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P(mesh.axis_names))


def _factors(user: Array, item: Array, mean: float, config: ALSConfig) -> Factors:
    if config.feedback == "implicit":
        return Factors(user, item)
    return Factors(
        user=user[:, :-1],
        item=item[:, :-1],
        user_bias=user[:, -1].astype(jnp.float32),
        item_bias=item[:, -1].astype(jnp.float32),
        global_bias=jnp.float32(mean),
    )


def _solve(
    side: _Side,
    table: jax.Array,
    fixed_side: _Side,
    fixed: jax.Array,
    config: ALSConfig,
    mean: float | Array,
) -> tuple[jax.Array, jax.Array]:
    """One half-step: `table` (which is given up) solved anew, and the objective there."""
    return half_step(*_arguments(side, table, fixed_side, fixed, config, mean))


def _arguments(
    side: _Side,
    table: jax.Array,
    fixed_side: _Side,
    fixed: jax.Array,
    config: ALSConfig,
    mean: float | Array,
) -> tuple[Any, ...]:
    """Those of `half_step`."""
    form = Form(
        config.feedback, config.solver, config.cg_steps, config.fixed_side, side.layout.chunk_rows
    )
    return (
        table,
        side.regularization,
        side.short,
        side.long,
        fixed,
        fixed_side.regularization,
        np.float32(config.alpha),  # of NumPy, as there is no placing it on every process
        np.float32(mean),
        form,
        sharding.mesh_of(table),
    )
