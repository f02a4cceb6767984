"""Items for users, by a trained model: a table for one user, or a file for many.

All items are candidates, except id 0 ('not in training') and the items of the user's own training
or, if the user was held out, fold-in rows. Rows of clicks do not say which items a user is done
with, so nothing is left out there. A user is then scored in the context (the features of a row) of
their last training row, or, if they have none, of the last row of all.
"""

import errno
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cadc_jax.data import encoding, vocabulary
from cadc_jax.data.raw import Values, take
from cadc_jax.data.table import Table, read_titles
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.evaluation.ranking import SeenItems
from cadc_jax.factorization import topk
from cadc_jax.run.arms import POPULARITY
from cadc_jax.runtime import durable, text
from cadc_jax.serving.trained import Trained, make_scorer

USER_BLOCK = 512  # users scored at a time, at most
ITEM_BLOCK = 1 << 14  # items scored at a time, at most
Context = Callable[[np.ndarray], dict[str, np.ndarray]]


class RawIds:
    """Raw ids of the users or items of a prepared table, and the way back.

    Ids of Criteo's logs are written in hexadecimal digits, as in the log. The raw form of a hashed
    id is not known; it is written '#<id>'.
    """

    def __init__(self, trained: Trained, kind: str):
        """`kind`: 'user' or 'item'."""
        encoder = encoding.open_encoder(trained.prepared)
        self.kind = kind
        self.vocabulary: vocabulary.Vocabulary = getattr(encoder, kind)
        self.columns: Sequence[str] = getattr(encoder, f"{kind}_features")
        self.hexadecimal = trained.source == "criteo"

    def id_of(self, raw: str) -> int:
        """The id of a raw id, 0 if it is unknown. Values of crossed columns are joined by commas.

        Raises:
          ConfigError: if it cannot be an id of this table.
        """
        values = raw.split(",") if len(self.columns) > 1 else [raw]
        if self.columns and len(values) != len(self.columns):
            names = ",".join(self.columns)
            raise ConfigError(f"--{self.kind}={raw}: a {self.kind} is a value of each of {names}")
        try:
            columns = [
                np.array([int(x, 16) if x else -1]) if self.hexadecimal else np.array([x])
                for x in values
            ]
        except ValueError:
            raise ConfigError(f"--{self.kind}={raw}: not a hexadecimal number") from None
        return int(self.vocabulary.ids(vocabulary.cross(columns))[0])

    def of(self, ids: np.ndarray) -> Values:
        """Raw ids [N] of ids [N], none of them 0."""
        if self.vocabulary.hashed:
            return np.array([f"#{number}" for number in ids])
        values = take(self.vocabulary.values, ids - 1)
        if self.hexadecimal and len(self.columns) < 2:
            return np.array(["" if value < 0 else f"{value:08x}" for value in values])
        return values

    def examples(self) -> str:
        """A few of them, for messages."""
        size = min(3, self.vocabulary.size - 1)
        return ", ".join(str(raw) for raw in self.of(np.arange(1, size + 1)))


def show(trained: Trained, raw: str, k: int) -> str:
    """The best items of one user as a table for people.

    Raises:
      ConfigError: if the user is unknown, unless popularity scores the items.
    """
    users, items = RawIds(trained, "user"), RawIds(trained, "item")
    user = users.id_of(raw)
    if user == 0 and trained.arm is not POPULARITY:
        raise ConfigError(
            f"--user={raw}: not among the {trained.table.schema.num_users - 1:,} users of the "
            f"training rows (such as {users.examples()}); --arm={POPULARITY.name} "
            "recommends popular items to anyone"
        )
    (_, scores, ids), *_ = blocks(trained, np.array([user], np.int32), k)
    scores, ids = scores[0][ids[0] > 0], ids[0][ids[0] > 0]
    header, titles = ["rank", "item", "score"], read_titles(trained.prepared, "items")
    columns = [
        map(str, range(1, len(ids) + 1)),
        map(str, items.of(ids)),
        (f"{x:.4f}" for x in scores),
    ]
    if titles is not None:
        header.append("title")
        columns.append(map(str, take(titles, ids)))
    lines = [header, *map(list, zip(*columns, strict=True))]
    who = "an unknown user" if user == 0 else f"user {raw}"
    if trained.table.known:
        seen = np.diff(trained.table.known["offsets"])[user]
        who += f", {seen:,} known items left out"
    return "\n".join([f"{who}; by {trained}", "", *text.aligned(lines, right=(0, 1, 2))])


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
    raw_users, raw_items = RawIds(trained, "user"), RawIds(trained, "item")
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
    if k < 1:
        raise ConfigError(f"--k={k}: must be at least 1")
    table = trained.table
    items = range(1, table.schema.num_items)  # id 0 is no item
    k, scorer, context, seen = min(k, len(items)), make_scorer(trained), _context(table), None
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


def _context(table: Table) -> Context:
    """Users [B] -> `dense` [B, F] and `categorical` [B, C] of a row of each user."""
    if table.schema.task == "ranking":  # its models have seen none
        return lambda users: {
            "dense": np.zeros((len(users), 0), np.float32),
            "categorical": np.zeros((len(users), 0), np.int32),
        }
    train = table.splits["train"]
    rows = np.arange(len(train["user"]))
    last = np.full(table.schema.num_users, -1)
    np.maximum.at(last, train["user"], rows)
    last[last < 0] = rows[-1]
    return lambda users: {name: train[name][last[users]] for name in ("dense", "categorical")}


def _lines(file: pathlib.Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"--users={file}: no such file; or write --users=all") from None
    except UnicodeDecodeError:
        raise DataError(f"--users={file}: not a text file; write one user id a line") from None
