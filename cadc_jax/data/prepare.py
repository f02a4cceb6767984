"""Raw rows to a prepared table: splits first, then vocabularies and statistics, then encoding.

Whatever is learnt from rows (vocabularies, counts, means) is learnt from training rows only. The
source is read once into chunks on disk (`staging`); these are gone through twice, to count and to
encode. Memory is that of a few chunks and of the vocabularies, whatever the number of rows, unless
the split needs all rows side by side: then of some 60 bytes a row.

Several hosts may share the work (`hosts`): what each learns, all add up in the order of the
rows, so that the table is the same to the last bit.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import encoding, negatives, raw, splits, staging, vocabulary
from cadc_jax.data.encoding import Encoder, Statistics
from cadc_jax.data.hosts import ALONE, Hosts, exchange
from cadc_jax.data.raw import SPLITS, TEST, TRAIN, VALIDATION, EntityTable, RawTable, ReadReport
from cadc_jax.data.table import (
    ColumnWriter,
    Features,
    Schema,
    read_columns,
    write_columns,
    write_schema,
)
from cadc_jax.data.vocabulary import Vocabulary
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.progress import Progress

DROPPED = -1  # the fold of a row that another one, of the same user and item, stands for


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How raw rows become a prepared table.

    Attributes:
      task: 'click' or 'ranking'.
      split: 'leave_one_out', 'order', 'time', 'random' or 'given'; see `splits.assign`.
      validation: share of all rows that validates, for 'order', 'time' and 'random'.
      test: share of all rows that tests, likewise.
      min_count: training rows a value needs to have an id of its own; rarer ones share id 0.
      max_vocabulary: distinct training values a column may have before it is hashed to so many ids
        instead; 0 for any number. It bounds memory.
      user_features: categorical columns that name the user, in the place of a user id the source
        may have; more than one are crossed.
      item_features: likewise for items.
      log_dense: replace each dense feature of rows by log(1 + max(x, 0)), as the field does for
        Criteo's counts (negative values become 0). Flags (0 / 1) stay as they are.
      num_negatives: unseen items drawn for each held-out row ('1 + K' ranking protocol), where the
        data brings none.
      max_malformed: share of malformed rows to leave out before giving up.
      seed: of random splits and drawn negatives.
    """

    task: str
    split: str
    validation: float = 0.0
    test: float = 0.0
    min_count: int = 1
    max_vocabulary: int = 0
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()
    log_dense: bool = False
    num_negatives: int = 99
    max_malformed: float = 0.0
    seed: int = 0

    @property
    def flag(self) -> float:
        """What a 1 of the raw dense features is when statistics are taken."""
        return float(np.log1p(np.float32(1))) if self.log_dense else 1.0


