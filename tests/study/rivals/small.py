"""Small tables that rivals are fitted to."""

import numpy as np
import scipy.sparse

from cadc_jax.data.table import Features, Schema, Table


def interactions(users=30, items=8):
    """A matrix of 0 and 1, about a third of it 1."""
    dense = np.random.default_rng(0).random((users, items)) < 0.3
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


def rankings():
    """Users 1 and 2, items 1 to 4. User 1 trained on item 1, twice, and user 2 on item 2."""
    train = {"user": np.array([1, 2, 1], np.int32), "item": np.array([1, 2, 1], np.int32)}
    users = np.array([1, 2], np.int32)
    splits = {
        "train": train,
        "validation": {"user": users, "item": np.array([3, 3], np.int32)},
        "test": {"user": users, "item": np.array([4, 4], np.int32)},
    }
    known = {"offsets": np.array([0, 0, 1, 2]), "items": np.array([1, 2], np.int32)}
    schema = Schema("ranking", 3, 5, Features(), Features(), Features())
    return Table(schema, splits, {}, {}, known)


def clicks(rows=600, users=12, items=10):
    """Users and items have a feature, items tags, rows a dense one. Item and tag 1 are liked."""
    rng = np.random.default_rng(0)
    tags = np.stack([np.arange(items) % 3, np.where(np.arange(items) % 2, 2, -1)], 1)
    content = {"dense": np.zeros((users, 0), np.float32)}
    content["categorical"] = (np.arange(users, dtype=np.int32) % 2)[:, None]
    of_items = {"dense": np.arange(items, dtype=np.float32)[:, None] / items}
    of_items |= {"categorical": np.zeros((items, 0), np.int32)}
    of_items["bags"] = tags[:, None].astype(np.int32)

    def split(rows):
        user, item = rng.integers(1, [users, items], (rows, 2)).astype(np.int32).T
        dense = rng.normal(size=(rows, 1)).astype(np.float32)
        liked = 2.0 * (item == 1) + 1.5 * (item % 3 == 1) + dense[:, 0] - (user % 2)
        label = (rng.random(rows) < 1 / (1 + np.exp(1 - liked))).astype(np.float32)
        columns = {"user": user, "item": item, "dense": dense, "label": label}
        return columns | {"categorical": np.zeros((rows, 0), np.int32)}

    schema = Schema(
        "click",
        users,
        items,
        Features(dense=("hour",)),
        Features(categorical=("sex",), vocabulary_sizes=(2,)),
        Features(dense=("year",), bags=("tags",), bag_sizes=(3,)),
    )
    splits = {"train": split(rows), "validation": split(200), "test": split(3000)}
    return Table(schema, splits, content, of_items, {})
