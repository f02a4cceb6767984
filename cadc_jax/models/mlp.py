"""The multi-layer perceptron that the models are built from."""

from collections.abc import Sequence

import jax
from flax import linen as nn


class MLP(nn.Module):
    """Dense layers with ReLU after each but the last: [..., F] -> [..., sizes[-1]].

    Attributes:
      sizes: width of each layer.
      zero_output: whether the last layer, and with it the output, starts at 0.
      dropout: share of each hidden layer's units that training drops.
    """

    sizes: Sequence[int]
    zero_output: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for size in self.sizes[:-1]:
            x = nn.relu(nn.Dense(size)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        init = nn.initializers.zeros if self.zero_output else nn.initializers.lecun_normal()
        return nn.Dense(self.sizes[-1], kernel_init=init)(x)
