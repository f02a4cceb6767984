"""The cost of a fit of the autoencoder, against compiled programs and by hand."""

import collections
import dataclasses

import jax
import pytest

from benchmarks import plan
from cadc_jax import cost, sharding
from cadc_jax.factorization import autoencoder, gram
from cadc_jax.factorization import autoencoder_solver as solver
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from tests.cost.compiled import CLICKS, PAIRS, assert_near

CONFIG = AutoencoderConfig(factors=32)
EVEN = dataclasses.replace(PAIRS, entries=160_000)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_fit_is_predicted_as_it_is_compiled(passes, devices):
    matrix = plan.random_interactions(20_000, 4_000, 160_000)
    config = dataclasses.replace(CONFIG, passes=passes)
    assert_near(plan.autoencoder_pairs(matrix, config, devices))


def test_a_fit_runs_its_programs_as_often_as_is_predicted(monkeypatch):
    config = AutoencoderConfig(factors=4, passes=3, start_rounds=2, cg_steps=1)
    matrix = plan.random_interactions(60, 30, 300)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    programs = plan.compiled_fit(matrix, config, mesh)
    ran = collections.Counter()

    def counted(name, program):
        def call(*arguments):
            ran[name] += 1
            return program(*arguments)

        return call

    for name in programs:
        module = gram if name == "user_product" else solver
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    autoencoder.fit(matrix, config, jax.random.key(0), mesh=mesh)
    jitted = {"user_product", "spread"}  # also called while other programs are traced
    for name, (times, _) in programs.items():
        assert ran[name] == times or (name in jitted and ran[name] > times), name


def test_further_passes_are_arithmetic_and_tables_of_their_own():
    one, two, three = (
        cost.autoencoder(EVEN, dataclasses.replace(CONFIG, passes=n), platform="cpu")
        for n in (1, 2, 3)
    )
    for name in ("flops", "traffic"):
        first, second, third = (getattr(x, name) for x in (one, two, three))
        assert third - second == pytest.approx(second - first) and second > first
    assert two.memory == three.memory
    assert sum(two.memory.values()) > sum(one.memory.values())


def test_the_memory_is_that_of_the_largest_phase():
    phases = cost.autoencoder_phases(EVEN, CONFIG)
    largest = max(sum(phase.values()) for phase in phases.values())
    assert sum(cost.autoencoder(EVEN, CONFIG).memory.values()) == largest
    assert len(phases) == 2


def test_the_tables_of_a_pass_by_hand():
    found = cost.autoencoder_phases(EVEN, CONFIG)["passes"]
    rows = 8_000  # all alike: no place is unused
    assert found["tables of items"] == pytest.approx(3 * rows * 32 * 4, rel=0.02)
    assert found["four numbers of each item"] == pytest.approx(4 * rows * 4, rel=0.02)
    assert found["weights of users"] == pytest.approx(16_000 * 4, rel=0.02)
    assert found["copy of a side"] == 0


def test_more_devices_need_less_memory_and_less_arithmetic_each():
    costs = [cost.autoencoder(PAIRS, AutoencoderConfig(), n, platform="cpu") for n in (1, 4, 16)]
    for figures in ([sum(x.memory.values()) for x in costs], [x.flops for x in costs]):
        assert figures[0] > figures[1] > figures[2]


def test_one_device_receives_nothing():
    assert not sum(cost.autoencoder(CLICKS, CONFIG).received.values())


def test_a_cpu_gathers_less_at_once():
    wide, narrow = (cost.autoencoder(PAIRS, CONFIG, platform=x) for x in ("tpu", "cpu"))
    name = "users of a product, and a chunk"
    assert wide.memory[name] > narrow.memory[name]
