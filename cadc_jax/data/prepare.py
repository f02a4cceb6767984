"""Turns raw rows into a prepared table: assigns splits, counts training rows, then encodes.

Everything that is learnt from rows (vocabularies, counts, means) comes from training rows only;
with a split by users, held-out users have ids as well.
`staging` reads the source once into chunks on disk, which are then read twice: `counting` counts
their values, and an `Encoder` made from the counts encodes them. Memory holds a few chunks and the
vocabularies, for any number of rows; splits that compare rows (all but those by place) take another
60 bytes or so for each row.

Several hosts may share the work (`hosts`). Each adds up the results of all hosts in the order of
the rows, so the table does not depend on the number of hosts, to the last bit.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cadc_jax.data import (
    core,
    counting,
    encoding,
    negatives,
    raw,
    splits,
    staging,
    traps,
    vocabulary,
)
from cadc_jax.data.content import encode_content
from cadc_jax.data.encoding import Encoder
from cadc_jax.data.facts import FACTS
from cadc_jax.data.hosts import SINGLE_HOST, Form, Hosts, Message, exchange
from cadc_jax.data.raw import (
    FOLD_IN,
    PARTS,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    RawTable,
    ReadReport,
)
from cadc_jax.data.staging import StagedChunk
from cadc_jax.data.table import (
    KNOWN,
    TITLES,
    ColumnWriter,
    Features,
    Schema,
    read_columns,
    write_columns,
    write_schema,
    write_text,
)
from cadc_jax.data.vocabulary import MOST_IDS, Vocabulary
from cadc_jax.errors import (
    ConfigError,
    DataError,
    check_at_least,
    check_below_one,
    check_choice,
)
from cadc_jax.runtime import durable, manifest, parts

TASKS = ("click", "ranking")
_ANY_COLUMN = pathlib.Path("*.npy")
_KEYS = {"user", "item", "value", "timestamp", "fold"}  # columns that a split may depend on
DROPPED = -1  # the fold of a repeated row that was merged into another one


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How raw rows become a prepared table.

    Attributes:
      task: 'click' or 'ranking'.
      split: one of `splits.RULES`; see `splits.assign`.
      validation: share that validates, for the rules of `splits.BY_SHARE`: of each user's rows
        ('last_share'), of all users ('users') or of all rows.
      test: share that tests, in the same way.
      min_value: rows of a lower value are no positives: they are left out of the ranking task, and
        are the ones of label 0 in the task of clicks, whose labels come from the values then. 0:
        all rows are positives, or have labels.
      min_user_rows, min_item_rows: rows that each user and each item has at least, once those of
        fewer are left out with all their rows; see `core.cut`. 0 or 1 for all.
      min_count: training rows a value needs to have an id of its own; rarer values share id 0.
      max_vocabulary: distinct training values a column may have; with more it is hashed to this
        many ids. 0 for no bound. It bounds memory.
      user_features: categorical columns that name the user and replace a user id of the source;
        several are crossed.
      item_features: categorical columns that name the item, in the same way.
      log_dense: replace each dense feature of rows by log(1 + max(x, 0)), as is customary for
        Criteo's counts (negative values become 0). Flags (0 / 1) stay as they are.
      num_negatives: unseen items drawn for each held-out row ('1 + K' ranking protocol), unless the
        data brings its own.
      max_malformed: largest share of malformed rows to leave out, in [0, 1].
      seed: seed of random splits and of drawn negatives.

    Raises:
      ConfigError: if a value is outside its range.
    """

    task: str
    split: str
    validation: float = 0.0
    test: float = 0.0
    min_value: float = 0.0
    min_user_rows: int = 0
    min_item_rows: int = 0
    min_count: int = 1
    max_vocabulary: int = 0
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()
    log_dense: bool = False
    num_negatives: int = 99
    max_malformed: float = 0.0
    seed: int = 0

    def __post_init__(self):
        check_choice("data.task", self.task, TASKS)
        check_choice("data.split", self.split, splits.RULES)
        counts = ("min_user_rows", "min_item_rows", "min_count", "max_vocabulary", "num_negatives")
        for name in counts:
            check_at_least(f"data.{name}", getattr(self, name), 0)
        if self.max_vocabulary >= MOST_IDS:
            raise ConfigError(
                f"data.max_vocabulary={self.max_vocabulary}: must be below {MOST_IDS}"
            )
        if not 0 <= self.max_malformed <= 1:
            raise ConfigError(
                f"data.max_malformed={self.max_malformed}: must be in [0, 1], a share of the rows"
            )
        check_below_one("data.validation", self.validation)
        check_below_one("data.test", self.test)
        positive = self.validation > 0 and self.test > 0
        if self.split in splits.BY_SHARE and not (positive and self.validation + self.test < 1):
            raise ConfigError(
                "data.validation and data.test must be positive shares that leave rows to train; "
                f"not {self.validation} and {self.test}"
            )
        if self.split == "users" and self.task != "ranking":
            raise ConfigError(
                "data.split='users' needs data.task='ranking': it holds out items of users; "
                "choose another split for clicks"
            )

    @property
    def cuts(self) -> bool:
        """Whether users or items of few rows are left out."""
        return max(self.min_user_rows, self.min_item_rows) > 1

    @property
    def flag(self) -> float:
        """The value of a set flag (1) among dense features, after `log_dense`."""
        return float(np.log1p(np.float32(1))) if self.log_dense else 1.0


