"""Quality of a scorer on the validation or the test split of a prepared table."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax import metrics, sharding
from cadc_jax.data import sampling
from cadc_jax.data.raw import SPLITS
from cadc_jax.data.table import Columns, Table
from cadc_jax.errors import ConfigError, TrainingError, check_at_least, check_choice
from cadc_jax.evaluation import ranking
from cadc_jax.evaluation.scorers import Score, Scorer
from cadc_jax.models.embeddings import pair_batch

CLICK_BLOCK = 8192  # rows scored at a time
EXACT_ROWS = 1 << 22  # up to so many rows, scores are kept and sorted
EDGE_ROWS = 1 << 16  # rows whose scores bound the bins of a larger split
ROW_COLUMNS = ("user", "item", "dense", "categorical")  # what a row is scored by
USER_BLOCK = 256  # users scored at a time against their own candidates


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How rankings are evaluated.

    Attributes:
      k: cut-offs of the metrics; the NDCG at the first one chooses the best step. A number alone is
        a tuple of one.
      max_users: users of the full ranking, drawn at random; 0 for all.
      max_rows: validation rows of clicks that choose the best step, at even distances; 0 for all.
      ranking: ranking of the validation items that chooses the best step: 'sampled', among
        `data.num_negatives` other items, which favours popular items, or 'full', among all.
    """

    k: tuple[int, ...] = (10, 20, 50)
    max_users: int = 0
    max_rows: int = 0
    ranking: str = "full"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _cut_offs(self.k))
        check_at_least("evaluation.max_users", self.max_users, 0)
        check_at_least("evaluation.max_rows", self.max_rows, 0)
        check_choice("evaluation.ranking", self.ranking, ("sampled", "full"))


def _cut_offs(k: Any) -> tuple[int, ...]:
    """`evaluation.k` as a tuple of different numbers, in the given order."""
    found = tuple(k) if isinstance(k, list | tuple) else (k,)
    if not found or not all(isinstance(x, int) for x in found):
        raise ConfigError(f"evaluation.k={k!r}: must be a number, or a tuple such as (10, 20)")
    if min(found) < 1:
        raise ConfigError(f"evaluation.k={k!r}: must be at least 1")
    return tuple(dict.fromkeys(found))


def evaluate_clicks(
    scorer: Scorer, columns: Columns, keep: Callable[[np.ndarray], None] | None = None
) -> dict[str, float]:
    """Quality on a split of labelled rows of any size, in bounded memory.

    Up to EXACT_ROWS rows the AUC is exact. Beyond, it comes from a histogram of the scores. Its
    bins begin and end at the scores of EDGE_ROWS rows spread evenly over the split.

    Args:
      scorer: scores rows, each with its own item.
      columns: of the split; memory-mapped ones are read a block at a time.
      keep: called with the scores of each block in turn, [n] float32, for example to store them.

    Returns:
      `auc`; past EXACT_ROWS `auc_error`, the bound on its error; if scores are logits, `logloss`
      and `calibration` (mean prediction over click rate). Without rows of both classes there is no
      AUC, without clicks no calibration.

    Raises:
      TrainingError: if a score is not finite.
    """
    rows = len(columns["label"])
    exact = rows <= EXACT_ROWS
    edges = jnp.zeros(0) if exact else _edges(scorer.score, columns, rows)
    kept = []

    def each(scores: np.ndarray, weight: np.ndarray) -> None:
        if exact:
            kept.append(scores)
        if keep is not None:
            keep(scores.astype(np.float32)[weight])

    stats = _click_stats(scorer.score, columns, edges, each)
    if exact:
        labels = np.asarray(columns["label"])
        result = {"auc": float(metrics.auc(labels, np.concatenate(kept)[:rows]))}
    else:
        result = dict(zip(("auc", "auc_error"), stats.auc(), strict=True))
    if scorer.calibrated:
        result |= {"logloss": stats.log_loss(), "calibration": stats.calibration()}
    check_finite(stats)
    return {name: value for name, value in result.items() if np.isfinite(value)}


