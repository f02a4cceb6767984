"""What the stages of a run share: the devices they use, and stages that are found again."""

import signal

import numpy as np
import pytest

from cadc_jax.run import context
from cadc_jax.run.context import Run
from cadc_jax.runtime.interrupts import Stop, Stopped
from tests.small_runs import click_config, quiet


def test_als_takes_the_cores_of_a_cpu_that_have_room_for_a_copy_and_training_takes_one(
    tmp_path, monkeypatch
):
    run = Run(click_config(), tmp_path, cores=True)
    assert context.training_mesh(run).size == 1
    assert context.als_mesh(run, 100, 8).size == 8
    monkeypatch.setattr(context, "COPIES_BYTES", 3 * 100 * 8 * 4)
    assert context.als_mesh(run, 100, 8).size == 3
    monkeypatch.setattr(context, "COPIES_BYTES", 1)
    assert context.als_mesh(run, 100, 8).size == 1
    other = Run(click_config(), tmp_path)
    assert context.training_mesh(other).size == context.als_mesh(other, 100, 8).size == 8


def test_a_stage_is_made_once_and_found_again(tmp_path):
    lines = []
    run = Run(click_config(), tmp_path, lines.append)
    made = [context.make_stage(run, "numbers", {"upto": (1, 2)}, write_nothing) for _ in range(2)]
    assert [x.reused for x in made] == [False, True]
    assert "[  numbers] numbers: done in" in lines[0] and "reused, made in" in lines[1]


def write_nothing(folder):
    return {"files": len(list(folder.iterdir()))}


def test_a_long_stage_resumes_from_its_checkpoint_and_then_removes_it(tmp_path):
    stop, config = Stop(), click_config()
    run = Run(config, tmp_path, quiet, stop=stop)
    started = []

    def write(folder, saved):
        found = saved.restore({"x": np.zeros(1)})
        step = 0 if found is None else found[1]["step"]
        started.append(step)
        if found is None:
            stop.signal = signal.SIGTERM
        saved.maybe_save(5, lambda: ({"x": np.ones(1)}, {"step": 5}))
        return {"step": step}

    with pytest.raises(Stopped, match="step 5 is saved"):
        context.make_long_stage(run, "long", {}, write)
    run = Run(config, tmp_path, quiet)
    made = context.make_long_stage(run, "long", {}, write)
    assert started == [0, 5] and made.facts["step"] == 5
    assert not (tmp_path / "checkpoints/long").exists() or not list(
        (tmp_path / "checkpoints/long").iterdir()
    )