def write_table(
    path: pathlib.Path,
    source: raw.RawData,
    config: PrepareConfig,
    hosts: Hosts = ALONE,
) -> Mapping[str, Any]:
    """Writes the prepared table of a source into the folder `path`.

    Several hosts write, byte for byte, what one writes: each reads, counts and encodes its share of
    the source, and the first adds what is not by row. All return, or raise, the same.

    Args:
      path: a folder, which is there; if there are several hosts, on a file system they share.
      source: the rows; the same for every host.
      config: likewise.
      hosts: those that call this together.

    Returns:
      Facts for the manifest: rows of each split, sizes, and what the reader met.

    Raises:
      ConfigError: if user or item features are missing or unknown, or too few items are unseen.
      DataError: if the source cannot be read or a split is empty.
    """
    if source.negatives is not None and config.split != "given":
        raise ConfigError(
            "the data's own evaluation negatives belong to its own split: set data.split='given' "
            "or leave the negatives out"
        )

    def change(rows: pa.Table) -> pa.Table:
        if config.task == "click" and "label" not in rows.column_names:
            raise ConfigError(
                "data.task='click' needs a label (0 or 1) in each row: name its column"
            )
        encoding.check_finite(rows)
        rows = encoding.named(rows, config.user_features, config.item_features)
        return encoding.logged(rows) if config.log_dense else rows

    folder = path / "staging"
    staged, report = staging.stage_rows(folder, source, config.max_malformed, change, hosts)
    assigned = _assign(staged, report, source.negatives, config)
    own = [chunk for chunk in staged if chunk.host == hosts.index]
    counted = exchange(hosts, folder, "count", lambda: _count(own, assigned, config))
    counts, statistics, rows_by_host = _total(counted)
    rows_of = rows_by_host.sum(axis=0).tolist()
    for name, count in zip(SPLITS, rows_of, strict=True):
        if not count:
            raise DataError(
                f"the {name} split has no rows ({report.rows} rows in all, split "
                f"'{config.split}'): use more data or another data.split"
            )
    known = {name: counter.vocabulary(config.min_count) for name, counter in counts.items()}
    for kind in ("user", "item"):
        if known[kind].size == 1:
            raise DataError(
                f"no {kind} has {config.min_count} training rows or more: lower data.min_count"
            )
    features = {
        name.removeprefix(raw.CATEGORICAL): vocab
        for name, vocab in known.items()
        if name.startswith(raw.CATEGORICAL)
    }
    encoder = Encoder(
        user_features=config.user_features,
        item_features=config.item_features,
        log_dense=config.log_dense,
        user=known["user"],
        item=known["item"],
        dense={name: moments.scale(config.flag) for name, moments in statistics.items()},
        categorical=features,
    )
    ends = rows_by_host.cumsum(axis=0)[hosts.index]
    starts = ends - rows_by_host[hosts.index]
    places: list[tuple[int, int] | None] = list(zip(starts, ends, strict=True))
    if hosts.count == 1:
        places = [None] * len(SPLITS)

    def encode() -> dict[str, np.ndarray]:
        return _encode(path, own, assigned, encoder, rows_of, places, config.task)

    encoded = exchange(hosts, folder, "encode", encode)

    def finish() -> Mapping[str, Any]:
        if hosts.index:
            return {}  # those of the first host count
        item_counts = next(encoded)
        for part in encoded:
            item_counts = {name: count + part[name] for name, count in item_counts.items()}
        schema = _finish(path, source, assigned, encoder, item_counts, config)
        return {
            "rows": dict(zip(SPLITS, rows_of, strict=True)),
            "num_users": schema.num_users - 1,
            "num_items": schema.num_items - 1,
            "hashed": list(schema.hashed),
            "merged_repeats": assigned.merged,
            "reader": dataclasses.asdict(report),
        }

    facts = next(exchange(hosts, folder, "finish", finish))
    hosts.wait("prepare/end")
    if hosts.index == 0:
        shutil.rmtree(folder)
    return facts


def _finish(
    path: pathlib.Path,
    source: raw.RawData,
    assigned: "_Assignment",
    encoder: Encoder,
    item_counts: Mapping[str, np.ndarray],
    config: PrepareConfig,
) -> Schema:
    """Writes what a table has besides its rows."""
    vocabularies = {"user": encoder.user, "item": encoder.item}
    vocabularies |= {f"row.{name}": vocab for name, vocab in encoder.categorical.items()}
    contents = {}
    for kind, entities in (("user", source.users), ("item", source.items)):
        columns, contents[kind] = _content(kind, entities, vocabularies)
        columns |= item_counts if kind == "item" else {}
        write_columns(path / f"{kind}s", columns)
    if config.task == "ranking":
        _write_known(path, encoder.user.size)
        _write_negatives(path, assigned.negatives, encoder.item, config)
    write_columns(
        path / "vocabularies",
        {encoding.file_name(name): vocab.values for name, vocab in vocabularies.items()},
    )
    scales = {name: dict(zip(("mean", "std"), x, strict=True)) for name, x in encoder.dense.items()}
    artifacts.write_json(path / "statistics.json", scales)
    sizes = tuple(vocab.size for vocab in encoder.categorical.values())
    schema = Schema(
        task=config.task,
        num_users=encoder.user.size,
        num_items=encoder.item.size,
        context=Features(tuple(encoder.dense), tuple(encoder.categorical), sizes),
        user_content=contents["user"],
        item_content=contents["item"],
        user_features=tuple(config.user_features),
        item_features=tuple(config.item_features),
        log_dense=config.log_dense,
        hashed={name: vocab.hashed for name, vocab in vocabularies.items() if vocab.hashed},
    )
    write_schema(path, schema)
    return schema


class _Assignment(NamedTuple):
    """Which rows go where.

    fold: (rows of a chunk, the chunk) -> [n] int8 of TRAIN, VALIDATION, TEST and DROPPED.
    value: [rows in all] float32, or None if every row has its own.
    merged: rows dropped, since others stand for them.
    negatives: as `raw.RawData.negatives`, for the test rows that are left.
    """

    fold: Callable[[pa.Table, staging.StagedChunk], np.ndarray]
    value: np.ndarray | None = None
    merged: int = 0
    negatives: np.ndarray | None = None


