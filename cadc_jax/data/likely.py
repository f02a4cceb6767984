"""Items that factors take for a user's own: a sample does not say which they are.

A sample holds a part of each user's pairs. A draw that avoids these alone often hits a pair that
was not kept. Such unknown positives are few, but the factors have seen them and score them high,
higher than most items: as negatives they teach a network to trust the factors less.
"""

import dataclasses
import math

import numpy as np

PROBES = 1024  # items whose scores place a user's threshold; all items, if there are no more
_LARGEST = 127  # of the numbers that factors are rounded to
_EXACT = 1 << 24  # float32 has all whole numbers up to it
_USERS = 1024  # whose thresholds are found at a time
_PAIRS = 512  # scored at a time: their factors fit in a core's cache


@dataclasses.dataclass(frozen=True)
class LikelyItems:
    """The items that factors rank first for each user, as many as the user has training rows.

    Each row of factors is rounded to whole numbers with a scale. Scores are then the same on every
    device: the sums of products are exact.

    Attributes:
      user: [U, D] float32, whole numbers from -127 to 127.
      item: [I, D] float32, likewise.
      scale: [I] float32; an item's score for a user is the dot product times the item's scale.
      bound: [U] float32, the score above which an item is likely.
    """

    user: np.ndarray
    item: np.ndarray
    scale: np.ndarray
    bound: np.ndarray

    @classmethod
    def of(
        cls, factors: tuple[np.ndarray, np.ndarray], rows_user: np.ndarray, rate: float
    ) -> "LikelyItems":
        """The likely items of the users of some rows; other users have none.

        The rows are a sample. A user with k of them has had about k / rate rows before. That many
        items, among all but id 0, have the user's highest scores. The bound below these is
        estimated from PROBES items at even distances. Where it is above all of them, no item is
        likely, and a uniform draw hardly ever is the user's.

        Args:
          factors: user [U, D] and item [I, D], whose dot product is the score; I is at least 2.
          rows_user: [N] user ids of the kept rows.
          rate: share of all rows that was kept, in (0, 1].
        """
        (user, _), (item, scale) = (_rounded(np.asarray(table, np.float32)) for table in factors)
        items = len(item) - 1
        probed = 1 + np.arange(min(PROBES, items)) * items // min(PROBES, items)
        rows = np.bincount(rows_user, minlength=len(user))
        above = np.minimum(np.rint(rows / rate / items * len(probed)).astype(int), len(probed))
        bound = np.full(len(user), np.inf, np.float32)
        chosen = np.flatnonzero(above)
        for start in range(0, len(chosen), _USERS):
            part = chosen[start : start + _USERS]
            scores = np.sort(user[part] @ item[probed].T * scale[probed], axis=1)
            scores = np.pad(scores, ((0, 0), (1, 0)), constant_values=-np.inf)
            # Between two scores, where rounding decides nothing.
            ends = np.arange(len(part))[:, None], -above[part, None] - [0, 1]
            bound[part] = scores[ends].mean(axis=1)
        return cls(user, item, scale, bound)

    def contains(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Whether each item is likely for its user: ids [n] and [n] -> bool [n]."""
        found = np.zeros(len(user), bool)
        for start in range(0, len(user), _PAIRS):
            part = slice(start, start + _PAIRS)
            # All ids are in range; mode 'clip' saves `take` a check of that.
            users = self.user.take(user[part], axis=0, mode="clip")
            items = self.item.take(item[part], axis=0, mode="clip")
            scores = np.einsum("nd,nd->n", users, items) * self.scale[item[part]]
            found[part] = scores > self.bound[user[part]]
        return found


def _rounded(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers [n, D] and scales [n] of rows [n, D]; a dot product of two is below 2**24."""
    levels = min(_LARGEST, math.isqrt(_EXACT // table.shape[1]))
    scale = np.abs(table).max(axis=1) / np.float32(levels)
    return np.rint(table / np.where(scale > 0, scale, 1)[:, None]), scale
