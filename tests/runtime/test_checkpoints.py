"""Checkpoints are whole or absent, their damage is found, and a failed save stops no work."""

import functools
import json
import shutil
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding
from cadc_jax.errors import ConfigError
from cadc_jax.runtime import checkpoints, states
from cadc_jax.runtime.checkpoints import CheckpointConfig, Checkpoints
from cadc_jax.runtime.interrupts import Stopped

HERE = SingleDeviceSharding(jax.devices()[0])
TARGET = checkpoints.like({"table": jnp.zeros((6, 2)), "count": jnp.zeros((), jnp.int32)}, HERE)
ALWAYS = CheckpointConfig(seconds=0)


def state(step):
    return {"table": jnp.arange(12.0).reshape(6, 2) + step, "count": jnp.int32(step)}


def save(folder, *steps, keep=2):
    """Saves checkpoints of these steps; returns the messages."""
    said = []
    with Checkpoints(folder, CheckpointConfig(0, keep), say=said.append) as saved:
        for step in steps:
            saved.maybe_save(step, lambda step=step: (state(step), {"losses": [0.1] * step}))
    return said


def restore(folder, target=TARGET):
    """Returns ((state, facts) or None, messages)."""
    said = []
    with Checkpoints(folder, say=said.append) as saved:
        return saved.restore(target), said


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def assert_is(found, step):
    jax.tree.map(np.testing.assert_array_equal, found[0], state(step))
    assert found[1] == {"losses": [0.1] * step}


def test_the_newest_is_restored_and_the_configured_number_is_kept(tmp_path):
    assert save(tmp_path, 1, 2, 3, 4) == []
    assert steps(tmp_path) == [3, 4]
    found, said = restore(tmp_path)
    assert_is(found, 4)
    assert said == [f"         Resuming from step 4 ({tmp_path / '4'})"]
    save(tmp_path, 5, 6, keep=3)
    assert steps(tmp_path) == [4, 5, 6]


def test_without_checkpoints_there_is_no_message(tmp_path):
    assert restore(tmp_path / "none") == (None, [])


def test_arrays_and_facts_may_change_while_they_are_saved(tmp_path):
    add = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    x, losses = {"table": jnp.zeros((1 << 20, 2)), "count": jnp.int32(0)}, []
    with Checkpoints(tmp_path, ALWAYS) as saved:
        for step in range(4):
            saved.maybe_save(step, lambda x=x: (x, {"losses": losses}))
            x = add(x)
            losses.append(step)
    (found, facts), _ = restore(tmp_path, checkpoints.like(x, HERE))
    assert facts["losses"] == [0, 1, 2] and found["count"] == 3
    assert (found["table"] == 3).all()


def test_a_save_is_made_once_the_configured_seconds_have_passed(tmp_path):
    def saved_steps(seconds):
        made = []
        with Checkpoints(tmp_path / str(seconds), CheckpointConfig(seconds)) as saved:
            for step in range(3):
                saved.maybe_save(step, lambda step=step: made.append(step) or (state(step), {}))
        return made

    assert saved_steps(0) == [0, 1, 2]
    assert saved_steps(3600.0) == saved_steps(float("inf")) == []


def test_a_stop_saves_and_ends_the_work(tmp_path):
    asked = iter([False, True, True])
    only_on_stop = CheckpointConfig(float("inf"))
    with Checkpoints(tmp_path, only_on_stop, stop=lambda: next(asked)) as saved:
        saved.maybe_save(1, lambda: (state(1), {"losses": []}))
        with pytest.raises(Stopped, match="step 2 is saved"):
            saved.maybe_save(2, lambda: (state(2), {"losses": []}))
    assert steps(tmp_path) == [2]


def test_a_stop_right_after_restoring_saves_nothing_again(tmp_path):
    save(tmp_path, 7)
    with Checkpoints(tmp_path, stop=lambda: True) as saved:
        saved.restore(TARGET)
        with pytest.raises(Stopped, match="step 7 is saved"):
            saved.maybe_save(7, lambda: pytest.fail("saved what is there"))


def test_wall_time_adds_up_over_the_runs(tmp_path):
    first = time.monotonic()
    save(tmp_path, 1)
    spent = time.monotonic() - first
    with Checkpoints(tmp_path, ALWAYS) as saved:
        saved.restore(TARGET)
        before = saved.seconds_before
        saved.maybe_save(2, lambda: (state(2), {}))
    assert 0 < before <= spent
    manifest = json.loads((tmp_path / "2" / "manifest.json").read_text())
    assert manifest["seconds"] > before


def files(path):
    """Files with data; two others only record that and when the checkpoint was written."""
    records = ("commit_success.txt", "_CHECKPOINT_METADATA")
    return sorted(x for x in path.rglob("*") if x.is_file() and x.name not in records)


def test_a_flipped_bit_in_any_file_is_found_and_the_checkpoint_before_is_used(tmp_path):
    whole = tmp_path / "whole"
    save(whole, 1, 2)
    for number, file in enumerate(files(whole / "2")):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)  # another save may split its data into other files
        damaged = folder / file.relative_to(whole)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        found, said = restore(folder)
        assert_is(found, 1)
        assert f"{folder / '2'} is not usable: " in said[0] and "\n" not in said[0]
        assert steps(folder) == [1]