def write_table(
    path: pathlib.Path,
    source: raw.RawData,
    config: PrepareConfig,
    hosts: Hosts = SINGLE_HOST,
) -> Mapping[str, Any]:
    """Writes the prepared table of a source into the folder `path`.

    Several hosts write the same bytes as a single one. Each reads, counts and encodes its share of
    the source, and the first one writes everything that is not by row. All of them return the same
    facts or raise the same error.

    Args:
      path: an existing folder. Several hosts share it, or each has one with a `Hosts.carrier`, and
        that of the first host gets the table.
      source: the raw rows; the same for every host.
      config: the settings; the same for every host.
      hosts: the hosts that call this together.

    Returns:
      Facts for the manifest: rows of each split, sizes, and what the reader found.

    Raises:
      ConfigError: if user or item features are missing or unknown, or a user has too few unseen
        items.
      DataError: if the source cannot be read or a split is empty.
    """
    check_negatives(source, config)
    if config.cuts and hosts.count > 1:
        raise ConfigError(
            "data.min_user_rows, data.min_item_rows: one process has to prepare such a table; "
            "run it alone in the same work folder first"
        )
    folder = path / "staging"
    change = functools.partial(clean, config=config)
    chunks, report = staging.stage_rows(folder, source, config.max_malformed, change, hosts)
    left_out = None
    if config.cuts:
        chunks, left_out = core.cut(folder, chunks, config.min_user_rows, config.min_item_rows)
        report = dataclasses.replace(report, rows=sum(chunk.rows for chunk in chunks))
    own = [chunk for chunk in chunks if chunk.host == hosts.index]
    of_all = functools.partial(exchange, hosts, folder)
    assignment = _assign(own, report, source.negatives, config, of_all)

    def count() -> counting.Counts:
        return counting.count_chunks(own, assignment.fold_of, config.max_vocabulary, config.flag)

    totals = counting.total(of_all("count", count, counting.COUNTS))
    counted = of_totals(totals, report, assignment, config)
    own_extents = extents(counted.part_rows, totals.rows_by_host, hosts)

    def encode() -> Mapping[str, np.ndarray]:
        def encode_chunk(chunk: StagedChunk) -> EncodedRows:
            return _encode_chunk(chunk, assignment, counted.encoder)

        encoded = staging.map_chunks("prepare: encode", encode_chunk, own)
        item_counts = write_rows(path, encoded, counted, own_extents)
        hosts.give(path.glob(f"*/{parts.part_of(_ANY_COLUMN, hosts.index)}"))
        return item_counts

    items = _item_counts_form(counted.encoder.item.size, clicks=assignment.value is None)
    item_counts = of_all("encode", encode, items)

    def finish() -> Mapping[str, Any]:
        if hosts.index:
            return {}  # all hosts return the facts of the first one
        _join_columns(path, hosts)
        facts = write_rest(path, source, counted, _sum(item_counts), config)
        return facts if left_out is None else {**facts, "core": left_out._asdict()}

    facts = next(of_all("finish", finish, _FACTS_FORM))
    hosts.wait("prepare/end")
    if hosts.index == 0:
        shutil.rmtree(folder)
    return facts


