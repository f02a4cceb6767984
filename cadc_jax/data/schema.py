"""What a reader hands to `prepare`: raw columns, before splits, vocabularies and encoding.

Identifiers and categorical values are NumPy arrays of raw values, either int64 (missing: -1) or
fixed-width unicode (missing: ''). Dense features are float32 (missing: NaN). Rows stay in the
order of the source, which is the tie-break of every split by time.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

TRAIN, VALIDATION, TEST = 0, 1, 2  # values of `RawTable.fold`
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class EntityTable:
    """Content of users or of items: one row an entity.

    Attributes:
      ids: [n] raw identifiers, in the same type as the column of `RawTable` they describe.
      dense: name -> [n] float32.
      categorical: name -> [n] int64 or unicode.
      bags: name -> [n] unicode, sets of values such as genres, with '|' between them.
      titles: [n] unicode, what a person calls the entity, or None.
    """

    ids: np.ndarray
    dense: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    categorical: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    bags: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    titles: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What a reader met: shown to the user and kept in the manifest.

    Attributes:
      rows: data rows returned.
      padded: rows accepted after missing trailing fields were filled with 'missing'.
      malformed: rows left out, never more than the configured share.
      examples: a few 'file:line: what is wrong' strings, for the malformed rows.
    """

    rows: int
    padded: int = 0
    malformed: int = 0
    examples: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RawTable:
    """Raw rows of one data set.

    Attributes:
      user: [N] raw user identifiers, or None where the source names none (click logs).
      item: [N] raw item identifiers, or None likewise.
      label: [N] float32 in {0, 1} for click logs, None for interactions (all are positive).
      value: [N] float32 strength of the interaction (rating, count), or None (all 1).
      timestamp: [N] int64 seconds, or None if the source has none.
      dense: name -> [N] float32 features of the row (its context).
      categorical: name -> [N] raw values of the row.
      fold: [N] int8 of TRAIN / VALIDATION / TEST where the data brings its own split, else None.
      negatives: [number of TEST rows, K] raw item ids to rank each test row's item against, in the
        order of the TEST rows, where the data brings its own, else None.
      users: content of users, or None.
      items: content of items, or None.
      report: what the reader met.
    """

    report: ReadReport
    user: np.ndarray | None = None
    item: np.ndarray | None = None
    label: np.ndarray | None = None
    value: np.ndarray | None = None
    timestamp: np.ndarray | None = None
    dense: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    categorical: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fold: np.ndarray | None = None
    negatives: np.ndarray | None = None
    users: EntityTable | None = None
    items: EntityTable | None = None
