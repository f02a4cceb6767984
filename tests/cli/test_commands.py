"""Commands as a user runs them."""

import subprocess
import sys

import pytest

from tests.program import ROOT, cadc

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "--from=x"], "needs --user=ID, --items=ID,ID, or --users=all|FILE with"),
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