def _join_columns(path: pathlib.Path, hosts: Hosts) -> None:
    """Joins the columns that are in parts, one of each host."""
    for first in sorted(path.glob(f"*/{parts.part_of(_ANY_COLUMN, 0)}")):
        column = first.with_suffix("")
        files = [parts.part_of(column, index) for index in range(hosts.count)]
        hosts.take(files)
        parts.join(files, column)


class Counted(NamedTuple):
    """What the second pass starts from.

    Attributes:
      report: what the reader found.
      assignment: the split of every row.
      part_rows: name of each part of the table -> its rows.
      encoder: made from the counts of the first pass.
    """

    report: ReadReport
    assignment: "Assignment"
    part_rows: dict[str, int]
    encoder: Encoder


def of_totals(
    totals: counting.Totals, report: ReadReport, assignment: "Assignment", config: PrepareConfig
) -> Counted:
    """What follows from the counts of all chunks.

    Raises:
      ConfigError: if held-out users would share ids.
      DataError: if a split is empty, or no user or no item has enough training rows.
    """
    part_rows = dict(zip(PARTS, totals.rows_by_host.sum(axis=0).tolist(), strict=True))
    if config.split != "users":
        del part_rows[PARTS[FOLD_IN]]
    _check_splits(part_rows, report.rows, config.split)
    return Counted(report, assignment, part_rows, _make_encoder(totals, config))


def check_negatives(source: raw.RawData, config: PrepareConfig) -> None:
    """Raises ConfigError if the settings contradict the negatives that the data brings."""
    if source.negatives is not None and config.split != "given":
        raise ConfigError(
            "the data's own evaluation negatives belong to its own split: set data.split='given' "
            "or leave the negatives out"
        )
    if source.negatives is not None and (config.min_value or config.cuts):
        raise ConfigError(
            "data.negatives_file goes with all rows of its test file: it cannot be used with "
            "data.min_value, data.min_user_rows or data.min_item_rows"
        )


def _unpack_facts(message: Message) -> Mapping[str, Any]:
    manifest.check(message.plain, FACTS, "the facts")
    report = staging.report_of(message.plain["reader"])
    return {**message.plain, "reader": dataclasses.asdict(report)}


_FACTS_FORM: Form[Mapping[str, Any]] = Form(Message, _unpack_facts)


def _unpack_validates(message: Message) -> bool:
    manifest.check(message.plain, bool, "whether rows validate")
    return bool(message.plain)


_VALIDATES_FORM: Form[bool] = Form(Message, _unpack_validates)


def _unpack_keys(message: Message) -> pa.Table:
    table = message.tables.get("keys")
    if table is None or not {*table.column_names} <= _KEYS:
        raise ValueError(f"no table 'keys' of columns among {', '.join(sorted(_KEYS))}")
    if any(column.null_count for column in table.columns):
        raise ValueError("table 'keys' has missing values")
    return table


_KEYS_FORM: Form[pa.Table] = Form(lambda table: Message(tables={"keys": table}), _unpack_keys)


def _item_counts_form(size: int, clicks: bool) -> Form[Mapping[str, np.ndarray]]:
    """How a host tells what `_write_rows` returns to the others."""
    names = ["count", "clicks"] if clicks else ["count"]
    schema = pa.schema([(name, pa.int64()) for name in names])

    def unpack(message: Message) -> Mapping[str, np.ndarray]:
        table = message.table("items", schema)
        if len(table) != size:
            raise ValueError(f"counts of {len(table)} items instead of {size}")
        return {name: table[name].to_numpy() for name in names}

    return Form(lambda counts: Message(tables={"items": pa.table(dict(counts))}), unpack)