def click_errors(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Standard error of the AUC of up to EXACT_ROWS rows [N]; nothing for more, or one label."""
    if len(labels) > EXACT_ROWS:
        return {}
    found = metrics.auc_standard_error(np.asarray(labels), scores)
    return {"auc": found} if np.isfinite(found) else {}


def log_loss(scorer: Scorer, columns: Columns) -> float:
    """The `logloss` of `evaluate_clicks` alone, for which no scores are kept or sorted.

    Raises:
      TrainingError: if a score is not finite.
    """
    stats = _click_stats(scorer.score, columns, jnp.zeros(0))
    check_finite(stats)
    return stats.log_loss()


def validation_quality(scorer: Scorer, table: Table, config: EvaluationConfig) -> dict[str, float]:
    """Quality on the validation split; the first metric is the one that choices are made by.

    Of clicks those of `evaluate_clicks`, the log loss first if there is one; of rankings those of
    the ranking that `config.ranking` names, of which the NDCG at the first cut-off chooses.

    Args:
      scorer: what is evaluated.
      table: a prepared table.
      config: how rankings are evaluated, and how many rows of clicks.

    Raises:
      TrainingError: if a score is not finite.
    """
    rows = table.splits["validation"]
    if table.schema.task == "click":
        found = evaluate_clicks(scorer, thinned(rows, config.max_rows))
        return {name: found[name] for name in sorted(found, key=lambda name: name != "logloss")}
    if config.ranking == "full":
        return rank_users(scorer, table, "validation", config.max_users).quality(config.k)
    found = sampled_quality(ranks_sampled(scorer, rows), config.k, rows["negatives"].shape[1])
    return {name: found[name] for name in sorted(found, key=lambda name: name[:4] != "ndcg")}


def thinned(columns: Columns, most: int) -> Columns:
    """At most so many labelled rows, at even distances; 0 for all."""
    rows = len(columns["label"])
    if not 0 < most < rows:
        return columns
    places = np.arange(most) * rows // most
    return {name: column[places] for name, column in columns.items()}


def check_finite(stats: metrics.ClickStats) -> None:
    """Raises TrainingError if a score is not finite."""
    if not (np.isfinite(stats.predicted).all() and np.isfinite(stats.loss).all()):
        raise TrainingError("a score is not a finite number: lower the learning rate")


def _click_stats(
    score: Score,
    columns: Columns,
    edges: jax.Array,
    each: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> metrics.ClickStats:
    """Statistics of all rows; `each` takes the scores and weights of each block."""
    stats: metrics.ClickStats | None = None
    for labels, scores, weight in _scored(score, columns, range(len(columns["label"]))):
        block = metrics.click_stats(labels, scores, weight, edges)
        stats = block if stats is None else metrics.merge(stats, block)
        if each is not None:
            each(np.asarray(scores), weight)
    assert stats is not None  # no split is without rows
    return stats


def _edges(score: Score, columns: Columns, rows: int) -> jax.Array:
    """Sorted scores of EDGE_ROWS rows spread evenly over the split."""
    spread = np.linspace(0, rows - 1, EDGE_ROWS).astype(np.int64)
    return jnp.sort(jnp.concatenate([scores for _, scores, _ in _scored(score, columns, spread)]))


def _scored(
    score: Score, columns: Columns, rows: Sequence[int] | np.ndarray
) -> Iterator[tuple[np.ndarray, jax.Array | np.ndarray, np.ndarray]]:
    """Labels, scores and weights [CLICK_BLOCK] of `rows`, block by block; padding has weight 0."""
    names = [name for name in ROW_COLUMNS if name in columns]
    for start in range(0, len(rows), CLICK_BLOCK):
        places = np.asarray(rows[start : start + CLICK_BLOCK])
        real = np.arange(CLICK_BLOCK) < len(places)
        places = np.pad(places, (0, CLICK_BLOCK - len(places)), mode="edge")
        batch = {name: np.asarray(columns[name][places]) for name in names}
        batch["item"] = batch["item"][:, None]
        yield np.asarray(columns["label"][places]), sharding.local(score(batch)[:, 0]), real


def ranks_sampled(scorer: Scorer, columns: Columns) -> np.ndarray:
    """Ranks [N] int32 of the held-out items, each among its own K negatives."""

    def score_items(users: np.ndarray, items: np.ndarray) -> jax.Array:
        return scorer.score(pair_batch(users, items))

    return ranking.sampled_ranks(
        score_items, columns["user"], columns["item"], columns["negatives"], USER_BLOCK
    )


@dataclasses.dataclass(frozen=True)
class FullRanking:
    """Where the held-out items of a split stand among all items that their users had not seen.

    Attributes:
      user: [N] int32.
      item: [N] int32.
      ranks: [N] int32, for each held-out item the number of items with at least its score that its
        user has not seen and that are not held out for the user. The j-th best held-out item of a
        user, counted from 0, is at place rank + j of the user's list. I, the number of items, for
        id 0 and scores that are not numbers; -1 for users that were not drawn.
      best: [I] int64, the best place of each item in the list of any ranked user, within the
        length of the lists; `metrics.NEVER` if it is in none.
    """

    user: np.ndarray
    item: np.ndarray
    ranks: np.ndarray
    best: np.ndarray

    @property
    def users(self) -> dict[str, int]:
        """Numbers of users: `ranked`, and `all` that have held-out items."""
        ranked = np.unique(self.user[self.ranks >= 0])
        return {"ranked": len(ranked), "all": len(np.unique(self.user))}

    def quality(self, k: Sequence[int], coverage: bool = False) -> dict[str, float]:
        """Metrics at each cut-off.

        Means over users: `ndcg@k`, `recall@k`, `hit@k`, `map@k` and `mrr`, as `UserRankings` has
        them. `hr@k` is the share of held-out items, of all users together, among the first k.

        Args:
          k: the cut-offs.
          coverage: whether to add `coverage@k`, the share of items that are among the first k of
            any ranked user; the lists must be as long.
        """
        lists = self._lists
        found: dict[str, Any] = {}
        for cut in k:
            found[f"ndcg@{cut}"] = lists.ndcg(cut)
            found[f"recall@{cut}"] = lists.recall(cut)
            found[f"hit@{cut}"] = lists.hit(cut)
            found[f"map@{cut}"] = lists.average_precision(cut)
            found[f"hr@{cut}"] = lists.place < cut
            if coverage:
                found[f"coverage@{cut}"] = self.best[1:] < cut
        found["mrr"] = lists.reciprocal_rank()
        return {name: float(np.mean(values)) for name, values in found.items()}

    @functools.cached_property
    def _lists(self) -> metrics.UserRankings:
        return metrics.UserRankings.of_ranks(self.ranks, self.user, self.item, len(self.best))

    def standard_errors(self, k: int) -> dict[str, float]:
        """Those of `ndcg@k` and `recall@k`, users being independent; nothing for one user."""
        lists = self._lists
        users = len(lists.users)
        if users < 2:
            return {}
        values = {f"ndcg@{k}": lists.ndcg(k), f"recall@{k}": lists.recall(k)}
        return {name: float(np.std(x, ddof=1)) / users**0.5 for name, x in values.items()}


def rank_users(
    scorer: Scorer, table: Table, split: str, max_users: int = 0, seed: int = 0, length: int = 0
) -> FullRanking:
    """Ranks the held-out items of each user among all items the user has not seen before.

    Args:
      scorer: scores users with all items; it scores each user once (see `ranking.GROUP`).
      table: a prepared table of the ranking task.
      split: 'validation' or 'test'; the rows of all earlier splits are 'seen'.
      max_users: number of users to rank, drawn by `seed`; 0 for all.
      seed: of that draw.
      length: of the lists that coverage is counted in; 0 makes none.
    """
    return rank_held_out(scorer, HeldOut.of(table, split, max_users, seed), length)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out items of a split, and what their users had seen before.

    Attributes:
      user: [N] int32.
      item: [N] int32.
      chosen: [M] int64, rows of the users that were drawn.
      seen: items of each user in all earlier splits.
      num_items: I.
    """

    user: np.ndarray
    item: np.ndarray
    chosen: np.ndarray
    seen: ranking.SeenItems
    num_items: int

    @classmethod
    def of(cls, table: Table, split: str, max_users: int, seed: int = 0) -> "HeldOut":
        """See `rank_users`."""
        user, item = (np.asarray(table.splits[split][name]) for name in ("user", "item"))
        chosen = np.flatnonzero(_drawn(user, max_users, seed))
        return cls(user, item, chosen, _seen_before(table, split), table.schema.num_items)

    def blocks(self, size: int) -> Iterator[tuple[ranking.Block, np.ndarray]]:
        """Blocks of up to `size` users; see `ranking.blocks`."""
        return ranking.blocks(self.user[self.chosen], self.item[self.chosen], self.seen, size)

    def block_size(self, pairs: int, devices: int) -> int:
        """Users to score at a time, to be split over devices: `pairs` users and items, or fewer."""
        users = ranking.num_groups(self.user[self.chosen])
        return even_block(users, max(1, pairs // self.num_items), devices)

    def ranking(self, ranks: np.ndarray, best: np.ndarray) -> FullRanking:
        """The ranking of all rows, from the ranks [M] of the chosen ones."""
        found = np.full(len(self.user), -1, np.int32)
        found[self.chosen] = ranks
        return FullRanking(self.user, self.item, found, best)


def rank_held_out(scorer: Scorer, held_out: HeldOut, length: int = 0) -> FullRanking:
    """`rank_users` of what is at hand already."""
    num_items, chosen = held_out.num_items, held_out.chosen
    best = np.full(num_items, metrics.NEVER)
    length = min(length, num_items)

    def keep(lists: np.ndarray) -> None:
        np.minimum.at(best, lists, np.arange(length)[None])

    all_items = np.arange(num_items, dtype=np.int32)[None]
    ranks = ranking.full_ranks(
        lambda users: scorer.score(pair_batch(users, all_items)),
        held_out.user[chosen],
        held_out.item[chosen],
        held_out.seen,
        held_out.block_size(scorer.pairs, jax.device_count()),
        (length, keep) if length else None,
    )
    return held_out.ranking(ranks, best)


def even_block(rows: int, most: int, devices: int) -> int:
    """Size of blocks of up to about `most` rows that leaves little of the last one to padding.

    It divides over the devices.
    """
    block = -(-rows // -(-rows // most))
    return block + -block % devices


def _drawn(user: np.ndarray, max_users: int, seed: int) -> np.ndarray:
    """[N] bool, whether the user of each row is one of the `max_users` drawn ones."""
    users, index = np.unique(user, return_inverse=True)
    if not 0 < max_users < len(users):
        return np.ones(len(user), bool)
    drawn = np.zeros(len(users), bool)
    drawn[np.argsort(sampling.mix64(np.arange(len(users)), seed))[:max_users]] = True
    return drawn[index]


def _seen_before(table: Table, split: str) -> ranking.SeenItems:
    """What each user has in the splits before this one."""
    held_out = [table.splits[name] for name in SPLITS[1 : SPLITS.index(split)]]
    earlier = [table.known_pairs(), *((rows["user"], rows["item"]) for rows in held_out)]
    users, items = (np.concatenate(columns) for columns in zip(*earlier, strict=True))
    return ranking.SeenItems.of_pairs(users, items, table.schema.num_users)


def sampled_quality(ranks: np.ndarray, k: Sequence[int], negatives: int) -> dict[str, float]:
    """HR@k and NDCG@k of rows, from ranks [N] among 1 + `negatives` items each."""
    found = {}
    for cut in k:
        found[f"hr@{cut}/1+{negatives}"] = float(metrics.hit_rate(ranks, cut))
        found[f"ndcg@{cut}/1+{negatives}"] = float(metrics.ndcg(ranks, cut))
    return found
