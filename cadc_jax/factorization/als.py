"""Alternating least squares, implicit and explicit, on one device or many.

`fit` solves the users with the items fixed, then the items with the users fixed, and repeats.
`fold_in` solves new users or items once. Both are made of two public steps: `prepare` packs users
and items and puts them on the devices, and `half_step` solves one of the two sides. The equations
are in `als_solver`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding
from cadc_jax.errors import ConfigError, check_above, check_choice
from cadc_jax.factorization import als_solver, fixed_rows
from cadc_jax.factorization.als_solver import HalfStepConfig, SideData
from cadc_jax.factorization.factors import Array, Factors, check_finite, check_sizes
from cadc_jax.factorization.interactions import (
    Chunking,
    Extent,
    Interactions,
    Layout,
    Rows,
    make_layout,
    pack,
)
from cadc_jax.runtime import checkpoints
from cadc_jax.runtime.checkpoints import Checkpoints, Facts
from cadc_jax.tables.packed import stored_width


@dataclasses.dataclass(frozen=True)
class ALSConfig:
    """Settings of `fit`.

    Attributes:
      factors: D, the rank.
      regularization: lambda, above 0, in units that suit logs of any size; see below.
      frequency_exponent: nu. The higher, the more regularised are rows with many entries. 0 gives
        every row the same.
      alpha: implicit: the confidence of an entry is 1 + alpha * |value|.
      iterations: number of iterations. Each solves the users, then the items.
      feedback: 'implicit' or 'explicit'.
      solver: 'cg' (conjugate gradients that start from the last factors) or 'exact' (forms every
        matrix and eliminates, in blocks).
      cg_steps: conjugate-gradient steps in each solve.
      tolerance: stop once an iteration improves the objective by less than this share of it.
      dtype: 'float32' or 'bfloat16', of the factor tables. Solves are always in float32.
      fixed_side: on several devices, 'gathered' copies the fixed table to each of them; 'sharded'
        leaves it split, and each device receives the rows that its own chunks need.
      chunk: entries gathered at once; None chooses by the device, see `chunking`.

    For implicit feedback the penalty of a row x with n entries is |x|^2 times

        lambda * sqrt(alpha) * (sqrt(user_mean) + sqrt(item_mean)) * (s / s_mean) ** nu

    with the mean numbers of entries of a user and of an item, s = n + columns / alpha (Rendle et
    al. 2021, arXiv 2110.14037, eq. 14, with alpha_0 = 1 / alpha), and for s_mean the geometric mean
    of its averages over users and over items. The bracket is the largest singular value of a matrix
    with as many entries at random places (Marchenko and Pastur 1967); a penalty removes directions
    of a small singular value. The root of alpha was found by measurement: see docs/method.md.

    For explicit feedback it is lambda * mean * (n / mean) ** nu, with the mean n of the side; nu of
    1 is the 'weighted lambda' of Zhou et al. (2008). Rows and columns without entries do not count.
    """

    factors: int = 64
    regularization: float = 1.0
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
        check_choice("als.feedback", self.feedback, ("implicit", "explicit"))
        check_choice("als.solver", self.solver, ("cg", "exact"), renamed={"cholesky": "exact"})
        check_choice("als.dtype", self.dtype, ("float32", "bfloat16"))
        check_choice("als.fixed_side", self.fixed_side, ("gathered", "sharded"))
        for name in ("factors", "iterations", "cg_steps", "regularization", "alpha"):
            check_above(f"als.{name}", getattr(self, name), 0)

    @property
    def width(self) -> int:
        """K, columns of a factor table: the factors, and for explicit feedback the bias."""
        return self.factors + (self.feedback == "explicit")

    def refreshing(self, iterations: int) -> "ALSConfig":
        """These settings for a `fit` that starts from other factors."""
        return dataclasses.replace(self, iterations=iterations)


CACHED_BYTES = 1 << 19  # of factors that a CPU gathers at once: they stay in its cache
GATHERED_BYTES = 1 << 29  # the same for an accelerator, which prefers few large steps
# An accelerator writes a matrix [K, K] for each segment in the time of about so many products.
MATRIX_OVERHEAD = 64
LEAST_ENTRIES = 256  # gathered at once, however wide the factors are


def chunking(config: ALSConfig, platform: str) -> Chunking:
    """How large the chunks of a half-step are.

    An accelerator runs one chunk after another, so there should be few. What bounds them is memory:
    the gathered factors, and with exact solves the matrices of the rows. Both are counted as they
    are stored, with what fills up the lanes of a TPU. With a split fixed side a device also
    holds the distinct rows of a chunk twice, those it sends and those it receives: no more than the
    factors once weighted and once not, on any number of devices.

    Args:
      config: see `ALSConfig`.
      platform: 'cpu', 'gpu' or 'tpu'.
    """
    on_cpu = platform == "cpu"
    room = CACHED_BYTES if on_cpu else GATHERED_BYTES
    row = stored_width(config.width, platform)
    entries = config.chunk or max(LEAST_ENTRIES, room // (4 * row))
    if config.solver == "cg":
        return Chunking(entries)
    matrix = config.width * stored_width(config.width + 1, platform)
    rows = max(1, 2 * entries * row // matrix)
    return Chunking(entries, rows) if on_cpu else Chunking(entries, rows, MATRIX_OVERHEAD)


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
    """Factorises the interactions.

    Args:
      interactions: training entries.
      config: see `ALSConfig`.
      key: PRNG key of the initial item factors. They do not depend on the mesh.
      mesh: devices to spread both sides over (all its axes); None for one device of this process.
        If it has devices of several processes, all of them call this with the same arguments, and
        each sends its own devices their parts of the entries. It need not have the others in its
        memory: see `log_matrix`.
      progress: called after each iteration with its number (from 1), the objective, and the
        seconds since `fit` was called.
      saved: checkpoints to resume from, and to save to between iterations. A resumed fit gives bit
        for bit the result of an uninterrupted one, on the same machine and devices.
      init: factors to start from instead of random ones: a result of `fit` on other interactions
        of the same users and items. The new factors stay in the basis of `init`, and a model that
        was trained on `init` can take them. A few iterations are enough.

    Returns:
      factors: of `config.dtype`, with float32 biases if explicit. Rows without entries are 0.
      losses: [iterations done] float64, the objective after each: the weighted squared error over
        all pairs (implicit) or all entries (explicit), plus the regularisation.

    Raises:
      ConfigError: if there are no interactions, if `init` has other shapes, or if it has no biases
        for explicit feedback.
      Stopped: by `saved`, after saving, if it was asked to stop.
    """
    if interactions.num_entries == 0:
        raise ConfigError(
            "there are no interactions to factorise: give more rows, or, with "
            "factor_rows='unsampled', lower the rate"
        )
    start = time.perf_counter()
    users, items = prepare(interactions, config, mesh)
    user, item, losses = _start(users, items, key, saved, init)
    mean = _mean(interactions, config)

    def snapshot() -> tuple[list[jax.Array], Facts]:
        # In the order of ids: the places in a table depend on the number of devices.
        return [users.rows(user), items.rows(item)], {"losses": losses}

    for iteration in range(len(losses) + 1, config.iterations + 1):
        if saved is not None:
            saved.maybe_save(iteration - 1, snapshot)
        user, _ = half_step(users, user, items, item, mean)
        item, loss = half_step(items, item, users, user, mean)
        losses.append(float(loss))
        if progress is not None:
            progress(iteration, losses[-1], time.perf_counter() - start)
        if iteration > 1 and losses[-2] - losses[-1] < config.tolerance * abs(losses[-2]):
            break
    user, item = users.rows(sharding.local(user)), items.rows(sharding.local(item))
    advice = "lower als.alpha or raise als.regularization"
    return check_finite(_factors(user, item, mean, config), advice), np.array(losses)


def fold_in(
    factors: Factors,
    interactions: Interactions,
    config: ALSConfig,
    *,
    extent: Extent,
    side: str = "user",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Factors of new users (or items) from their interactions, with the other side unchanged.

    This is the last half-step of `fit` on that side, with the same regularisation, but always
    solved exactly.

    Args:
      factors: a result of `fit`.
      interactions: of N new users with the I items of the model (side='user'), or of the U users
        of the model with N new items (side='item').
      config: the settings of the fit.
      extent: `Interactions.extent` of the fit, which the regularisation is measured in.
      side: which side is new.
      mesh: as for `fit`.

    Returns:
      [N, D] factors and [N] float32 biases (None if implicit).

    Raises:
      ConfigError: if `side` is neither 'user' nor 'item', if the known side has another size than
        in the model, or if the model has no biases for explicit feedback.
    """
    check_choice("side", side, ("user", "item"))
    user_is_new = side == "user"
    known = factors.item if user_is_new else factors.user
    num_known = interactions.num_items if user_is_new else interactions.num_users
    if num_known != len(known):
        raise ConfigError(f"interactions have {num_known} known rows, the model has {len(known)}")
    config = dataclasses.replace(config, factors=known.shape[1], solver="exact")
    users, items = prepare(interactions, config, mesh, extent)
    new, fixed_side = (users, items) if user_is_new else (items, users)
    mean: float | Array = 0.0
    if config.feedback == "explicit":
        user_bias, item_bias, mean = _biases(factors)
        bias = item_bias if user_is_new else user_bias
        known = jnp.concatenate([known, bias[:, None].astype(known.dtype)], 1)
    table, _ = half_step(new, new.empty_table(), fixed_side, fixed_side.table(known), mean)
    solved = new.rows(sharding.local(table))
    if config.feedback == "implicit":
        return solved, None
    return solved[:, :-1], solved[:, -1].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Side:
    """Users or items, packed and placed on the devices.

    The factor table of a side holds its N rows at the places that the layout gives them, zeros in
    between, and is split over the devices by rows.

    Attributes:
      layout: where each row is.
      data: entries and regularisation, split over the devices by their leading axis.
      config: settings of the fit.
    """

    layout: Layout
    data: SideData
    config: ALSConfig

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return sharding.mesh_of(self.data.regularization)

    def empty_table(self) -> jax.Array:
        """A table [table_rows, K] of zeros."""
        table = np.zeros((self.layout.table_rows, self.config.width), jnp.dtype(self.config.dtype))
        return sharding.put(table, self.data.regularization.sharding)

    def table(self, rows: Array) -> jax.Array:
        """The table [table_rows, K] that holds `rows` [N, K], given in the order of ids."""
        layout = self.layout
        rows = sharding.local(rows)
        table = _scatter(rows, layout.position, layout.table_rows, self.config.dtype)
        return sharding.put(table, self.data.regularization.sharding)

    def rows(self, table: Array) -> jax.Array:
        """The rows [N, K] of a table, in the order of ids."""
        return _gather(table, self.layout.position)


