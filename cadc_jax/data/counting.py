"""Counts rows, values and moments over staged chunks, from which an encoder is made.

`count_chunks` counts the chunks of one host, and `total` adds up the hosts. Values and moments are
counted over training rows only; users also over fold-in rows, as held-out users need ids.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cadc_jax.data import encoding, raw
from cadc_jax.data.encoding import Statistics
from cadc_jax.data.hosts import Form, Message
from cadc_jax.data.raw import FOLD_IN, PARTS, TRAIN
from cadc_jax.data.staging import StagedChunk, map_chunks
from cadc_jax.data.vocabulary import COUNTED, Counter
from cadc_jax.runtime import manifest

# (rows of a chunk, the chunk) -> [n] int8, the place of each row in PARTS, or -1 for none.
FoldOf = Callable[[pa.Table, StagedChunk], np.ndarray]


class Counts(NamedTuple):
    """Counts of one host's chunks.

    Attributes:
      values: column -> counts of its values in training rows.
      dense: names of the F dense features.
      moments: [chunks, F, 4] float64, the fields of `Statistics` of training rows. They are kept by
        chunk, because a sum of floats depends on the order of its terms.
      rows: [4] int64, rows of each of PARTS.
    """

    values: dict[str, Counter]
    dense: list[str]
    moments: np.ndarray
    rows: np.ndarray


_KIND: manifest.Kind = {
    "max_values": {str: int},
    "overflowed": [str],
    "dense": [str],
    "chunks": int,
    "rows": [int],
}
_MOMENTS = pa.schema([("moment", pa.float64())])


def _pack(counts: Counts) -> Message:
    plain = {
        "max_values": {name: counter.max_values for name, counter in counts.values.items()},
        "overflowed": [name for name, counter in counts.values.items() if counter.overflowed],
        "dense": counts.dense,
        "chunks": len(counts.moments),
        "rows": counts.rows.tolist(),
    }
    moments = pa.table([counts.moments.ravel()], schema=_MOMENTS)
    merged = {name: x.merged for name, x in counts.values.items() if x.merged is not None}
    return Message(plain, {"moments": moments, **merged})


def _unpack(message: Message) -> Counts:
    plain = message.plain
    manifest.check(plain, _KIND, "the counts")
    if len(plain["rows"]) != len(PARTS):
        raise ValueError(f"rows of {len(plain['rows'])} splits")
    counters = {}
    for name, max_values in plain["max_values"].items():
        overflowed = name in plain["overflowed"]
        merged = None if overflowed else message.table(name, *COUNTED)
        counters[name] = Counter.of_counts(max_values, merged)
    moments = message.table("moments", _MOMENTS)["moment"].to_numpy()
    moments = moments.reshape(plain["chunks"], len(plain["dense"]), 4)
    return Counts(counters, plain["dense"], moments, np.array(plain["rows"], np.int64))


COUNTS = Form(_pack, _unpack)  # how a host tells its counts to the others


class Totals(NamedTuple):
    """Counts of all hosts.

    Attributes:
      values: column -> counts of its values in training rows.
      statistics: name of a dense feature -> its statistics in training rows.
      rows_by_host: [hosts, 4] int64, rows of each of PARTS.
    """

    values: dict[str, Counter]
    statistics: dict[str, Statistics]
    rows_by_host: np.ndarray


def count_chunks(
    chunks: Sequence[StagedChunk], fold_of: FoldOf, max_vocabulary: int, flag: float
) -> Counts:
    """Counts the values of training rows, and the rows of each split.

    Args:
      chunks: the chunks to count.
      fold_of: the split of each row of a chunk.
      max_vocabulary: distinct values to keep of a column; 0 for no bound.
      flag: value of a dense feature that is a set flag.
    """
    counters: dict[str, Counter] = {}
    statistics: dict[str, Statistics] = {}
    moments = []
    rows = np.zeros(len(PARTS), np.int64)

    def count(chunk: StagedChunk) -> ChunkCounts:
        rows = chunk.read()
        return count_rows(rows, fold_of(rows, chunk), flag)

    for values, statistics, chunk_rows in map_chunks("prepare: count", count, chunks):
        for name, (dictionary, counts) in values.items():
            counters.setdefault(name, Counter(max_vocabulary)).add(dictionary, counts)
        moments.append(moments_of(statistics))
        rows += chunk_rows
    for counter in counters.values():
        counter.merge_pending()
    dense = list(statistics)
    all_moments = np.array(moments, np.float64).reshape(len(chunks), len(dense), 4)
    return Counts(counters, dense, all_moments, rows)


def moments_of(statistics: Mapping[str, Statistics]) -> np.ndarray:
    """The statistics of the F dense features of a chunk, as in `Counts.moments`: [F, 4] float64."""
    return np.array([dataclasses.astuple(part) for part in statistics.values()], np.float64)


def total(counts: Iterable[Counts]) -> Totals:
    """Adds up the counts of all hosts, in their order."""
    counters: dict[str, Counter] = {}
    statistics: dict[str, Statistics] = {}
    rows = []
    for part in counts:
        for name, counter in part.values.items():
            if name in counters:
                counters[name].merge(counter)
            else:
                counters[name] = counter
        for moments in part.moments.tolist():
            for name, (count, mean, squares, only_flags) in zip(part.dense, moments, strict=True):
                one = Statistics(int(count), mean, squares, bool(only_flags))
                statistics[name] = statistics.get(name, Statistics()) + one
        rows.append(part.rows)
    return Totals(counters, statistics, np.stack(rows))


class ChunkCounts(NamedTuple):
    """Counts of one chunk.

    Attributes:
      values: column -> dictionary [n], and how often each value is in training rows [n].
      statistics: name of a dense feature -> its statistics in training rows.
      rows: rows of each split.
    """

    values: dict[str, tuple[pa.Array, np.ndarray]]
    statistics: dict[str, Statistics]
    rows: list[int]


def count_rows(rows: pa.Table, fold: np.ndarray, flag: float) -> ChunkCounts:
    """Counts the rows of a chunk.

    Args:
      rows: N rows.
      fold: [N] int8, the place of each row in PARTS, or -1 for none.
      flag: as for `count_chunks`.
    """
    train = fold == TRAIN
    selected = slice(None) if train.all() else train  # a slice copies nothing
    has_user = selected if isinstance(selected, slice) else train | (fold == FOLD_IN)
    values, statistics = {}, {}
    for name in rows.column_names:
        if name.startswith(raw.DENSE):
            present = rows[name].to_numpy()[selected]
            statistics[name.removeprefix(raw.DENSE)] = encoding.statistics_of(present, flag)
        elif name in raw.CODED or name.startswith(raw.CATEGORICAL):
            column = encoding.coded_column(rows, name)
            codes = column.indices.to_numpy()[has_user if name == "user" else selected]
            values[name] = column.dictionary, np.bincount(codes, minlength=len(column.dictionary))
    split_rows = [int(np.count_nonzero(fold == part)) for part in range(len(PARTS))]
    return ChunkCounts(values, statistics, split_rows)
