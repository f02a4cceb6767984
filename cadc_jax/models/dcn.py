"""DCN-v2: deep and cross network (Wang et al. 2021, arXiv 2008.13535), in its stacked form."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadc_jax.models.embeddings import Inputs
from cadc_jax.models.mlp import MLP


class CrossLayer(nn.Module):
    """x_0 * (W x + b) + x: one more degree of feature crosses, [..., n] -> [..., n].

    Attributes:
      rank: r of the low-rank W = U V^T, U and V being [n, r]; 0 for a full W.
    """

    rank: int = 0

    @nn.compact
    def __call__(self, x0: jax.Array, x: jax.Array) -> jax.Array:
        crossed = nn.Dense(self.rank, use_bias=False, name="v")(x) if self.rank else x
        return x0 * nn.Dense(x.shape[-1], name="u" if self.rank else "w")(crossed) + x


class DCN(nn.Module):
    """All embeddings and dense features side by side, cross layers, MLP.

    Embeddings need not be of one width: user and item rows enter as they are.

    Attributes:
      cross_layers: L; the last one holds crosses of up to L + 1 features.
      rank: of their matrices; 0 for full ones.
      top: hidden layers of the MLP (its output layer of 1 is added).
      dropout: dropout of the MLP's hidden layers.
    """

    cross_layers: int = 3
    rank: int = 0
    top: Sequence[int] = (128, 64)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> jax.Array:
        """Logits [B, G] of each user's items."""
        pairs = len(inputs.user), inputs.item.shape[1]
        user = inputs.user, inputs.user_features, inputs.user_dense  # [B, ...]
        item = inputs.item, inputs.item_features, inputs.item_dense  # [B or 1, G, ...]
        parts = [x.reshape(len(x), 1, -1) for x in user]
        parts += [x.reshape(*x.shape[:2], -1) for x in item]
        x0 = jnp.concatenate([jnp.broadcast_to(x, (*pairs, x.shape[2])) for x in parts], axis=2)
        x = x0 = x0.reshape(pairs[0] * pairs[1], -1)  # products of plain matrices are the fastest
        for layer in range(self.cross_layers):
            x = CrossLayer(self.rank, name=f"cross_{layer}")(x0, x)
        x = MLP((*self.top, 1), dropout=self.dropout, name="top_mlp")(x, train)
        return x.reshape(pairs)
