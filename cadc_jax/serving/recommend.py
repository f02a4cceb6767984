"""Items for users, by a trained model: a table for one user or item, or a file for many users.

All items are candidates, except id 0 ('not in training') and the items of the user's own training
or, if the user was held out, fold-in rows. Rows of clicks do not say which items a user is done
with, so nothing is left out there.
"""

import errno
import pathlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cadc_jax.data.raw import take
from cadc_jax.data.table import read_titles
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.evaluation.ranking import SeenItems
from cadc_jax.factorization import topk
from cadc_jax.run.arms import POPULARITY
from cadc_jax.runtime import durable, text
from cadc_jax.serving.context import ITEM_BLOCK, context_of
from cadc_jax.serving.online import Recommender, Shapes
from cadc_jax.serving.raw_ids import RawIds, UnknownIdError, of_table
from cadc_jax.serving.trained import Trained, make_scorer

USER_BLOCK = 512  # users scored at a time, at most


def show(trained: Trained, raw: str, k: int) -> str:
    """The best items of one user as a table for people.

    Raises:
      UnknownIdError: if the user is unknown, unless popularity scores the items.
    """
    users, _ = _raw_ids(trained)
    user = users.id_of(raw) if trained.arm is POPULARITY else known_user(users, raw)
    (_, scores, ids), *_ = blocks(trained, np.array([user], np.int32), k)
    who = "an unknown user" if user == 0 else f"user {raw}"
    if trained.table.known:
        seen = np.diff(trained.table.known["offsets"])[user]
        who += f", {seen:,} known items left out"
    return _shown(trained, f"{who}; by {trained}", scores[0], ids[0])


def known_user(users: RawIds, raw: str) -> int:
    """The id of a user; the error says what else there is for one who is unknown."""
    try:
        return users.known_id_of(raw)
    except UnknownIdError as error:
        raise UnknownIdError(
            f"{error}; for someone new give items instead (--items=ID,ID), or take what is popular "
            f"(--arm={POPULARITY.name})"
        ) from None


def show_new(trained: Trained, given: str, k: int) -> str:
    """The best items of a user who is not in the data, as a table for people.

    Args:
      trained: factors, a model with frozen ones, or popularity.
      given: raw ids of the user's items, joined by commas.
      k: items to show.

    Raises:
      UnknownIdError: if an item is unknown.
      ConfigError: if there is none or one is there twice, or the model takes no new users.
    """
    items = _raw_ids(trained)[1]
    own = items.known_ids_of(items.split(given), len(items.split(given)))
    found = Recommender(trained, Shapes(1, len(own), _checked(k))).best([own])
    who = f"a new user, {len(own):,} items given and left out; by {trained}"
    return _shown(trained, who, *(x[0] for x in found))


def show_similar(trained: Trained, raw: str, k: int) -> str:
    """The items most similar to an item, as a table for people.

    Raises:
      UnknownIdError: if the item is unknown.
      ConfigError: if the model has no item vectors.
    """
    item = _raw_ids(trained)[1].known_id_of(raw)
    found = Recommender(trained, Shapes(1, 1, _checked(k))).similar(np.array([item]))
    name = read_titles(trained.prepared, "items")
    title = "" if name is None else f" ({name[item]})"
    who = f"similar to item {raw}{title}, by the cosine of item vectors; of {trained}"
    return _shown(trained, who, *(x[0] for x in found))


def _shown(trained: Trained, who: str, scores: np.ndarray, ids: np.ndarray) -> str:
    """A line, and a table of items [k] with scores [k]; ids that are not there are left out."""
    scores, ids = scores[ids > 0], ids[ids > 0]
    header, titles = ["rank", "item", "score"], read_titles(trained.prepared, "items")
    columns = [
        map(str, range(1, len(ids) + 1)),
        map(str, _raw_ids(trained)[1].of(ids)),
        (f"{x:.4f}" for x in scores),
    ]
    if titles is not None:
        header.append("title")
        columns.append(map(str, take(titles, ids)))
    lines = [header, *map(list, zip(*columns, strict=True))]
    return "\n".join([who, "", *text.aligned(lines, right=(0, 1, 2))])


def _raw_ids(trained: Trained) -> tuple[RawIds, RawIds]:
    """Of users and of items."""
    user, item = (of_table(trained.prepared, trained.source, kind) for kind in ("user", "item"))
    return user, item


def _checked(k: int) -> int:
    if k < 1:
        raise ConfigError(f"--k={k}: must be at least 1")
    return k


