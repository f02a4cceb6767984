"""Logs in data frames (pandas, Polars, PyArrow, ...) for the functions on plain arrays, and back.

log = cadc.Log.of(frame, user="customer", item="product", value="times")
factors = cadc.factorize(log)
scores, items = cadc.recommend(model, log.users.ids(["ann"]), k=10, seen=log.pairs)
print(log.recommended(["ann"], items, scores))  # a frame of the same kind
"""

import dataclasses
from typing import Any

import narwhals as nw
import numpy as np

from cadc_jax.data.id_map import IdMap
from cadc_jax.errors import DataError


@dataclasses.dataclass(frozen=True, repr=False)
class Log:
    """Rows of a frame, with numbers in place of users and items.

    Attributes:
      user: [N] int32 ids of users.
      item: [N] int32 ids of items.
      users: the users that the ids stand for.
      items: the items that the ids stand for.
      value: [N] float32 strength of each row, or None.
      label: [N] float32 in {0, 1}, or None.
      backend: the library of the frame.
      names: columns of users and items in the frame.
    """

    user: np.ndarray
    item: np.ndarray
    users: IdMap
    items: IdMap
    value: np.ndarray | None
    label: np.ndarray | None
    backend: Any
    names: tuple[str, str]

    @classmethod
    def of(
        cls, frame: Any, user: str, item: str, value: str | None = None, label: str | None = None
    ) -> "Log":
        """The rows of a frame.

        Args:
          frame: a pandas, Polars, Modin or cuDF data frame, a PyArrow table, or a lazy one of
            these, which is collected.
          user: its column of users.
          item: its column of items.
          value: its column of strengths, or None.
          label: its column of 0 and 1, or None.

        Raises:
          DataError: if it is no frame, lacks a column, or has missing or other values in one.
        """
        try:
            rows = nw.from_native(frame)
        except TypeError:
            raise DataError(
                f"{type(frame).__name__}: no data frame; give one of pandas, Polars or PyArrow"
            ) from None
        if isinstance(rows, nw.LazyFrame):
            rows = rows.collect()
        wanted = [name for name in (user, item, value, label) if name is not None]
        for name in wanted:
            if name not in rows.columns:
                raise DataError(f"no column '{name}'; there are {', '.join(rows.columns)}")
        users, items = (IdMap.of(_ids(rows, name)) for name in (user, item))
        return cls(
            users.ids(_ids(rows, user)),
            items.ids(_ids(rows, item)),
            users,
            items,
            None if value is None else _numbers(rows, value),
            None if label is None else _numbers(rows, label),
            rows.implementation,
            (user, item),
        )

    def __len__(self) -> int:
        """N."""
        return len(self.user)

    def __repr__(self) -> str:
        return f"Log({len(self):,} rows, {self.users!r}, {self.items!r})"

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items [N] of the rows."""
        return self.user, self.item

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """The columns that `train` takes: `user`, `item` and, if there are labels, `label`."""
        columns = {"user": self.user, "item": self.item}
        return columns if self.label is None else columns | {"label": self.label}

    def recommended(self, users: Any, items: np.ndarray, scores: np.ndarray) -> Any:
        """A frame of the kind of the log with what is recommended.

        Args:
          users: [B] users as in the log.
          items: [B, k] ids, best first, as `recommend` returns them; -1 for none.
          scores: [B, k] their scores.

        Returns:
          A frame of at most B k rows: user, rank (from 1), item and score, under the names of the
          log for the first and the third.
        """
        items, scores = np.asarray(items), np.asarray(scores)
        row, place = np.nonzero(items > 0)
        user, item = self.names
        found = {
            user: [list(users)[n] for n in row],
            "rank": (place + 1).tolist(),
            item: self.items.values(items[row, place]),
            "score": scores[row, place].tolist(),
        }
        return nw.from_dict(found, backend=self.backend).to_native()


def _ids(rows: "nw.DataFrame[Any]", name: str) -> np.ndarray:
    """A column of ids; texts as objects, which `IdMap` takes."""
    column = rows[name]
    missing = int(column.null_count())
    if missing:
        raise DataError(f"column '{name}': {missing:,} values are missing: leave these rows out")
    if column.dtype == nw.Categorical or column.dtype == nw.Enum:
        column = column.cast(nw.String)
    return column.to_numpy()


def _numbers(rows: "nw.DataFrame[Any]", name: str) -> np.ndarray:
    """A column of finite numbers, as float32."""
    try:
        numbers = rows[name].to_numpy().astype(np.float32)
    except (TypeError, ValueError):
        raise DataError(f"column '{name}': holds {rows[name].dtype}, not numbers") from None
    if not np.isfinite(numbers).all():
        raise DataError(f"column '{name}': {np.sum(~np.isfinite(numbers)):,} numbers are missing")
    return numbers
