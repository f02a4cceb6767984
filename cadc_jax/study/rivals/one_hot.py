"""Rows of clicks as a few numbers each of a long vector: ids, content and context, one-hot."""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from cadc_jax.data.table import Columns, Features, Table


class Encoded(NamedTuple):
    """Rows of which S entries may differ from 0.

    Attributes:
      place: [N, S] int32, where these are.
      value: [N, S] float32; 0 where a set has fewer values than others. A place may then repeat.
    """

    place: np.ndarray
    value: np.ndarray

    def matrix(self, size: int) -> scipy.sparse.csr_matrix:
        """The rows as a matrix [N, size]."""
        rows, slots = self.place.shape
        ends = np.arange(rows + 1) * slots
        return scipy.sparse.csr_matrix(
            (self.value.ravel(), self.place.ravel(), ends), shape=(rows, size)
        )


class OneHot:
    """The encoding of a table's rows: ids of users and items, their content, the context.

    Attributes:
      ids: how many of the first places are those of user and item ids.
      size: of the vector.
    """

    def __init__(self, table: Table):
        """Lays out the vector, and encodes every user and item.

        Args:
          table: a prepared table of clicks.
        """
        schema = table.schema
        self.ids = schema.num_users + schema.num_items
        after_users = self.ids + _places(schema.user_content)
        after_items = after_users + _places(schema.item_content)
        users = _ids(0, schema.num_users)
        items = _ids(schema.num_users, schema.num_items)
        self._user = _joined([users, *_parts(table.users, schema.user_content, self.ids)])
        self._item = _joined([items, *_parts(table.items, schema.item_content, after_users)])
        self._context, self._after_items = schema.context, after_items
        self.size = after_items + _places(schema.context)

    def __call__(self, rows: Columns) -> Encoded:
        """Encodes rows: `user` [N], `item` [N], and their `dense` and `categorical` features."""
        user, item = (np.asarray(rows[name]) for name in ("user", "item"))
        sides = [
            Encoded(self._user.place[user], self._user.value[user]),
            Encoded(self._item.place[item], self._item.value[item]),
        ]
        return _joined([*sides, *_parts(rows, self._context, self._after_items)])


def _places(features: Features) -> int:
    """How many places features take."""
    return sum((*features.vocabulary_sizes, *features.bag_sizes, len(features.dense)))


def _ids(start: int, size: int) -> Encoded:
    index = np.arange(start, start + size, dtype=np.int32)[:, None]
    return Encoded(index, np.ones(index.shape, np.float32))


def _parts(columns: Columns, features: Features, start: int) -> list[Encoded]:
    """Encodes the features of users, items or rows, at places from `start` on."""
    found = []
    for nth, size in enumerate(features.vocabulary_sizes):
        index = start + np.asarray(columns["categorical"])[:, nth : nth + 1]
        found.append(Encoded(index, np.ones(index.shape, np.float32)))
        start += size
    for nth, size in enumerate(features.bag_sizes):
        bag = np.asarray(columns["bags"])[:, nth]
        found.append(Encoded(start + np.maximum(bag, 0), (bag >= 0).astype(np.float32)))
        start += size
    if features.dense:
        value = np.asarray(columns["dense"], np.float32)
        index = np.arange(start, start + value.shape[1])
        found.append(Encoded(np.broadcast_to(index, value.shape), value))
    return found


def _joined(parts: list[Encoded]) -> Encoded:
    index, value = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return Encoded(index.astype(np.int32), value)
