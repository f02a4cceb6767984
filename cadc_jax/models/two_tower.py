"""Two-tower network: the score is the dot product of a user tower's and an item tower's output."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadc_jax.errors import check_at_least, check_below_one
from cadc_jax.models.embeddings import Inputs
from cadc_jax.models.mlp import MLP


class Tower(nn.Module):
    """Embedding, dense and categorical features of one side -> vector [..., D] and bias [...].

    The vector is the embedding plus a correction that starts at zero. A network initialised from
    factors therefore starts as the factorisation itself, and learns what content adds to it.

    A gate multiplies each entry of the embedding by a learned function of the embedding's length,
    which starts at 1. A factorisation gives short vectors to users and items with few rows, and
    their entries in the less important directions are mostly noise.

    Attributes:
      hidden: sizes of the hidden layers; without any the correction is linear.
      dropout: dropout of the hidden layers.
      gate: hidden units of the gate; 0 for no gate.
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
      hidden: sizes of each tower's hidden layers; without any the correction is linear.
      dropout: dropout of the hidden layers.
      gate: hidden units of each tower's gate; 0 for no gate.
      scale: start value of the parameter `scale`. A factorisation does not determine the scale of
        its scores, so it has to be chosen to fit the loss.
    """

    hidden: Sequence[int] = (128,)
    dropout: float = 0.0
    gate: int = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least("two_tower.hidden", self.hidden, 1)
        check_at_least("two_tower.gate", self.gate, 0)
        check_below_one("two_tower.dropout", self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> jax.Array:
        """Logits float32, [B, G] of each user's items or [B, G'] of the chosen ones.

        `train` turns dropout on.
        """
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
