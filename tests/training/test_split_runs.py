"""Split tables train as on one device, on virtual devices and in several processes over Gloo."""

import json
import sys

import jax
import numpy as np
import pytest

from cadc_jax import sharding
from tests.runtime.test_distributed import finished, free_port, start
from tests.training import split_runs


@pytest.fixture(scope="module")
def on_one_device():
    mesh = sharding.make_mesh(jax.devices()[:1])
    return {name: split_runs.losses(name, mesh) for name in split_runs.RUNS}


def test_one_id_is_in_half_of_all_places():
    for name, id_ in (("user", 1), ("item", 3)):
        assert np.mean(split_runs.rows()[name] == id_) >= 0.5


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("name", split_runs.RUNS)
def test_devices_find_the_losses_of_one(name, devices, on_one_device):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    found = split_runs.losses(name, mesh)
    assert len(set(found)) > 1
    np.testing.assert_allclose(found, on_one_device[name], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_find_the_losses_of_one_device(processes, tmp_path, on_one_device):
    command = [sys.executable, "-m", "tests.training.split_runs", free_port(), processes]
    files = [tmp_path / str(k) for k in range(processes)]
    started = [start([*command, k, file]) for k, file in enumerate(files)]
    results = [finished(process) for process in started]
    assert [code for code, _, _ in results] == [0] * processes, results
    for file in files:
        found = json.loads(file.read_text())
        for name, losses in on_one_device.items():
            np.testing.assert_allclose(found[name], losses, rtol=1e-4, err_msg=name)
