"""The steps of the linear autoencoder, as jitted functions of tables of items.

With G = X' W^2 X, n = diag(G), H = G + diag(penalty) and item weights s, the objective is

    sum_i s_i |W (x_i - X w_i)|^2 + s_i w_i' diag(penalty) w_i

where w_i is column i of P Q' with its entry i set to 0. P [T, D] is the encoder and Q [T, D] holds
the items. Small matrices [D, D] are inverted in float64 on the host. (LAPACK in a program with
collectives can deadlock on the CPU backend, and the matrices are too small to gain from devices.)
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cadc_jax import sharding
from cadc_jax.factorization.factors import Array
from cadc_jax.factorization.gram import Gram, einsum, product

# An item is solved with this share of H added once more, without the zero diagonal: if the span of
# P holds the unit vector of the item, that direction has no effect, and would be without bounds.
DAMPING = 1e-5
TINY = 1e-6  # directions with less than this share of the largest eigenvalue are left out


@flax.struct.dataclass
class Items:
    """One number for each row of a table of items; all [T] float32, 0 at unused places.

    Attributes:
      squares: n, the diagonal of G.
      penalty: added to G for H.
      weight: s.
      scale: n^-a, the scale in which the start is computed.
    """

    squares: jax.Array
    penalty: jax.Array
    weight: jax.Array
    scale: jax.Array


class Encoder(NamedTuple):
    """P [T, D] and G P [T, D]."""

    table: jax.Array
    product: jax.Array


def subspace_round(
    gram: Gram, items: Items, basis: jax.Array
) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """A round of subspace iteration with A = N^-a G N^-a: one product, and its Ritz pairs.

    Args:
      gram: G.
      items: see `Items`.
      basis: V [T, K], roughly orthonormal.

    Returns:
      Y = A V [T, K], and Z [K, K] and values [K] as `ritz` gives them.
    """
    image, overlap, energy = images(gram, items, basis)
    return image, *ritz(overlap, energy)


@jax.jit
def images(gram: Gram, items: Items, basis: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A V, V'V and V'A V, of a round of `subspace_round`."""
    scale = items.scale[:, None]
    image = scale * product(gram, scale * basis)
    return image, einsum("tk,tl->kl", basis, basis), einsum("tk,tl->kl", basis, image)