def clean(rows: pa.Table, config: PrepareConfig) -> pa.Table:
    """Checks the rows of a chunk, names their users and items, and takes logarithms."""
    if config.min_value:
        rows = _by_value(rows, config)
    if config.task == "click" and "label" not in rows.column_names:
        raise ConfigError(
            "data.task='click' needs a label (0 or 1) in each row: name its column, or one of "
            "values and data.min_value"
        )
    encoding.check_finite(rows)
    rows = encoding.add_user_and_item(rows, config.user_features, config.item_features)
    return encoding.log_transform(rows) if config.log_dense else rows


def _by_value(rows: pa.Table, config: PrepareConfig) -> pa.Table:
    """The rows of at least `min_value`; for clicks all of them, with what they are as the label."""
    if "value" not in rows.column_names:
        raise ConfigError(
            f"data.min_value={config.min_value:g} needs a value in each row: "
            "name data.columns.value"
        )
    enough = rows["value"].to_numpy() >= np.float32(config.min_value)
    if config.task == "ranking":
        return rows.filter(pa.array(enough))
    if "label" in rows.column_names:
        raise ConfigError(
            f"data.min_value={config.min_value:g} makes labels of values, but the rows have some: "
            "leave out data.min_value or data.columns.label"
        )
    labels = pa.array(enough.astype(np.float32))
    return rows.drop_columns(["value"]).append_column("label", labels)


class Assignment(NamedTuple):
    """The split of every row.

    Attributes:
      fold_of: (rows of a chunk, the chunk) -> [n] int8, places in PARTS, and DROPPED.
      value: [all rows] float32, strength of each interaction; None for clicks.
      merged: number of DROPPED rows.
      negatives: `raw.RawData.negatives` of the test rows that remain.
      traps: what is odd about the split.
    """

    fold_of: counting.FoldOf
    value: np.ndarray | None = None
    merged: int = 0
    negatives: raw.Negatives | None = None
    traps: Sequence[str] = ()


def _assign(
    own: Sequence[StagedChunk],
    report: ReadReport,
    given_negatives: raw.Negatives | None,
    config: PrepareConfig,
    of_all: Callable[..., Iterator[Any]],
) -> Assignment:
    """Assigns rows to splits, chunk by chunk if the split allows that.

    Args:
      own: the chunks of this host.
      report: on the whole source.
      given_negatives: `raw.RawData.negatives`.
      config: the settings.
      of_all: `exchange` of a name, work and a form with the other hosts.
    """

    def any_validates() -> bool:
        return any(of_all("validates", lambda: _has_validation(own), _VALIDATES_FORM))

    apart = assign_apart(report.rows, config, any_validates)
    if apart is not None:
        return apart
    tables = of_all("keys", lambda: read_keys(own, config), _KEYS_FORM)
    keys = keys_of(tables, report, config)
    return _assign_all(dataclasses.replace(keys, negatives=given_negatives), config)


def assign_apart(
    rows: int, config: PrepareConfig, any_validates: Callable[[], bool]
) -> Assignment | None:
    """Assigns each row by itself. None if the split has to compare rows.

    Args:
      rows: number of all rows.
      config: the settings.
      any_validates: whether the data's own split has validation rows.
    """
    if config.task == "click" and config.split in splits.BY_PLACE:
        return Assignment(functools.partial(_fold_by_place, rows, config))
    if config.task == "click" and config.split == "given" and any_validates():
        return Assignment(_given_fold)
    return None


def _fold_by_place(
    all_rows: int, config: PrepareConfig, rows: pa.Table, chunk: StagedChunk
) -> np.ndarray:
    places = np.arange(chunk.start, chunk.start + chunk.rows)
    shares = (config.validation, config.test)
    return splits.by_place(places, all_rows, config.split, *shares, config.seed)


def _given_fold(rows: pa.Table, chunk: StagedChunk) -> np.ndarray:
    return rows["fold"].to_numpy()


def validates(rows: pa.Table) -> bool:
    """Whether some rows of a chunk are validation rows of the data's own split."""
    return "fold" in rows.column_names and bool(np.any(rows["fold"].to_numpy() == VALIDATION))


def _has_validation(chunks: Sequence[StagedChunk]) -> bool:
    """Whether the data's own split has validation rows."""
    return any(validates(chunk.read(["fold"])) for chunk in chunks)


