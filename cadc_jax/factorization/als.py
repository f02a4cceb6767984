"""Alternating least squares, implicit and explicit, on one device or many.

One side's factors x are found with the other side's, y, fixed: each row is a small least-squares
problem with matrix A and right-hand side b, solved by conjugate gradients or exactly.

Implicit (Hu, Koren & Volinsky 2008, eq. 4): every pair of user and item has a preference p (1 if
seen, else 0) and a confidence c = 1 + alpha * value, and

    A = Y'Y + sum_seen (c - 1) y y' + lambda I        b = sum_seen c p y

Explicit (Zhou et al. 2008, sec. 3.1, with biases): only ratings count, and

    A = sum_seen y y' + lambda n I                    b = sum_seen (rating - mean - bias of y) y

where y has a 1 appended and x its own bias, so that both are found in the same solve.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cadc_jax import checkpoints, sharding
from cadc_jax.checkpoints import Checkpoints, Facts
from cadc_jax.errors import ConfigError
from cadc_jax.factorization.factors import Array, Factors
from cadc_jax.factorization.interactions import (
    Chunks,
    Interactions,
    Layout,
    Rows,
    make_layout,
    pack,
)

# Solves are in full float32 on every backend; the TPU's default would round inputs to bfloat16.
_einsum = functools.partial(
    jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


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
            "solver": ("cg", "cholesky"),
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


Progress = Callable[[int, float, float], None]


def fit(
    interactions: Interactions,
    config: ALSConfig,
    key: jax.Array,
    *,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
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
            saved.offer(iteration - 1, snapshot)
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
    config = dataclasses.replace(config, factors=known.shape[1], solver="cholesky")
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


class _Form(NamedTuple):
    """What of a half-step is fixed when it is compiled."""

    feedback: str
    solver: str
    cg_steps: int
    fixed_side: str
    chunk_rows: int


def _prepare(interactions: Interactions, config: ALSConfig, mesh: Mesh) -> tuple[_Side, _Side]:
    """Packs both sides and puts them on the devices."""
    chunk = config.chunk or max(256, 2**17 // config.factors)
    both = (interactions.by_user, interactions.by_item)
    layouts = [make_layout(rows.counts, chunk, mesh.size) for rows in both]
    spread = _spread(mesh)

    def side(rows: Rows, layout: Layout, fixed: Layout) -> _Side:
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
    return _half_step(*_arguments(side, table, fixed_side, fixed, config, mean))


def _arguments(
    side: _Side,
    table: jax.Array,
    fixed_side: _Side,
    fixed: jax.Array,
    config: ALSConfig,
    mean: float | Array,
) -> tuple[Any, ...]:
    """Those of `_half_step`."""
    form = _Form(
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


@functools.partial(jax.jit, static_argnames=("form", "mesh"), donate_argnums=0)
def _half_step(
    table: jax.Array,  # [N, K] to be solved; K is D, and one more for the bias if explicit
    regularization: jax.Array,  # [N]
    short: Chunks,
    long: Chunks,
    fixed: jax.Array,  # [M, K]
    fixed_regularization: jax.Array,  # [M]
    alpha: jax.Array,
    mean: jax.Array,
    form: _Form,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Solves every row of `table`; each device those that it stores."""
    rows, whole = P(mesh.axis_names), P()
    local = functools.partial(_half_step_of_one_device, form=form, axes=mesh.axis_names)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, rows, rows, rows, rows, rows, whole, whole),
        out_specs=(rows, whole),
        check_vma=False,
    )(table, regularization, short, long, fixed, fixed_regularization, alpha, mean)


