"""Help screens, and the commands after training as a user runs them."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = (
    *("run", "compress", "train", "interactions", "verify"),
    *("recommend", "export", "info", "doctor"),
)


def cadc(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cadc_jax.main", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "CADC_DATA_DIR": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_lists_every_command_in_a_line():
    done = cadc("--help")
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_help_of_a_command_has_an_example_and_its_own_flags_alone():
    text = cadc("recommend", "--help").stdout
    assert text.startswith("cadc recommend: ")
    assert "\n    cadc recommend --config=" in text
    assert "--users" in text and "--workdir" in text
    assert "--rate" not in text and "--format" not in text
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "--from=x"], "needs --user=ID, or --users=all|FILE with --out=FILE"),
        (["recommend", "--from=x", "--users=all"], "needs --out="),
        (["recommend", "--user=1"], "needs --from=DIR, or --config="),
        (["export", "--from=/nowhere", "--out=x"], "/nowhere: no such folder"),
        (["info"], "needs a folder: cadc info DIR"),
        (["info", "a", "b"], "unexpected argument 'b'"),
        (["doctor", "now"], "unexpected argument 'now'"),
        (["run", "--verify=maybe"], "flag --verify=maybe: Non-boolean argument to boolean flag\n"),
        (["run", "--stage=trian"], "flag --stage=trian: value should be one of <prepare|"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line(arguments, message):
    done = cadc(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_reader_that_has_had_enough_is_no_error(ranking_run):
    command = f"'{sys.executable}' -m cadc_jax.main info '{ranking_run}' | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "a work folder" in done.stdout
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_after_training_come_recommend_and_export(ranking_run, tmp_path):
    done = cadc("recommend", f"--from={ranking_run}", "--user=ann05", "--k=3")
    assert done.returncode == 0, done.stderr
    assert "Product" in done.stdout.splitlines()[-1]
    done = cadc("export", f"--from={ranking_run}", f"--out={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr
    assert "cadc_frozen" in done.stdout or "sample" in done.stdout
    assert (tmp_path / "model/model.npz").exists()


def test_the_doctor_makes_a_trial_run(tmp_path):
    done = cadc("doctor", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "600 synthetic rows through all stages" in done.stdout
    assert done.stdout.endswith("all is well\n")
    assert not list(tmp_path.iterdir())