def read_keys(chunks: Sequence[StagedChunk], config: PrepareConfig) -> pa.Table:
    """The columns of chunks that a split may depend on."""
    names = _KEYS if config.task == "ranking" else _KEYS - {"item", "value"}
    return _joined(chunk.read(names) for chunk in chunks)


def _joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Tables end to end; those without columns have no rows."""
    found = [table for table in tables if table.num_columns]
    return pa.concat_tables(found).unify_dictionaries() if found else pa.table({})


def keys_of(tables: Iterable[pa.Table], report: ReadReport, config: PrepareConfig) -> RawTable:
    """The columns of all rows that a split may depend on, from the `read_keys` of all hosts.

    Users and items are numbers; if a draw depends on them, in the order of their values. The
    feature `place` is the place among all rows.
    """
    table = _joined(tables)
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name in raw.CODED:
            values = column.chunk(0).dictionary
            column = pa.chunked_array([part.indices for part in column.chunks], pa.int32())
            if config.split == "users":
                values = raw.as_values(values)
                columns[name] = vocabulary.of(values).ids(values)[column.to_numpy()]
                continue
        columns[name] = column.to_numpy()
    return RawTable(report, **columns, categorical={"place": np.arange(report.rows)})


def _assign_all(keys: RawTable, config: PrepareConfig) -> Assignment:
    """Assigns all rows at once; rows of the ranking task are merged first."""
    rows = keys.report.rows
    if config.task == "ranking":
        keys = splits.merge_repeats(keys)
    kept = keys.categorical["place"]
    fold = np.full(rows, DROPPED, np.int8)
    shares = config.validation, config.test
    own = splits.assign(keys, config.split, *shares, config.seed, least=config.min_count)
    fold[kept] = own
    value = None
    if config.task == "ranking":
        value = np.ones(rows, np.float32)
        if keys.value is not None:
            value[kept] = keys.value
    found = traps.of_split(keys, own, config.split)
    return Assignment(
        lambda rows, chunk: fold[chunk.places], value, rows - len(kept), keys.negatives, found
    )


def _check_splits(part_rows: Mapping[str, int], rows: int, rule: str) -> None:
    """Raises DataError if a split is empty."""
    for name, count in part_rows.items():
        if not count:
            raise DataError(
                f"the {name} split has no rows ({rows} rows in all, split '{rule}'): use more data "
                "or another data.split"
            )


def _make_encoder(totals: counting.Totals, config: PrepareConfig) -> Encoder:
    """Makes the encoder from the counts of training rows.

    Raises:
      ConfigError: if held-out users would share ids.
      DataError: if no user or no item has enough training rows.
    """
    known = {name: counter.vocabulary(config.min_count) for name, counter in totals.values.items()}
    for kind in ("user", "item"):
        if known[kind].size == 1:
            raise DataError(
                f"no {kind} has {config.min_count} training rows or more: lower data.min_count"
            )
    if config.split == "users" and known["user"].hashed:
        raise ConfigError(
            f"data.max_vocabulary={config.max_vocabulary}: there are more users, and with "
            "data.split='users' none may share an id; raise it"
        )
    return Encoder(
        user_features=config.user_features,
        item_features=config.item_features,
        log_dense=config.log_dense,
        user=known["user"],
        item=known["item"],
        dense={name: moments.scale(config.flag) for name, moments in totals.statistics.items()},
        categorical={
            name.removeprefix(raw.CATEGORICAL): vocabulary
            for name, vocabulary in known.items()
            if name.startswith(raw.CATEGORICAL)
        },
    )


class Extent(NamedTuple):
    """Which rows of a part of the table a host writes.

    Attributes:
      rows: rows of the part, of all hosts.
      own: [from, to) of this host's rows, or None if it writes all of them.
      part: number of the part of each file that they are, if hosts do not write to the same file.
    """

    rows: int
    own: tuple[int, int] | None
    part: int | None = None


def extents(
    part_rows: Mapping[str, int], rows_by_host: np.ndarray, hosts: Hosts
) -> dict[str, Extent]:
    """The extent of each part for this host, from the rows [hosts, 4] of all hosts."""
    if hosts.count == 1:
        return {name: Extent(rows, None) for name, rows in part_rows.items()}
    ends = rows_by_host.cumsum(axis=0)[hosts.index]
    own = zip((ends - rows_by_host[hosts.index]).tolist(), ends.tolist(), strict=True)
    of_part = dict(zip(PARTS, own, strict=True))
    part = None if hosts.carrier is None else hosts.index
    return {name: Extent(rows, of_part[name], part) for name, rows in part_rows.items()}


# name of a part -> name of a column -> the rows of a chunk that belong there
EncodedRows = Mapping[str, Mapping[str, np.ndarray]]


def write_rows(
    path: pathlib.Path,
    chunks: Iterable[EncodedRows],
    counted: Counted,
    of_parts: Mapping[str, Extent],
) -> Mapping[str, np.ndarray]:
    """Writes encoded chunks, in their order, into all parts of the table.

    Returns:
      `count` [I] int64, training rows of each item; for clicks, `clicks` [I] int64, those with
      label 1.
    """
    clicks = counted.assignment.value is None
    writers = {
        name: _open_writers(path / name, counted.encoder, "label" if clicks else "value", extent)
        for name, extent in of_parts.items()
    }
    size = counted.encoder.item.size
    counts = {"count": np.zeros(size, np.int64)}
    if clicks:
        counts["clicks"] = np.zeros(size, np.int64)
    for encoded in chunks:
        for part, part_writers in writers.items():
            for name, writer in part_writers.items():
                writer.append(encoded[part][name])
        train = encoded[SPLITS[TRAIN]]
        counts["count"] += np.bincount(train["item"], minlength=size)
        if clicks:
            clicked = train["item"][train["label"] > 0]
            counts["clicks"] += np.bincount(clicked, minlength=size)
    for part_writers in writers.values():
        for writer in part_writers.values():
            writer.close()
    return counts


def _open_writers(
    folder: pathlib.Path, encoder: Encoder, target: str, extent: Extent
) -> dict[str, ColumnWriter]:
    """Opens the files of a part: name -> writer. `target` is 'label' or 'value'."""
    layout: dict[str, tuple[type, tuple[int, ...]]] = {
        "user": (np.int32, ()),
        "item": (np.int32, ()),
        target: (np.float32, ()),
        "dense": (np.float32, (len(encoder.dense),)),
        "categorical": (np.int32, (len(encoder.categorical),)),
    }
    folder.mkdir(exist_ok=True)
    return {
        name: ColumnWriter(
            folder / f"{name}.npy", dtype, (extent.rows, *shape), extent.own, extent.part
        )
        for name, (dtype, shape) in layout.items()
    }


def _encode_chunk(chunk: StagedChunk, assignment: Assignment, encoder: Encoder) -> EncodedRows:
    """The encoded rows of each of PARTS, name -> column. Deletes the chunk."""
    rows = chunk.read()
    fold = assignment.fold_of(rows, chunk)
    columns = encoder.encode(rows)
    if assignment.value is not None:
        columns["value"] = assignment.value[chunk.places]
    chunk.path.unlink()
    return by_part(columns, fold)


def by_part(columns: Mapping[str, np.ndarray], fold: np.ndarray) -> EncodedRows:
    """The rows of each of PARTS, from the columns of a chunk and the part of each of its rows."""
    encoded = {}
    for number, part in enumerate(PARTS):
        here = fold == number
        selected = slice(None) if here.all() else here  # a slice copies nothing
        encoded[part] = {name: column[selected] for name, column in columns.items()}
    return encoded


def _sum(counts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The sum of equal sets of arrays, such as the item counts of all hosts."""
    parts = iter(counts)
    summed = dict(next(parts))
    for part in parts:
        summed = {name: array + part[name] for name, array in summed.items()}
    return summed