def ritz(overlap: jax.Array, energy: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Ritz vectors and values of a subspace, from V'V and V'AV [K, K].

    Returns:
      Z [K, K] and values [K] float32, the largest first: V Z is orthonormal, and (V Z)'A(V Z) is
      diagonal. Columns are 0 where V has lower rank, as are values that are 0 but for rounding.
    """
    whitening = inverse_root(overlap)
    values, vectors = np.linalg.eigh(whitening.T @ _symmetric(energy) @ whitening)
    values, vectors = values[::-1], whitening @ vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(len(values))]
    kept = values > TINY * values[0]
    vectors = vectors * np.sign(largest) * kept  # signs would depend on rounding
    return vectors.astype(np.float32), np.where(kept, values, 0).astype(np.float32)


def reciprocal(values: np.ndarray) -> np.ndarray:
    """1 / values; 0 where they are 0."""
    return np.where(values > 0, 1 / np.where(values > 0, values, 1), 0)


@jax.jit
def multiply(table: jax.Array, matrix: Array) -> jax.Array:
    """A table [T, K] times a small matrix [K, L]."""
    return einsum("tk,kl->tl", table, matrix)


@jax.jit
def start(items: Items, basis: jax.Array, image: jax.Array, rotation: Array) -> Encoder:
    """P = N^-a V Z, and G P = N^a Y Z.

    Args:
      items: see `Items`.
      basis: V [T, K].
      image: Y = N^-a G N^-a V.
      rotation: Z [K, D].
    """
    scale = items.scale[:, None]
    back = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    return Encoder(
        scale * einsum("tk,kd->td", basis, rotation), back * einsum("tk,kd->td", image, rotation)
    )


@jax.jit
def metric(encoder: Encoder, items: Items) -> jax.Array:
    """M = P'H P [D, D]."""
    image = encoder.product + items.penalty[:, None] * encoder.table
    return einsum("td,te->de", encoder.table, image)


@jax.jit
def solve_items(encoder: Encoder, items: Items, whitening: Array) -> tuple[jax.Array, jax.Array]:
    """The items Q that minimise the objective for this encoder, all at once.

    Where R = `whitening` turns M into the identity, item i solves

        (1 - p k' - k p' + h p p') q = g - n p

    with p, k and g the rows i of P R, H P R and G P R, h = H_ii and n = G_ii. That matrix differs
    from the identity by two ranks, so the Woodbury identity gives q in O(D).

    Args:
      encoder: P and G P.
      items: see `Items`.
      whitening: R [D, D], `inverse_root(metric(...))`.

    Returns:
      Q [T, D], for P itself and not for P R; the objective, [] float32.
    """
    p, g = (einsum("td,de->te", x, whitening) for x in encoder)
    k = g + items.penalty[:, None] * p
    n = items.squares
    h = n + items.penalty
    right = g - n[:, None] * p
    one = 1 + DAMPING

    def dot(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(x * y, 1) / one

    # [[a, -b], [-b, -c]] (u, v) = (p'right, k'right)
    a, b, c = dot(p, p), 1 - dot(p, k), h - dot(k, k)
    of_p, of_k = dot(p, right), dot(k, right)
    determinant = jnp.maximum(a * c + b * b, DAMPING / 2)  # never less but for rounding
    u, v = (c * of_p - b * of_k) / determinant, -(b * of_p + a * of_k) / determinant
    q = (right - u[:, None] * p - v[:, None] * k) / one
    by_p, by_k = jnp.sum(q * p, 1), jnp.sum(q * k, 1)
    quadratic = jnp.sum(q * q, 1) - 2 * by_p * by_k + h * by_p**2
    errors = n - 2 * jnp.sum(q * right, 1) + quadratic
    return einsum("te,de->td", q, whitening), jnp.sum(items.weight * errors)


@jax.jit
def spread(items: Items, q: jax.Array) -> jax.Array:
    """T = Q' diag(s) Q [D, D]."""
    return einsum("td,te->de", q * items.weight[:, None], q)


@functools.partial(jax.jit, static_argnames="steps")
def improve_encoder(
    gram: Gram, items: Items, encoder: Encoder, q: jax.Array, inverse: Array, steps: int
) -> Encoder:
    """Lowers the objective over P with Q fixed, by conjugate gradients.

    The objective is quadratic in P. For a step V of P, with T = Q' diag(s) Q and d_i = v_i'q_i, the
    weights change by V Q' - diag(d), and half the gradient by

        H (V T - diag(d s) Q) - diag(e) Q,      e_i = s_i ((H V)_i'q_i - H_ii d_i)

    because the diagonal of the weights does not count. The preconditioner is diag(H)^-1 . T^-1.

    Args:
      gram: G.
      items: see `Items`.
      encoder: P and G P, where the steps start.
      q: Q [T, D].
      inverse: T^-1 [D, D].
      steps: number of steps; each takes two products with G.
    """
    weighted = items.weight[:, None] * q
    matrix = spread(items, q)
    penalty, h = items.penalty[:, None], items.squares + items.penalty
    inverse_h = jnp.where(h > 0, 1 / jnp.where(h > 0, h, 1), 0)[:, None]

    def weights(v: jax.Array) -> jax.Array:  # (V Q' - diag(d)) diag(s) Q
        return einsum("td,de->te", v, matrix) - jnp.sum(v * q, 1, keepdims=True) * weighted

    def diagonal(v: jax.Array, image: jax.Array) -> jax.Array:  # diag(e) Q
        entry = jnp.sum((image + penalty * v) * q, 1) - h * jnp.sum(v * q, 1)
        return entry[:, None] * weighted

    def precondition(residual: jax.Array) -> jax.Array:
        return inverse_h * einsum("td,de->te", residual, inverse)

    def step(_, state):
        encoder, residual, v, square = state
        image, mixed = product(gram, v), weights(v)
        change = product(gram, mixed) + penalty * mixed - diagonal(v, image)
        length = _ratio(square, jnp.sum(v * change))
        encoder = Encoder(encoder.table + length * v, encoder.product + length * image)
        residual = residual - length * change
        z = precondition(residual)
        following = jnp.sum(residual * z)
        return encoder, residual, z + _ratio(following, square) * v, following

    mixed = weights(encoder.table)
    residual = product(gram, weighted - mixed) - penalty * mixed + diagonal(*encoder)
    residual -= items.squares[:, None] * weighted
    z = precondition(residual)
    state = encoder, residual, z, jnp.sum(residual * z)
    return lax.fori_loop(0, steps, step, state)[0]


def _ratio(above: jax.Array, below: jax.Array) -> jax.Array:
    """above / below; 0 once both have vanished."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)


def inverse_root(matrix: jax.Array) -> np.ndarray:
    """R [D, D] with R'(matrix)R = 1, of a symmetric matrix; columns of directions of 0 are 0."""
    values, vectors = np.linalg.eigh(_symmetric(matrix))
    kept = values > max(TINY * values[-1], 0)
    scale = np.where(kept, 1 / np.sqrt(np.where(kept, values, 1)), 0)
    return (vectors * scale).astype(np.float32)


def inverse(matrix: jax.Array) -> np.ndarray:
    """The (pseudo-)inverse [D, D] float32 of a positive semidefinite matrix."""
    root = inverse_root(matrix)
    return root @ root.T


def _symmetric(matrix: jax.Array) -> np.ndarray:
    whole = np.asarray(sharding.local(matrix), np.float64)
    return (whole + whole.T) / 2
