"""`data.likely.LikelyItems` on devices; equal bit for bit."""

import jax
import jax.numpy as jnp
from flax import struct

from cadc_jax.data.likely import LikelyItems


@struct.dataclass
class LikelyTables:
    """`LikelyItems` on the device.

    Attributes:
      user: [U, D] int8.
      item: [I, D] int8.
      scale: [I] float32.
      bound: [U] float32.
    """

    user: jax.Array
    item: jax.Array
    scale: jax.Array
    bound: jax.Array


def of(likely: LikelyItems) -> LikelyTables:
    """Whole numbers of at most 127, which int8 holds."""
    user, item = (jnp.asarray(table, jnp.int8) for table in (likely.user, likely.item))
    return LikelyTables(user, item, jnp.asarray(likely.scale), jnp.asarray(likely.bound))


def pairs(likely: LikelyTables, user: jax.Array) -> jax.Array:
    """Whether each item is likely for each user: ids [n] int32 -> [n, I] bool."""
    # The sums are whole numbers below 2**24: float32 holds them exactly, in any order.
    with jax.default_matmul_precision("float32"):
        scores = likely.user[user].astype(jnp.float32) @ likely.item.astype(jnp.float32).T
    return scores * likely.scale > likely.bound[user][:, None]
