"""A half-step of ALS, implicit or explicit, on one device or many.

A half-step solves for the factors x of one side while the factors y of the other side stay fixed.
Each row is a small least-squares problem with a matrix A and a right-hand side b. It is solved by
conjugate gradients or exactly.

Implicit (Hu, Koren & Volinsky 2008, eq. 4): every pair of user and item has a preference p (1 if
seen, else 0) and a confidence c = 1 + alpha * value, and

    A = Y'Y + sum_seen (c - 1) y y' + lambda I        b = sum_seen c p y

Explicit (Zhou et al. 2008, sec. 3.1, with biases): only ratings count, and

    A = sum_seen y y' + lambda n I                    b = sum_seen (rating - mean - bias of y) y

Here y has a 1 appended and x has its own bias appended. One solve finds both.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cadc_jax.factorization import fixed_rows
from cadc_jax.factorization.interactions import Chunks

# Solves are in full float32 on every backend; the TPU's default would round inputs to bfloat16.
_einsum = functools.partial(
    jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


ELIMINATION_BLOCK = 8  # rows of a matrix that `solve_by_elimination` eliminates at a time


class HalfStepConfig(NamedTuple):
    """Compile-time constants of a half-step.

    Attributes:
      feedback: 'implicit' or 'explicit'.
      solver: 'cg' or 'exact'.
      cg_steps: steps of conjugate gradients.
      chunk_rows: R, table rows of each chunk of short rows.
    """

    feedback: str
    solver: str
    cg_steps: int
    chunk_rows: int


@flax.struct.dataclass
class SideData:
    """The side to solve: its entries, and the regularisation of its rows."""

    regularization: jax.Array  # [N] float32
    short: Chunks
    long: Chunks


@functools.partial(jax.jit, static_argnames=("config", "mesh"), donate_argnums=0)
def half_step(
    table: jax.Array,
    side: SideData,
    fixed: jax.Array,
    fixed_regularization: jax.Array,
    alpha: jax.Array,
    mean: jax.Array,
    config: HalfStepConfig,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Solves every row of `table`. Each device solves the rows that it stores.

    Args:
      table: [N, K] factors to solve, where conjugate gradients start. K is D for implicit feedback
        and D + 1 for explicit feedback: the bias is the last column. Its memory is reused.
      side: entries of the same rows.
      fixed: [M, K] factors of the other side.
      fixed_regularization: [M] float32.
      alpha: [] float32; see `ALSConfig`.
      mean: [] float32, mean rating; unused for implicit feedback.
      config: compile-time constants.
      mesh: devices. All arrays but the scalars are split over them by their leading axis.

    Returns:
      The solved table [N, K] and the objective there, [] float32.
    """
    rows, whole = P(mesh.axis_names), P()
    local = functools.partial(_local_half_step, config=config, axes=mesh.axis_names)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, rows, rows, rows, whole, whole),
        out_specs=(rows, whole),
        check_vma=False,
    )(table, side, fixed, fixed_regularization, alpha, mean)


def _local_half_step(table, side, fixed, fixed_regularization, alpha, mean, *, config, axes):
    """`half_step` on this device's part of each argument."""
    width = table.shape[1]
    wide = fixed.astype(jnp.float32)
    penalty = jnp.sum(fixed_regularization * jnp.sum(wide**2, 1))
    gram = jnp.zeros((width, width))
    if config.feedback == "implicit":
        gram = lax.psum(_einsum("nk,nl->kl", wide, wide), axes)
    fetch = _fetcher(fixed, side, axes)

    def read(chunk: Chunks) -> _Entries:
        return _entries(chunk, fetch(chunk), config.feedback, alpha, mean)

    solver = _Solver(config, axes, gram, read)
    num_long = len(table) - len(side.short.index) * config.chunk_rows  # stored on this device
    penalties = side.regularization
    solved, loss = _solve_short(solver, table[num_long:], penalties[num_long:], side.short)
    loss = penalty + loss
    if num_long:
        x, long_loss = _solve_long(solver, table[:num_long], penalties[:num_long], side.long)
        solved, loss = jnp.concatenate([x, solved]), loss + long_loss
    return solved.astype(table.dtype), lax.psum(loss, axes)


def _fetcher(
    fixed: jax.Array, side: SideData, axes: tuple[str, ...]
) -> Callable[[Chunks], jax.Array]:
    """A function from a chunk to the fixed rows of its entries, in float32."""
    if side.short.asked is not None:
        return lambda chunk: fixed_rows.fetch(fixed, chunk, axes)
    whole = lax.all_gather(fixed, axes, tiled=True)
    return lambda chunk: whole.at[chunk.index].get(mode="promise_in_bounds").astype(jnp.float32)


class _Entries(NamedTuple):
    """The entries of a chunk, as terms (factors . x)^2 - 2 target (factors . x) + constant.

    The factors of an entry are already multiplied by the square root of its weight. Padding has
    weight 0.
    """

    factors: jax.Array  # [S, L, K]
    target: jax.Array  # [S, L]
    constant: jax.Array  # [S, L]


_Sums = tuple[jax.Array, jax.Array]  # [S, ...] for each segment or [n, ...] for each row; a scalar
_SegmentSums = Callable[[_Entries, jax.Array], _Sums]  # entries, x of each segment [S, K]
_RowSums = Callable[[_SegmentSums, jax.Array], _Sums]  # x of each row [n, K]


class _Solver(NamedTuple):
    """Values that the solves of short and of long rows share on one device."""

    config: HalfStepConfig
    axes: tuple[str, ...]  # of the mesh
    gram: jax.Array  # [K, K], the part of the matrix A that all rows share
    read: Callable[[Chunks], _Entries]


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


