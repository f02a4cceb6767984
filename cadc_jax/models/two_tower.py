"""Two-tower network: a user tower and an item tower, scored by the dot product of their outputs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadc_jax.models.embeddings import Inputs
from cadc_jax.models.mlp import MLP


class Tower(nn.Module):
    """Embedding, dense and categorical features of one side -> vector [..., D] and bias [...].

    The vector is the embedding plus a correction that starts at zero: initialised from factors, the
    network starts as the factorisation itself and learns what content adds to it. With a gate, each
    entry of the embedding is weighted by a function of the embedding's length, which starts at 1:
    a factorisation gives long vectors to users and items of many rows, and what its lesser
    directions say of those of few rows is mostly noise.
    """

    hidden: Sequence[int]
    dropout: float = 0.0
    gate: int = 0

    @nn.compact
    def __call__(
        self, embedding: jax.Array, dense: jax.Array, features: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        flat = features.reshape(*features.shape[:-2], -1)
        x = jnp.concatenate([embedding, dense, flat], axis=-1)
        dim = embedding.shape[-1]
        out = MLP((*self.hidden, dim + 1), zero_output=True, dropout=self.dropout)(x, train)
        if self.gate:
            square = jnp.mean(jnp.square(embedding), axis=-1, keepdims=True)
            length = jnp.log(square + 1e-6) / 2
            embedding *= 1 + MLP((self.gate, dim), zero_output=True, name="gate")(length)
        return embedding + out[..., :dim], out[..., dim]


class TwoTower(nn.Module):
    """logit = scale * <user vector, item vector> / sqrt(D) + user bias + item bias + bias.

    Attributes:
      hidden: hidden layers of each tower; without any the correction is linear.
      dropout: dropout of the hidden layers.
      gate: hidden units of each tower's gate; 0 for no gate.
      scale: what `scale` starts at. A factorisation leaves it open; one that fits the loss from the
        start spares the network an error that it would first mend by other means.
    """

    hidden: Sequence[int] = (128,)
    dropout: float = 0.0
    gate: int = 0
    scale: float = 1.0

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> jax.Array:
        """Logits [B, G] of each user's items, or [B, G'] of the chosen ones."""
        user, user_bias = Tower(self.hidden, self.dropout, self.gate, name="user_tower")(
            inputs.user, inputs.user_dense, inputs.user_features, train
        )
        item, item_bias = Tower(self.hidden, self.dropout, self.gate, name="item_tower")(
            inputs.item, inputs.item_dense, inputs.item_features, train
        )
        scale = self.param("scale", nn.initializers.constant(self.scale), ())
        bias = self.param("bias", nn.initializers.zeros, ())
        if inputs.chosen is not None:
            item, item_bias = item[0][inputs.chosen], item_bias[0][inputs.chosen]
        if len(item) == 1:  # shared by all users: one matrix product
            dots = user @ item[0].T
        else:
            dots = jnp.einsum("bd,bgd->bg", user, item)
        return scale / user.shape[-1] ** 0.5 * dots + user_bias[:, None] + item_bias + bias