def prepare(
    interactions: Interactions,
    config: ALSConfig,
    mesh: Mesh | None = None,
    extent: Extent | None = None,
) -> tuple[Side, Side]:
    """Packs users and items and puts them on the devices.

    Args:
      interactions: training entries.
      config: see `ALSConfig`.
      mesh: as for `fit`.
      extent: what the regularisation is measured in. None: that of the interactions.

    Returns:
      users, items.
    """
    extent = extent or interactions.extent
    if mesh is None:
        mesh = Mesh(np.array(jax.local_devices()[:1]), (sharding.EVERYWHERE,))
    own = sharding.own_parts(mesh)
    both = (interactions.by_user, interactions.by_item)
    chunks = chunking(config, sharding.platform(mesh))
    users, items = (make_layout(rows.counts, chunks, mesh.size) for rows in both)

    weights = regularization(interactions, config, extent)

    def side(rows: Rows, layout: Layout, fixed: Layout, weight: np.ndarray) -> Side:
        table = np.ones(layout.table_rows, np.float32)  # unused places: any value but 0
        table[layout.position] = weight
        weights = sharding.put(table, sharding.named(mesh, P(mesh.axis_names)))
        chunks = pack(rows, layout, fixed.position, own)
        if config.fixed_side == "sharded":
            short, long = (fixed_rows.place(part, fixed, mesh) for part in chunks)
        else:
            short, long = sharding.put_own(chunks, mesh)
        return Side(layout, SideData(weights, short, long), config)

    return side(both[0], users, items, weights[0]), side(both[1], items, users, weights[1])


