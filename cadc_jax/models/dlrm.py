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
        pairs = len(inputs.user), inputs.item.shape[1]

        def of_pairs(x: jax.Array) -> jax.Array:  # [B or 1, G or 1, ...] -> [B * G, ...]
            return jnp.broadcast_to(x, pairs + x.shape[2:]).reshape(
                pairs[0] * pairs[1], *x.shape[2:]
            )

        vectors = [
            of_pairs(self._project(inputs.user, "project_user")[:, None, None]),
            of_pairs(inputs.user_features[:, None]),
            of_pairs(self._project(inputs.item, "project_item")[:, :, None]),
            of_pairs(inputs.item_features),
        ]
        sides = [of_pairs(inputs.user_dense[:, None]), of_pairs(inputs.item_dense)]
        dense = jnp.concatenate(sides, axis=-1)
        passed_on = []
        if dense.shape[-1]:
            x = nn.relu(MLP((*self.bottom, self.embedding_dim), name="bottom_mlp")(dense))
            vectors.insert(0, x[:, None])
            passed_on = [x]
        dots = pairwise_dots(vectors)
        top = MLP((*self.top, 1), dropout=self.dropout, name="top_mlp")
        return top(jnp.concatenate([*passed_on, dots], axis=-1), train).reshape(pairs)

    def _project(self, rows: jax.Array, name: str) -> jax.Array:
        if rows.shape[-1] == self.embedding_dim:
            return rows
        return nn.Dense(self.embedding_dim, use_bias=False, name=name)(rows)


@jax.custom_vjp
def pairwise_dots(parts: Sequence[jax.Array]) -> jax.Array:
    """Dot products of all pairs of different vectors: parts [B, n_i, E] -> [B, n * (n - 1) / 2].

    The order is that of the strictly lower triangle, row by row (arXiv 1906.00091, section 2.1.3),
    of the n = sum(n_i) vectors side by side. Parts of which no gradient is asked, such as frozen
    embeddings, cost nothing on the way back.
    """
    vectors = jnp.concatenate(parts, axis=1)
    dots = jnp.einsum("bne,bme->bnm", vectors, vectors)
    rows, columns = np.tril_indices(vectors.shape[1], -1)
    return dots[:, rows, columns]


def _pairwise_dots_forward(parts):
    values = [part.value for part in parts]
    # None and () are structure and not data, so that they reach the way back at compile time.
    asked = tuple(() if part.perturbed else None for part in parts)
    return pairwise_dots(values), (values, asked)


def _pairwise_dots_backward(
    residuals: tuple[Sequence[jax.Array], Sequence[tuple[()] | None]], grads: jax.Array
) -> tuple[list[jax.Array | None]]:
    """One product with rows of the symmetric matrix of the pairs' gradients, read, not scattered.

    What JAX derives would scatter the gradients into zeros and multiply twice, for all vectors.
    """
    parts, asked = residuals
    ends = np.cumsum([part.shape[1] for part in parts])
    own = [
        range(end - part.shape[1], end) if flag == () else range(0)
        for part, end, flag in zip(parts, ends, asked, strict=True)
    ]
    pairs = grads.shape[1]
    rows, columns = np.tril_indices(ends[-1], -1)
    pair_of = np.full((ends[-1], ends[-1]), pairs)  # the diagonal reads the padding
    pair_of[rows, columns] = pair_of[columns, rows] = np.arange(pairs)
    pair_of = pair_of[np.concatenate(own).astype(int)]
    symmetric = jnp.pad(grads, ((0, 0), (0, 1)))[:, pair_of]
    moved = jnp.einsum("bnm,bme->bne", symmetric, jnp.concatenate(parts, axis=1))
    pieces = jnp.split(moved, np.cumsum([len(places) for places in own])[:-1], axis=1)
    return ([x if flag == () else None for x, flag in zip(pieces, asked, strict=True)],)


pairwise_dots.defvjp(_pairwise_dots_forward, _pairwise_dots_backward, symbolic_zeros=True)
