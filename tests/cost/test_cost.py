"""The cost model against compiled programs, and its errors."""

import dataclasses
import math
import pathlib
import runpy
import types

import jax
import numpy as np
import pytest

from cadc_jax import configuration, cost
from cadc_jax.cost import factorization
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.interactions import make_layout
from cadc_jax.factorization.sgd import SGDConfig
from cadc_jax.models.dcn import DCN
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.run import bundled_configs, planning, stages
from cadc_jax.training.step import TrainConfig

ROOT = pathlib.Path(__file__).parents[1]
PLAN = types.SimpleNamespace(**runpy.run_path(ROOT / "benchmarks/plan.py"))
CLICKS = cost.Sizes("click", 10**6, 16_000, 8_000, 64_000, (0, 13, 0), (0, 24, 0), entries=10**6)
PAIRS = cost.Sizes("ranking", 10**6, 16_000, 8_000, 640, (2, 0, 3), (3, 0, 2), entries=10**6)
TRAIN = TrainConfig(batch_rows=512, table_optimizer="adagrad")
MODEL = DLRM(16, (64, 32), (128, 64))
FROZEN = frozenset({"user", "item"})


def assert_near(pairs, temporaries=2.0):
    """Predicted figures against compiled ones: a model of temporaries can only be rough."""
    for name, within in ((PLAN.ARGUMENTS, 0.01), (PLAN.FLOPS, 0.01), (PLAN.RECEIVED, 0.05)):
        predicted, found = pairs[name]
        assert predicted == pytest.approx(found, rel=within, abs=100), name
    predicted, found = pairs[PLAN.TEMPORARIES]
    assert found / temporaries <= predicted <= found * temporaries


@pytest.mark.parametrize(
    ("devices", "frozen", "split"),
    [(1, FROZEN, False), (2, (), True), (8, (), False), (8, FROZEN, True)],
)
def test_a_dlrm_step_is_predicted_as_it_is_compiled(devices, frozen, split):
    assert_near(PLAN.training_pairs(MODEL, TRAIN, CLICKS, frozenset(frozen), devices, split))


FEW_ITEMS = dataclasses.replace(PAIRS, num_items=600)  # a step computes each of them once


@pytest.mark.parametrize(
    ("model", "config", "sizes", "devices"),
    [
        (TwoTower((128,)), TrainConfig(batch_rows=512, negatives=4), PAIRS, 4),
        (TwoTower((128,)), TrainConfig(batch_rows=512, negatives=4), FEW_ITEMS, 1),
        (TwoTower((128,)), TrainConfig(batch_rows=512, negatives=4), FEW_ITEMS, 4),
        (DCN(), TrainConfig(batch_rows=512), CLICKS, 4),
    ],
    ids=["two_tower", "few_items", "few_items_on_devices", "dcn"],
)
def test_other_networks_are_predicted_as_they_are_compiled(model, config, sizes, devices):
    assert_near(PLAN.training_pairs(model, config, sizes, frozenset(), devices, False))


@pytest.mark.parametrize(
    ("fixed_side", "devices"), [("gathered", 1), ("gathered", 8), ("sharded", 8)]
)
def test_an_als_iteration_is_predicted_as_it_is_compiled(fixed_side, devices):
    # Some items are longer than a chunk; more than one such chunk a device, or XLA hoists it.
    matrix = PLAN.random_interactions(20_000, 4_000, 160_000)
    assert_near(PLAN.als_pairs(matrix, ALSConfig(factors=32, fixed_side=fixed_side), devices))


def test_exact_solves_are_predicted_as_they_are_compiled():
    matrix = PLAN.random_interactions(10_000, 2_000, 80_000)
    pairs = PLAN.als_pairs(matrix, ALSConfig(factors=20, solver="exact"), 2)
    for name in (PLAN.FLOPS, PLAN.RECEIVED):
        assert pairs[name][0] == pytest.approx(pairs[name][1], rel=0.01)


