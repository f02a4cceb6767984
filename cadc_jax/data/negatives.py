"""Negative items: drawn uniformly, seeded, not among the items a user is known to have touched."""

import dataclasses

import numpy as np

from cadc_jax.data import sampling
from cadc_jax.errors import ConfigError

FILTER_BITS = 30  # of a pair set's filter at most, as a power of two: 128 MiB
ATTEMPTS = 8  # redraws of a training negative; after 8, a user of half the items keeps 1 in 256


def pair_keys(user: np.ndarray, item: np.ndarray, num_items: int) -> np.ndarray:
    """One int64 a (user, item) pair, ordered by user and then item."""
    return np.asarray(user, np.int64) * num_items + item


def contains(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each wanted key is in the sorted `keys`."""
    if not len(keys):
        return np.zeros(np.shape(wanted), bool)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return keys[places] == wanted


@dataclasses.dataclass(frozen=True)
class PairSet:
    """A set of pair keys, with a filter that answers most questions at once.

    Attributes:
      keys: [P] int64, sorted.
      filter: [2**k / 8] uint8: bit j is set iff some key is j modulo 2**k. Where 2**k is above all
        keys the filter is the set itself.
    """

    keys: np.ndarray
    filter: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray) -> "PairSet":
        """The set of sorted, distinct `keys`, as `pair_keys` makes them."""
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


def draw_for_evaluation(
    user: np.ndarray, seen: np.ndarray, num_items: int, count: int, seed: int
) -> np.ndarray:
    """Draws distinct items that a user never touched, uniformly.

    Args:
      user: [n] user ids.
      seen: sorted `pair_keys` of everything any user touched, in any split.
      num_items: number of item ids; id 0 is never drawn.
      count: items to draw for each row.
      seed: of the draw; row i's items depend on i and the seed alone.

    Returns:
      [n, count] int32.

    Raises:
      ConfigError: if some user has not enough unseen items.
    """
    if count >= num_items:  # the draws below would take long to find out
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
        everything = np.arange(1, num_items)
        unseen = everything[~contains(seen, pair_keys(user[row], everything, num_items))]
        if len(unseen) < count:
            raise ConfigError(
                f"a user has seen all but {len(unseen)} of the {num_items - 1} items, so that "
                f"{count} unseen ones can't be drawn: lower data.num_negatives"
            )
        order = np.argsort(sampling.mix64(row * np.int64(1 << 20) + unseen, seed))
        drawn[row] = unseen[order[:count]]
    return drawn


def draw_for_training(
    user: np.ndarray, draws: np.ndarray, known: PairSet, num_items: int, count: int, seed: int
) -> np.ndarray:
    """Draws items that are not among the user's training items, with repeats.

    Held-out items are drawn like any other unseen item: sparing them would tell the model which
    of a user's unseen items come next.

    Args:
      user: [n] user ids.
      draws: [n] int64, a number for each draw; equal numbers draw equal items.
      known: `pair_keys` of all training rows, kept or not.
      num_items: number of item ids; id 0 is never drawn.
      count: negatives for each user.
      seed: of the draw.

    Returns:
      [n, count] int32.
    """
    numbers = (draws[:, None] * count + np.arange(count)).ravel() * ATTEMPTS
    users = np.repeat(user, count)

    def draw(numbers: np.ndarray) -> np.ndarray:
        return (1 + sampling.mix64(numbers, seed) % np.uint64(num_items - 1)).astype(np.int32)

    items = draw(numbers)
    left = np.flatnonzero(known.contains(pair_keys(users, items, num_items)))
    for attempt in range(1, ATTEMPTS):
        items[left] = draw(numbers[left] + attempt)
        left = left[known.contains(pair_keys(users[left], items[left], num_items))]
    return items.reshape(len(user), count)