def _assign(
    staged: Sequence[staging.StagedChunk],
    report: ReadReport,
    given_negatives: np.ndarray | None,
    config: PrepareConfig,
) -> _Assignment:
    if config.task == "click" and config.split in splits.BY_PLACE:

        def by_place(rows: pa.Table, chunk: staging.StagedChunk) -> np.ndarray:
            places = np.arange(chunk.start, chunk.start + chunk.rows)
            shares = (config.validation, config.test)
            return splits.by_place(places, report.rows, config.split, *shares, config.seed)

        return _Assignment(by_place)
    if config.task == "click" and config.split == "given" and _validates(staged):
        return _Assignment(lambda rows, chunk: rows["fold"].to_numpy())

    raw = _keys(staged, report, config)
    raw = dataclasses.replace(raw, negatives=given_negatives)
    if config.task == "ranking":
        raw = splits.merge_repeats(raw)
    kept = raw.categorical["place"]
    assigned = splits.assign(raw, config.split, config.validation, config.test, config.seed)
    fold = np.full(report.rows, DROPPED, np.int8)
    fold[kept] = assigned
    value = None
    if config.task == "ranking":
        value = np.ones(report.rows, np.float32)
        if raw.value is not None:
            value[kept] = raw.value
    return _Assignment(
        lambda rows, chunk: fold[chunk.start : chunk.start + chunk.rows],
        value,
        report.rows - len(kept),
        raw.negatives,
    )


def _validates(staged: Sequence[staging.StagedChunk]) -> bool:
    """Whether the data's own split has validation rows."""
    tables = (chunk.read(["fold"]) for chunk in staged)
    return any(
        "fold" in rows.column_names and np.any(rows["fold"].to_numpy() == VALIDATION)
        for rows in tables
    )


def _keys(
    staged: Sequence[staging.StagedChunk], report: ReadReport, config: PrepareConfig
) -> RawTable:
    """What a split may depend on, of all rows; users and items as numbers, `place` as a feature."""
    names = ["user", "timestamp", "fold"]
    if config.task == "ranking":
        names += ["item", "value"]
    table = pa.concat_tables([chunk.read(names) for chunk in staged]).unify_dictionaries()
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name in raw.CODED:
            column = pa.chunked_array([part.indices for part in column.chunks], pa.int32())
        columns[name] = column.to_numpy()
    return RawTable(report, **columns, categorical={"place": np.arange(report.rows)})


class _Counts(NamedTuple):
    """What some chunks hold.

    values: column -> the count of its values in training rows.
    dense: names of the F dense features.
    moments: [chunks, F, 4] float64, `Statistics` of each in training rows, as sums of floats depend
      on their order.
    rows: [3] int64 of each split.
    """

    values: dict[str, vocabulary.Counter]
    dense: list[str]
    moments: np.ndarray
    rows: np.ndarray


def _count(
    staged: Sequence[staging.StagedChunk], assigned: _Assignment, config: PrepareConfig
) -> _Counts:
    """Counts the values of training rows, and the rows of each split."""

    def measure(
        chunk: staging.StagedChunk,
    ) -> tuple[dict[str, tuple[pa.Array, np.ndarray]], dict[str, Statistics], list[int]]:
        rows = chunk.read()
        fold = assigned.fold(rows, chunk)
        train = fold == TRAIN
        everything = bool(train.all())
        counts, moments = {}, {}
        for name in rows.column_names:
            if name.startswith(raw.DENSE):
                values = rows[name].to_numpy()
                moments[name.removeprefix(raw.DENSE)] = encoding.statistics_of(
                    values if everything else values[train], config.flag
                )
            elif name in raw.CODED or name.startswith(raw.CATEGORICAL):
                column = encoding.column(rows, name)
                codes = column.indices.to_numpy()
                codes = codes if everything else codes[train]
                tally = np.bincount(codes, minlength=len(column.dictionary))
                counts[name] = (column.dictionary, tally)
        return counts, moments, [int(np.count_nonzero(fold == n)) for n in range(len(SPLITS))]

    counters: dict[str, vocabulary.Counter] = {}
    dense: list[str] = []
    moments_of: list[np.ndarray] = []
    rows_of = np.zeros(len(SPLITS), np.int64)
    progress = Progress("prepare: count", sum(chunk.rows for chunk in staged), "rows")
    done = 0
    for chunk, (counts, moments, rows) in zip(
        staged, staging.ordered_map(measure, staged), strict=True
    ):
        for name, (dictionary, tally) in counts.items():
            counter = counters.setdefault(name, vocabulary.Counter(config.max_vocabulary))
            counter.add(dictionary, tally)
        dense = list(moments)
        moments_of.append(
            np.array([dataclasses.astuple(part) for part in moments.values()], np.float64)
        )
        rows_of += rows
        done += chunk.rows
        progress.update(done)
    progress.close()
    for counter in counters.values():
        counter.settle()
    all_moments = np.array(moments_of, np.float64).reshape(len(staged), len(dense), 4)
    return _Counts(counters, dense, all_moments, rows_of)


