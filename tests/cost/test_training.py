"""Costs of training steps against compiled programs, and what raises or lowers them."""

import dataclasses

import pytest

from benchmarks import plan
from cadc_jax import cost
from cadc_jax.errors import ConfigError
from cadc_jax.models.dcn import DCN
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.training.placement import DeviceConfig
from cadc_jax.training.step import TrainConfig
from tests.cost.compiled import CLICKS, PAIRS, assert_near

TRAIN = TrainConfig(batch_rows=512, table_optimizer="adagrad")
MODEL = DLRM(16, (64, 32), (128, 64))
FROZEN = frozenset({"user", "item"})
FEW_ITEMS = dataclasses.replace(PAIRS, num_items=600)  # a step computes each of them once


def train(
    devices=1, limits=None, frozen=frozenset(), model=MODEL, sizes=CLICKS, platform="gpu", **changes
):
    config = dataclasses.replace(TRAIN, **changes)
    tables = cost.table_shapes(sizes, 16, 16)
    return cost.training("t", model, config, sizes, tables, frozen, devices, limits, platform)


@pytest.mark.parametrize(
    ("devices", "frozen", "split"),
    [(1, FROZEN, False), (2, (), True), (8, (), False), (8, FROZEN, True)],
)
def test_a_dlrm_step_is_predicted_as_it_is_compiled(devices, frozen, split):
    assert_near(plan.training_pairs(MODEL, TRAIN, CLICKS, frozenset(frozen), devices, split))


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
    assert_near(plan.training_pairs(model, config, sizes, frozenset(), devices, False))


def test_more_devices_need_less_memory_and_less_arithmetic_each():
    costs = [train(devices, DeviceConfig(1e6)) for devices in (8, 16, 32)]
    for figures in ([sum(x.memory.values()) for x in costs], [x.flops for x in costs]):
        assert figures[0] > figures[1] > figures[2]


def test_one_device_receives_nothing():
    assert not sum(train().received.values())


def test_frozen_tables_save_state_copies_and_traffic():
    frozen, trained = train(8, frozen=FROZEN), train(8)
    name = "their optimizer's state"
    assert frozen.memory[name] < trained.memory[name]
    assert frozen.traffic < trained.traffic
    assert frozen.received["table 'user'"] == 0 < trained.received["table 'user'"]


def test_the_memory_of_tables_by_hand():
    rows = 16_000 + 8_000 + 64_000
    assert train().memory["tables"] == rows * 16 * 4
    assert train().memory["their optimizer's state"] == rows * (4 + 4)  # accumulator, scratch
    split = train(8, DeviceConfig(1e6))
    assert split.memory["tables"] == rows * 16 * 4 / 8
    assert split.notes[0].startswith("tables: 'user' split over 8, 'item' split over 8")


def test_a_split_table_need_not_divide_evenly():
    sizes = dataclasses.replace(CLICKS, feature_rows=64_001)
    split = train(8, DeviceConfig(1e6), sizes=sizes)
    rows = 16_000 + 8_000 + 64_008
    assert split.memory["tables"] == rows * 16 * 4 / 8


def test_microbatches_divide_activations_and_multiply_reductions():
    whole, parts = (train(4, platform="cpu", microbatch_rows=rows) for rows in (0, 128))
    assert parts.memory["activations"] == whole.memory["activations"] / 4
    name = "gradients of the network"
    assert parts.received[name] == 4 * whole.received[name]


def test_accelerators_take_a_batch_as_a_whole():
    assert train(4, microbatch_rows=128) == train(4)


def test_the_training_rows_are_on_the_devices():
    features = 3 + CLICKS.dense[1] + CLICKS.categorical[1]
    assert train(4).memory["training rows"] == CLICKS.rows * features


def test_the_in_batch_loss_exchanges_the_items_of_the_batch():
    one = train(4, model=TwoTower((8,)), sizes=PAIRS, loss="in_batch")
    vectors = 512 * 4 * (16 + 2)
    assert one.received["items of the batch"] == 1.5 * (2 * 3 / 4 * vectors)


def test_shapes_of_content_batches_and_tables_are_those_of_the_sizes():
    content = cost.content_shapes(PAIRS)
    assert content.user_dense.shape == (16_000, 2)
    assert content.item_categorical.shape == (8_000, 2)
    batch = cost.batch_shapes(PAIRS, TrainConfig(batch_rows=512, negatives=4, loss="softmax"))
    assert batch["item"].shape == batch["label"].shape == (512, 5)
    assert "log_q" not in batch
    in_batch = cost.batch_shapes(PAIRS, TrainConfig(batch_rows=512, loss="in_batch"))
    assert in_batch["log_q"].shape == (512,)
    tables = cost.table_shapes(dataclasses.replace(PAIRS, feature_rows=0), 8, 4)
    shapes = {name: x.shape for name, x in tables.items()}
    assert shapes == {"user": (16_000, 8), "item": (8_000, 8), "features": (1, 4)}


@pytest.mark.parametrize(("width", "factor"), [(16, 1), (20, 128 / 20), (128, 1)])
def test_a_tpu_pads_tables_that_cannot_be_packed(width, factor):
    tables = cost.table_shapes(CLICKS, width, width)
    gpu, tpu = (
        cost.training("t", DLRM(width), TRAIN, CLICKS, tables, platform=name)
        for name in ("gpu", "tpu")
    )
    assert tpu.memory["tables"] == factor * gpu.memory["tables"]
    assert tpu.memory["their optimizer's state"] == gpu.memory["their optimizer's state"]


def test_a_tpu_moves_whole_lanes_for_each_row_of_a_batch():
    narrow, wide = (
        cost.training("t", DLRM(width), TRAIN, CLICKS, tables, FROZEN, platform="tpu")
        for width, tables in ((x, cost.table_shapes(CLICKS, x, x)) for x in (16, 128))
    )
    name = "rows of the batch and gradients"
    rows = 512 * 24 * 128 * 4  # of 'features'
    assert narrow.memory[name] > rows and wide.memory[name] > rows
    assert narrow.memory[name] < wide.memory[name] < 1.5 * narrow.memory[name]


def test_sums_of_equal_ids_take_kernels_and_traffic_but_not_on_a_cpu():
    plain, adagrad = (train(table_optimizer=name) for name in ("sgd", "adagrad"))
    assert plain.launches < adagrad.launches
    tables = cost.table_shapes(CLICKS, 16, 16)
    on_cpu = cost.training("t", MODEL, TRAIN, CLICKS, tables, platform="cpu")
    assert plain.traffic < on_cpu.traffic < adagrad.traffic


def test_bfloat16_tables_take_half_the_memory_of_float32():
    assert train(table_dtype="bfloat16").memory["tables"] == train().memory["tables"] / 2


@pytest.mark.parametrize(
    ("devices", "limits", "message"),
    [
        (3, DeviceConfig(), "train.batch_rows=512: must be a multiple of the 3 devices"),
        (2, DeviceConfig(1000), "devices.table_bytes=1,000: tables take"),
    ],
)
def test_impossible_placements_are_rejected_by_name(devices, limits, message):
    with pytest.raises(ConfigError, match=message):
        train(devices, limits)