def regularization(
    interactions: Interactions, config: ALSConfig, extent: Extent
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of |x|^2 of all users [U] and all items [I] float64; see `ALSConfig`.

    Args:
      interactions: entries of these users and items.
      config: settings.
      extent: of the interactions, or of those that the other side's factors were fitted to.
    """
    users, items = interactions.by_user.counts, interactions.by_item.counts
    return penalty(users, config, extent), penalty(items, config, extent, "item")


def penalty(
    counts: np.ndarray, config: ALSConfig, extent: Extent, side: str = "user"
) -> np.ndarray:
    """The weights [N] float64 of |x|^2 of users (or items) with so many entries each.

    Args:
      counts: [N] numbers of entries.
      config, extent: as for `regularization`.
      side: 'user' or 'item'.
    """
    place, means = ("user", "item").index(side), (extent.user_mean, extent.item_mean)
    nu = config.frequency_exponent
    if config.feedback == "explicit":
        mean = means[place]
        return config.regularization * mean * (np.maximum(counts, 1) / mean) ** nu
    columns = extent.items / config.alpha, extent.users / config.alpha
    scale = np.sqrt((means[0] + columns[0]) * (means[1] + columns[1]))
    unit = config.regularization * np.sqrt(config.alpha) * extent.noise
    return unit * ((counts + columns[place]) / scale) ** nu


def half_step(
    side: Side, table: jax.Array, fixed_side: Side, fixed: jax.Array, mean: float | Array = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Solves one side with the other side fixed.

    Args:
      side: the side to solve.
      table: its table; conjugate gradients start from it. Its memory is reused.
      fixed_side: the other side.
      fixed: the other side's table.
      mean: explicit feedback: mean rating.

    Returns:
      The solved table, and the objective there, [] float32.
    """
    return als_solver.half_step(*_arguments(side, table, fixed_side, fixed, mean))


def lower_half_step(
    side: Side, table: jax.Array, fixed_side: Side, fixed: jax.Array, mean: float | Array = 0.0
) -> jax.stages.Lowered:
    """The program of `half_step` on these arguments, to compile and inspect; it does not run."""
    return als_solver.half_step.lower(*_arguments(side, table, fixed_side, fixed, mean))


def _arguments(
    side: Side, table: jax.Array, fixed_side: Side, fixed: jax.Array, mean: float | Array
) -> tuple[Any, ...]:
    """Arguments for `als_solver.half_step`."""
    config = side.config
    static = HalfStepConfig(config.feedback, config.solver, config.cg_steps, side.layout.chunk_rows)
    # Scalars are NumPy's: a JAX scalar would have to be placed on the devices of all processes.
    scalars = np.float32(config.alpha), np.float32(mean)
    return table, side.data, fixed, fixed_side.data.regularization, *scalars, static, side.mesh


@functools.partial(jax.jit, static_argnames=("size", "dtype"))
def _scatter(rows: Array, position: Array, size: int, dtype: str) -> jax.Array:
    table = jnp.zeros((size, rows.shape[1]), dtype)
    return table.at[position].set(rows.astype(dtype), unique_indices=True)


@jax.jit
def _gather(table: jax.Array, position: jax.Array) -> jax.Array:
    return table.at[position].get(mode="promise_in_bounds")


def _start(
    users: Side, items: Side, key: jax.Array, saved: Checkpoints | None, init: Factors | None
) -> tuple[jax.Array, jax.Array, list[float]]:
    """Tables of users and items to start from, and the losses of the iterations already done."""
    if saved is not None:
        config, whole = users.config, sharding.named(users.mesh, sharding.REPLICATED)
        sizes = len(users.layout.counts), len(items.layout.counts)
        shapes = [jax.ShapeDtypeStruct((size, config.width), config.dtype) for size in sizes]
        found = saved.restore(checkpoints.like(shapes, whole))
        if found is not None:
            (user_rows, item_rows), facts = found
            return users.table(user_rows), items.table(item_rows), facts["losses"]
    if init is not None:
        user_rows, item_rows = _rows_of(init, users, items)
        return users.table(user_rows), items.table(item_rows), []
    return users.empty_table(), items.table(_random_rows(items, key)), []


def _rows_of(init: Factors, users: Side, items: Side) -> tuple[Array, Array]:
    """[U, K] users and [I, K] items of `init`, biases last if explicit. Unseen ones become 0."""
    config = users.config
    check_sizes(init, len(users.layout.counts), len(items.layout.counts), config.factors)
    explicit = config.feedback == "explicit"
    user_bias, item_bias, _ = _biases(init) if explicit else (None, None, None)

    def rows_of(rows: Array, bias: Array | None, side: Side) -> Array:
        rows = np.asarray(rows)
        if bias is not None:
            rows = np.concatenate([rows, np.asarray(bias)[:, None].astype(rows.dtype)], 1)
        return rows * (side.layout.counts > 0)[:, None].astype(rows.dtype)

    return rows_of(init.user, user_bias, users), rows_of(init.item, item_bias, items)


def _random_rows(items: Side, key: jax.Array) -> jax.Array:
    """[I, K] items to start from: normal factors with variance 1 / D, biases 0; unseen items 0."""
    seen = (items.layout.counts > 0)[:, None]
    return _normal(key, seen, items.config.factors, items.config.feedback == "explicit")


@functools.partial(jax.jit, static_argnames=("factors", "biased"))
def _normal(key: jax.Array, seen: jax.Array, factors: int, biased: bool) -> jax.Array:
    start = jax.random.normal(key, (len(seen), factors)) / np.sqrt(factors)
    return jnp.pad(start * seen, ((0, 0), (0, biased)))


def _mean(interactions: Interactions, config: ALSConfig) -> float:
    """Mean rating; 0 for implicit feedback, which does not use it."""
    if config.feedback == "implicit":
        return 0.0
    return interactions.by_user.total / interactions.num_entries


def _biases(factors: Factors) -> tuple[Array, Array, Array]:
    """The biases that explicit feedback needs."""
    if factors.biases is None:
        raise ConfigError("feedback='explicit' needs factors with biases, and these have none")
    return factors.biases


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