def _total(
    counted: Iterable[_Counts],
) -> tuple[dict[str, vocabulary.Counter], dict[str, Statistics], np.ndarray]:
    """Adds up what each host has counted; the rows of each split stay [hosts, 3]."""
    counters: dict[str, vocabulary.Counter] = {}
    statistics: dict[str, Statistics] = {}
    rows = []
    for part in counted:
        for name, counter in part.values.items():
            if name in counters:
                counters[name].merge(counter)
            else:
                counters[name] = counter
        for moments in part.moments:
            for name, (count, mean, square, flags) in zip(
                part.dense, moments.tolist(), strict=True
            ):
                one = Statistics(int(count), mean, square, bool(flags))
                statistics[name] = statistics.get(name, Statistics()) + one
        rows.append(part.rows)
    return counters, statistics, np.stack(rows)


def _encode(
    path: pathlib.Path,
    staged: Sequence[staging.StagedChunk],
    assigned: _Assignment,
    encoder: Encoder,
    rows_of: Sequence[int],
    places: Sequence[tuple[int, int] | None],
    task: str,
) -> dict[str, np.ndarray]:
    """Writes rows of all splits; returns the counts of items in training rows.

    Args:
      path: the folder of the table.
      staged: the chunks of the rows, consecutive.
      assigned, encoder, task: what becomes of them.
      rows_of: of each split, by all hosts.
      places: of the rows in each split, [from, to), or None for all of it.
    """
    target = "label" if task == "click" else "value"
    layout = {
        "user": (np.int32, ()),
        "item": (np.int32, ()),
        target: (np.float32, ()),
        "dense": (np.float32, (len(encoder.dense),)),
        "categorical": (np.int32, (len(encoder.categorical),)),
    }
    writers = []
    for split, rows, part in zip(SPLITS, rows_of, places, strict=True):
        (path / split).mkdir(exist_ok=True)
        writers.append(
            {
                name: ColumnWriter(path / split / f"{name}.npy", dtype, (rows, *shape), part)
                for name, (dtype, shape) in layout.items()
            }
        )

    def encode(chunk: staging.StagedChunk) -> list[dict[str, np.ndarray]]:
        rows = chunk.read()
        fold = assigned.fold(rows, chunk)
        columns = encoder.encode(rows)
        if assigned.value is not None:
            columns["value"] = assigned.value[chunk.start : chunk.start + chunk.rows]
        chunk.path.unlink()
        splits_of = []
        for number in range(len(SPLITS)):
            here = fold == number
            if here.all():
                splits_of.append({name: columns[name] for name in layout})
            else:
                splits_of.append({name: columns[name][here] for name in layout})
        return splits_of

    size = encoder.item.size
    counts = {"count": np.zeros(size, np.int64)}
    if task == "click":
        counts["clicks"] = np.zeros(size, np.int64)
    progress = Progress("prepare: encode", sum(chunk.rows for chunk in staged), "rows")
    done = 0
    for chunk, encoded in zip(staged, staging.ordered_map(encode, staged), strict=True):
        for writer, columns in zip(writers, encoded, strict=True):
            for name, values in columns.items():
                writer[name].append(values)
        train = encoded[TRAIN]
        counts["count"] += np.bincount(train["item"], minlength=size)
        if task == "click":
            clicked = train["item"][train["label"] > 0]
            counts["clicks"] += np.bincount(clicked, minlength=size)
        done += chunk.rows
        progress.update(done)
    progress.close()
    for writer in writers:
        for column in writer.values():
            column.close()
    return counts


