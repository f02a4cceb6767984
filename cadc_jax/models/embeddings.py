"""Embedding tables and what a model is fed from them.

There are up to three tables: `user` [U, D] and `item` [I, D] (the factors of the interaction matrix
or random numbers), and `features` [V, E], which stacks the vocabularies of all other categorical
features, each at its offset. Models never see a table: they get the rows a batch needs, so that
gradients are taken with respect to rows, and a frozen table costs neither gradient nor state.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cadc_jax.data.table import Table

Tables = Mapping[str, jax.Array]
Batch = Mapping[str, jax.Array]


@struct.dataclass
class Content:
    """Features of users and items on the device, one row an id; categorical ids are stacked ones.

    Attributes:
      user_dense: [U, Fu] float32.
      user_categorical: [U, Cu] int32.
      item_dense: [I, Fi] float32.
      item_categorical: [I, Ci] int32.
      context_offsets: [Cc] int32, added to a row's own categorical ids.
    """

    user_dense: jax.Array
    user_categorical: jax.Array
    item_dense: jax.Array
    item_categorical: jax.Array
    context_offsets: jax.Array


@struct.dataclass
class Inputs:
    """What a model sees of a batch of B users with G items each.

    Features of the row itself (its context) go with the user. Where all users share the same items,
    the item side's leading axis is 1, and the model broadcasts it.

    Attributes:
      user: [B, D] embedding of the user.
      item: [B, G, D] embeddings of the items.
      user_dense: [B, Fu + Fc] float32.
      item_dense: [B, G, Fi] float32.
      user_features: [B, Cu + Cc, E] embeddings of categorical features.
      item_features: [B, G, Ci, E] likewise.
    """

    user: jax.Array
    item: jax.Array
    user_dense: jax.Array
    item_dense: jax.Array
    user_features: jax.Array
    item_features: jax.Array


def stacked_offsets(vocabulary_sizes: Sequence[int]) -> np.ndarray:
    """Row of the stacked table at which each vocabulary begins: [C] sizes -> [C] int32."""
    return np.concatenate([[0], np.cumsum(vocabulary_sizes)[:-1]]).astype(np.int32)


def num_feature_rows(table: Table) -> int:
    """V, the rows of the stacked table of categorical features."""
    return sum(_vocabulary_sizes(table))


def content_of(table: Table) -> Content:
    """The content of a prepared table as device arrays."""
    schema = table.schema
    offsets = stacked_offsets(_vocabulary_sizes(table) or (0,))
    num_user = len(schema.user_content.categorical)
    num_context = len(schema.context.categorical)
    user, context, item = np.split(
        offsets[: len(_vocabulary_sizes(table))], [num_user, num_user + num_context]
    )
    return Content(
        user_dense=jnp.asarray(table.users["dense"]),
        user_categorical=jnp.asarray(table.users["categorical"] + user),
        item_dense=jnp.asarray(table.items["dense"]),
        item_categorical=jnp.asarray(table.items["categorical"] + item),
        context_offsets=jnp.asarray(context),
    )


def lookup_ids(content: Content, batch: Batch) -> dict[str, jax.Array]:
    """Rows of each table that a batch needs.

    Args:
      content: features of users and items.
      batch: `user` [B], `item` [B, G] (or [1, G], shared) and `categorical` [B, Cc], all int32; an
        optional `weight` [B], where rows of weight 0 ask for row -1, which is no row.

    Returns:
      Flat int32 ids: `user` [B], `item` [B * G] and `features` [B * (Cu + Cc) + B * G * Ci], those
      of the user side first.
    """
    user_features = jnp.concatenate(
        [content.user_categorical[batch["user"]], batch["categorical"] + content.context_offsets],
        axis=1,
    )
    item_features = content.item_categorical[batch["item"]]
    groups = {
        "user": [batch["user"]],
        "item": [batch["item"]],
        "features": [user_features, item_features],
    }
    if "weight" in batch:
        real = batch["weight"] > 0
        groups = {
            name: [jnp.where(real.reshape((-1,) + (1,) * (x.ndim - 1)), x, -1) for x in group]
            for name, group in groups.items()
        }
    return {name: jnp.concatenate([x.reshape(-1) for x in group]) for name, group in groups.items()}


def pair_batch(user: jax.Array, item: jax.Array) -> Batch:
    """A batch of users [B] and items [B, G] (or [1, G], shared) without features of the row."""
    return {
        "user": user,
        "item": item,
        "dense": jnp.zeros((len(user), 0), jnp.float32),
        "categorical": jnp.zeros((len(user), 0), jnp.int32),
    }


def gather(tables: Tables, ids: Mapping[str, jax.Array]) -> Tables:
    """The rows of each table: name -> [n, D]. Ids outside a table read its nearest row."""
    return {name: table.at[ids[name]].get(mode="clip") for name, table in tables.items()}


def model_inputs(rows: Tables, content: Content, batch: Batch) -> Inputs:
    """Puts gathered rows, as `lookup_ids` orders them, and dense features together for a model."""
    user, item = batch["user"], batch["item"]
    num_user = content.user_categorical.shape[1] + batch["categorical"].shape[1]
    num_item = content.item_categorical.shape[1]
    features = rows["features"]
    width = features.shape[1]
    return Inputs(
        user=rows["user"],
        item=rows["item"].reshape(*item.shape, -1),
        user_dense=jnp.concatenate([content.user_dense[user], batch["dense"]], axis=1),
        item_dense=content.item_dense[item],
        user_features=features[: len(user) * num_user].reshape(len(user), num_user, width),
        item_features=features[len(user) * num_user :].reshape(*item.shape, num_item, width),
    )


def _vocabulary_sizes(table: Table) -> tuple[int, ...]:
    schema = table.schema
    groups = (schema.user_content, schema.context, schema.item_content)
    return sum((group.vocabulary_sizes for group in groups), ())
