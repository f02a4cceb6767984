"""Random inputs for networks."""

import jax
import jax.numpy as jnp

from cadc_jax.models.embeddings import Inputs


def random_inputs(users=3, items=2, rank=4, dim=4, shared=False):
    """Inputs of B users with G items each; `shared` items are the same for all users.

    They have 3 and 2 dense and 2 and 1 categorical features of users and items.
    """
    keys = iter(jax.random.split(jax.random.key(0), 6))
    normal = jax.random.normal
    rows = 1 if shared else users
    return Inputs(
        user=normal(next(keys), (users, rank)),
        item=normal(next(keys), (rows, items, rank)),
        user_dense=normal(next(keys), (users, 3)),
        item_dense=normal(next(keys), (rows, items, 2)),
        user_features=normal(next(keys), (users, 2, dim)),
        item_features=normal(next(keys), (rows, items, 1, dim)),
    )


def with_repeated_items(inputs):
    """The same inputs with the shared items repeated for each user."""
    users = len(inputs.user)
    return inputs.replace(
        item=jnp.repeat(inputs.item, users, 0),
        item_dense=jnp.repeat(inputs.item_dense, users, 0),
        item_features=jnp.repeat(inputs.item_features, users, 0),
    )


def without_features(inputs):
    """The same inputs with user and item embeddings only."""
    return inputs.replace(
        user_dense=inputs.user_dense[:, :0],
        item_dense=inputs.item_dense[..., :0],
        user_features=inputs.user_features[:, :0],
        item_features=inputs.item_features[:, :, :0],
    )
