"""DLRM: deep learning recommendation model (Naumov et al. 2019, arXiv 1906.00091)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadc_jax.errors import check_at_least, check_below_one
from cadc_jax.models.embeddings import Inputs
from cadc_jax.models.mlp import MLP


class DLRM(nn.Module):
    """Bottom MLP over dense features, dot products of all pairs of embeddings, top MLP.

    If user or item rows are not `embedding_dim` wide, a learned linear projection makes them so.

    Attributes:
      embedding_dim: E, width of the embeddings that interact.
      bottom: sizes of the bottom MLP's hidden layers (an output layer of size E follows).
      top: sizes of the top MLP's hidden layers (an output layer of size 1 follows).
      dropout: dropout of the top MLP's hidden layers.
    """

    embedding_dim: int = 16
    bottom: Sequence[int] = (64, 32)
    top: Sequence[int] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "bottom", "top"):
            check_at_least(f"dlrm.{name}", getattr(self, name), 1)
        check_below_one("dlrm.dropout", self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> jax.Array:
        """Logits [B, G] float32 of each user's items; `train` turns dropout on."""
        pairs = len(inputs.user), inputs.item.shape[1]

        def for_pairs(x: jax.Array) -> jax.Array:  # [B or 1, G or 1, ...] -> [B * G, ...]
            return jnp.broadcast_to(x, pairs + x.shape[2:]).reshape(
                pairs[0] * pairs[1], *x.shape[2:]
            )

        vectors = [
            for_pairs(self._project(inputs.user, "project_user")[:, None, None]),
            for_pairs(inputs.user_features[:, None]),
            for_pairs(self._project(inputs.item, "project_item")[:, :, None]),
            for_pairs(inputs.item_features),
        ]
        dense_parts = [for_pairs(inputs.user_dense[:, None]), for_pairs(inputs.item_dense)]
        dense = jnp.concatenate(dense_parts, axis=-1)
        bottom = []
        if dense.shape[-1]:
            x = nn.relu(MLP((*self.bottom, self.embedding_dim), name="bottom_mlp")(dense))
            vectors.insert(0, x[:, None])
            bottom = [x]
        dots = pairwise_dots(vectors)
        top = MLP((*self.top, 1), dropout=self.dropout, name="top_mlp")
        return top(jnp.concatenate([*bottom, dots], axis=-1), train).reshape(pairs)

    def _project(self, rows: jax.Array, name: str) -> jax.Array:
        if rows.shape[-1] == self.embedding_dim:
            return rows
        return nn.Dense(self.embedding_dim, use_bias=False, name=name)(rows)


@jax.custom_vjp
def pairwise_dots(parts: Sequence[jax.Array]) -> jax.Array:
    """Dot products of all pairs of different vectors: parts [B, n_i, E] -> [B, n * (n - 1) / 2].

    The result is the strictly lower triangle, row by row (arXiv 1906.00091, section 2.1.3), of the
    products of the n = sum(n_i) vectors. Parts that need no gradient, such as frozen embeddings,
    cost nothing in the backward pass.
    """
    vectors = jnp.concatenate(parts, axis=1)
    dots = jnp.einsum("bne,bme->bnm", vectors, vectors)
    rows, columns = np.tril_indices(vectors.shape[1], -1)
    return dots[:, rows, columns]


def _pairwise_dots_forward(parts):
    values = [part.value for part in parts]
    # () and None belong to the structure of the residuals: they are known at compile time.
    needed = tuple(() if part.perturbed else None for part in parts)
    return pairwise_dots(values), (values, needed)


def _pairwise_dots_backward(
    residuals: tuple[Sequence[jax.Array], Sequence[tuple[()] | None]], grads: jax.Array
) -> tuple[list[jax.Array | None]]:
    """Gradients of the parts that need one, by one matrix product.

    The gradient of vector i is sum_j g_ij v_j, with g_ij the gradient of the dot product of i and
    j. The symmetric matrix g is gathered from `grads`, only for the rows of the parts that need a
    gradient. JAX's own derivative scatters into zeros and multiplies twice, for all vectors.
    """
    parts, needed = residuals
    ends = np.cumsum([part.shape[1] for part in parts])
    places = [  # of the vectors that need a gradient, part by part
        range(end - part.shape[1], end) if flag == () else range(0)
        for part, end, flag in zip(parts, ends, needed, strict=True)
    ]
    pairs = grads.shape[1]
    rows, columns = np.tril_indices(ends[-1], -1)
    pair_of = np.full((ends[-1], ends[-1]), pairs)  # the diagonal reads the zero padding
    pair_of[rows, columns] = pair_of[columns, rows] = np.arange(pairs)
    pair_of = pair_of[np.concatenate(places).astype(int)]
    symmetric = jnp.pad(grads, ((0, 0), (0, 1)))[:, pair_of]
    vectors = jnp.einsum("bnm,bme->bne", symmetric, jnp.concatenate(parts, axis=1))
    pieces = jnp.split(vectors, np.cumsum([len(part) for part in places])[:-1], axis=1)
    return ([x if flag == () else None for x, flag in zip(pieces, needed, strict=True)],)


pairwise_dots.defvjp(_pairwise_dots_forward, _pairwise_dots_backward, symbolic_zeros=True)
