"""Vectors of new users from their items, the items staying as they are.

`solve` takes any number of new users, with any numbers of items, by the functions of each method.
For serving there are parts: each gives the columns of one factorisation, and those of several side
by side are joined. Their program (`vectors`) has the shapes of its arguments alone, so that it is
compiled once. Where the encoder of an autoencoder is not there, `combine` does without.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax
from jax.sharding import Mesh
from scipy.sparse import linalg

from cadc_jax.errors import ConfigError
from cadc_jax.factorization import als, autoencoder
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.blend import Scale
from cadc_jax.factorization.factors import Array, Factors
from cadc_jax.factorization.interactions import Extent, Interactions

_DAMPING = 1.0  # its square is added to the eigenvalues of X'X, of which an item's n rows make n
_TOLERANCE = 1e-4  # of LSQR


def solve(
    factors: Factors,
    interactions: Interactions,
    config: Any,
    *,
    extent: Extent | None = None,
    mesh: Mesh | None = None,
) -> tuple[Array, Array | None]:
    """Factors of new users by the method that made the others.

    Args:
      factors: a result of `als.fit` or `autoencoder.fit`.
      interactions: of N new users with the I items.
      config: the settings of the fit.
      extent: ALS: of the interactions that the factors were fitted to.
      mesh: as for `als.fit`.

    Returns:
      [N, D] factors and [N] float32 biases (None unless ALS is explicit).

    Raises:
      ConfigError: if the factors are of logistic SGD, or do not belong to the settings.
    """
    if isinstance(config, ALSConfig):
        if extent is None:
            raise ConfigError("ALS needs the rows of its fit, by which it measures its penalty")
        return als.fold_in(factors, interactions, config, extent=extent, mesh=mesh)
    if isinstance(config, AutoencoderConfig):
        return autoencoder.fold_in(factors, interactions, mesh=mesh), None
    raise ConfigError(
        "logistic SGD does not tell what vector a new user's items make: use ALS or the autoencoder"
    )


@flax.struct.dataclass
class Sums:
    """Columns of an autoencoder: the rows of its encoder are added up."""

    encoder: Array  # [I, D] float32, in the scale of the users

    def __call__(self, items: jax.Array, there: jax.Array) -> jax.Array:
        """[B, D] of items [B, L], of which those that are `there` [B, L] count."""
        return jnp.where(there[..., None], self.encoder[items], 0).sum(1)


@flax.struct.dataclass
class Solves:
    """Columns of implicit ALS: a system of equations for each user (`als_solver`)."""

    item: Array  # [I, D] float32
    gram: Array  # [D, D] float32, item' item
    penalty: Array  # [L + 1] float32, of a user with so many items
    alpha: Array  # []
    scale: Array  # [], that of the users

    def __call__(self, items: jax.Array, there: jax.Array) -> jax.Array:
        """[B, D] of items [B, L], of which those that are `there` [B, L] count."""
        own = jnp.where(there[..., None], self.item[items], 0)
        seen = jnp.einsum("bld,ble->bde", own, own, precision=lax.Precision.HIGHEST)
        diagonal = self.penalty[there.sum(1)][:, None, None] * jnp.eye(len(self.gram))
        matrix = self.gram + self.alpha * seen + diagonal
        right = (1 + self.alpha) * own.sum(1)
        return self.scale * jnp.linalg.solve(matrix, right[..., None])[..., 0]


Part = Sums | Solves


def solves(item: Array, config: ALSConfig, extent: Extent, scale: Scale, longest: int) -> Solves:
    """The part of implicit ALS.

    Args:
      item: [I, D] items, in the scale in which factorisations are side by side.
      config: the settings of the fit.
      extent: of the interactions of the fit.
      scale: what users and items were multiplied with for that; 1 and 1 of one alone.
      longest: L, items of a user at most.
    """
    item = jnp.asarray(item, jnp.float32) / scale.item
    gram = jnp.matmul(item.T, item, precision=lax.Precision.HIGHEST)
    penalty = als.penalty(np.arange(longest + 1), config, extent)
    numbers = (penalty, config.alpha, scale.user)
    return Solves(item, gram, *(jnp.asarray(x, jnp.float32) for x in numbers))


@jax.jit
def vectors(parts: tuple[Part, ...], items: Array) -> jax.Array:
    """Vectors of new users.

    Args:
      parts: of the factorisations side by side, or of the one there is.
      items: [B, L] int32, the different items of each user, padded with -1.

    Returns:
      [B, D] float32; 0 of a user without items.
    """
    items = jnp.asarray(items)
    return jnp.concatenate([part(items, items >= 0) for part in parts], axis=1)


def combine(
    user: np.ndarray, known: scipy.sparse.csr_matrix, items: list[np.ndarray]
) -> np.ndarray:
    """Vectors of new users whose items say how to combine known users, and their vectors.

    The vectors of an autoencoder are X P for the interactions X. If P is not there, what a new row
    x makes of it still is: x P = w' X P for the w with w' X = x. It is found by damped least
    squares, as no combination may have just these items.

    Args:
      user: [U, D] vectors of the known users.
      known: [U, I], X.
      items: [N] lists of the items of each new user.

    Returns:
      [N, D] float32.
    """
    rows, row = known.T.tocsr().astype(np.float64), np.zeros(known.shape[1])
    found = np.zeros((len(items), user.shape[1]), np.float32)
    for place, own in enumerate(items):
        row[own] = 1
        weights, *_ = linalg.lsqr(rows, row, damp=_DAMPING, atol=_TOLERANCE, btol=_TOLERANCE)
        found[place] = weights @ user
        row[own] = 0
    return found
