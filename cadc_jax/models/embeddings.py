"""Embedding tables and what a model is fed from them.

There are up to three tables: `user` [U, D] and `item` [I, D] (the factors of the interaction matrix
or random numbers), and `features` [V, E], which stacks the vocabularies of all other categorical
features, each at its offset. Models never see a table: they get the rows a batch needs, so that
gradients are taken with respect to rows, and a frozen table costs neither gradient nor state.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cadc_jax.data.table import Table

Tables = Mapping[str, jax.Array]
Batch = Mapping[str, jax.Array]
HostBatch = Mapping[str, jax.Array | np.ndarray]  # one that may still have to go to a device


@struct.dataclass
class Content:
    """Features of users and items on the device, one row an id; categorical ids are stacked ones.

    Attributes:
      user_dense: [U, Fu] float32.
      user_categorical: [U, Cu] int32.
      item_dense: [I, Fi] float32.
      item_categorical: [I, Ci] int32.
      context_offsets: [Cc] int32, added to a row's own categorical ids.
      item_bags: [I, Cb, L] int32, features with up to L values an item (such as genres); -1 after
        the last one. None if there are none.
      bag_weights: [I, Cb, L] float32, what each value counts in its bag's sum; 0 after the last.
    """

    user_dense: jax.Array
    user_categorical: jax.Array
    item_dense: jax.Array
    item_categorical: jax.Array
    context_offsets: jax.Array
    item_bags: jax.Array | None = None
    bag_weights: jax.Array | None = None

    @property
    def ids_an_item(self) -> int:
        """Ci + Cb * L."""
        bags = 0 if self.item_bags is None else math.prod(self.item_bags.shape[1:])
        return self.item_categorical.shape[1] + bags


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
      item_features: [B, G, Ci + Cb, E] likewise, bags being weighted sums of theirs.
      chosen: [B, G'] int32, places of each user's own items among shared ones, where only these
        are to be scored; None for all. For two-tower networks alone.
    """

    user: jax.Array
    item: jax.Array
    user_dense: jax.Array
    item_dense: jax.Array
    user_features: jax.Array
    item_features: jax.Array
    chosen: jax.Array | None = None


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
    num_item = len(schema.item_content.categorical)
    user, context, item, bag = np.split(
        offsets[: len(_vocabulary_sizes(table))],
        np.cumsum([num_user, num_context, num_item]),
    )
    item_bags, bag_weights = None, None
    if len(bag):
        bags = np.asarray(table.items["bags"])
        there = bags >= 0
        item_bags = jnp.asarray(np.where(there, bags + bag[:, None], -1).astype(np.int32))
        bag_weights = jnp.asarray(  # the mean of its values
            (there / np.maximum(there.sum(axis=2, keepdims=True), 1)).astype(np.float32)
        )
    return Content(
        user_dense=jnp.asarray(table.users["dense"]),
        user_categorical=jnp.asarray(table.users["categorical"] + user),
        item_dense=jnp.asarray(table.items["dense"]),
        item_categorical=jnp.asarray(table.items["categorical"] + item),
        context_offsets=jnp.asarray(context),
        item_bags=item_bags,
        bag_weights=bag_weights,
    )


def lookup_ids(content: Content, batch: Batch) -> dict[str, jax.Array]:
    """Rows of each table that a batch needs.

    Args:
      content: features of users and items.
      batch: `user` [B], `item` [B, G] (or [1, G], shared) and `categorical` [B, Cc], all int32; an
        optional `weight` [B], where rows of weight 0 ask for row -1, which is no row; for shared
        items `present` [1, G] bool, where those that are not ask for row -1.

    Returns:
      Flat int32 ids: `user` [B], `item` [B * G] and `features` [B * (Cu + Cc + G * n)], row by
      row of the batch, the user side first, then n = Ci + Cb * L for each item. So they split over
      devices as the batch does. Items shared by all users come once, after all users.
    """
    user, item = batch["user"], batch["item"]
    user_features = jnp.concatenate(
        [content.user_categorical[user], batch["categorical"] + content.context_offsets], axis=1
    )
    item_features = content.item_categorical[item]
    if content.item_bags is not None:
        bags = content.item_bags[item].reshape(*item.shape, -1)
        item_features = jnp.concatenate([item_features, bags], axis=-1)
    if "weight" in batch:
        real = batch["weight"][:, None] > 0
        there = batch.get("present", real)
        user = jnp.where(real[:, 0], user, -1)
        user_features = jnp.where(real, user_features, -1)
        item = jnp.where(there, item, -1)
        item_features = jnp.where(there[..., None], item_features, -1)
    item_features = item_features.reshape(len(item), -1)
    if len(item) == len(user):
        features = jnp.concatenate([user_features, item_features], axis=1)
    else:
        features = jnp.concatenate([user_features.reshape(-1), item_features.reshape(-1)])
    return {"user": user, "item": item.reshape(-1), "features": features.reshape(-1)}