def _check_classes(item_counts: Mapping[str, np.ndarray]) -> None:
    """Raises DataError if labelled training rows all have the same label."""
    rows = int(item_counts["count"].sum())
    clicks = int(item_counts["clicks"].sum()) if "clicks" in item_counts else None
    if clicks in (0, rows):
        raise DataError(
            f"all {rows:,} training rows have label {int(clicks > 0)}: a click task needs rows of "
            "both labels; check the label column, or use data.task='ranking' for positives alone"
        )


def write_rest(
    path: pathlib.Path,
    source: raw.RawData,
    counted: Counted,
    item_counts: dict[str, np.ndarray],
    config: PrepareConfig,
) -> dict[str, Any]:
    """Writes everything of a table but its rows.

    Args:
      path: the folder, with the rows.
      source: of the rows; its content is written.
      counted: the first pass.
      item_counts: of `write_rows`, for all rows.
      config: the settings.

    Returns:
      The facts that `write_table` returns.

    Raises:
      ConfigError, DataError: as `write_table`.
    """
    _check_classes(item_counts)
    assignment, schema = counted.assignment, _write_rest(path, source, counted, item_counts, config)
    found = [*assignment.traps, *traps.of_test_rows(read_columns(path / SPLITS[TEST]))]
    return {
        **({"traps": found} if found else {}),
        "rows": dict.fromkeys(PARTS, 0) | counted.part_rows,
        "num_users": schema.num_users - 1,
        "num_items": schema.num_items - 1,
        "hashed": list(schema.hashed),
        "merged_repeats": assignment.merged,
        "reader": dataclasses.asdict(counted.report),
    }


