"""Quality of a scorer on the validation or the test split of a prepared table."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax import metrics, sharding
from cadc_jax.data import sampling
from cadc_jax.data.raw import SPLITS
from cadc_jax.data.table import Columns, Table
from cadc_jax.errors import TrainingError, check_at_least, check_choice
from cadc_jax.evaluation import ranking
from cadc_jax.evaluation.scorers import Score, Scorer
from cadc_jax.models.embeddings import pair_batch

CLICK_BLOCK = 8192  # rows scored at a time
EXACT_ROWS = 1 << 22  # up to so many rows, scores are kept and sorted
EDGE_ROWS = 1 << 16  # rows whose scores bound the bins of a larger split
USER_BLOCK = 512  # users scored at a time against their own candidates


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How rankings are evaluated.

    Attributes:
      k: cut-off of HR@k and NDCG@k.
      max_users: users of the full ranking, drawn at random; 0 for all.
      ranking: ranking of the validation items that chooses the best step: 'sampled', among
        `data.num_negatives` other items, which favours popular items, or 'full', among all.
    """

    k: int = 10
    max_users: int = 0
    ranking: str = "sampled"

    def __post_init__(self) -> None:
        check_at_least("evaluation.k", self.k, 1)
        check_at_least("evaluation.max_users", self.max_users, 0)
        check_choice("evaluation.ranking", self.ranking, ("sampled", "full"))


def validation_quality(scorer: Scorer, table: Table, config: EvaluationConfig) -> float:
    """What training maximises: minus the log loss of clicks, or the NDCG@k of rankings."""
    rows = table.splits["validation"]
    if table.schema.task == "click":
        return -evaluate_clicks(scorer, rows)["logloss"]
    if config.ranking == "full":
        ranks = ranks_full(scorer, table, "validation", config.max_users)
    else:
        ranks = ranks_sampled(scorer, rows)
    return of_ranks(ranks, config.k)[f"ndcg@{config.k}"]


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
    score, rows = scorer.score, len(columns["label"])
    exact = rows <= EXACT_ROWS
    edges = jnp.zeros(0) if exact else _edges(score, columns, rows)
    stats: metrics.ClickStats | None = None
    kept = []
    for labels, scores, weight in _scored(score, columns, range(rows)):
        block = metrics.click_stats(labels, scores, weight, edges)
        stats = block if stats is None else metrics.merge(stats, block)
        if exact:
            kept.append(np.asarray(scores))
        if keep is not None:
            keep(np.asarray(scores, np.float32)[np.asarray(weight)])
    assert stats is not None  # no split is without rows
    if exact:
        labels = np.asarray(columns["label"])
        result = {"auc": float(metrics.auc(labels, np.concatenate(kept)[:rows]))}
    else:
        result = dict(zip(("auc", "auc_error"), stats.auc(), strict=True))
    if scorer.calibrated:
        result |= {"logloss": stats.log_loss(), "calibration": stats.calibration()}
    if not (np.isfinite(stats.predicted).all() and np.isfinite(stats.loss).all()):
        raise TrainingError("a score is not a finite number: lower the learning rate")
    return {name: value for name, value in result.items() if np.isfinite(value)}


def _edges(score: Score, columns: Columns, rows: int) -> jax.Array:
    """Sorted scores of EDGE_ROWS rows spread evenly over the split."""
    spread = np.linspace(0, rows - 1, EDGE_ROWS).astype(np.int64)
    return jnp.sort(jnp.concatenate([scores for _, scores, _ in _scored(score, columns, spread)]))


def _scored(
    score: Score, columns: Columns, rows: Sequence[int] | np.ndarray
) -> Iterator[tuple[np.ndarray, jax.Array | np.ndarray, np.ndarray]]:
    """Labels, scores and weights [CLICK_BLOCK] of `rows`, block by block; padding has weight 0."""
    names = [name for name in ("user", "item", "dense", "categorical") if name in columns]
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


def ranks_full(
    scorer: Scorer, table: Table, split: str, max_users: int = 0, seed: int = 0
) -> np.ndarray:
    """Rank of each held-out item among all items its user has not seen before it.

    Args:
      scorer: scores users with all items.
      table: a prepared table of the ranking task.
      split: 'validation' or 'test'; the rows of all earlier splits are 'seen'.
      max_users: number of rows to rank, drawn by `seed`; 0 for all.
      seed: of that draw.

    Returns:
      [N] int32, -1 for rows that are not ranked.
    """
    columns = table.splits[split]
    chosen = np.arange(len(columns["user"]))
    if 0 < max_users < len(chosen):
        chosen = np.sort(np.argsort(sampling.mix64(chosen, seed))[:max_users])
    held_out = [table.splits[name] for name in SPLITS[1 : SPLITS.index(split)]]
    earlier = [table.known_pairs(), *((rows["user"], rows["item"]) for rows in held_out)]
    users, items = (np.concatenate(columns) for columns in zip(*earlier, strict=True))
    seen = ranking.SeenItems.of_pairs(users, items, table.schema.num_users)
    all_items = np.arange(table.schema.num_items, dtype=np.int32)[None]
    block = int(np.clip(scorer.pairs // table.schema.num_items, 1, len(chosen)))
    block += -block % jax.device_count()  # users, to be split over the devices
    ranks = np.full(len(columns["user"]), -1, np.int32)
    ranks[chosen] = ranking.full_ranks(
        lambda users: scorer.score(pair_batch(users, all_items)),
        columns["user"][chosen],
        columns["item"][chosen],
        seen,
        block,
    )
    return ranks


def of_ranks(ranks: np.ndarray, k: int, negatives: int | None = None) -> dict[str, float]:
    """HR@k and NDCG@k of ranks [N], those below 0 left out.

    With the number of negatives that a rank is among, if these are not all items, keys say so.
    """
    suffix = "" if negatives is None else f"/1+{negatives}"
    ranks = ranks[ranks >= 0]
    return {
        f"hr@{k}{suffix}": float(metrics.hit_rate(ranks, k)),
        f"ndcg@{k}{suffix}": float(metrics.ndcg(ranks, k)),
    }
