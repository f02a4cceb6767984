"""Which files each step opens: a sample arm trains on kept rows, factors and content alone."""

import json
import pathlib
import subprocess
import sys

import pytest

# Runs all stages, and records each file under the work folder that Python opens, with the
# functions of the package that were under way.
PROGRAM = """
import json, pathlib, sys
from cadc_jax import experiment
from tests.small_runs import click_config, quiet, ranking_config

task, folder = sys.argv[1], pathlib.Path(sys.argv[2])
config = click_config() if task == "click" else ranking_config(folder / "raw")
config.arms = ("sample", "cadc_frozen", "cadc_trainable")
if task == "ranking":
    config.factor_rows, config.evaluation.ranking = "unsampled", "full"
work, opened = str(folder / "work"), []

def hook(event, arguments):
    if event != "open" or not str(arguments[0]).startswith(work):
        return
    frame, stack = sys._getframe(), []
    while frame is not None:
        if "cadc_jax" in frame.f_code.co_filename:
            module = pathlib.Path(frame.f_code.co_filename)
            stack.append(f"{module.parent.name}.{module.stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    opened.append([str(arguments[0])[len(work) + 1 :], stack])

sys.addaudithook(hook)
experiment.run(experiment.Run(config, folder / "work", quiet))
print(json.dumps(opened))
"""


@pytest.fixture(scope="module", params=["ranking", "click"])
def opened(request, tmp_path_factory):
    """(task, [(stage and folder, functions under way)]) of arrays that were opened to read."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, "-c", PROGRAM, request.param, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = []
    for name, stack in json.loads(done.stdout.splitlines()[-1]):
        # Writing is not reading, and a checksum tells nothing about the rows.
        written = {"table.__init__", "table.write_columns"} & {
            ".".join(x.split(".")[1:]) for x in stack[:2]
        }
        if name.endswith(".npy") and not written and "runtime.manifest.checksums" not in stack:
            stage, _, *rest = pathlib.Path(name).parts
            found.append(("/".join([stage, *rest[:-1]]), stack))
    return request.param, found


def read_by(opened, function, inside=()):
    """Folders that a stage reads; `inside` chooses whether within evaluation or not."""
    _, found = opened
    return {
        folder
        for folder, stack in found
        if any(x.endswith(f".{function}") for x in stack)
        and (inside == () or inside == any(x.startswith("evaluation.") for x in stack))
    }


def test_training_reads_kept_rows_factors_and_content_alone(opened):
    task, _ = opened
    allowed = {"sample", "factorize", "factorize/unsampled", "prepare/users", "prepare/items"}
    found = read_by(opened, "train_stage", inside=False)
    assert found <= allowed
    assert {"sample", "factorize", "prepare/users"} <= found
    assert ("factorize/unsampled" in found) == (task == "ranking")


def test_validation_reads_its_rows_and_the_mask(opened):
    task, _ = opened
    mask = {"prepare/known"} if task == "ranking" else set()
    assert read_by(opened, "train_stage", inside=True) == {"prepare/validation"} | mask


def test_factors_and_the_sample_come_from_training_rows_alone(opened):
    content = {"prepare/users", "prepare/items"}
    for function in ("factorize_stage", "sample_stage"):
        found = {x for x in read_by(opened, function) if x.startswith("prepare")}
        assert found - content == {"prepare/train"}


def test_testing_reads_held_out_rows_factors_and_the_mask(opened):
    task, _ = opened
    found = {x for x in read_by(opened, "evaluate_stage") if x.startswith(("prepare", "sample"))}
    mask = {"prepare/known"} if task == "ranking" else set()
    held_out = {"prepare/validation", "prepare/test"}
    assert found == held_out | {"prepare/users", "prepare/items"} | mask