def _write_rest(
    path: pathlib.Path,
    source: raw.RawData,
    counted: Counted,
    item_counts: dict[str, np.ndarray],
    config: PrepareConfig,
) -> Schema:
    assignment, encoder = counted.assignment, counted.encoder
    users = encode_content("user", source.users, encoder.user)
    items = encode_content("item", source.items, encoder.item)
    write_columns(path / "users", users.columns)
    write_columns(path / "items", items.columns | item_counts)
    for folder, titles in (("users", users.titles), ("items", items.titles)):
        if titles is not None:
            write_text(path / folder / TITLES, titles)
    if config.task == "ranking":
        _write_known(path, encoder.user.size)
        _write_negatives(path, assignment.negatives, encoder.item, config)
    vocabularies = {"user": encoder.user, "item": encoder.item}
    vocabularies |= {f"row.{name}": known for name, known in encoder.categorical.items()}
    vocabularies |= users.vocabularies | items.vocabularies
    for name, known in vocabularies.items():
        encoding.write_vocabulary(path, name, known)
    scales = {name: dict(zip(("mean", "std"), x, strict=True)) for name, x in encoder.dense.items()}
    durable.write_json(path / "statistics.json", scales)
    sizes = tuple(known.size for known in encoder.categorical.values())
    schema = Schema(
        task=config.task,
        num_users=encoder.user.size,
        num_items=encoder.item.size,
        context=Features(tuple(encoder.dense), tuple(encoder.categorical), sizes),
        user_content=users.features,
        item_content=items.features,
        user_features=tuple(config.user_features),
        item_features=tuple(config.item_features),
        log_dense=config.log_dense,
        hashed={name: known.hashed for name, known in vocabularies.items() if known.hashed},
    )
    write_schema(path, schema)
    return schema


def _write_known(path: pathlib.Path, num_users: int) -> None:
    """Writes the items of each user's training and fold-in rows; see `Table.known`."""
    parts = [read_columns(path / name) for name in (SPLITS[TRAIN], PARTS[FOLD_IN])]
    user, item = (np.concatenate([x[name] for x in parts if x]) for name in ("user", "item"))
    counts = np.bincount(user, minlength=num_users)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    order = np.lexsort((item, user))
    write_columns(path / KNOWN, {"offsets": offsets, "items": item[order]})


def _write_negatives(
    path: pathlib.Path, given: raw.Negatives | None, items: Vocabulary, config: PrepareConfig
) -> None:
    """Writes the items against which each held-out row's item is ranked in the '1 + K' protocol."""
    columns = [read_columns(path / part) for part in PARTS if (path / part).exists()]
    keys = [negatives.pair_keys(rows["user"], rows["item"], items.size) for rows in columns]
    seen = np.unique(np.concatenate(keys))
    for split in (VALIDATION, TEST):
        if split == TEST and given is not None:
            drawn = items.ids(given.items)[given.places]
        else:
            drawn = negatives.draw_for_evaluation(
                columns[split]["user"], seen, items.size, config.num_negatives, config.seed + split
            )
        write_columns(path / SPLITS[split], {"negatives": drawn})