@pytest.mark.parametrize(("rows", "entries"), [(1000, 8000), (777, 777), (3, 90_000), (5000, 100)])
@pytest.mark.parametrize("devices", [1, 8])
def test_rows_that_are_all_alike_need_no_list_of_them(rows, entries, devices):
    count = -(-entries // rows)
    even = factorization._side(rows, None, entries, 1024, devices)
    listed = factorization._side(rows, np.full(rows, count), entries, 1024, devices)
    assert listed.chunks == make_layout(np.full(rows, count), 1024, devices).chunks
    for name in ("table_rows", "chunks", "segments", "segment", "long_rows", "long_chunks"):
        assert getattr(even, name) == pytest.approx(getattr(listed, name), rel=0.05, abs=1), name


def train(devices=1, group=1, room=math.inf, frozen=frozenset(), **changes):
    config = dataclasses.replace(TRAIN, **changes)
    return cost.training("t", MODEL, config, CLICKS, 16, 16, frozen, devices, group, room)


def test_more_devices_need_less_memory_and_less_arithmetic_each():
    for costs in (
        [train(n, n, 1e6) for n in (8, 16, 32)],
        [cost.als(PAIRS, ALSConfig(fixed_side="sharded"), n) for n in (1, 2, 4)],
    ):
        totals = [sum(c.memory.values()) for c in costs]
        assert sorted(totals, reverse=True) == totals and len(set(totals)) == len(totals)
        flops = [c.flops for c in costs]
        assert sorted(flops, reverse=True) == flops


def test_one_device_receives_nothing():
    for one in (train(), cost.als(PAIRS, ALSConfig())):
        assert not sum(one.received.values())


def test_frozen_tables_save_state_copies_and_traffic():
    frozen, trained = train(8, frozen=FROZEN), train(8)
    for name in ("their optimizer's state", "copy of the best state"):
        assert frozen.memory[name] < trained.memory[name]
    assert frozen.traffic < trained.traffic
    assert frozen.received["table 'user'"] == 0 < trained.received["table 'user'"]


def test_sharded_als_needs_less_memory_and_receives_more():
    gathered, sharded = (
        cost.als(PAIRS, ALSConfig(fixed_side=side), 2) for side in ("gathered", "sharded")
    )
    assert sharded.memory["copy of the fixed side"] == 0
    assert sum(sharded.received.values()) > sum(gathered.received.values())


def test_matrix_products_are_counted_as_often_as_they_run():
    def three(x):
        return jax.lax.scan(lambda y, _: (y @ y, None), x, None, 3)[0]

    traced = jax.make_jaxpr(three)(np.zeros((4, 4), np.float32))
    assert cost.product_flops(traced.jaxpr) == 3 * 2 * 4**3


def test_time_lies_between_the_slowest_part_and_the_sum_of_all():
    device = cost.Hardware(1e9, 10.0, 5.0, {"float32": 100.0})
    one = cost.Cost("c", {}, "step", 200.0, "float32", 10.0, {"x": 20.0}, 3, "epoch")
    seconds = one.seconds(device)
    assert (seconds["products"], seconds["memory"], seconds["receiving"]) == (2.0, 1.0, 4.0)
    assert seconds["least"] == 4.0
    assert seconds["expected"] == pytest.approx(7.0 / cost.EFFICIENCY)
    assert "at least 4.00 s" in cost.text([one], device)


def test_a_plan_says_whether_it_fits():
    small = dataclasses.replace(cost.hardware("v5e"), memory=1e6)
    assert "DOES NOT FIT" in cost.text([train()], small)
    assert ": fits" in cost.text([train()], cost.hardware("v5e"))


def test_the_logistic_factorisation_has_a_cost_too():
    one = cost.sgd_factorization(CLICKS, SGDConfig(factors=14))
    assert one.memory["tables of users and items"] == 24_000 * 15 * 4
    assert one.units == 20 * -(-(10**6) // 4096)


def run_of(tmp_path, said, name="criteo_terabyte", **given):
    config = bundled_configs.config(name)
    this = stages.Run(config, tmp_path, say=said.append)
    planning.plan(this, 4, given.pop("hardware", "v5e"), given)


def test_columns_that_are_hashed_bound_the_sizes_of_criteo(tmp_path):
    said = []
    run_of(tmp_path, said, rows=4_000_000_000)
    assert "4,000,000,000 training rows, 4,194,305 users" in said[0]
    assert "100,663,320 other" in said[0]  # 24 columns of 2^22 values and one unknown
    assert "cadc_frozen: 400,000,000 rows" in said[0]


def test_a_prepared_table_gives_the_sizes(tmp_path):
    config = bundled_configs.config("criteo")
    config.data.synthetic_rows = 3000
    config.data.folder = "nothing/there"
    said = []
    this = stages.Run(config, tmp_path, say=said.append)
    table = stages.prepare_stage(this, stages.raw_data(this))
    planning.plan(this, 1, "cpu", {})
    assert str(table.path) in said[-1]
    assert f"{table.facts['rows']['train']:,} training rows" in said[-1]
    planning.plan(this, 1, "cpu", {"rows": 12_345})
    assert "12,345 training rows" in said[-1] and "changed by options" in said[-1]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("criteo_terabyte", {}, "give --rows=N, or run with --stage=prepare"),
        ("epinions", {"rows": 10}, "give --num_users=N, --num_items=N"),
        ("movielens_1m", {"rows": 10}, "--stage=prepare first"),
        ("criteo_terabyte", {"rows": 10, "hardware": "v9"}, "hardware='v9': must be one of v5e"),
    ],
)
def test_what_a_plan_cannot_know_is_named(tmp_path, name, given, message):
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path, [], name, **given)


def test_a_damaged_table_is_named_and_not_planned_with(tmp_path):
    damaged = tmp_path / "prepare" / "0" / "manifest.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    with pytest.raises(ArtifactError, match=f"{damaged.parent}: not a whole artefact"):
        run_of(tmp_path, [], "criteo", rows=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 8, "group": 3}, "devices.model=3: must be a divisor"),
        ({"devices": 3}, "train.batch_rows=512: must be a multiple of the 3 devices"),
        ({"devices": 2, "group": 2, "room": 1000}, "devices.table_bytes: tables take"),
    ],
)
def test_impossible_placements_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        train(**arguments)


def test_every_default_configuration_of_known_columns_can_be_planned():
    config = configuration.default_config()
    sizes = configuration.sizes(config, {"rows": 5, "num_users": 3, "num_items": 2})
    assert (sizes.feature_rows, sizes.entries) == (0, 5)
