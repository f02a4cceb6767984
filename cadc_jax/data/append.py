"""Adds rows to a prepared table: only these are parsed, and no number of an earlier row changes.

New rows are training rows, numbered after the earlier ones. New users and items get the ids at the
end of their vocabulary; every other vocabulary, the statistics and the held-out rows stay. In the
ranking task a pair that is held out does not enter training, and a row of a pair that is there
already adds its value to that row, as repeats do in `prepare`.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cadc_jax.data import encoding, negatives, prepare, raw, splits, staging, vocabulary
from cadc_jax.data.content import EncodedContent, grow_content
from cadc_jax.data.encoding import Encoder
from cadc_jax.data.negatives import contains, pair_keys
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.raw import SPLITS, TEST, TRAIN, VALIDATION, EntityTable, ReadReport
from cadc_jax.data.staging import StagedChunk
from cadc_jax.data.table import (
    KNOWN,
    TITLES,
    Columns,
    ColumnWriter,
    Schema,
    Table,
    open_table,
    read_titles,
    write_columns,
    write_schema,
    write_text,
)
from cadc_jax.data.vocabulary import Counter, Vocabulary
from cadc_jax.errors import ConfigError

_KINDS = {"user": "users", "item": "items"}  # kind -> folder of its content
_STAGING = "staging"
_ROWS = 1 << 20  # earlier rows that are read at a time


@dataclasses.dataclass(frozen=True)
class NewRows:
    """Rows to add to a table.

    Attributes:
      source: the rows.
      users: content of users, of the earlier ones too; None: new users have none.
      items: content of items, in the same way.
      own_negatives: whether the data brought the items its test rows are ranked against ('1 + K').
    """

    source: raw.RawData
    users: EntityTable | None = None
    items: EntityTable | None = None
    own_negatives: bool = False


def append_rows(
    path: pathlib.Path,
    before: pathlib.Path,
    facts: Mapping[str, Any],
    new: NewRows,
    config: PrepareConfig,
) -> Mapping[str, Any]:
    """Writes a prepared table and new training rows as a prepared table into the folder `path`.

    The earlier table is read as plain arrays. Memory holds its pairs (the ranking task) and a few
    chunks of new rows; in the ranking task also users, items and values of all new rows.

    Args:
      path: an existing, empty folder.
      before: folder of the earlier table.
      facts: its facts, as `prepare.write_table` returned them.
      new: the rows to add.
      config: the settings that the table was prepared with.

    Returns:
      The facts of the new table, and `added`: rows that became training rows; `held_out` and
      `known`, rows left out because the pair is held out or has a row; new `users` and `items`.

    Raises:
      ConfigError: if the split holds out users, or a vocabulary outgrows `max_vocabulary`.
      DataError: if the rows cannot be read.
    """
    if config.split == "users":
        raise ConfigError(
            "data.split='users': new rows of held-out users would be neither training nor held-out "
            "rows; run the whole log again"
        )
    if config.cuts:
        raise ConfigError(
            "data.min_user_rows, data.min_item_rows: which users and items stay is decided by the "
            "whole log; run it again with the new rows"
        )
    table, folder = open_table(before), path / _STAGING
    change = functools.partial(prepare.clean, config=config)
    chunks, report = staging.stage_rows(folder, new.source, config.max_malformed, change)
    merged = _merge(chunks, report, config)
    encoder = _grown_encoder(encoding.open_encoder(before), chunks, merged, config)
    if merged is None:
        rows = _Rows(_click_blocks(chunks, encoder), report.rows)
    else:
        rows = _new_pairs(table, chunks, merged, encoder)
    train = table.splits[SPLITS[TRAIN]]
    counts = _write_training_rows(path / SPLITS[TRAIN], train, rows, encoder.item.size)
    for part in SPLITS[VALIDATION], SPLITS[TEST]:
        shutil.copytree(before / part, path / part)
    if merged is not None:
        _write_pairs(path, table, rows, encoder, new.own_negatives, config)
    schema = _write_rest(path, before, table, encoder, counts, new)
    shutil.rmtree(folder)
    users, items = schema.num_users - 1, schema.num_items - 1
    read = raw.total([staging.report_of(facts["reader"]), report])
    repeats = 0 if merged is None else merged.repeats
    return {
        "rows": {**facts["rows"], SPLITS[TRAIN]: facts["rows"][SPLITS[TRAIN]] + rows.number},
        "num_users": users,
        "num_items": items,
        "hashed": list(schema.hashed),
        "merged_repeats": facts["merged_repeats"] + repeats + rows.known,
        "reader": dataclasses.asdict(read),
        "added": {
            "rows": rows.number,
            "held_out": rows.held_out,
            "known": repeats + rows.known,
            "users": users - facts["num_users"],
            "items": items - facts["num_items"],
        },
    }


class _Merged(NamedTuple):
    """New rows of the ranking task, one a pair.

    Attributes:
      kept: [rows] bool.
      value: [rows] float32, of a row that is kept the sum of its pair.
      repeats: number of rows that are not kept.
    """

    kept: np.ndarray
    value: np.ndarray
    repeats: int


class _Rows(NamedTuple):
    """What is added to the training rows.

    Attributes:
      blocks: encoded rows, name -> column, in order.
      number: how many these are.
      user, item: [number] of the ranking task.
      value: of the ranking task, [earlier rows] float32 with the values of new rows of known pairs.
      held_out, known: rows left out because the pair is held out, or has a training row.
    """

    blocks: Iterable[Columns]
    number: int
    user: np.ndarray | None = None
    item: np.ndarray | None = None
    value: np.ndarray | None = None
    held_out: int = 0
    known: int = 0


def _merge(
    chunks: Sequence[StagedChunk], report: ReadReport, config: PrepareConfig
) -> _Merged | None:
    """Merges repeats among the new rows, as `prepare` does; None for clicks."""
    if config.task == "click":
        return None
    keys = prepare.keys_of([prepare.read_keys(chunks, config)], report, config)
    keys = splits.merge_repeats(keys)
    places = keys.categorical["place"]
    kept, value = np.zeros(report.rows, bool), np.ones(report.rows, np.float32)
    kept[places] = True
    if keys.value is not None:
        value[places] = keys.value
    return _Merged(kept, value, report.rows - len(places))


def _grown_encoder(
    known: Encoder, chunks: Sequence[StagedChunk], merged: _Merged | None, config: PrepareConfig
) -> Encoder:
    """The encoder with the new users and items that have `min_count` new rows."""
    counters = {kind: Counter(config.max_vocabulary) for kind in _KINDS}
    for chunk in chunks:
        rows = chunk.read(_KINDS)
        kept = slice(None) if merged is None else merged.kept[chunk.places]
        for kind, counter in counters.items():
            column = encoding.coded_column(rows, kind)
            codes = column.indices.to_numpy()[kept]
            counter.add(column.dictionary, np.bincount(codes, minlength=len(column.dictionary)))
    found: dict[str, Any] = {}
    for kind in _KINDS:
        old: Vocabulary = getattr(known, kind)
        met = counters[kind].vocabulary(config.min_count)
        grown = old if met.hashed else vocabulary.grown(old, met.values)
        if not old.hashed and (met.hashed or 0 < config.max_vocabulary < grown.size - 1):
            raise ConfigError(
                f"data.max_vocabulary={config.max_vocabulary}: with the new rows there are more "
                f"{kind}s; run the whole log again, which hashes them"
            )
        found[kind] = grown
    return dataclasses.replace(known, **found)


def _click_blocks(chunks: Sequence[StagedChunk], encoder: Encoder) -> Iterator[Columns]:
    yield from staging.map_chunks("update: encode", lambda x: encoder.encode(x.read()), chunks)


def _new_pairs(
    table: Table, chunks: Sequence[StagedChunk], merged: _Merged, encoder: Encoder
) -> _Rows:
    """The new rows whose pair has neither a held-out nor a training row.

    Id 0 stands for any other value: nothing is known to be the same pair as one with it.
    """
    encoded = list(_click_blocks(chunks, encoder))
    columns = {name: np.concatenate([x[name] for x in encoded])[merged.kept] for name in encoded[0]}
    columns["value"] = merged.value[merged.kept]
    user, item, size = columns["user"], columns["item"], encoder.item.size
    keys, named = pair_keys(user, item, size), (user > 0) & (item > 0)
    held_out = named & contains(_held_out_keys(table, size), keys)
    known = named & ~held_out & contains(pair_keys(*table.known_pairs(), size), keys)
    value = _with_added(table.splits[SPLITS[TRAIN]], keys[known], columns["value"][known], size)
    new = ~(held_out | known)
    columns = {name: x[new] for name, x in columns.items()}
    return _Rows(
        [columns],
        int(new.sum()),
        columns["user"],
        columns["item"],
        value,
        int(held_out.sum()),
        int(known.sum()),
    )


def _held_out_keys(table: Table, num_items: int) -> np.ndarray:
    """Sorted keys of all validation and test pairs."""
    parts = [table.splits[part] for part in (SPLITS[VALIDATION], SPLITS[TEST])]
    return np.unique(np.concatenate([pair_keys(x["user"], x["item"], num_items) for x in parts]))


def _with_added(train: Columns, keys: np.ndarray, value: np.ndarray, size: int) -> np.ndarray:
    """Values of the earlier training rows, with those of new rows of the same pair: [N] float32."""
    whole = np.array(train["value"])
    if not len(keys):
        return whole
    order = np.argsort(keys)
    keys, value = keys[order], value[order]
    for start in range(0, len(whole), _ROWS):
        part = slice(start, start + _ROWS)
        here = pair_keys(train["user"][part], train["item"][part], size)
        hit = np.flatnonzero(contains(keys, here))
        whole[start + hit] += value[np.searchsorted(keys, here[hit])]
    return whole


def _write_training_rows(
    path: pathlib.Path, earlier: Columns, rows: _Rows, num_items: int
) -> dict[str, np.ndarray]:
    """Writes earlier and new rows.

    Returns:
      `count` [I] int64, new rows of each item; for clicks, `clicks` [I] int64, those with label 1.
    """
    path.mkdir()
    count = len(earlier["user"])
    writers = {
        name: ColumnWriter(path / f"{name}.npy", x.dtype, (count + rows.number, *x.shape[1:]))
        for name, x in earlier.items()
    }
    if rows.value is not None:
        earlier = {**earlier, "value": rows.value}
    for name, writer in writers.items():
        for start in range(0, count, _ROWS):
            writer.append(np.asarray(earlier[name][start : start + _ROWS]))
    counts = {"count": np.zeros(num_items, np.int64)}
    if "label" in earlier:
        counts["clicks"] = np.zeros(num_items, np.int64)
    for block in rows.blocks:
        for name, writer in writers.items():
            writer.append(block[name])
        counts["count"] += np.bincount(block["item"], minlength=num_items)
        if "label" in block:
            clicked = block["item"][block["label"] > 0]
            counts["clicks"] += np.bincount(clicked, minlength=num_items)
    for writer in writers.values():
        writer.close()
    return counts


def _write_pairs(
    path: pathlib.Path,
    table: Table,
    rows: _Rows,
    encoder: Encoder,
    own_negatives: bool,
    config: PrepareConfig,
) -> None:
    """Writes `Table.known` with the new pairs, and draws negatives anew that are among these."""
    assert rows.user is not None and rows.item is not None  # of the ranking task
    num_users, num_items = encoder.user.size, encoder.item.size
    added = np.sort(pair_keys(rows.user, rows.item, num_items))
    earlier = pair_keys(*table.known_pairs(), num_items)
    keys = np.insert(earlier, np.searchsorted(earlier, added), added)
    users = np.bincount(rows.user, minlength=num_users)
    users[: table.schema.num_users] += np.diff(table.known["offsets"])
    offsets = np.concatenate([[0], np.cumsum(users)]).astype(np.int64)
    write_columns(path / KNOWN, {"offsets": offsets, "items": (keys % num_items).astype(np.int32)})
    seen = np.union1d(keys, _held_out_keys(table, num_items))
    for split in (VALIDATION, TEST):
        held_out = table.splits[SPLITS[split]]
        drawn = np.array(held_out["negatives"])
        taken = contains(added, pair_keys(held_out["user"][:, None], drawn, num_items)).any(axis=1)
        if taken.any() and not (split == TEST and own_negatives):
            user, seed = held_out["user"][taken], config.seed + split
            drawn[taken] = negatives.draw_for_evaluation(
                user, seen, num_items, drawn.shape[1], seed
            )
            write_columns(path / SPLITS[split], {"negatives": drawn})


def _write_rest(
    path: pathlib.Path,
    before: pathlib.Path,
    table: Table,
    encoder: Encoder,
    counts: Mapping[str, np.ndarray],
    new: NewRows,
) -> Schema:
    """Writes everything of a table but its rows and pairs."""
    shutil.copytree(before / "vocabularies", path / "vocabularies")
    shutil.copy(before / "statistics.json", path)
    schema = dataclasses.replace(
        table.schema, num_users=encoder.user.size, num_items=encoder.item.size
    )
    for kind, side in _KINDS.items():
        known: Vocabulary = getattr(encoder, kind)
        place = path / "vocabularies" / kind
        shutil.rmtree(place) if place.is_dir() else place.with_suffix(".npy").unlink()
        encoding.write_vocabulary(path, kind, known)
        columns = {name: np.asarray(x) for name, x in getattr(table, side).items()}
        earlier = {name: columns.pop(name) for name in counts if name in columns}
        content = _content_of(before, kind, columns, schema)
        content = grow_content(content, kind, getattr(new, side), known)
        for name, count in earlier.items():
            content.columns[name] = counts[name].copy()
            content.columns[name][: len(count)] += count
        write_columns(path / side, content.columns)
        if content.titles is not None:
            write_text(path / side / TITLES, content.titles)
    write_schema(path, schema)
    return schema


def _content_of(
    before: pathlib.Path, kind: str, columns: dict[str, np.ndarray], schema: Schema
) -> EncodedContent:
    """The content of users or items of the earlier table."""
    features = getattr(schema, f"{kind}_content")
    names = [f"{kind}.{name}" for name in (*features.categorical, *features.bags)]
    known = {name: encoding.read_vocabulary(before, name) for name in names}
    return EncodedContent(columns, features, known, read_titles(before, _KINDS[kind]))
