"""Validation as one program: all that it needs is on the devices before training starts.

An evaluation starts one program, whose scan goes over blocks of rows or users, and receives its
result. The state of the scorer is an argument of it, so all evaluations of a fit share the program.
Scorers without a program, and splits for which the devices have no room, are evaluated block by
block by the host. Both ways have the same metrics, and rank in the same blocks of users.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from cadc_jax import metrics, sharding
from cadc_jax.data.table import Columns, Table
from cadc_jax.evaluation import evaluate, ranking
from cadc_jax.evaluation.evaluate import EvaluationConfig, HeldOut
from cadc_jax.evaluation.ranking import Block
from cadc_jax.evaluation.scorers import Apply, Scorer, at_a_time
from cadc_jax.models.embeddings import pair_batch

Quality = Callable[[Scorer], float]  # higher is better


def validation(table: Table, config: EvaluationConfig, mesh: Mesh) -> Quality:
    """What training maximises: minus the log loss of clicks, or the NDCG@k of rankings.

    Args:
      table: a prepared table; its validation split is put on the devices.
      config: how rankings are evaluated; the NDCG is at the first cut-off.
      mesh: the devices that score.
    """
    rows = table.splits["validation"]
    if table.schema.task == "click":
        return of_clicks(evaluate.thinned(rows, config.max_rows), mesh)
    if config.ranking == "full":
        held_out = HeldOut.of(table, "validation", config.max_users)
        return of_held_out(held_out, config.k[0], mesh)
    return of_sampled(rows, config.k[0], mesh)


def of_clicks(columns: Columns, mesh: Mesh | None = None) -> Quality:
    """Minus the log loss of labelled rows.

    The result raises TrainingError if a score is not finite.

    Args:
      columns: `label` [N], `user` [N], `item` [N], and features of the rows.
      mesh: the devices; None for all of them.
    """
    mesh = mesh or sharding.make_mesh()
    rows = len(columns["label"])
    block = evaluate.even_block(rows, at_a_time(evaluate.CLICK_BLOCK, mesh), mesh.size)
    names = [name for name in (*evaluate.ROW_COLUMNS, "label") if name in columns]
    placed = _split_blocks({name: columns[name] for name in names}, block, mesh)

    def quality(scorer: Scorer) -> float:
        if scorer.program is None or placed is None:
            return -evaluate.log_loss(scorer, columns)
        apply, state = scorer.program.apply, _on(mesh, scorer.program.state)
        stats = jax.device_get(_click_stats(apply, mesh, rows, state, placed))
        evaluate.check_finite(stats)
        return -stats.log_loss()

    return quality


@functools.partial(jax.jit, static_argnames=("apply", "mesh", "rows"))
def _click_stats(
    apply: Apply, mesh: Mesh, rows: int, state: Any, blocks: Mapping[str, jax.Array]
) -> metrics.ClickStats:
    """Statistics of the first `rows` of the rows in blocks [n, B, ...], without an AUC."""

    def add(stats: metrics.ClickStats, given: tuple[jax.Array, Any]) -> tuple[Any, None]:
        first, batch = given
        label, item = batch.pop("label"), batch.pop("item")[:, None]
        scores = apply(state, {**batch, "item": item})[:, 0]
        real = first + jnp.arange(len(label)) < rows
        return metrics.merge(stats, metrics.click_stats(label, scores, real)), None

    number, block = blocks["label"].shape
    none = metrics.click_stats(jnp.zeros(0), jnp.zeros(0))
    stats, _ = lax.scan(add, none, (jnp.arange(number) * block, dict(blocks)))
    return lax.with_sharding_constraint(stats, sharding.named(mesh, sharding.REPLICATED))


def of_sampled(columns: Columns, k: int, mesh: Mesh | None = None) -> Quality:
    """The NDCG@k of each row's item among its own negatives.

    Args:
      columns: `user` [N], `item` [N] and `negatives` [N, K].
      k: the cut-off.
      mesh: the devices; None for all of them.
    """
    mesh = mesh or sharding.make_mesh()
    rows = len(columns["user"])
    block = evaluate.even_block(rows, at_a_time(evaluate.USER_BLOCK, mesh), mesh.size)
    given = {name: columns[name] for name in ("user", "item", "negatives")}
    placed = _split_blocks(given, block, mesh)

    def quality(scorer: Scorer) -> float:
        if scorer.program is None or placed is None:
            return float(metrics.ndcg(evaluate.ranks_sampled(scorer, columns), k))
        apply, state = scorer.program.apply, _on(mesh, scorer.program.state)
        ranks = np.asarray(_sampled_ranks(apply, mesh, state, placed))
        return float(metrics.ndcg(ranks.reshape(-1)[:rows], k))

    return quality


@functools.partial(jax.jit, static_argnames=("apply", "mesh"))
def _sampled_ranks(
    apply: Apply, mesh: Mesh, state: Any, blocks: Mapping[str, jax.Array]
) -> jax.Array:
    """Ranks [n, B] int32 of rows in blocks; see `ranking.sampled_ranks`."""

    def ranks_of(rows: Mapping[str, jax.Array]) -> jax.Array:
        candidates = jnp.concatenate([rows["item"][:, None], rows["negatives"]], axis=1)
        scores = apply(state, pair_batch(rows["user"], candidates))
        return ranking.ranks_among(scores, candidates)

    ranks = lax.map(ranks_of, dict(blocks))
    return lax.with_sharding_constraint(ranks, sharding.named(mesh, sharding.REPLICATED))


def of_held_out(held_out: HeldOut, k: int, mesh: Mesh) -> Quality:
    """The NDCG@k per user among all items that the user had not seen.

    Args:
      held_out: the held-out items.
      k: the cut-off.
      mesh: the devices.
    """
    unlisted = np.full(held_out.num_items, metrics.NEVER)

    @functools.lru_cache(maxsize=1)  # all scorers of a fit take as many pairs
    def placed(pairs: int) -> tuple[Block, np.ndarray] | None:
        size = held_out.block_size(at_a_time(pairs, mesh), mesh.size)
        return _user_blocks(held_out, size, mesh)

    def quality(scorer: Scorer) -> float:
        found = None if scorer.program is None else placed(scorer.pairs)
        if scorer.program is None or found is None:
            return evaluate.rank_held_out(scorer, held_out).quality((k,))[f"ndcg@{k}"]
        blocks, rows = found
        apply, state = scorer.program.apply, _on(mesh, scorer.program.state)
        made = np.asarray(_full_ranks(apply, mesh, held_out.num_items, state, blocks))
        ranks = np.empty(len(held_out.chosen), np.int32)
        ranks[rows[rows >= 0]] = made[rows >= 0]
        return held_out.ranking(ranks, unlisted).quality((k,))[f"ndcg@{k}"]

    return quality


@functools.partial(jax.jit, static_argnames=("apply", "mesh", "num_items"))
def _full_ranks(apply: Apply, mesh: Mesh, num_items: int, state: Any, blocks: Block) -> jax.Array:
    """Ranks [n, B, G] int32 of held-out items in blocks of users; see `ranking.rank_block`."""
    all_items = jnp.arange(num_items, dtype=jnp.int32)[None]

    def ranks_of(block: Block) -> jax.Array:
        scores = apply(state, pair_batch(jnp.asarray(block.users), all_items))
        return ranking.rank_block(scores, block, length=0)[0]

    ranks = lax.map(ranks_of, blocks)
    return lax.with_sharding_constraint(ranks, sharding.named(mesh, sharding.REPLICATED))


def _user_blocks(held_out: HeldOut, size: int, mesh: Mesh) -> tuple[Block, np.ndarray] | None:
    """All blocks on the devices, and rows [n, B, G] of their held-out items; None without room."""
    parts = list(held_out.blocks(size))
    blocks, rows = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    split = {name: getattr(blocks, name) for name in ("users", "items")}
    whole = {name: getattr(blocks, name) for name in ("steps", "seen", "held_out")}
    if not _has_room(mesh, split, whole):
        return None
    split = sharding.put(split, sharding.named(mesh, sharding.BATCHES))
    whole = sharding.put(whole, sharding.named(mesh, sharding.REPLICATED))
    return Block(**split, **whole), rows


def _split_blocks(columns: Columns, block: int, mesh: Mesh) -> dict[str, jax.Array] | None:
    """Columns [N, ...] as blocks [n, B, ...] that all devices share; None if they have no room.

    The last block repeats the last row.
    """
    if not _has_room(mesh, columns, {}):
        return None
    where, found = sharding.named(mesh, sharding.BATCHES), {}
    for name, column in columns.items():
        missing = -len(column) % block
        whole = np.concatenate([column, np.repeat(column[-1:], missing, axis=0)])
        shape = len(whole) // block, block, *whole.shape[1:]
        found[name] = sharding.put(whole.reshape(shape), where)
    return found


def _has_room(mesh: Mesh, split: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays that devices share, and arrays that each has whole, fit beside training."""
    size = sum(x.nbytes for x in split.values()) / mesh.size + sum(x.nbytes for x in whole.values())
    return size <= sharding.RESIDENT_SHARE * sharding.memory(mesh)


def _on(mesh: Mesh, state: Any) -> Any:
    """The state with every array on the mesh, where a network's are already."""
    everywhere = sharding.named(mesh, sharding.REPLICATED)

    def put(x: jax.Array | np.ndarray) -> jax.Array:
        if isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding):
            return x
        return cast(jax.Array, sharding.put(x, everywhere))

    return jax.tree.map(put, state)
