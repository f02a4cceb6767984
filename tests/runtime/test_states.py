"""Processes that see no common folder write states through the store; the rest is in test_cloud."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cadc_jax.errors import StorageError
from cadc_jax.runtime import checkpoints, distributed, states
from cadc_jax.runtime.checkpoints import CheckpointConfig, Checkpoints
from cadc_jax.runtime.mirror import Mirror
from cadc_jax.runtime.storage import Remote

STATE = {"table": jax.numpy.arange(6.0).reshape(3, 2), "step": np.arange(2)}


@pytest.fixture
def apart(monkeypatch):
    monkeypatch.setattr(distributed, "apart", lambda: True)


def open_checkpoints(tmp_path, remote, said):
    mirror = Mirror(tmp_path, remote)
    every = CheckpointConfig(seconds=0)
    return Checkpoints(tmp_path / "checkpoints", every, say=said.append, mirror=mirror)


def test_a_state_that_was_written_apart_is_read_anywhere(apart, memory_store, tmp_path):
    states.save(tmp_path / "made" / "state", STATE, Mirror(tmp_path, memory_store))
    assert [x.name for x in (tmp_path / "made").iterdir()] == ["state"]
    with ocp.StandardCheckpointer() as standard:
        found = standard.restore(tmp_path / "made" / "state", jax.tree.map(np.asarray, STATE))
    np.testing.assert_array_equal(found["table"], STATE["table"])


def test_the_other_processes_keep_files_of_arrays_alone(apart, memory_store, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    (tmp_path / "own" / "state" / "table").mkdir(parents=True)
    for name in ("_METADATA", "table/1.0"):
        (tmp_path / "own" / "state" / name).write_bytes(b"x")
    states.put_own(tmp_path / "own", tmp_path / "7", Mirror(tmp_path, memory_store))
    assert list((memory_store / "7").files()) == ["state/table/1.0"]


def test_checkpoints_are_in_the_store_alone(apart, memory_store, tmp_path):
    said = []
    with open_checkpoints(tmp_path, memory_store, said) as saved:
        for step in range(4):
            saved.maybe_save(step, lambda step=step: (STATE, {"at": step}))
    folder = tmp_path / "checkpoints"
    assert not list(folder.iterdir()) and said == []
    assert Mirror(tmp_path, memory_store).names(folder) == {"2", "3"}
    (memory_store / "checkpoints" / "3" / "state" / "_METADATA").write_bytes(b"damaged")
    target = checkpoints.like(STATE, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with open_checkpoints(tmp_path, memory_store, said) as saved:
        state, facts = saved.restore(target)
    assert facts == {"at": 2} and "CHECKPOINT SKIPPED" in said[0]
    np.testing.assert_array_equal(state["table"], STATE["table"])
    assert not list(folder.iterdir())


def test_one_that_cannot_be_copied_is_not_saved(apart, memory_store, tmp_path, monkeypatch):
    def fails(place, file):
        raise StorageError(f"{place}: full")

    monkeypatch.setattr(Remote, "upload", fails)
    said = []
    with open_checkpoints(tmp_path, memory_store, said) as saved:
        saved.maybe_save(1, lambda: (STATE, {}))
    assert saved.newest is None and not list((tmp_path / "checkpoints").iterdir())
    assert "CHECKPOINT OF STEP 1 NOT SAVED" in said[0] and "full" in said[0]
