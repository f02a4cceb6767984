"""Draws negative items: uniform, seeded, and none that is known or likely to be the user's."""

import dataclasses

import numpy as np

from cadc_jax.data import sampling
from cadc_jax.data.likely import LikelyItems
from cadc_jax.data.table import Columns
from cadc_jax.errors import ConfigError

FILTER_BITS = 30  # largest filter of a `PairSet`, as a power of two: 128 MiB
ATTEMPTS = 8  # draws of a training negative; if the user knows half the items, 1 in 256 is known


def pair_keys(user: np.ndarray, item: np.ndarray, num_items: int) -> np.ndarray:
    """One int64 key for each (user, item) pair; keys sort by user, then item."""
    return np.asarray(user, np.int64) * num_items + item


def distinct_keys(user: np.ndarray, item: np.ndarray, num_items: int) -> np.ndarray:
    """The `pair_keys` of pairs, sorted, each once."""
    return np.unique(pair_keys(user, item, num_items))


def contains(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each wanted key is among the sorted `keys`: bool, in the shape of `wanted`."""
    if not len(keys):
        return np.zeros(np.shape(wanted), bool)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return keys[places] == wanted


@dataclasses.dataclass(frozen=True)
class PairSet:
    """A set of pair keys, with a filter that rules out most other keys without a search.

    Attributes:
      keys: [P] int64, sorted.
      filter: [2**k / 8] uint8: bit j is set if and only if some key is j modulo 2**k. If 2**k is
        above all keys, the filter alone decides.
    """

    keys: np.ndarray
    filter: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray) -> "PairSet":
        """The set of `keys` [P], which are sorted, distinct `pair_keys`."""
        largest = int(keys[-1]) if len(keys) else 0
        bits = min(max(3, largest.bit_length()), FILTER_BITS)  # 3: at least a byte
        marks = np.zeros(1 << (bits - 3), np.uint8)
        if len(keys):
            places = np.sort(keys & ((1 << bits) - 1))
            first = np.flatnonzero(np.diff(places >> 3, prepend=-1))  # of each byte's places
            ones = np.left_shift(1, places & 7).astype(np.uint8)
            marks[places[first] >> 3] = np.bitwise_or.reduceat(ones, first)
        return cls(keys, marks)

    def contains(self, wanted: np.ndarray) -> np.ndarray:
        """Whether each wanted key (>= 0) is in the set: [N] int64 -> [N] bool."""
        size = 8 * len(self.filter)
        places = wanted & (size - 1)
        found = (self.filter[places >> 3] >> (places & 7).astype(np.uint8) & 1).astype(bool)
        if max(self.keys[-1:].max(initial=0), wanted.max(initial=0)) >= size:
            maybe = np.flatnonzero(found)
            found[maybe] = contains(self.keys, wanted[maybe])
        return found


@dataclasses.dataclass(frozen=True)
class NegativeSampling:
    """How to draw the negatives of each positive row in training.

    Attributes:
      count: negatives for each positive.
      known: sorted, distinct `pair_keys` of the rows that are trained on; these pairs are no
        negatives.
      num_items: number of item ids, id 0 included.
      likely: items that are no negatives either, if the rows are a sample; None for none.
    """

    count: int
    known: np.ndarray
    num_items: int
    likely: LikelyItems | None = None

    @classmethod
    def of(
        cls, rows: Columns, count: int, num_items: int, likely: LikelyItems | None = None
    ) -> "NegativeSampling":
        """Negatives for rows with the columns `user` and `item` [N]; see the attributes."""
        known = distinct_keys(rows["user"], rows["item"], num_items)
        return cls(count, known, num_items, likely)


def draw_for_evaluation(
    user: np.ndarray, seen: np.ndarray, num_items: int, count: int, seed: int
) -> np.ndarray:
    """Draws distinct items that the user never interacted with, uniformly.

    Args:
      user: [n] user ids.
      seen: sorted `pair_keys` of the interactions in all splits.
      num_items: number of item ids; id 0 is never drawn.
      count: items to draw for each row.
      seed: seed of the draw; the items of row i depend on i, its user and the seed only.

    Returns:
      [n, count] int32.

    Raises:
      ConfigError: if a user has fewer than `count` unseen items.
    """
    if count >= num_items:  # found here at once; the draws below would take long
        raise ConfigError(
            f"data.num_negatives={count}: there are {num_items - 1} items; choose fewer"
        )
    drawn = np.zeros((len(user), count), np.int32)
    filled = np.zeros(len(user), np.int64)
    for attempt in range(2 * count + 20):
        rows = np.flatnonzero(filled < count)
        hashes = sampling.mix64(rows * np.int64(1 << 20) + attempt, seed)
        candidate = (1 + hashes % np.uint64(num_items - 1)).astype(np.int32)
        new = ~contains(seen, pair_keys(user[rows], candidate, num_items))
        new &= ~(drawn[rows] == candidate[:, None]).any(axis=1)
        rows, candidate = rows[new], candidate[new]
        drawn[rows, filled[rows]] = candidate
        filled[rows] += 1
    for row in np.flatnonzero(filled < count):  # the few users who have seen most items
        drawn[row] = _draw_from_unseen(int(row), user[row], seen, num_items, count, seed)
    return drawn


def draw_for_training(
    user: np.ndarray,
    draws: np.ndarray,
    known: PairSet,
    num_items: int,
    count: int,
    seed: int,
    likely: LikelyItems | None = None,
) -> np.ndarray:
    """Draws items that are not among the user's own; an item may be drawn repeatedly.

    A known or likely item is replaced up to `ATTEMPTS` - 1 times and then stays. Held-out items are
    drawn like any other: leaving them out would tell the model which unseen items come next.

    Args:
      user: [n] user ids.
      draws: [n] int64, a number for each row; the same user and number give the same items.
      known: `pair_keys` of the rows that are trained on.
      num_items: number of item ids; id 0 is never drawn.
      count: negatives for each row.
      seed: seed of the draw.
      likely: items to avoid besides; None for none.

    Returns:
      [n, count] int32.
    """
    numbers = (draws[:, None] * count + np.arange(count)).ravel() * ATTEMPTS
    users = np.repeat(user, count)

    def draw(numbers: np.ndarray) -> np.ndarray:
        return (1 + sampling.mix64(numbers, seed) % np.uint64(num_items - 1)).astype(np.int32)

    def own(places: np.ndarray) -> np.ndarray:
        found = known.contains(pair_keys(users[places], items[places], num_items))
        return found if likely is None else found | likely.contains(users[places], items[places])

    items = draw(numbers)
    wrong = np.flatnonzero(own(np.arange(len(items))))
    for attempt in range(1, ATTEMPTS):
        items[wrong] = draw(numbers[wrong] + attempt)
        wrong = wrong[own(wrong)]
    return items.reshape(len(user), count)


def _draw_from_unseen(
    row: int, user: np.ndarray, seen: np.ndarray, num_items: int, count: int, seed: int
) -> np.ndarray:
    """Draws for row number `row`, of `user` [], from a list of all its unseen items: [count]."""
    items = np.arange(1, num_items)
    unseen = items[~contains(seen, pair_keys(user, items, num_items))]
    if len(unseen) < count:
        raise ConfigError(
            f"a user has seen all but {len(unseen)} of the {num_items - 1} items, too few to draw "
            f"{count} unseen ones: lower data.num_negatives"
        )
    order = np.argsort(sampling.mix64(row * np.int64(1 << 20) + unseen, seed))
    return unseen[order[:count]]
