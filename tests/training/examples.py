"""A tiny ranking task for tests of training: content, tables and a batch."""

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Content

USERS, ITEMS, RANK = 6, 5, 4


def content():
    return Content(
        user_dense=jnp.linspace(-1, 1, USERS)[:, None],
        user_categorical=jnp.arange(USERS)[:, None] % 3,
        item_dense=jnp.zeros((ITEMS, 0)),
        item_categorical=3 + jnp.arange(ITEMS)[:, None] % 2,
        context_offsets=jnp.zeros((0,), jnp.int32),
    )


def tables():
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = {"user": USERS, "item": ITEMS, "features": 5}
    return {
        name: jax.random.normal(key, (size, RANK))
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def batch(rows=8, items=3, padded=0):
    rng = np.random.default_rng(0)
    label = np.zeros((rows, items), np.float32)
    label[:, 0] = 1
    return {
        **embeddings.pair_batch(
            rng.integers(0, USERS, rows).astype(np.int32),
            rng.integers(0, ITEMS, (rows, items)).astype(np.int32),
        ),
        "label": label,
        "weight": np.r_[np.ones(rows - padded), np.zeros(padded)].astype(np.float32),
    }