def _content(
    kind: str, entities: EntityTable | None, vocabularies: dict[str, Vocabulary]
) -> tuple[dict[str, np.ndarray], Features]:
    """Content of each user or item id, as `Table.users` / `Table.items`, and its features.

    Row 0 and ids without content hold zeros: the mean of dense features, id 0 of categorical ones;
    their bags are empty.
    """
    size = vocabularies[kind].size
    dense = np.zeros((size, len(entities.dense) if entities else 0), np.float32)
    categorical = np.zeros((size, len(entities.categorical) if entities else 0), np.int32)
    columns = {"dense": dense, "categorical": categorical}
    if entities is None:
        return columns, Features()
    if entities.bags and kind == "user":
        raise ConfigError("sets of values are for items: name no bags of users")
    if vocabularies[kind].hashed:
        raise ConfigError(
            f"the {kind}s have content, and more of them than data.max_vocabulary: raise it"
        )
    rows = vocabularies[kind].ids(entities.ids)  # 0 where no row has the id
    source = np.flatnonzero(rows)
    if not len(source):
        raise DataError(
            f"none of the {len(rows)} ids of the {kind} content occurs among the training rows, "
            f"whose {kind} ids are like {vocabularies[kind].values[:3].tolist()}; those of the "
            f"content are like {entities.ids[:3].tolist()}"
        )
    rows = rows[source]
    for place, values in enumerate(entities.dense.values()):
        values = values[source]
        scale = encoding.statistics_of(values).scale(1.0)
        dense[rows, place] = encoding.standardise(values, *scale)
    sizes = []
    for place, (name, values) in enumerate(entities.categorical.items()):
        values = values[source]
        known = vocabularies[f"{kind}.{name}"] = vocabulary.of(values)
        sizes.append(known.size)
        categorical[rows, place] = known.ids(values)
    bag_sizes = []
    if entities.bags:
        split = {name: _split(values[source]) for name, values in entities.bags.items()}
        longest = max(place.max(initial=0) + 1 for _, place, _ in split.values())
        bags = columns["bags"] = np.full((size, len(split), longest), -1, np.int32)
        for number, (name, (row, member, values)) in enumerate(split.items()):
            known = vocabularies[f"{kind}.{name}"] = vocabulary.of(values)
            bag_sizes.append(known.size)
            bags[rows[row], number, member] = known.ids(values)
    if entities.titles is not None:
        titles = np.full(size, "", entities.titles.dtype)
        titles[rows] = entities.titles[source]
        columns["titles"] = titles
    features = Features(
        tuple(entities.dense),
        tuple(entities.categorical),
        tuple(sizes),
        tuple(entities.bags),
        tuple(bag_sizes),
    )
    return columns, features


def _split(sets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of sets [n] such as 'Comedy|Drama': row, place in its set, and value of each member: [m]."""
    lists = pc.split_pattern(pa.array(sets, pa.string()), "|")
    row = pc.list_parent_indices(lists).to_numpy()
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(str)
    there = values != ""
    row, values = row[there], values[there]
    return row, np.arange(len(row)) - np.searchsorted(row, row), values


def _write_known(path: pathlib.Path, num_users: int) -> None:
    """Writes the items of each user's training rows."""
    train = read_columns(path / SPLITS[TRAIN])
    order = np.lexsort((train["item"], train["user"]))
    counts = np.bincount(train["user"], minlength=num_users)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    write_columns(path / "known", {"offsets": offsets, "items": train["item"][order]})


def _write_negatives(
    path: pathlib.Path, given: np.ndarray | None, items: Vocabulary, config: PrepareConfig
) -> None:
    """Writes the items that each held-out row's item is ranked against in the 1 + K protocol."""
    columns = [read_columns(path / split) for split in SPLITS]
    keys = [negatives.pair_keys(rows["user"], rows["item"], items.size) for rows in columns]
    seen = np.unique(np.concatenate(keys))
    for number in (VALIDATION, TEST):
        if number == TEST and given is not None:
            drawn = items.ids(given.ravel()).reshape(given.shape)
        else:
            drawn = negatives.draw_for_evaluation(
                columns[number]["user"],
                seen,
                items.size,
                config.num_negatives,
                config.seed + number,
            )
        write_columns(path / SPLITS[number], {"negatives": drawn})
