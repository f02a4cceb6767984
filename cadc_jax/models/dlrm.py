"""DLRM: deep learning recommendation model (Naumov et al. 2019, arXiv 1906.00091)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadc_jax.models.embeddings import Inputs
from cadc_jax.models.mlp import MLP


class DLRM(nn.Module):
    """Bottom MLP over dense features, pairwise dots of all embeddings, top MLP.

    User and item rows whose width is not `embedding_dim` pass a learned linear projection first.

    Attributes:
      embedding_dim: E, width of the embeddings that interact.
      bottom: hidden layers of the bottom MLP (its output layer of E is added).
      top: hidden layers of the top MLP (its output layer of 1 is added).
      dropout: dropout of the top MLP's hidden layers.
    """

    embedding_dim: int = 16
    bottom: Sequence[int] = (64, 32)
    top: Sequence[int] = (128, 64)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> jax.Array:
        """Logits [B, G] of each user's items."""
        user_side = [self._project(inputs.user, "project_user")[:, None], inputs.user_features]
        item_side = [self._project(inputs.item, "project_item")[:, :, None], inputs.item_features]
        pairs = len(inputs.user), inputs.item.shape[1]

        def of_pairs(x: jax.Array) -> jax.Array:  # [B or 1, G or 1, ...] -> [B, G, ...]
            return jnp.broadcast_to(x, pairs + x.shape[2:])

        vectors = [
            of_pairs(jnp.concatenate(user_side, axis=1)[:, None]),
            of_pairs(jnp.concatenate(item_side, axis=2)),
        ]
        dense = [of_pairs(inputs.user_dense[:, None]), of_pairs(inputs.item_dense)]
        dense = jnp.concatenate(dense, axis=-1)
        passed_on = []
        if dense.shape[-1]:
            x = nn.relu(MLP((*self.bottom, self.embedding_dim), name="bottom_mlp")(dense))
            vectors.insert(0, x[:, :, None])
            passed_on = [x]
        dots = pairwise_dots(jnp.concatenate(vectors, axis=2))
        top = MLP((*self.top, 1), dropout=self.dropout, name="top_mlp")
        return top(jnp.concatenate([*passed_on, dots], axis=-1), train)[..., 0]

    def _project(self, rows: jax.Array, name: str) -> jax.Array:
        if rows.shape[-1] == self.embedding_dim:
            return rows
        return nn.Dense(self.embedding_dim, use_bias=False, name=name)(rows)


def pairwise_dots(vectors: jax.Array) -> jax.Array:
    """Dot products of all pairs of different vectors: [..., n, E] -> [..., n * (n - 1) / 2].

    The order is that of the strictly lower triangle, row by row (arXiv 1906.00091, section 2.1.3).
    """
    dots = jnp.einsum("...ne,...me->...nm", vectors, vectors)
    rows, columns = np.tril_indices(vectors.shape[-2], -1)
    return dots[..., rows, columns]