def _half_step_of_one_device(
    table, regularization, short, long, fixed, fixed_regularization, alpha, mean, *, form, axes
):
    """`_half_step` on this device's rows of every argument."""
    width = table.shape[1]
    wide = fixed.astype(jnp.float32)
    penalty = jnp.sum(fixed_regularization * jnp.sum(wide**2, 1))
    gram = jnp.zeros((width, width))
    if form.feedback == "implicit":
        gram = lax.psum(_einsum("nk,nl->kl", wide, wide), axes)
    fetch = _fetcher(fixed, form.fixed_side, axes)

    def read(chunk: Chunks) -> _Entries:
        return _entries(chunk, fetch(chunk.index), form.feedback, alpha, mean)

    def solve_chunk(arguments):
        chunk, x, penalties = arguments
        entries = read(chunk)

        def total(terms, x):
            parts, loss = terms(entries, x[chunk.row])
            parts = jax.ops.segment_sum(parts, chunk.row, form.chunk_rows, indices_are_sorted=True)
            return parts, loss

        return _solve_rows(x.astype(jnp.float32), penalties, gram, total, form)

    def total_of_long(terms, x):
        everyone = lax.all_gather(x, axes, tiled=True)

        def add(carry, chunk):
            parts, loss = terms(read(chunk), everyone[chunk.row])
            return (carry[0].at[chunk.row].add(parts), carry[1] + loss), None

        one = jax.tree.map(lambda leaf: leaf[0], long)
        parts, _ = jax.eval_shape(lambda: terms(read(one), everyone[one.row]))
        zeros = jnp.zeros((len(everyone), *parts.shape[1:])), jnp.zeros(())
        (parts, loss), _ = lax.scan(add, zeros, long)
        return lax.psum_scatter(parts, axes, tiled=True), loss

    chunks = len(short.index)
    num_long = len(table) - chunks * form.chunk_rows  # stored on this device

    def by_chunk(array):
        return array[num_long:].reshape(chunks, form.chunk_rows, *array.shape[1:])

    solved, losses = lax.map(solve_chunk, (short, by_chunk(table), by_chunk(regularization)))
    solved, loss = solved.reshape(-1, width), penalty + losses.sum()
    if num_long:
        x = table[:num_long].astype(jnp.float32)
        x, of_long = _solve_rows(x, regularization[:num_long], gram, total_of_long, form)
        solved, loss = jnp.concatenate([x, solved]), loss + of_long
    return solved.astype(table.dtype), lax.psum(loss, axes)


def _fetcher(
    fixed: jax.Array, fixed_side: str, axes: tuple[str, ...]
) -> Callable[[Array], jax.Array]:
    """A function from places in the whole fixed table to the rows there, in float32."""
    if fixed_side == "gathered":
        whole = lax.all_gather(fixed, axes, tiled=True)
        return lambda index: whole.at[index].get(mode="promise_in_bounds").astype(jnp.float32)

    def fetch(index: Array) -> jax.Array:
        wanted = lax.all_gather(index, axes)  # [devices, S, L]: what each of them asks for
        own = wanted - lax.axis_index(axes) * len(fixed)
        inside = (own >= 0) & (own < len(fixed))
        found = jnp.where(inside[..., None], fixed.at[own].get(mode="clip"), 0)
        return lax.psum_scatter(found, axes).astype(jnp.float32)

    return fetch


class _Entries(NamedTuple):
    """The entries of a chunk, as terms (factors . x)^2 - 2 target (factors . x) + constant.

    The square root of an entry's weight is multiplied into its factors, so that no later step
    needs it; padding has weight 0.
    """

    factors: jax.Array  # [S, L, K]
    target: jax.Array  # [S, L]
    constant: jax.Array  # [S, L]


_Sums = tuple[jax.Array, jax.Array]  # [S, ...] of each segment, or [n, ...] of each row; [] of all
_Terms = Callable[[_Entries, jax.Array], _Sums]  # entries, x of each segment [S, K]


def _entries(
    chunk: Chunks, factors: jax.Array, feedback: str, alpha: jax.Array, mean: jax.Array
) -> _Entries:
    segment = chunk.index.shape[-1]
    real = jnp.arange(segment) < chunk.length[:, None]
    value = jnp.ones(real.shape) if chunk.value is None else chunk.value
    if feedback == "implicit":
        weight = jnp.where(real, alpha * jnp.abs(value), 0)
        liked = real & (value > 0)
        root = jnp.sqrt(weight)
        target = jnp.where(liked, (1 + weight) / jnp.where(liked, root, 1), 0)
        return _Entries(factors * root[..., None], target, jnp.where(liked, 1 + weight, 0))
    target = jnp.where(real, value - mean - factors[..., -1], 0)
    factors = jnp.where(jnp.arange(factors.shape[-1]) == factors.shape[-1] - 1, 1, factors)
    return _Entries(factors * real[..., None], target, target**2)


def _solve_rows(
    x: jax.Array,
    regularization: jax.Array,
    gram: jax.Array,
    total: Callable[[_Terms, jax.Array], _Sums],
    form: _Form,
) -> tuple[jax.Array, jax.Array]:
    """Minimises over x, [n, K], the rows' share of the objective.

    Args:
      x: [n, K] where to start.
      regularization: [n].
      gram: [K, K], the part of the matrix that all rows share.
      total: (terms, x [n, K]) -> ([n, ...], scalar): calls terms(entries, x of each segment
        [S, K]) -> ([S, ...], scalar) on all entries, and adds up by row.

    Returns:
      x, and the objective there: the constants of the entries + x'Ax - 2 b'x.
    """
    if form.solver == "cholesky":
        parts, loss = total(_normal_equations, x)
        matrix = parts[..., :-1] + gram
        matrix += regularization[:, None, None] * jnp.eye(x.shape[1])
        b = parts[..., -1]
        x = _solve_positive_definite(matrix, b)
        return x, loss - jnp.sum(b * x)

    def apply(p):
        parts, _ = total(_products, p)
        return parts + _einsum("nk,kl->nl", p, gram) + regularization[:, None] * p

    parts, loss = total(_residuals, x)
    residual = parts - _einsum("nk,kl->nl", x, gram) - regularization[:, None] * x
    loss -= jnp.sum(x * residual)
    x, gain = _conjugate_gradients(x, residual, apply, form.cg_steps)
    return x, loss - jnp.sum(gain)


