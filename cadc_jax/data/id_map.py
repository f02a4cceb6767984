"""Numbers for values that name users or items, such as strings."""

import dataclasses
from typing import Any

import numpy as np

from cadc_jax.errors import DataError


@dataclasses.dataclass(frozen=True, repr=False)
class IdMap:
    """Ids of values: 1, 2, ... in their order, and 0 for all that are not known.

    Attributes:
      known: [n], different values, sorted; id k is the one at place k - 1.
    """

    known: np.ndarray

    @classmethod
    def of(cls, values: Any) -> "IdMap":
        """The map of all values [N] of a column: an array, a list, or a Series.

        Raises:
          DataError: if values of several types are mixed, or some are missing.
        """
        column = _column(values)
        try:
            return cls(np.unique(column))
        except TypeError as error:
            raise DataError(
                f"the values cannot be sorted ({error}): make them of one type"
            ) from None

    def __len__(self) -> int:
        """Number of ids, 0 included: U or I."""
        return len(self.known) + 1

    def __repr__(self) -> str:
        return f"IdMap({len(self.known):,} values)"

    def ids(self, values: Any) -> np.ndarray:
        """Ids [N] int32 of values [N]; 0 for values that are not known."""
        column = _column(values)
        if not len(self.known) or column.dtype.kind != self.known.dtype.kind:
            return np.zeros(len(column), np.int32)
        places = np.minimum(np.searchsorted(self.known, column), len(self.known) - 1)
        return np.where(self.known[places] == column, places + 1, 0).astype(np.int32)

    def values(self, ids: Any) -> list[Any]:
        """The value of each id [N]; None for 0 and for ids that do not exist, such as -1."""
        return [
            self.known[i - 1].item() if 0 < i <= len(self.known) else None
            for i in np.asarray(ids).ravel().tolist()
        ]


def _column(values: Any) -> np.ndarray:
    """[N]; texts as text, not as objects."""
    column = np.asarray(values)
    if column.ndim != 1:
        raise DataError(f"values must be a column [N], not of shape {column.shape}")
    if column.dtype.kind == "O":
        missing = sum(x is None or x != x for x in column.tolist())
        if missing:
            raise DataError(f"{missing:,} values are missing: leave these rows out")
        if all(isinstance(x, str) for x in column.tolist()):
            column = column.astype(str)
    return column
