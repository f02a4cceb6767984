"""The interaction matrix of a log, of which no process holds more than its share.

`read` counts the entries of every user and item; these numbers are all that processes tell each
other. Where each row is solved follows from them (`interactions.make_layout`), and each process
then reads the log once more for the users that its devices solve, and once for the items.

A process never reads more than a block of the log at a time, and drops what it does not keep.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from cadc_jax import sharding
from cadc_jax.factorization.interactions import (
    Interactions,
    SparseRows,
    check_rows,
    csr_matrix,
    share_of_rows,
    sparse_rows,
)

BLOCK_ROWS = 1 << 20  # of the log, read at a time

Block = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # users, items, and values if any


@dataclasses.dataclass(frozen=True)
class Log:
    """A log that can be read anywhere.

    Attributes:
      rows: number of rows.
      num_users: U.
      num_items: I.
      read: (from, to) -> users [n], items [n] and values [n] float32 of the rows from, ..., to - 1
        that count. No values: each counts as 1, in every block.
    """

    rows: int
    num_users: int
    num_items: int
    read: Callable[[int, int], Block]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Rows from `start` to `stop` (None: the end), a block after the other."""
        stop = self.rows if stop is None else stop
        for at in range(start, stop, BLOCK_ROWS):
            yield self.read(at, min(at + BLOCK_ROWS, stop))


@dataclasses.dataclass(frozen=True)
class LogRows:
    """Users or items of a log, which are read when they are taken.

    Attributes:
      log: the log.
      of_items: whether these are the items.
      counts: [N] int64, entries of each: distinct (user, item) pairs.
      lines: [N] int64, rows of the log of each.
      total: the sum of all values.
      all_ones: whether every value is 1.
    """

    log: Log
    of_items: bool
    counts: np.ndarray
    lines: np.ndarray
    total: float = 0.0
    all_ones: bool = True

    def take(self, rows: np.ndarray) -> SparseRows:
        """Some of the rows [n], whose ids are distinct and ascend; it reads the whole log."""
        number = np.full(len(self.lines), -1, np.int32)  # of those that are taken
        number[rows] = np.arange(len(rows))
        room = int(self.lines[rows].sum())
        row, column = np.empty((2, room), np.int32)
        value, filled = np.ones(room, np.float32), 0
        for user, item, weight in self.log.blocks():
            own, other = (item, user) if self.of_items else (user, item)
            found = number[own]
            at = np.flatnonzero(found >= 0)
            place = slice(filled, filled + len(at))
            row[place], column[place] = found[at], other[at]
            if weight is not None:
                value[place] = weight[at]
            filled += len(at)
        columns = self.log.num_users if self.of_items else self.log.num_items
        return sparse_rows(csr_matrix(row, column, value, (len(rows), columns)))


def read(log: Log) -> Interactions[LogRows]:
    """The matrix of a log; all processes call it, and each can read the whole log.

    The values of a repeated pair are added.

    Raises:
      DataError: in the process that finds an id out of range or a value that is not finite.
    """
    process, processes = jax.process_index(), jax.process_count()
    users, items = _rows_of_log(log, process, processes)
    # Repeated pairs count once: which are repeated is seen where all entries of a user are.
    own = share_of_rows(users, process, processes)
    part = LogRows(log, False, users, users).take(own)
    distinct = np.zeros(log.num_users + log.num_items + 1 + processes, np.int64)
    distinct[own] = part.counts
    distinct[log.num_users : -1 - processes] = np.bincount(part.columns, minlength=log.num_items)
    distinct[-1 - processes] = not part.all_ones
    totals = distinct[-processes:].view(np.float64)
    totals[process] = part.total
    del part
    distinct = sharding.sum_over_processes(distinct)
    facts = float(distinct[-processes:].view(np.float64).sum()), not distinct[-1 - processes]
    return Interactions(
        LogRows(log, False, distinct[: log.num_users], users, *facts),
        LogRows(log, True, distinct[log.num_users : -1 - processes], items, *facts),
    )


def _rows_of_log(log: Log, process: int, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """How many rows of the log each user [U] and each item [I] has; each process counts a share."""
    counts = np.zeros(log.num_users + log.num_items, np.int64)
    users, items = np.split(counts, [log.num_users])
    start, stop = (log.rows * n // processes for n in (process, process + 1))
    for user, item, value in log.blocks(start, stop):
        check_rows(user, item, value, log.num_users, log.num_items)
        np.add.at(users, user, 1)
        np.add.at(items, item, 1)
    users, items = np.split(sharding.sum_over_processes(counts), [log.num_users])
    return users, items
