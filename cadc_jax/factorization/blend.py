"""Several factorisations side by side, as one: their scores are added, each with a weight.

A vector is the concatenation of the vectors of all parts. So a network sees each part, and the dot
product of the whole is the weighted sum of their scores. Weights are in units of the root mean
square of a part's scores, over all users and items.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cadc_jax.errors import ConfigError
from cadc_jax.factorization.factors import Factors

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)  # of a part beside the first


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the user and the item vectors of a part are multiplied with."""

    user: float
    item: float


def scale_of(part: Factors, weight: float) -> Scale:
    """The scale at which the scores of a part have the root mean square `weight`.

    Entries of items get a mean square of 1, so all parts are stored with the same relative error.
    """
    user, item = (np.asarray(x, np.float64) for x in (part.user, part.item))
    scores = np.sqrt(np.sum((user.T @ user) * (item.T @ item)) / (len(user) * len(item)))
    entries = np.sqrt(np.mean(np.square(item)))
    if not scores > 0:
        raise ConfigError("a part of the factorisation scores all pairs with 0: leave it out")
    return Scale(user=float(weight * entries / scores), item=float(1 / entries))


def join(parts: Sequence[Factors], scales: Sequence[Scale]) -> Factors:
    """One factorisation [U, sum of D] and [I, sum of D]; parts of weight 0 keep their columns."""
    pairs = list(zip(parts, scales, strict=True))
    return Factors(
        np.concatenate([np.asarray(part.user) * scale.user for part, scale in pairs], axis=1),
        np.concatenate([np.asarray(part.item) * scale.item for part, scale in pairs], axis=1),
    )


def choose_weights(
    parts: Sequence[Factors], quality: Callable[[Factors], float]
) -> tuple[float, ...]:
    """A weight for each part: 1 for the first, and for each further one the best of WEIGHTS.

    Args:
      parts: factorisations of the same users and items, without biases.
      quality: of a factorisation on the validation split, higher is better.
    """
    chosen = [1.0]
    for count in range(2, len(parts) + 1):
        found = {}
        for weight in WEIGHTS:
            pairs = zip(parts[:count], [*chosen, weight], strict=True)
            found[weight] = quality(join(parts[:count], [scale_of(*pair) for pair in pairs]))
        chosen.append(max(WEIGHTS, key=found.__getitem__))
    return tuple(chosen)
