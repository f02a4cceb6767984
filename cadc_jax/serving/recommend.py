"""Items for users, by a trained model: one user for people to read, or all of them to a file.

All items are candidates but those of the user's own training rows and id 0 ('not in training').
Rows of clicks do not say which items a user is done with: there nothing is left out, and a user is
scored in the context (the features of a row) of the last training row that is theirs, or, without
one, of the last of all.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cadc_jax.data import encoding, vocabulary
from cadc_jax.data.table import Table
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.evaluation import evaluate
from cadc_jax.run import stages
from cadc_jax.serving.trained import Trained, scorer

USER_BLOCK = 512  # users scored at a time, at most
ITEM_BLOCK = 1 << 14  # items scored at a time, at most
Context = Callable[[np.ndarray], dict[str, np.ndarray]]


class RawIds:
    """Raw ids of the users or items of a prepared table, and the way back.

    Those of Criteo's logs are spelt as there, in hexadecimal digits; ids that were hashed are not
    known any more and are spelt '#<id>'.
    """

    def __init__(self, trained: Trained, kind: str):
        """`kind`: 'user' or 'item'."""
        encoder = encoding.open_encoder(trained.prepared)
        self.kind = kind
        self.vocabulary: vocabulary.Vocabulary = getattr(encoder, kind)
        self.columns: Sequence[str] = getattr(encoder, f"{kind}_features")
        self.hexadecimal = trained.source == "criteo"

    def id_of(self, raw: str) -> int:
        """The id of a raw id, 0 if it is not known; crossed columns are written with commas.

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

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Raw ids [N] of ids [N], none of them 0."""
        if self.vocabulary.hashed:
            return np.array([f"#{number}" for number in ids])
        values = self.vocabulary.values[ids - 1]
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
      ConfigError: if the user is unknown, unless what scores them is popularity.
    """
    users, items = RawIds(trained, "user"), RawIds(trained, "item")
    user = users.id_of(raw)
    if user == 0 and trained.arm != "popularity":
        raise ConfigError(
            f"--user={raw}: not among the {trained.table.schema.num_users - 1:,} users of the "
            f"training rows (such as {users.examples()}); --arm=popularity recommends what is "
            "popular, to anyone"
        )
    (_, scores, ids), *_ = blocks(trained, np.array([user], np.int32), k)
    scores, ids = scores[0][ids[0] > 0], ids[0][ids[0] > 0]
    titles = trained.table.items.get("titles")
    header = ["rank", "item", "score"] + (["title"] if titles is not None else [])
    lines = [header]
    for rank, (item, raw_item, value) in enumerate(zip(ids, items.of(ids), scores, strict=True)):
        title = [str(titles[item])] if titles is not None else []
        lines.append([str(rank + 1), str(raw_item), f"{value:.4f}", *title])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    seen = np.diff(trained.table.known["offsets"])[user] if trained.table.known else None
    who = "an unknown user" if user == 0 else f"user {raw}"
    note = "" if seen is None else f", {seen:,} training items left out"
    text = [f"{who}{note}; by {trained}", ""]
    for line in lines:
        cells = [x.rjust(w) for x, w in zip(line[:3], widths[:3], strict=True)] + line[3:]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


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
    if out.exists():
        raise ConfigError(f"--out={out}: the file exists; name another one, or delete it")
    raw_users, raw_items = RawIds(trained, "user"), RawIds(trained, "item")
    unknown: list[str] = []
    if which == "all":
        users = np.arange(1, trained.table.schema.num_users, dtype=np.int32)
    else:
        found = {raw: raw_users.id_of(raw) for raw in _lines(pathlib.Path(which))}
        users = np.array([user for user in found.values() if user], np.int32)
        unknown = [raw for raw, user in found.items() if not user]
    if not len(users):
        raise ConfigError(
            f"--users={which}: names no user of the training rows (such as {raw_users.examples()})"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    writer, rows = None, 0
    try:
        for block, scores, ids in blocks(trained, users, k):
            there = ids > 0
            part = pa.table(
                {
                    "user": raw_users.of(np.repeat(block, ids.shape[1])[there.ravel()]),
                    "rank": np.broadcast_to(np.arange(1, ids.shape[1] + 1), ids.shape)[
                        there
                    ].astype(np.int32),
                    "item": raw_items.of(ids[there]),
                    "score": scores[there],
                }
            )
            writer = writer or parquet.ParquetWriter(temporary, part.schema)
            writer.write_table(part)
            rows += len(part)
        assert writer is not None  # as there are users
        writer.close()
        temporary.replace(out)
    except OSError as error:
        error.filename = str(out)  # which Parquet's errors do not tell
        raise
    finally:
        temporary.unlink(missing_ok=True)
    text = f"{out}: {rows:,} rows, {len(users):,} users, by {trained}"
    if unknown:
        text += f"\n{len(unknown):,} unknown users left out, such as '{unknown[0]}'"
    return text


def blocks(
    trained: Trained, users: np.ndarray, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The best items of users [N], block by block.

    Blocks have one shape: the last one is scored with its last user repeated.

    Yields:
      users [b] int32, scores [b, k] float32 and item ids [b, k] int32, best first; where a user has
      fewer than k items left, the id is 0. With few items k is at most their number.

    Raises:
      ConfigError: if k is less than 1.
    """
    if k < 1:
        raise ConfigError(f"--k={k}: must be at least 1")
    num_items = trained.table.schema.num_items
    k = min(k, num_items - 1)
    pairs = evaluate.PAIR_BLOCK if trained.model is None else stages.PAIR_BLOCKS[trained.model]
    wide = min(ITEM_BLOCK, pairs, num_items - 1)
    high = max(1, min(USER_BLOCK, pairs // wide, len(users)))
    score, context, seen = scorer(trained), _context(trained.table), _seen(trained.table)
    for start in range(0, len(users), high):
        block = users[start : start + high]
        padded = np.pad(block, (0, high - len(block)), mode="edge")
        row, excluded = context(padded), seen(padded)
        best = jnp.full((high, k), -jnp.inf), jnp.zeros((high, k), jnp.int32)
        for first in range(1, num_items, wide):
            ids = np.arange(first, first + wide, dtype=np.int32)
            ids[ids >= num_items] = 0  # which is no item
            scores = score({"user": padded, "item": ids[None], **row})
            best = _merge(*best, scores, ids, excluded, first)
        found, places = (np.asarray(x)[: len(block)] for x in best)
        yield block, found, np.where(np.isfinite(found), places, 0)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _merge(best_scores, best_ids, scores, ids, excluded, first):
    """The k best [B, k] of those so far and of a block of items [G] beginning at `first`."""
    place = excluded - first
    place = jnp.where((place >= 0) & (place < len(ids)), place, len(ids))
    rows = jnp.arange(len(scores))[:, None]
    scores = jnp.where(ids > 0, scores.astype(jnp.float32), -jnp.inf)
    scores = scores.at[rows, place].set(-jnp.inf, mode="drop")
    every = jnp.concatenate([best_scores, scores], axis=1)
    every_id = jnp.concatenate([best_ids, jnp.broadcast_to(ids, scores.shape)], axis=1)
    found, column = jax.lax.top_k(every, best_scores.shape[1])
    return found, jnp.take_along_axis(every_id, column, axis=1)


def _seen(table: Table) -> Callable[[np.ndarray], np.ndarray]:
    """Users [B] -> their training items [B, L], filled up with 0; L is that of all users."""
    if not table.known:
        return lambda users: np.zeros((len(users), 0), np.int32)
    offsets, items = table.known["offsets"], table.known["items"]
    longest = int(np.diff(offsets).max(initial=0))

    def seen(users: np.ndarray) -> np.ndarray:
        places = offsets[users][:, None] + np.arange(longest)
        inside = places < offsets[users + 1][:, None]
        return np.where(inside, items[np.where(inside, places, 0)], 0).astype(np.int32)

    return seen if longest else lambda users: np.zeros((len(users), 0), np.int32)


def _context(table: Table) -> Context:
    """Users [B] -> `dense` [B, F] and `categorical` [B, C] of a row of theirs."""
    if table.schema.task == "ranking":  # models of it have seen none
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
        raise DataError(f"--users={file}: no text; write one user id a line") from None