def _solve_short(
    solver: _Solver, table: jax.Array, regularization: jax.Array, chunks: Chunks
) -> tuple[jax.Array, jax.Array]:
    """Solves the rows of one chunk after another: `table` [C * R, K] -> the same, and their loss.

    All entries of such a row are in its chunk.
    """
    chunk_rows = solver.config.chunk_rows

    def solve_chunk(arguments):
        chunk, x, penalties = arguments
        entries = solver.read(chunk)

        def row_sums(segment_sums, x):
            parts, loss = segment_sums(entries, x[chunk.row])
            parts = jax.ops.segment_sum(parts, chunk.row, chunk_rows, indices_are_sorted=True)
            return parts, loss

        return _solve_rows(x.astype(jnp.float32), penalties, solver.gram, row_sums, solver.config)

    def by_chunk(array):
        return array.reshape(len(chunks.index), chunk_rows, *array.shape[1:])

    solved, losses = lax.map(solve_chunk, (chunks, by_chunk(table), by_chunk(regularization)))
    return solved.reshape(-1, table.shape[1]), losses.sum()


def _solve_long(
    solver: _Solver, table: jax.Array, regularization: jax.Array, chunks: Chunks
) -> tuple[jax.Array, jax.Array]:
    """Solves the long rows of all devices together: `table` [n, K] -> the same, and their loss.

    Each device adds up the entries in its chunks, which may belong to any long row. A
    reduce-scatter then sums the results, and each device receives the sums of its own rows.
    """

    def row_sums(segment_sums, x):
        everyone = lax.all_gather(x, solver.axes, tiled=True)

        def add(carry, chunk):
            parts, loss = segment_sums(solver.read(chunk), everyone[chunk.row])
            return (carry[0].at[chunk.row].add(parts), carry[1] + loss), None

        one = jax.tree.map(lambda leaf: leaf[0], chunks)
        parts, _ = jax.eval_shape(lambda: segment_sums(solver.read(one), everyone[one.row]))
        zeros = jnp.zeros((len(everyone), *parts.shape[1:])), jnp.zeros(())
        (parts, loss), _ = lax.scan(add, zeros, chunks)
        return lax.psum_scatter(parts, solver.axes, tiled=True), loss

    x = table.astype(jnp.float32)
    return _solve_rows(x, regularization, solver.gram, row_sums, solver.config)


def _solve_rows(
    x: jax.Array,
    regularization: jax.Array,
    gram: jax.Array,
    row_sums: _RowSums,
    config: HalfStepConfig,
) -> tuple[jax.Array, jax.Array]:
    """Minimises the rows' share of the objective over x.

    Args:
      x: [n, K] where to start.
      regularization: [n].
      gram: [K, K], the part of the matrix A that all rows share.
      row_sums: (segment_sums, x [n, K]) -> ([n, ...], scalar). It calls segment_sums(entries, x of
        each segment [S, K]) -> ([S, ...], scalar) on all entries, and adds up the results by row.
      config: solver and number of steps.

    Returns:
      x, and the objective there: the constants of the entries + x'Ax - 2 b'x.
    """
    if config.solver == "exact":
        parts, loss = row_sums(_normal_equations, x)
        matrix = parts[..., :-1] + gram
        matrix += regularization[:, None, None] * jnp.eye(x.shape[1])
        b = parts[..., -1]
        x = _solve_positive_definite(matrix, b)
        return x, loss - jnp.sum(b * x)

    def apply(p):
        parts, _ = row_sums(_products, p)
        return parts + _einsum("nk,kl->nl", p, gram) + regularization[:, None] * p

    parts, loss = row_sums(_residuals, x)
    residual = parts - _einsum("nk,kl->nl", x, gram) - regularization[:, None] * x
    loss -= jnp.sum(x * residual)
    x, gain = _conjugate_gradients(x, residual, apply, config.cg_steps)
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
    """`steps` of conjugate gradients on A x = b for every row at once.

    Returns:
      x [n, K], and the decrease of x'Ax - 2 b'x, [n]: alpha |residual|^2 a step.
    """

    def ratio(above, below):  # 0 once a row is solved; an empty row is solved from the start
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


def _solve_positive_definite(matrix: jax.Array, b: jax.Array) -> jax.Array:
    """Solves matrix [n, K, K] x = b [n, K]; each matrix is symmetric and positive definite.

    GPUs have a batched Cholesky. On the CPU a LAPACK call in a program with collectives can
    deadlock, because both wait in the same thread pool. On a TPU a Cholesky is a loop over columns.
    """
    return lax.platform_dependent(
        matrix, b, cuda=solve_by_cholesky, rocm=solve_by_cholesky, default=solve_by_elimination
    )


def solve_by_cholesky(matrix: jax.Array, b: jax.Array) -> jax.Array:
    """`matrix` = L L', then L y = b and L' x = y."""
    lower = lax.linalg.cholesky(matrix, symmetrize_input=False)
    solve = functools.partial(lax.linalg.triangular_solve, lower, left_side=True, lower=True)
    return solve(solve(b[..., None]), transpose_a=True)[..., 0]


def solve_by_elimination(matrix: jax.Array, b: jax.Array) -> jax.Array:
    """Block Gauss-Jordan elimination, which consists of small matrix products.

    Like Cholesky's it needs no pivoting on positive definite matrices.
    """
    n, width = b.shape
    block = ELIMINATION_BLOCK
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