def _scores(entries: _Entries, x: jax.Array) -> jax.Array:
    return _einsum("slk,sk->sl", entries.factors, x)


def _products(entries: _Entries, x: jax.Array) -> _Sums:
    return _einsum("slk,sl->sk", entries.factors, _scores(entries, x)), jnp.zeros(())


def _residuals(entries: _Entries, x: jax.Array) -> _Sums:
    scores = _scores(entries, x)
    loss = jnp.sum(entries.constant - entries.target * scores)
    return _einsum("slk,sl->sk", entries.factors, entries.target - scores), loss


def _normal_equations(entries: _Entries, x: jax.Array) -> _Sums:
    del x
    matrix = _einsum("slk,slm->skm", entries.factors, entries.factors)
    b = _einsum("slk,sl->sk", entries.factors, entries.target)
    return jnp.concatenate([matrix, b[..., None]], -1), jnp.sum(entries.constant)


def _conjugate_gradients(
    x: jax.Array, residual: jax.Array, apply: Callable[[jax.Array], jax.Array], steps: int
) -> tuple[jax.Array, jax.Array]:
    """`steps` of conjugate gradients on every row of A x = b at once.

    Returns:
      x [n, K], and by how much x'Ax - 2 b'x has fallen, [n]: alpha |residual|^2 a step.
    """

    def ratio(above, below):  # 0 once a row is solved, as an empty one is from the start
        return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)

    def step(_, state):
        x, residual, p, square, gain = state
        product = apply(p)
        alpha = ratio(square, jnp.sum(p * product, 1))
        x = x + alpha[:, None] * p
        residual = residual - alpha[:, None] * product
        following = jnp.sum(residual**2, 1)
        p = residual + ratio(following, square)[:, None] * p
        return x, residual, p, following, gain + alpha * square

    square = jnp.sum(residual**2, 1)
    state = (x, residual, residual, square, jnp.zeros_like(square))
    x, _, _, _, gain = lax.fori_loop(0, steps, step, state)
    return x, gain


def _solve_positive_definite(matrix: jax.Array, b: jax.Array, block: int = 8) -> jax.Array:
    """Solves matrix [n, K, K] x = b [n, K], each symmetric and positive definite.

    Block Gauss-Jordan elimination: like Cholesky's it needs no pivoting on such matrices, and it is
    made of small matrix products. (A LAPACK call in a program with collectives can deadlock on the
    CPU backend, for both wait in the same thread pool.)
    """
    n, width = b.shape
    size = width + -width % block
    system = jnp.zeros((n, size, size + 1)) + jnp.eye(size, size + 1)  # [matrix | b], padded by 1
    system = system.at[:, :width, :width].set(matrix).at[:, :width, -1].set(b)

    def eliminate(nth, system):
        at = nth * block
        rows = lax.dynamic_slice_in_dim(system, at, block, 1)
        pivot = lax.dynamic_slice_in_dim(rows, at, block, 2)
        rows = _einsum("nij,njk->nik", _inverse(pivot), rows)
        columns = lax.dynamic_slice_in_dim(system, at, block, 2)
        system = system - _einsum("nij,njk->nik", columns, rows)
        return lax.dynamic_update_slice_in_dim(system, rows, at, 1)

    return lax.fori_loop(0, size // block, eliminate, system)[:, :width, -1]


def _inverse(matrix: jax.Array) -> jax.Array:
    """Inverses of small positive definite matrices, [n, k, k], by unrolled elimination."""
    size = matrix.shape[-1]
    both = jnp.concatenate([matrix, jnp.broadcast_to(jnp.eye(size), matrix.shape)], -1)
    for j in range(size):
        row = both[:, j] / both[:, j, j, None]
        others = jnp.where(jnp.arange(size) == j, 0, both[:, :, j])
        both = (both - others[..., None] * row[:, None]).at[:, j].set(row)
    return both[..., size:]
