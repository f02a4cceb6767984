"""Embedding tables, and the inputs of a model for a batch.

There are up to three tables: `user` [U, D] and `item` [I, D] (factors of the interaction matrix or
random numbers), and `features` [V, E], which stacks the vocabularies of all other categorical
features, each at its own offset. `lookup_ids` lists the rows that a batch needs, `take_rows` reads
them, and `model_inputs` arranges them for a model. Gradients are taken with respect to these rows
and not to the tables: a frozen table costs neither gradient nor optimiser state.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cadc_jax.data.table import Table
from cadc_jax.data.vocabulary import MOST_IDS
from cadc_jax.errors import DataError
from cadc_jax.resident import likely
from cadc_jax.resident.likely import LikelyTables
from cadc_jax.tables import exchange
from cadc_jax.tables.packed import AnyTable

Tables = Mapping[str, AnyTable]
Batch = Mapping[str, jax.Array]
HostBatch = Mapping[str, jax.Array | np.ndarray]  # a batch on the host or on devices


@struct.dataclass
class Content:
    """Features of users and items on the device, one row for each id.

    Categorical ids are rows of the stacked table.

    Attributes:
      user_dense: [U, Fu] float32.
      user_categorical: [U, Cu] int32.
      item_dense: [I, Fi] float32.
      item_categorical: [I, Ci] int32.
      context_offsets: [Cc] int32, to be added to the categorical ids of a training row itself.
      item_bags: [I, Cb, L] int32, features with up to L values an item (such as genres), padded
        with -1; None if there are none.
      bag_weights: [I, Cb, L] float32, weight of each value in its bag's sum; 0 for padding.
      likely: pairs that do not compete in the loss over all items; None if all do.
    """

    user_dense: jax.Array
    user_categorical: jax.Array
    item_dense: jax.Array
    item_categorical: jax.Array
    context_offsets: jax.Array
    item_bags: jax.Array | None = None
    bag_weights: jax.Array | None = None
    likely: LikelyTables | None = None

    @property
    def ids_an_item(self) -> int:
        """Ci + Cb * L, rows of the stacked table that an item needs."""
        bags = 0 if self.item_bags is None else math.prod(self.item_bags.shape[1:])
        return self.item_categorical.shape[1] + bags


@struct.dataclass
class Inputs:
    """Inputs of a model for a batch of B users with G items each.

    Features of the training row itself (its context) go with the user. If all users share the same
    items, the leading axis of the item side is 1, and the model broadcasts it.

    Attributes:
      user: [B, D] embedding of the user.
      item: [B, G, D] embeddings of the items.
      user_dense: [B, Fu + Fc] float32.
      item_dense: [B, G, Fi] float32.
      user_features: [B, Cu + Cc, E] embeddings of categorical features.
      item_features: [B, G, Ci + Cb, E] embeddings of categorical features; a bag is the weighted
        sum of its embeddings.
      chosen: [B, G'] int32, places of each user's own items among shared ones, if only these are
        to be scored; None for all. Only two-tower networks use it.
    """

    user: jax.Array
    item: jax.Array
    user_dense: jax.Array
    item_dense: jax.Array
    user_features: jax.Array
    item_features: jax.Array
    chosen: jax.Array | None = None


def stacked_offsets(vocabulary_sizes: Sequence[int]) -> np.ndarray:
    """First row of each vocabulary in the stacked table: [C] sizes -> [C] int32.

    Raises:
      DataError: if the table has more rows than MOST_IDS.
    """
    rows = sum(map(int, vocabulary_sizes))
    if rows > MOST_IDS:
        raise DataError(
            f"the categorical features have {rows:,} values together, and their table at most "
            f"{MOST_IDS:,} rows: lower data.max_vocabulary"
        )
    return np.concatenate([[0], np.cumsum(vocabulary_sizes)[:-1]]).astype(np.int32)


def num_feature_rows(table: Table) -> int:
    """V, the number of rows of the stacked table of categorical features."""
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
        real = bags >= 0
        item_bags = jnp.asarray(np.where(real, bags + bag[:, None], -1).astype(np.int32))
        weights = real / np.maximum(real.sum(axis=2, keepdims=True), 1)  # a bag is a mean
        bag_weights = jnp.asarray(weights.astype(np.float32))
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
      batch: `user` [B], `item` [B, G] (or [1, G] if all users share them) and `categorical`
        [B, Cc], all int32. Optional: `weight` [B], where 0 means that the row needs no embeddings;
        with shared items `uses` [1, G] int32, where 0 means that the item needs none.

    Returns:
      Flat int32 ids: `user` [B], `item` [B * G] and `features` [B * (Cu + Cc + G * n)] with
      n = Ci + Cb * L. Features are in the order of the batch: for each row the user's, then the
      items'. They split over devices as the batch does. Features of shared items come once, after
      the features of all users. An id of -1 means no row.
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
        used = batch["uses"] > 0 if "uses" in batch else real
        user = jnp.where(real[:, 0], user, -1)
        user_features = jnp.where(real, user_features, -1)
        item = jnp.where(used, item, -1)
        item_features = jnp.where(used[..., None], item_features, -1)
    item_features = item_features.reshape(len(item), -1)
    if len(item) == len(user):
        features = jnp.concatenate([user_features, item_features], axis=1)
    else:
        features = jnp.concatenate([user_features.reshape(-1), item_features.reshape(-1)])
    return {"user": user, "item": item.reshape(-1), "features": features.reshape(-1)}


def with_all_items(content: Content, batch: Batch) -> Batch:
    """The batch with all I items shared by all users. Each row's own items become `chosen`.

    If the batch has weights, `uses` counts the places of each item in rows that count.
    """
    num_items = len(content.item_categorical)
    everything = jnp.arange(num_items, dtype=batch["item"].dtype)[None]
    shared = {**batch, "item": everything, "chosen": batch["item"]}
    if "weight" not in batch:
        return shared
    real = jnp.broadcast_to(batch["weight"][:, None] > 0, batch["item"].shape)
    uses = jnp.zeros(num_items, jnp.int32).at[batch["item"]].add(real.astype(jnp.int32))
    return {**shared, "uses": uses[None]}


def among_all_items(content: Content, batch: Batch, devices: int = 1) -> Batch:
    """The batch with all items shared by all users, and each row's own item as `positive` [B].

    `competes` [B, n] marks the items that are not likely for a row's user. Id 0, which stands for
    unknown items, does not compete. The I items are filled up to n, which divides over the devices,
    by ids that are looked up as no row.
    """
    num_items = len(content.item_categorical)
    filling = -num_items % devices
    ids = jnp.arange(num_items + filling, dtype=jnp.int32)
    there = ids < num_items
    competes = jnp.broadcast_to(there & (ids > 0), (len(batch["user"]), len(ids)))
    if content.likely is not None:
        found = likely.pairs(content.likely, batch["user"])
        competes &= ~jnp.pad(found, ((0, 0), (0, filling)))
    return {
        **batch,
        "item": jnp.where(there, ids, 0)[None],
        "uses": there[None].astype(jnp.int32),
        "positive": batch["item"][:, 0],
        "competes": competes,
    }


def uses_of_rows(
    content: Content, batch: Batch, ids: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """How many places of the batch each of the `ids` of `lookup_ids` stands for, by name: [n].

    That is 1, except for rows of shared items with `uses`. Rows of id -1 stand for none.
    """
    uses = {name: (x >= 0).astype(jnp.float32) for name, x in ids.items()}
    if "uses" in batch:
        item = batch["uses"].reshape(-1)
        of_users = len(uses["features"]) - len(item) * content.ids_an_item
        uses["item"] *= item
        uses["features"] *= jnp.concatenate(
            [jnp.ones(of_users), jnp.repeat(item, content.ids_an_item)]
        )
    return uses


def with_users(
    tables: Tables, content: Content, vectors: jax.Array, like: np.ndarray
) -> tuple[Tables, Content]:
    """Tables and content in which user b has vector b [B, D] and the features of user like[b] [B].

    A program of B users then depends on B alone, whoever they are.
    """
    user_dense, user_categorical = content.user_dense[like], content.user_categorical[like]
    content = dataclasses.replace(content, user_dense=user_dense, user_categorical=user_categorical)
    return {**tables, "user": vectors}, content


def pair_batch(user: jax.Array | np.ndarray, item: jax.Array | np.ndarray) -> HostBatch:
    """A batch of users [B] and items [B, G] (or [1, G] if shared), without context features."""
    return {
        "user": user,
        "item": item,
        "dense": jnp.zeros((len(user), 0), jnp.float32),
        "categorical": jnp.zeros((len(user), 0), jnp.int32),
    }


def take_rows(tables: Tables, ids: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The rows of each table: name -> [n, D]. An id of -1 or past the end reads the last row."""
    return {name: exchange.read(table, ids[name]) for name, table in tables.items()}


def model_inputs(rows: Tables, content: Content, batch: Batch) -> Inputs:
    """Arranges gathered rows and dense features as the inputs of a model.

    Args:
      rows: rows of each table, name -> [n, D], in the order of `lookup_ids`.
      content: features of users and items.
      batch: as for `lookup_ids`, with `dense` [B, Fc] float32 and an optional `chosen`.
    """
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
    """Inputs where every user has the items of all B users: [B, 1, ...] -> [1, B, ...]."""
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
