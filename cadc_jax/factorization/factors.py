"""The result of a factorisation, and the scores it gives."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.errors import ConfigError, TrainingError

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class Factors:
    """User and item factors, with biases if the model has any (otherwise all three are None).

    The score of user u and item i is user[u] . item[i] + user_bias[u] + item_bias[i] + global_bias.
    If user factors are the interactions times an encoder, it is here too (otherwise None).
    """

    user: Array  # [U, D]
    item: Array  # [I, D]
    user_bias: Array | None = None  # [U] f32
    item_bias: Array | None = None  # [I] f32
    global_bias: Array | None = None  # [] f32
    encoder: Array | None = None  # [I, D]

    def __repr__(self) -> str:
        held = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        sizes = (f"{name} {np.shape(x)}" for name, x in held.items() if x is not None)
        return f"Factors({', '.join(sizes)})"

    @property
    def biases(self) -> tuple[Array, Array, Array] | None:
        """(user_bias, item_bias, global_bias), or None."""
        if self.user_bias is None or self.item_bias is None or self.global_bias is None:
            return None
        return self.user_bias, self.item_bias, self.global_bias


def check_sizes(factors: Factors, num_users: int, num_items: int, rank: int) -> None:
    """Raises ConfigError unless `factors` have the sizes of the fit that starts from them."""
    found = factors.user.shape, factors.item.shape
    wanted = (num_users, rank), (num_items, rank)
    if found != wanted:
        raise ConfigError(f"init has factors of shapes {found}; this fit needs {wanted}")


def grown(
    factors: Factors, num_users: int, num_items: int, key: jax.Array, scale: float = 0.0
) -> Factors:
    """The factors with more users and items, at the end.

    Args:
      factors: of U users and I items.
      num_users: at least U.
      num_items: at least I.
      key: PRNG key of the new vectors.
      scale: their standard deviation. New biases, and new rows of an encoder, are 0.
    """
    user_key, item_key = jax.random.split(key)

    def with_rows(table: Array, size: int, scale: float, key: jax.Array) -> Array:
        table = np.asarray(table)
        new = scale * jax.random.normal(key, (size - len(table), *table.shape[1:]))
        return np.concatenate([table, np.asarray(new, table.dtype)])

    found = {"user": with_rows(factors.user, num_users, scale, user_key)}
    found["item"] = with_rows(factors.item, num_items, scale, item_key)
    for name, size in (("user_bias", num_users), ("item_bias", num_items), ("encoder", num_items)):
        table = getattr(factors, name)
        if table is not None:
            found[name] = with_rows(table, size, 0.0, user_key)
    return dataclasses.replace(factors, **found)


def scores(factors: Factors, user_ids: Array, item_ids: Array) -> jax.Array:
    """Scores of pairs.

    Args:
      factors: the model.
      user_ids: int32, of any shape.
      item_ids: int32, of a shape that broadcasts with that of `user_ids`.

    Returns:
      float32, of the broadcast shape.
    """
    user = factors.user[user_ids].astype(jnp.float32)
    item = factors.item[item_ids].astype(jnp.float32)
    dot = jnp.sum(user * item, -1)
    if factors.biases is None:
        return dot
    user_bias, item_bias, global_bias = factors.biases
    return dot + user_bias[user_ids] + item_bias[item_ids] + global_bias


def check_finite(factors: Factors, advice: str) -> Factors:
    """Returns the factors; raises TrainingError, with the advice, if a number is not finite."""
    parts = jax.tree.leaves(factors)
    if not all(bool(jnp.isfinite(x).all()) for x in parts):
        raise TrainingError(f"factorize: the factors are not finite numbers: {advice}")
    return factors


def with_bias_columns(factors: Factors) -> tuple[jax.Array, jax.Array]:
    """Tables whose plain dot product is the score, biases included.

    Returns:
      user [U, D + 2]: factors, bias + global bias, 1; item [I, D + 2]: factors, 1, bias. Without
      biases these columns hold 0 and 1 on both sides, and add nothing.
    """
    user, item = factors.user, factors.item
    zero = jnp.zeros((), user.dtype)

    def columns(bias: Array, size: int) -> tuple[jax.Array, jax.Array]:
        bias = bias.astype(user.dtype)
        return jnp.broadcast_to(bias, size)[:, None], jnp.ones((size, 1), user.dtype)

    user_bias, item_bias, global_bias = factors.biases or (zero, zero, zero)
    user_bias, user_one = columns(user_bias + global_bias, len(user))
    item_bias, item_one = columns(item_bias, len(item))
    return (
        jnp.concatenate([user, user_bias, user_one], 1),
        jnp.concatenate([item, item_one, item_bias], 1),
    )


def dot_tables(factors: Factors) -> tuple[Array, Array]:
    """User and item tables whose plain dot product is the score, with bias columns if needed."""
    if factors.biases is None:
        return factors.user, factors.item
    return with_bias_columns(factors)


def principal_axes(factors: Factors) -> Factors:
    """The same model, rotated to the principal axes of the items, the largest first.

    Rotating users and items together changes no score: the basis of a factorisation is arbitrary.
    In this basis the entries of a vector are directions of decreasing importance. A model trained
    on them can weigh each one.
    """
    item = np.asarray(factors.item, np.float64)
    _, axes = np.linalg.eigh(item.T @ item)
    axes = axes[:, ::-1]

    def rotated(table: Array) -> jax.Array:
        return jnp.asarray(np.asarray(table, np.float64) @ axes, table.dtype)

    encoder = None if factors.encoder is None else rotated(factors.encoder)
    return dataclasses.replace(
        factors, user=rotated(factors.user), item=rotated(factors.item), encoder=encoder
    )


def balanced_axes(factors: Factors) -> Factors:
    """The same model, with each axis scaled to the same mean square in users and in items.

    Scores do not change. Entries that are stored in few bits with a scale a row then cost the
    scores least, as an error counts by the size of the other side. It is for factors with an
    encoder, which follows its users: ALS would not keep the scale in further passes.
    """
    user, item = (
        np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=0))
        for x in (factors.user, factors.item)
    )
    used = (user > 0) & (item > 0)
    scale = np.sqrt(np.where(used, item, 1) / np.where(used, user, 1)).astype(np.float32)
    encoder = None if factors.encoder is None else factors.encoder * scale
    return dataclasses.replace(
        factors, user=factors.user * scale, item=factors.item / scale, encoder=encoder
    )
