"""A linear autoencoder of low rank with a zero diagonal, as a factorisation.

The weight of item j for item i is p_j . q_i, and 0 for j = i: an item may not predict itself. So
the score of user u and item i is x_u P . q_i for items that u has not taken, and user factors are
the product X P, for new users too. The objective is that of the denoising autoencoder EDLAE (Steck
2020, 'Autoencoders that don't overfit towards the identity', NeurIPS). With as many factors as
items, less one, and without dropout, it is EASE (Steck 2019, arXiv 1905.03375). The equations are
in `autoencoder_solver`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import Mesh

from cadc_jax import sharding
from cadc_jax.errors import ConfigError, check_above, check_at_least, check_below_one
from cadc_jax.factorization import autoencoder_solver as solver
from cadc_jax.factorization import gram
from cadc_jax.factorization.autoencoder_solver import Encoder, Items
from cadc_jax.factorization.factors import Array, Factors, check_finite
from cadc_jax.factorization.gram import Placed
from cadc_jax.factorization.interactions import Interactions, share_of_rows
from cadc_jax.runtime import checkpoints
from cadc_jax.runtime.checkpoints import Checkpoints, Facts

EXTRA = 16  # columns that the subspace iteration has beyond the rank; they speed it up


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of `fit`.

    X are the values of the interactions, with a row for each user. An item with n rows (of value 1,
    from users of weight 1) is 'n frequent'.

    Attributes:
      factors: D, the rank.
      regularization: lambda, above 0. The L2 penalty on the weights from each item is lambda *
        noise^2 * mean(x^2): `Extent.noise` and the mean of the entries' weighted squares. That is
        the largest eigenvalue of X'X if X were noise, so lambda suits logs of any size.
      dropout: share of a user's items that is dropped from the input, at random. It adds
        dropout / (1 - dropout) * n to the penalty, for an item that is n frequent.
      user_exponent: c. A user with n rows has the weight (n / mean)^-c.
      start_exponent: a. The start spans the leading eigenvectors of N^-a X'X N^-a, for N the
        frequencies of the items: the higher, the more of the rank goes to rare items.
      item_exponent: g. The loss of an item that is n frequent has the weight (n / mean)^-g.
      passes: solves of the items. The first follows the start, the others an improved encoder.
      cg_steps: conjugate-gradient steps that improve the encoder, in each further pass.
      start_rounds: rounds of subspace iteration, each a product with X and one with X'.
    """

    factors: int = 64
    regularization: float = 0.35
    dropout: float = 0.2
    user_exponent: float = 0.0
    start_exponent: float = 0.15
    item_exponent: float = 0.0
    passes: int = 2
    cg_steps: int = 4
    start_rounds: int = 4

    def __post_init__(self) -> None:
        for name in ("factors", "regularization", "passes", "cg_steps", "start_rounds"):
            check_above(f"autoencoder.{name}", getattr(self, name), 0)
        for name in ("user_exponent", "start_exponent", "item_exponent"):
            check_at_least(f"autoencoder.{name}", getattr(self, name), 0)
        check_below_one("autoencoder.dropout", self.dropout)

    def refreshing(self, passes: int) -> "AutoencoderConfig":
        """These settings for a `fit` that starts from other factors and keeps their encoder."""
        del passes  # one is exact
        return dataclasses.replace(self, passes=1)


OnPass = Callable[[int, float, float], None]