def with_all_items(content: Content, batch: Batch) -> Batch:
    """The batch with all I items, shared, in place of each row's own, which are then `chosen`.

    In a batch with weights `present` are those of the rows.
    """
    num_items = len(content.item_categorical)
    everything = jnp.arange(num_items, dtype=batch["item"].dtype)[None]
    shared = {**batch, "item": everything, "chosen": batch["item"]}
    if "weight" not in batch:
        return shared
    real = jnp.broadcast_to(batch["weight"][:, None] > 0, batch["item"].shape)
    present = jnp.zeros(num_items, bool).at[batch["item"]].max(real)
    return {**shared, "present": present[None]}


def pair_batch(user: jax.Array | np.ndarray, item: jax.Array | np.ndarray) -> HostBatch:
    """A batch of users [B] and items [B, G] (or [1, G], shared) without features of the row."""
    return {
        "user": user,
        "item": item,
        "dense": jnp.zeros((len(user), 0), jnp.float32),
        "categorical": jnp.zeros((len(user), 0), jnp.int32),
    }


def take_rows(tables: Tables, ids: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The rows of each table: name -> [n, D]. Ids outside a table read its nearest row."""
    return {name: table.at[ids[name]].get(mode="clip") for name, table in tables.items()}


def model_inputs(rows: Tables, content: Content, batch: Batch) -> Inputs:
    """Puts gathered rows, as `lookup_ids` orders them, and dense features together for a model."""
    user, item = batch["user"], batch["item"]
    num_user = content.user_categorical.shape[1] + batch["categorical"].shape[1]
    num_item = content.ids_an_item
    features = rows["features"]
    width = features.shape[1]
    if len(item) == len(user):
        features = features.reshape(len(user), num_user + item.shape[1] * num_item, width)
        user_features, item_features = features[:, :num_user], features[:, num_user:]
    else:
        user_features, item_features = jnp.split(features, [len(user) * num_user])
    item_features = item_features.reshape(*item.shape, num_item, width)
    if content.item_bags is not None and content.bag_weights is not None:
        single, bags = jnp.split(item_features, [content.item_categorical.shape[1]], axis=2)
        weights = content.bag_weights[item]
        bags = jnp.einsum("bgclw,bgcl->bgcw", bags.reshape(*weights.shape, width), weights)
        item_features = jnp.concatenate([single, bags], axis=2)
    return Inputs(
        user=rows["user"],
        item=rows["item"].reshape(*item.shape, -1),
        user_dense=jnp.concatenate([content.user_dense[user], batch["dense"]], axis=1),
        item_dense=content.item_dense[item],
        user_features=user_features.reshape(len(user), num_user, width),
        item_features=item_features,
        chosen=batch.get("chosen"),
    )


def with_shared_items(inputs: Inputs) -> Inputs:
    """Of users with an item each, [B, 1, ...], all items for every user: [1, B, ...]."""
    return dataclasses.replace(
        inputs,
        item=inputs.item.swapaxes(0, 1),
        item_dense=inputs.item_dense.swapaxes(0, 1),
        item_features=inputs.item_features.swapaxes(0, 1),
    )


def _vocabulary_sizes(table: Table) -> tuple[int, ...]:
    schema = table.schema
    groups = (schema.user_content, schema.context, schema.item_content)
    return sum((group.vocabulary_sizes for group in groups), ()) + schema.item_content.bag_sizes
