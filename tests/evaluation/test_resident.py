"""Validation on the devices: the results of the host's loop, one program for all evaluations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.data.table import Features, Schema, Table
from cadc_jax.errors import TrainingError
from cadc_jax.evaluation import evaluate, resident, scorers
from cadc_jax.evaluation.evaluate import EvaluationConfig, HeldOut
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.models import embeddings
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.embeddings import Content
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.tables import dealt

USERS, ITEMS, RANK, DENSE = 37, 30, 4, 2
MODELS = [DLRM(RANK, (8,), (8,)), TwoTower((8,))]
DEVICES = [1, 2, 8]


def mesh_of(devices):
    return sharding.make_mesh(jax.devices()[:devices])


def ranking_table():
    """Users have 1 to 9 training items, a validation item with negatives, and some have two."""
    rng = np.random.default_rng(0)
    own = [rng.permutation(np.arange(1, ITEMS)) for _ in range(USERS)]
    known = [items[:n] for items, n in zip(own, rng.integers(1, 10, USERS), strict=True)]
    user = np.r_[np.arange(USERS), np.arange(0, USERS, 3)].astype(np.int32)
    item = np.r_[[x[10] for x in own], [x[11] for x in own[::3]]].astype(np.int32)
    item[5] = 0
    validation = {"user": user, "item": item, "negatives": np.stack([own[u][12:21] for u in user])}
    offsets = np.cumsum([0, *map(len, known)])
    schema = Schema("ranking", USERS, ITEMS, Features(), Features(), Features())
    pairs = {"offsets": offsets, "items": np.concatenate(known).astype(np.int32)}
    counts = {"count": np.arange(ITEMS) % 7}  # with ties
    return Table(schema, {"validation": validation}, {}, counts, pairs)


def click_table(rows=101):
    rng = np.random.default_rng(0)
    columns = {
        "user": rng.integers(0, USERS, rows).astype(np.int32),
        "item": rng.integers(0, ITEMS, rows).astype(np.int32),
        "dense": rng.normal(size=(rows, DENSE)).astype(np.float32),
        "categorical": np.zeros((rows, 0), np.int32),
        "label": rng.integers(0, 2, rows).astype(np.float32),
    }
    schema = Schema("click", USERS, ITEMS, Features(), Features(), Features())
    return Table(schema, {"validation": columns}, {}, {}, {})


def network(model, mesh, seed=0, dense=0):
    """A scorer of random parameters and tables; user rows are dealt out to the devices."""
    content = Content(
        user_dense=jnp.linspace(-1, 1, USERS + 1)[:, None],
        user_categorical=jnp.zeros((USERS + 1, 0), jnp.int32),
        item_dense=jnp.zeros((ITEMS, 0)),
        item_categorical=jnp.arange(ITEMS)[:, None] % 3,
        context_offsets=jnp.zeros((0,), jnp.int32),
    )
    *keys, last = jax.random.split(jax.random.key(seed), 4)
    sizes = {"user": USERS + 1, "item": ITEMS, "features": 3}
    tables = {
        name: jax.random.normal(key, (size, RANK))
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    one = embeddings.pair_batch(np.zeros(1, np.int32), np.zeros((1, 1), np.int32))
    one = {**one, "dense": jnp.zeros((1, dense))}
    rows = embeddings.take_rows(tables, embeddings.lookup_ids(content, one))
    params = model.init(last, embeddings.model_inputs(rows, content, one))
    everywhere = sharding.named(mesh, sharding.REPLICATED)
    params, content, tables = sharding.put((params, content, tables), everywhere)
    if mesh.size > 1:
        tables["user"] = dealt_out(np.asarray(tables["user"]), mesh)
    return scorers.network(model, params, tables, content, mesh)


def dealt_out(table, mesh):
    size = -(-len(table) // mesh.size)
    parts = [dealt.part_of(table, nth, mesh.size, size) for nth in range(mesh.size)]
    there = sharding.named(mesh, sharding.TABLE)
    return dealt.Dealt(sharding.put(np.concatenate(parts), there), mesh)


def on_host(scorer):
    """The same scores, of which evaluation knows no program."""
    return dataclasses.replace(scorer, program=None)


def in_blocks(monkeypatch, scorer, users):
    """Several blocks of rows, and of `users` users in the full ranking."""
    monkeypatch.setattr(evaluate, "CLICK_BLOCK", 24)
    monkeypatch.setattr(evaluate, "USER_BLOCK", 16)
    return dataclasses.replace(scorer, pairs=users * ITEMS)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("model", MODELS, ids=("dlrm", "towers"))
@pytest.mark.parametrize("ranking", ["sampled", "full"])
def test_a_ranking_is_that_of_the_host(monkeypatch, ranking, model, devices):
    mesh, table = mesh_of(devices), ranking_table()
    scorer = in_blocks(monkeypatch, network(model, mesh), 16)
    config = EvaluationConfig(k=ITEMS, ranking=ranking)
    quality = resident.validation(table, config, mesh)
    assert quality(scorer) == quality(on_host(scorer))


@pytest.mark.parametrize("devices", DEVICES)
def test_ranks_are_those_of_the_host_bit_for_bit(monkeypatch, devices):
    mesh, table = mesh_of(devices), ranking_table()
    scorer = in_blocks(monkeypatch, network(MODELS[0], mesh), 16)
    held_out = HeldOut.of(table, "validation", 20)
    seen = []
    monkeypatch.setattr(HeldOut, "ranking", lambda self, ranks, best: seen.append(ranks) or Unread)
    quality = resident.of_held_out(held_out, 10, mesh)
    quality(scorer)
    quality(on_host(scorer))
    np.testing.assert_array_equal(*seen)
    assert len(set(seen[0])) > 5


class Unread:
    @staticmethod
    def quality(k):
        return {f"ndcg@{k[0]}": 0.0}


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("rows", [101, 7])
def test_the_log_loss_of_clicks_is_that_of_the_host(monkeypatch, devices, rows):
    mesh, table = mesh_of(devices), click_table(rows)
    scorer = in_blocks(monkeypatch, network(MODELS[0], mesh, dense=DENSE), 16)
    quality = resident.validation(table, EvaluationConfig(), mesh)
    expected = -evaluate.evaluate_clicks(scorer, table.splits["validation"])["logloss"]
    assert quality(scorer) == pytest.approx(expected, rel=1e-6)
    assert quality(on_host(scorer)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ranking", ["sampled", "full"])
def test_factors_and_popularity_rank_as_on_the_host(ranking):
    table, rng = ranking_table(), np.random.default_rng(0)
    user, item = (rng.normal(size=(n, RANK)).astype(np.float32) for n in (USERS, ITEMS))
    config = EvaluationConfig(k=5, ranking=ranking)
    quality = resident.validation(table, config, mesh_of(8))
    for scorer in (scorers.factors(user, item, False), scorers.popularity(table)):
        assert 0 < quality(scorer) == quality(on_host(scorer))


@pytest.mark.parametrize(
    "table, ranking, program",
    [
        (click_table(), "sampled", resident._click_stats),
        (ranking_table(), "sampled", resident._sampled_ranks),
        (ranking_table(), "full", resident._full_ranks),
    ],
    ids=("clicks", "sampled", "full"),
)
def test_evaluations_of_a_fit_share_one_program(table, ranking, program):
    mesh, dense = mesh_of(2), DENSE * (table.schema.task == "click")
    quality = resident.validation(table, EvaluationConfig(k=11, ranking=ranking), mesh)
    before = program._cache_size()
    found = {quality(network(TwoTower((8,)), mesh, seed, dense)) for seed in range(3)}
    assert len(found) == 3  # they do differ
    assert program._cache_size() == before + 1


def test_the_host_scores_when_the_devices_have_no_room(monkeypatch):
    mesh, asked = mesh_of(2), []
    given = network(MODELS[0], mesh)

    def score(batch):
        asked.append(len(batch["user"]))
        return given.score(batch)

    for ranking in ("sampled", "full"):
        for memory, by_host in ((1 << 30, False), (1000, True)):
            monkeypatch.setattr(sharding, "memory", lambda mesh, memory=memory: memory)
            config = EvaluationConfig(ranking=ranking)
            resident.validation(ranking_table(), config, mesh)(
                dataclasses.replace(given, score=score)
            )
            assert bool(asked) == by_host
            asked.clear()


def test_a_plain_function_is_evaluated_by_the_host():
    def lower_is_better(batch):
        return jnp.zeros((len(batch["user"]), 1)) - batch["item"]

    table, scorer = ranking_table(), Scorer(lower_is_better)
    quality = resident.validation(table, EvaluationConfig(k=4, ranking="full"), mesh_of(1))
    expected = evaluate.rank_users(scorer, table, "validation").quality((4,))
    assert quality(scorer) == expected["ndcg@4"] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_an_error(value):
    mesh, table = mesh_of(2), click_table()
    scorer = scorers.factors(np.full((USERS, 2), value, np.float32), np.ones((ITEMS, 2)), True)
    with pytest.raises(TrainingError, match="not a finite number"):
        resident.validation(table, EvaluationConfig(), mesh)(scorer)


def test_only_drawn_users_are_ranked():
    table, mesh = ranking_table(), mesh_of(1)
    scorer = scorers.popularity(table)
    config = EvaluationConfig(k=5, max_users=9, ranking="full")
    expected = evaluate.rank_users(scorer, table, "validation", 9).quality((5,))["ndcg@5"]
    assert resident.validation(table, config, mesh)(scorer) == expected


@pytest.mark.parametrize("most, places", [(0, range(101)), (101, range(101)), (3, (0, 33, 67))])
def test_clicks_may_be_validated_on_some_rows(most, places):
    table, mesh = click_table(), mesh_of(1)
    rng = np.random.default_rng(1)
    tables = rng.normal(size=(USERS, 2)), rng.normal(size=(ITEMS, 2))
    scorer = scorers.factors(*(np.float32(x) for x in tables), calibrated=True)
    chosen = {name: x[list(places)] for name, x in table.splits["validation"].items()}
    found = resident.validation(table, EvaluationConfig(max_rows=most), mesh)(scorer)
    assert found == pytest.approx(-evaluate.log_loss(scorer, chosen), rel=1e-6)


@pytest.mark.parametrize("ranking, place", [("full", 10), ("sampled", 9)])
def test_the_first_cut_off_and_the_configured_ranking_decide(ranking, place):
    """By ascending number, with items 1 to 9 among the negatives and 4 seen by everyone."""
    rows = {
        "user": np.arange(3),
        "item": np.full(3, 15),
        "negatives": np.tile(range(1, 10), (3, 1)),
    }
    rows = {name: column.astype(np.int32) for name, column in rows.items()}
    known = {"offsets": np.arange(4) * 4, "items": np.tile([4, 11, 12, 13], 3).astype(np.int32)}
    schema = Schema("ranking", 3, ITEMS, Features(), Features(), Features())
    counts = {"count": -np.arange(ITEMS)}
    table = Table(schema, {"validation": rows}, {}, counts, known)
    for k, value in ((place, 0), (place + 1, 1 / np.log2(place + 2))):
        config = EvaluationConfig(k=(k, 50), ranking=ranking)
        quality = resident.validation(table, config, mesh_of(2))
        assert quality(scorers.popularity(table)) == pytest.approx(value)