def fit(
    interactions: Interactions,
    config: AutoencoderConfig,
    key: jax.Array,
    *,
    mesh: Mesh | None = None,
    progress: OnPass | None = None,
    saved: Checkpoints | None = None,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factorises the interactions.

    Args:
      interactions: training entries. Their values are X; usually all are 1.
      config: see `AutoencoderConfig`.
      key: PRNG key of the subspace that the start is sought from. It does not depend on the mesh.
      mesh: devices to spread users and items over (all its axes); None for one device of this
        process. If it has devices of several processes, all of them call this with the same
        arguments.
      progress: called after each pass with its number (from 1), the objective, and the seconds
        since `fit` was called.
      saved: checkpoints to resume from, and to save to between passes. A resumed fit gives bit for
        bit the result of an uninterrupted one, on the same machine and devices.
      init: factors with an encoder to start from: a result of `fit` on other interactions of the
        same items. With one pass the encoder is kept, as `refresh` does.

    Returns:
      factors: float32, with `encoder`. Users and items without entries are 0. Without `init`,
        users and items are scaled to the same mean square length.
      losses: [passes] float64, the objective after each: the weighted squared error of X by the
        autoencoder, plus the penalty.

    Raises:
      ConfigError: if there are no interactions, or if `init` has no encoder or one of another
        shape.
      Stopped: by `saved`, after saving, if it was asked to stop.
    """
    began = time.perf_counter()
    placed, items = _place(interactions, config, mesh)
    state, losses = _restored(placed, config, saved)

    def snapshot() -> tuple[list[jax.Array], Facts]:
        # In the order of ids: the places in a table depend on the number of devices.
        return [placed.rows(table) for table in state], {"losses": losses}

    for number in range(len(losses) + 1, config.passes + 1):
        if saved is not None:
            saved.maybe_save(number - 1, snapshot)
        if number > 1:
            encoder = _improved(placed, items, state, config)
        elif init is not None:
            encoder = _given(placed, _encoder_of(init), config)
        else:
            encoder = _start(placed, items, config, key)
        state, loss = _solved(encoder, items)
        losses.append(loss)
        if progress is not None:
            progress(number, losses[-1], time.perf_counter() - began)
    factors = _factors(placed, state)
    return _finite(_balanced(factors) if init is None else factors), np.array(losses)


def refresh(
    encoder: Array,
    interactions: Interactions,
    config: AutoencoderConfig,
    *,
    mesh: Mesh | None = None,
) -> Factors:
    """The factors of these interactions that are best for a given encoder, in closed form.

    They stay in the basis of the encoder, and a model that was trained on its factors can take
    them. So an encoder of some rows gives factors that have seen all rows.

    Args:
      encoder: P [I, D], `Factors.encoder` of a fit.
      interactions: of any users with these items.
      config: the settings of the fit. Settings of the encoder have no effect.
      mesh: as for `fit`.

    Raises:
      ConfigError: if there are no interactions, or the encoder has another shape.
    """
    placed, items = _place(interactions, config, mesh)
    state, _ = _solved(_given(placed, encoder, config), items)
    return _finite(_factors(placed, state))


def fold_in(factors: Factors, interactions: Interactions, *, mesh: Mesh | None = None) -> jax.Array:
    """Factors of new users: their rows of X times the encoder.

    Args:
      factors: a result of `fit`.
      interactions: of N new users with the I items of the model.
      mesh: as for `fit`.

    Returns:
      [N, D] float32.

    Raises:
      ConfigError: if the factors have no encoder, or the interactions another number of items.
    """
    encoder = _encoder_of(factors)
    if interactions.num_items != len(encoder):
        raise ConfigError(
            f"interactions have {interactions.num_items} items, the model has {len(encoder)}"
        )
    weight = np.ones(interactions.num_users)
    placed = gram.place(interactions, weight, encoder.shape[1], mesh)
    return placed.encode(placed.table(encoder))


def add_rows(
    factors: Factors, user: np.ndarray, item: np.ndarray, value: np.ndarray | None = None
) -> np.ndarray:
    """User factors after more rows: each adds the encoder's row of its item to its user.

    With the factors of the unsampled rows and the kept rows, these are the factors of all rows. So
    nobody needs to store a second table of users.

    Args:
      factors: with an encoder.
      user: [N] integer in [0, U).
      item: [N] integer in [0, I).
      value: [N] float, how often each row is added; None: once.

    Returns:
      [U, D] float32.
    """
    encoder = np.asarray(_encoder_of(factors), np.float32)
    known = np.asarray(factors.user, np.float32)
    sizes = len(known), len(encoder)
    value = np.ones(len(user), np.float32) if value is None else value
    rows = scipy.sparse.csr_matrix((value, (user, item)), sizes)
    return known + rows @ encoder


class _State(NamedTuple):
    """P, G P and Q, tables [T, D]."""

    encoder: jax.Array
    product: jax.Array
    items: jax.Array


def _place(
    interactions: Interactions, config: AutoencoderConfig, mesh: Mesh | None
) -> tuple[Placed, Items]:
    """The interactions and the items' numbers on the devices."""
    weight = np.zeros(interactions.num_users)
    if interactions.num_entries:
        weight = _power(interactions.by_user.counts, -2 * config.user_exponent)
    shared = mesh is not None and len(sharding.own_parts(mesh)) < mesh.size
    squares = _squares(interactions, weight, shared)
    if not squares.any():
        raise ConfigError(
            "there are no interactions to factorise: give more rows, or, with "
            "factor_rows='unsampled', lower the rate"
        )
    placed = gram.place(interactions, weight, config.factors, mesh)
    ratio = config.dropout / (1 - config.dropout)
    unit = interactions.extent.noise**2 * squares.sum() / interactions.num_entries
    numbers = {
        "squares": squares,
        "penalty": config.regularization * unit + ratio * squares,
        "weight": _power(squares, -config.item_exponent),
        "scale": _power(squares, -config.start_exponent),
    }
    return placed, Items(**{name: placed.table(x) for name, x in numbers.items()})


def _squares(interactions: Interactions, weight: np.ndarray, shared: bool) -> np.ndarray:
    """[I] float64, the diagonal of G; if `shared`, each process sums those of a share of items."""
    items = interactions.by_item
    place = (jax.process_index(), jax.process_count()) if shared else (0, 1)
    own = share_of_rows(items.counts, *place)
    part = items.take(own)
    of_rows = np.repeat(np.arange(len(own)), part.counts)
    values = weight[part.columns] * np.square(part.values, dtype=np.float64)
    squares = np.zeros(interactions.num_items)
    squares[own] = np.bincount(of_rows, values, len(own))
    if not shared:
        return squares
    return sharding.sum_over_processes(squares.view(np.int64)).view(np.float64)


def _power(frequency: np.ndarray, exponent: float) -> np.ndarray:
    """(frequency / mean) ** exponent, with the mean of those above 0; 0 for the others."""
    seen = frequency > 0
    scaled = np.where(seen, frequency, 1) / frequency[seen].mean()
    return np.where(seen, scaled**exponent, 0)


def _restored(
    placed: Placed, config: AutoencoderConfig, saved: Checkpoints | None
) -> tuple[_State, list[float]]:
    """Tables and losses of the finished passes; without any, tables of zeros and no losses."""
    shape = len(placed.items.counts), config.factors
    if saved is not None:
        whole = sharding.named(placed.gram.mesh, sharding.REPLICATED)
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32)] * len(_State._fields)
        found = saved.restore(checkpoints.like(shapes, whole))
        if found is not None:
            tables, facts = found
            return _State(*map(placed.table, tables)), facts["losses"]
    nothing = placed.table(np.zeros(shape, np.float32))
    return _State(nothing, nothing, nothing), []