def write_recommendations(trained: Trained, which: str, k: int, out: pathlib.Path) -> str:
    """Writes the best items of many users to a Parquet file: columns user, rank, item, score.

    Args:
      trained: what scores them.
      which: 'all', or a file of raw user ids, one a line; those that are not known are left out.
      k: items a user.
      out: the file, which must not exist yet.

    Returns:
      What was written, for people.

    Raises:
      ConfigError: if the file exists or no user is known.
      DataError: if there is no file of users.
    """
    durable.check_new(out, "file")
    raw_users, raw_items = _raw_ids(trained)
    users, unknown = _chosen(trained, which, raw_users)
    if not len(users):
        raise ConfigError(
            f"--users={which}: names no user of the training rows (such as {raw_users.examples()})"
        )
    rows = _write_parquet(out, blocks(trained, users, k), raw_users, raw_items)
    text = f"{out}: {rows:,} rows, {len(users):,} users, by {trained}"
    if unknown:
        text += f"\n{len(unknown):,} unknown users left out, such as '{unknown[0]}'"
    return text


def _chosen(trained: Trained, which: str, raw_users: RawIds) -> tuple[np.ndarray, list[str]]:
    """Ids [N] int32 of the users that `which` names, and the raw ids that are unknown."""
    if which == "all":
        return np.arange(1, trained.table.schema.num_users, dtype=np.int32), []
    found = {raw: raw_users.id_of(raw) for raw in _lines(pathlib.Path(which))}
    users = np.array([user for user in found.values() if user], np.int32)
    return users, [raw for raw, user in found.items() if not user]


def _write_parquet(
    out: pathlib.Path,
    recommended: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    raw_users: RawIds,
    raw_items: RawIds,
) -> int:
    """Writes the file, whole or not at all; returns the number of its rows."""
    writer, rows = None, 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with durable.replacing(out) as temporary:
            for part in _parts(recommended, raw_users, raw_items):
                writer = writer or parquet.ParquetWriter(temporary, part.schema)
                writer.write_table(part)
                rows += len(part)
            assert writer is not None  # as there are users
            writer.close()
    except OSError as error:
        error.filename = str(out)  # Parquet's errors do not name it
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(f"--out={out}: {error.strerror or error}; choose another path") from None
    return rows


def _parts(
    recommended: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    raw_users: RawIds,
    raw_items: RawIds,
) -> Iterator[pa.Table]:
    for users, scores, ids in recommended:
        there = ids > 0
        ranks = np.broadcast_to(np.arange(1, ids.shape[1] + 1, dtype=np.int32), ids.shape)
        yield pa.table(
            {
                "user": raw_users.of(np.repeat(users, ids.shape[1])[there.ravel()]),
                "rank": ranks[there],
                "item": raw_items.of(ids[there]),
                "score": scores[there],
            }
        )


def blocks(
    trained: Trained, users: np.ndarray, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The best items of users [N], block by block.

    Blocks have one shape: the last one is scored with its last user repeated.

    Yields:
      users [b] int32, scores [b, k] float32 and item ids [b, k] int32, best first. If a user has
      fewer than k items left, the remaining ids are -1. k is at most the number of items.

    Raises:
      ConfigError: if k is less than 1.
    """
    table = trained.table
    items = range(1, table.schema.num_items)  # id 0 is no item
    k, scorer, context, seen = (
        min(_checked(k), len(items)),
        make_scorer(trained),
        context_of(table),
        None,
    )
    if table.known:
        seen = SeenItems(table.known["offsets"], table.known["items"])
    wide = min(ITEM_BLOCK, scorer.pairs, len(items))
    high = max(1, min(USER_BLOCK, scorer.pairs // wide, len(users)))
    for start in range(0, len(users), high):
        block = users[start : start + high]
        padded = np.pad(block, (0, high - len(block)), mode="edge")
        rows = {"user": padded, **context(padded)}
        exclude = np.zeros((high, 0), np.int32) if seen is None else seen.padded(padded, fill=-1)

        def score(ids: np.ndarray, rows: Mapping[str, np.ndarray] = rows) -> jax.Array:
            return scorer.score({**rows, "item": ids[None]})

        scores, ids = topk.search(score, items, k, exclude, wide)
        yield block, scores[: len(block)], ids[: len(block)]


def _lines(file: pathlib.Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"--users={file}: no such file; or write --users=all") from None
    except UnicodeDecodeError:
        raise DataError(f"--users={file}: not a text file; write one user id a line") from None
