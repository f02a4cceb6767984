"""Costs of the factorisations against compiled programs, and by hand."""

import dataclasses

import numpy as np
import pytest

from benchmarks import plan
from cadc_jax import cost
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.sgd import SGDConfig
from tests.cost.compiled import CLICKS, PAIRS, assert_near


@pytest.mark.parametrize(
    ("fixed_side", "devices"), [("gathered", 1), ("gathered", 8), ("sharded", 8)]
)
def test_an_als_iteration_is_predicted_as_it_is_compiled(fixed_side, devices):
    # Some items are longer than a chunk. With a single such chunk on a device XLA changes the loop.
    matrix = plan.random_interactions(20_000, 4_000, 160_000)
    assert_near(plan.als_pairs(matrix, ALSConfig(factors=32, fixed_side=fixed_side), devices))


def test_exact_solves_are_predicted_as_they_are_compiled():
    matrix = plan.random_interactions(10_000, 2_000, 80_000)
    pairs = plan.als_pairs(matrix, ALSConfig(factors=20, solver="exact"), 2)
    for name in (plan.FLOPS, plan.RECEIVED):
        assert pairs[name][0] == pytest.approx(pairs[name][1], rel=0.01)


@pytest.mark.parametrize(("rows", "entries"), [(1000, 8000), (777, 777), (3, 90_000), (5000, 100)])
@pytest.mark.parametrize("devices", [1, 8])
def test_rows_with_equal_numbers_of_entries_need_no_list_of_them(rows, entries, devices):
    count = np.full(rows, -(-entries // rows))
    config = ALSConfig(factors=64, chunk=1024, fixed_side="sharded")
    even, listed = (
        cost.als(
            cost.Sizes("ranking", 0, rows, rows, 0, entries=int(count.sum()), **given),
            config,
            devices,
        )
        for given in ({}, {"user_counts": count, "item_counts": count})
    )
    for name, size in listed.memory.items():
        assert even.memory[name] == pytest.approx(size, rel=0.05), name
    assert even.flops == pytest.approx(listed.flops, rel=0.05)
    assert even.received == pytest.approx(listed.received, rel=0.05)


def test_more_devices_need_less_memory_and_less_arithmetic_each():
    costs = [cost.als(PAIRS, ALSConfig(fixed_side="sharded"), devices) for devices in (1, 2, 4)]
    for figures in ([sum(x.memory.values()) for x in costs], [x.flops for x in costs]):
        assert figures[0] > figures[1] > figures[2]


@pytest.mark.parametrize("fit", [cost.als, cost.autoencoder])
def test_twice_the_hosts_hold_half_of_the_entries_each(fit):
    config = ALSConfig() if fit is cost.als else AutoencoderConfig()
    one, two, four = (fit(PAIRS, config, 4, hosts=hosts).host for hosts in (1, 2, 4))
    entries, *of_rows = one
    assert one[entries] >= 2 * two[entries] == 4 * four[entries]
    assert [one[name] for name in of_rows] == [four[name] for name in of_rows]


def test_one_device_receives_nothing():
    assert not sum(cost.als(PAIRS, ALSConfig()).received.values())
    assert not sum(cost.sgd_factorization(CLICKS, SGDConfig()).received.values())


def test_a_split_fixed_side_needs_less_memory_and_more_exchange():
    gathered, sharded = (
        cost.als(PAIRS, ALSConfig(fixed_side=side), 2) for side in ("gathered", "sharded")
    )
    assert sharded.memory["copy of the fixed side"] == 0 < gathered.memory["copy of the fixed side"]
    assert sum(sharded.received.values()) > sum(gathered.received.values())


def test_bfloat16_tables_take_half_the_memory_of_float32():
    wide, narrow = (cost.als(PAIRS, ALSConfig(dtype=kind)) for kind in ("float32", "bfloat16"))
    for name in ("tables of users and items", "copy of the fixed side"):
        assert narrow.memory[name] == wide.memory[name] / 2


def test_a_tpu_pads_tables_and_gathered_rows_to_whole_lanes():
    config = ALSConfig(factors=64, chunk=4096)
    gpu, tpu = (cost.als(PAIRS, config, platform=name) for name in ("gpu", "tpu"))
    for name in ("tables of users and items", "copy of the fixed side"):
        assert tpu.memory[name] == 2 * gpu.memory[name]
    assert tpu.traffic == pytest.approx(2 * gpu.traffic, rel=0.01)
    assert tpu.flops == gpu.flops and tpu.launches == gpu.launches
    one = cost.sgd_factorization(PAIRS, SGDConfig(factors=63), platform="tpu")
    assert one.memory["tables of users and items"] == 24_000 * 128 * 4


def test_the_temporaries_of_a_half_step_on_a_tpu_are_predicted_as_they_were_compiled():
    # 20 million entries on one v5e; docs/accelerators.md has the compiled program's bytes.
    count = np.full(138_000, 145)
    sizes = cost.Sizes("ranking", 0, 138_000, 27_000, entries=int(count.sum()), user_counts=count)
    config = ALSConfig(factors=64, chunk=1 << 21)
    memory = cost.als(sizes, config, platform="tpu").memory
    names = ("copy of the fixed side", "solved rows, a chunk and its exchange")
    assert sum(memory[name] for name in names) == pytest.approx(2_328e6, rel=0.2)


def test_fewer_larger_chunks_start_fewer_kernels():
    small, large = (cost.als(PAIRS, ALSConfig(chunk=chunk)).launches for chunk in (4096, 1 << 16))
    assert large < small / 8


def test_the_memory_of_logistic_sgd_by_hand():
    one = cost.sgd_factorization(CLICKS, SGDConfig(factors=14))
    assert one.memory["tables of users and items"] == 24_000 * 15 * 4
    assert one.memory["their optimizer's state"] == 24_000 * (4 + 4)  # an accumulator, scratch
    assert one.units == 20 * -(-(10**6) // 4096)


def test_negatives_of_positive_rows_cost_arithmetic_and_their_known_items_memory():
    config = SGDConfig(negatives=4)
    labelled, positive = (cost.sgd_factorization(sizes, config) for sizes in (CLICKS, PAIRS))
    assert positive.flops == 5 * labelled.flops
    known = 4 * (10**6 + 16_000)  # an item for each entry, an offset for each user
    saved = 10**6 * 4 * 2  # no labels
    name = "rows on the device"
    assert positive.memory[name] == labelled.memory[name] + known - saved


def test_devices_share_the_rows_of_logistic_sgd_and_exchange_those_of_items():
    one, eight = (cost.sgd_factorization(PAIRS, SGDConfig(), devices) for devices in (1, 8))
    assert eight.flops == one.flops / 8
    for name in ("tables of users and items", "their optimizer's state", "rows on the device"):
        assert eight.memory[name] == pytest.approx(one.memory[name] / 8, rel=0.01), name
    # 4,096 / 8 rows with 4 negatives each ask an eighth of 8,000 items for nearly as many rows.
    one_way = 7 / 8 * 5 * 4096 / 8 * (4 + 4 * 65)
    assert one_way / 2 < eight.received["item rows"] < one_way * 1.3
    assert eight.received["their gradients"] == eight.received["item rows"]
    assert eight.launches > one.launches


def test_a_host_orders_one_block_of_clicks_at_a_time():
    long, longer = (
        cost.sgd_factorization(dataclasses.replace(CLICKS, rows=rows), SGDConfig(), 8).host
        for rows in (10**9, 2 * 10**9)
    )
    assert long == longer and 1e9 < sum(long.values()) < 2e9


def test_popular_items_are_asked_for_once():
    count = np.full(8_000, 1)
    count[:10] = 10**6
    popular = dataclasses.replace(PAIRS, item_counts=count)
    config = SGDConfig(batch_rows=65_536, negatives=1)
    even, few = (cost.sgd_factorization(x, config, 64) for x in (PAIRS, popular))
    assert few.received["item rows"] < 0.8 * even.received["item rows"]