def _encoder_of(factors: Factors) -> Array:
    if factors.encoder is None:
        raise ConfigError("these factors have no encoder: they are of another factorisation")
    return factors.encoder


def _given(placed: Placed, rows: Array, config: AutoencoderConfig) -> Encoder:
    """An encoder [I, D] of other factors."""
    wanted = len(placed.items.counts), config.factors
    if rows.shape != wanted:
        raise ConfigError(f"the encoder has the shape {rows.shape}; this fit needs {wanted}")
    table = placed.table(rows)
    return Encoder(table, gram.product(placed.gram, table))


def _start(placed: Placed, items: Items, config: AutoencoderConfig, key: jax.Array) -> Encoder:
    """An encoder that spans the leading eigenvectors of N^-a G N^-a, by subspace iteration."""
    width = config.factors + EXTRA
    rows = np.asarray(_normal(key, len(placed.items.counts), width))
    basis = placed.table(rows * (placed.items.counts > 0)[:, None])
    image, vectors, values = solver.subspace_round(placed.gram, items, basis)
    for _ in range(config.start_rounds - 1):
        basis = solver.multiply(image, vectors * solver.reciprocal(values))
        image, vectors, values = solver.subspace_round(placed.gram, items, basis)
    scale = np.sqrt(solver.reciprocal(values))
    return solver.start(items, basis, image, (vectors * scale)[:, : config.factors])


@functools.partial(jax.jit, static_argnames=("rows", "width"))
def _normal(key: jax.Array, rows: int, width: int) -> jax.Array:
    return jax.random.normal(key, (rows, width)) / np.sqrt(rows)


def _improved(placed: Placed, items: Items, state: _State, config: AutoencoderConfig) -> Encoder:
    inverse = solver.inverse(solver.spread(items, state.items))
    encoder = Encoder(state.encoder, state.product)
    return solver.improve_encoder(
        placed.gram, items, encoder, state.items, inverse, config.cg_steps
    )


def _solved(encoder: Encoder, items: Items) -> tuple[_State, float]:
    """The state with the best items for an encoder, and the objective there."""
    whitening = solver.inverse_root(solver.metric(encoder, items))
    q, loss = solver.solve_items(encoder, items, whitening)
    return _State(*encoder, q), float(loss)


def _factors(placed: Placed, state: _State) -> Factors:
    user = placed.encode(state.encoder)
    encoder, item = (placed.rows(sharding.local(x)) for x in (state.encoder, state.items))
    return Factors(user, item, encoder=encoder)


@jax.jit
def _balanced(factors: Factors) -> Factors:
    """The same model, with user and item factors scaled to the same mean square length."""
    user, item = (jnp.sum(table**2, 1) for table in (factors.user, factors.item))
    user, item = (jnp.sum(x) / jnp.maximum(jnp.sum(x > 0), 1) for x in (user, item))
    scale = jnp.where(user > 0, (item / jnp.where(user > 0, user, 1)) ** 0.25, 1)
    scale = jnp.where(scale > 0, scale, 1)
    encoder = _encoder_of(factors) * scale
    return Factors(factors.user * scale, factors.item / scale, encoder=encoder)


def _finite(factors: Factors) -> Factors:
    return check_finite(factors, "raise autoencoder.regularization")