@pytest.mark.parametrize("lost", ["_METADATA", "manifest.ocdbt", "d"])
def test_a_checkpoint_that_lacks_a_part_is_skipped(tmp_path, lost):
    save(tmp_path, 1, 2)
    path = tmp_path / "2" / "state" / lost
    path.rename(tmp_path.parent / f"{tmp_path.name}-{lost}")
    found, said = restore(tmp_path)
    assert_is(found, 1)
    assert said[0].startswith(f"*** CHECKPOINT SKIPPED: {tmp_path / '2'} is not usable: ")


def test_if_all_are_damaged_the_work_starts_over_and_says_so(tmp_path):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / str(step) / "manifest.json").write_text("{")
    found, said = restore(tmp_path)
    assert found is None
    assert (
        len(said) == 3 and said[2] == f"*** NO USABLE CHECKPOINT in {tmp_path}: starting over ***"
    )
    assert steps(tmp_path) == []


def test_a_half_written_folder_of_a_killed_run_is_not_a_checkpoint(tmp_path):
    save(tmp_path, 1)
    for half in ("state.orbax-checkpoint-tmp", "state"):  # the second by commit files
        (tmp_path / "2" / half).mkdir(parents=True)
        (tmp_path / "2" / half / "d").write_text("half")
    found, said = restore(tmp_path)
    assert_is(found, 1)
    assert steps(tmp_path) == [1] and len(said) == 1


def test_a_checkpoint_without_its_manifest_is_half_written(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "2" / "manifest.json").unlink()
    assert_is(restore(tmp_path)[0], 1)


@pytest.mark.skipif(
    not hasattr(ocp.options, "AtomicityOptions"), reason="this Orbax does so on stores alone"
)
def test_orbax_may_write_in_place_with_a_commit_file(tmp_path, monkeypatch):
    """As it does on file systems without renames."""
    options = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
    make = functools.partial(ocp.AsyncCheckpointer, atomicity_options=options)
    monkeypatch.setattr(states.ocp, "AsyncCheckpointer", make)
    assert save(tmp_path, 1, 2, 3) == []
    assert list((tmp_path / "3").rglob("commit_success.txt"))
    assert_is(restore(tmp_path)[0], 3)
    assert steps(tmp_path) == [2, 3]


def test_another_format_is_never_used(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoints, "FORMAT", checkpoints.FORMAT + 1)
    found, said = restore(tmp_path)
    assert found is None
    assert f"its format is {checkpoints.FORMAT - 1}" in said[0]


def test_other_arrays_than_are_looked_for_are_never_used(tmp_path):
    save(tmp_path, 1)
    found, said = restore(tmp_path, {"other": TARGET["table"]})
    assert found is None and "is not usable" in said[0]


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_rows_are_split_again_over_another_number_of_devices(tmp_path, devices):
    """Six rows, padded for one number of devices, are padded for another."""
    padded = jnp.pad(state(1)["table"], ((0, 2), (0, 0)))
    mesh = sharding.make_mesh()
    split = jax.device_put(padded, sharding.named(mesh, sharding.TABLE))
    with Checkpoints(tmp_path, ALWAYS) as saved:
        saved.maybe_save(1, lambda: ({"table": split}, {}))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    where = NamedSharding(mesh, P(sharding.EVERYWHERE))
    rows = 6 + -6 % devices
    shape = jax.ShapeDtypeStruct((rows, 2), jnp.float32)
    ((found, _), _) = restore(tmp_path, checkpoints.like({"table": shape}, where))
    assert found["table"].sharding == where
    np.testing.assert_array_equal(found["table"], np.asarray(padded)[:rows])


def test_a_full_disk_is_a_warning_and_the_last_good_checkpoint_stays(small_disk, capfd):
    folder = small_disk / "checkpoints"
    random = np.random.default_rng(0).random((1 << 20, 1), np.float32)  # does not compress
    said = []
    with Checkpoints(folder, ALWAYS, say=said.append) as saved:
        saved.maybe_save(1, lambda: (state(1), {"losses": [0.1]}))
        saved.maybe_save(2, lambda: ({"table": jnp.asarray(random)}, {}))
        saved.maybe_save(3, lambda: (state(3), {"losses": [0.1] * 3}))
    assert len(said) == 1 and "\n" not in said[0]
    assert f"CHECKPOINT OF STEP 2 NOT SAVED in {folder}" in said[0]
    assert "No space left on device" in said[0] and "the last good one is 1" in said[0]
    assert steps(folder) == [1, 3]
    assert_is(restore(folder)[0], 3)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"keep": 1}, "checkpoints.keep=1: must be at least 2"),
        ({"seconds": -1.0}, "checkpoints.seconds=-1.0: must be at least 0"),
        ({"seconds": float("nan")}, "checkpoints.seconds=nan: must be at least 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointConfig(**settings)


def test_a_fault_of_orbax_is_an_exception_alone(monkeypatch):
    """Its threads answer to a closed event loop; what else goes wrong in a thread is shown."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: shown.append(str(told.exc_value)))
    with checkpoints.quiet_orbax():
        pass
    for text in ("Event loop is closed", "another fault"):
        error = RuntimeError(text)
        told = dict(exc_type=RuntimeError, exc_value=error, exc_traceback=None)
        sys.unraisablehook(types.SimpleNamespace(**told, err_msg=None, object=None))
    assert shown == ["another fault"]
