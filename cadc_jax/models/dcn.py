"""DCN-v2: deep and cross network (Wang et al. 2021, arXiv 2008.13535), in its stacked form."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadc_jax.errors import check_at_least, check_below_one
from cadc_jax.models.embeddings import Inputs
from cadc_jax.models.mlp import MLP


class CrossLayer(nn.Module):
    """x_0 * (W x + b) + x: one more degree of feature crosses, [..., n] -> [..., n].

    Attributes:
      rank: r of a low-rank W = U V^T with U and V [n, r]; 0 for a full W.
    """

    rank: int = 0

    @nn.compact
    def __call__(self, x0: jax.Array, x: jax.Array) -> jax.Array:
        crossed = nn.Dense(self.rank, use_bias=False, name="v")(x) if self.rank else x
        return x0 * nn.Dense(x.shape[-1], name="u" if self.rank else "w")(crossed) + x


class DCN(nn.Module):
    """Cross layers over all embeddings and dense features side by side, then an MLP.

    Embeddings may differ in width.

    Attributes:
      cross_layers: L; the last layer holds crosses of up to L + 1 features.
      rank: rank of the cross layers' matrices; 0 for full matrices.
      top: sizes of the MLP's hidden layers (an output layer of size 1 follows).
      dropout: dropout of the MLP's hidden layers.
    """

    cross_layers: int = 3
    rank: int = 0
    top: Sequence[int] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_at_least("dcn.cross_layers", self.cross_layers, 0)
        check_at_least("dcn.rank", self.rank, 0)
        check_at_least("dcn.top", self.top, 1)
        check_below_one("dcn.dropout", self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> jax.Array:
        """Logits [B, G] float32 of each user's items; `train` turns dropout on."""
        pairs = len(inputs.user), inputs.item.shape[1]
        user = inputs.user, inputs.user_features, inputs.user_dense  # [B, ...]
        item = inputs.item, inputs.item_features, inputs.item_dense  # [B or 1, G, ...]
        parts = [x.reshape(len(x), 1, -1) for x in user]
        parts += [x.reshape(*x.shape[:2], -1) for x in item]
        x0 = jnp.concatenate([jnp.broadcast_to(x, (*pairs, x.shape[2])) for x in parts], axis=2)
        x = x0 = x0.reshape(
            pairs[0] * pairs[1], -1
        )  # matrix products are fastest in two dimensions
        for layer in range(self.cross_layers):
            x = CrossLayer(self.rank, name=f"cross_{layer}")(x0, x)
        x = MLP((*self.top, 1), dropout=self.dropout, name="top_mlp")(x, train)
        return x.reshape(pairs)
