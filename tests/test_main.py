"""The program as a user runs it, in processes of its own."""

import gzip
import json
import re

import numpy as np
import pytest

from cadc_jax import experiment
from cadc_jax.data.readers import synthetic
from cadc_jax.errors import DataError
from cadc_jax.run import bundled_configs
from tests.program import CRITEO, ROOT, assert_one_line, cadc

pytestmark = pytest.mark.slow

SMALL = (
    "--config.data.synthetic_rows=6000",
    "--config.sgd.epochs=2",
    "--config.train.max_evaluations=1",
    "--config.dlrm.bottom=(8,)",
    "--config.dlrm.top=(8,)",
)
ARMS = ["popularity", "mf_alone", "full", "sample", "cadc_frozen", "cadc_trainable"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished small run of the main job without any data."""
    path = tmp_path_factory.mktemp("main")
    done = cadc(f"--config={CRITEO}", f"--workdir={path}", *SMALL)
    assert done.returncode == 0, done.stderr
    (path / "stdout").write_text(done.stdout)
    return path


def test_without_data_the_main_job_says_loudly_that_it_is_synthetic(workdir):
    assert "NO CRITEO DATA GIVEN" in (workdir / "stdout").read_text()


def test_results_hold_a_row_for_every_arm(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert [row["arm"] for row in results["rows"]] == ARMS
    by_arm = {row["arm"]: row for row in results["rows"]}
    assert by_arm["full"]["rows_used"] == round(6000 * (1 - 1 / 7 - 1 / 14))
    assert 0 < by_arm["sample"]["rows_used"] == by_arm["cadc_frozen"]["rows_used"] < 1000
    for row in results["rows"]:
        assert 0 <= row["metrics"]["auc"] <= 1
        assert row["metrics"]["logloss"] > 0
        parts = sum(value for name, value in row["seconds"].items() if name != "total")
        assert row["seconds"]["total"] == pytest.approx(parts, abs=0.02)
    assert "factorize" in by_arm["cadc_frozen"]["seconds"]
    assert "factorize" not in by_arm["sample"]["seconds"]


def test_the_report_is_written_for_people_too(workdir):
    text = (workdir / "report.md").read_text()
    assert "CADC, frozen" in text
    assert (workdir / "report.png").stat().st_size > 5000
    assert "CADC, frozen" in (workdir / "stdout").read_text()


def test_a_second_run_reuses_every_finished_stage(workdir):
    before = (workdir / "results.json").read_text()
    done = cadc(f"--config={CRITEO}", f"--workdir={workdir}", *SMALL)
    stages = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(stages) > 10
    assert all("reused" in line for line in stages)
    assert (workdir / "results.json").read_text() == before


def test_another_rate_reuses_what_does_not_depend_on_it(workdir):
    done = cadc(
        f"--config={CRITEO}", f"--workdir={workdir}", *SMALL, "--config.rate=0.5", "--stage=sample"
    )
    lines = {line.split("]")[0].strip("[ "): line for line in done.stdout.splitlines()}
    assert "reused" in lines["prepare"] and "reused" in lines["factorize"]
    assert "done" in lines["sample"]
    assert "train" not in lines


def test_the_same_seed_gives_the_same_metrics(workdir, tmp_path):
    done = cadc(f"--config={CRITEO}", f"--workdir={tmp_path}", *SMALL, "--config.arms=('sample',)")
    assert done.returncode == 0, done.stderr
    again, first = (
        {row["arm"]: row["metrics"] for row in json.loads((d / "results.json").read_text())["rows"]}
        for d in (tmp_path, workdir)
    )
    assert again == {arm: first[arm] for arm in again}


def criteo_row(label=1, fields=40):
    return "\t".join([str(label), *["3"] * 13, *["68fd1e64"] * 30][:fields]) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (bytes(range(256)) * 20, "binary"),
        ((criteo_row() + criteo_row(fields=41)).encode(), ":2: .*41 fields"),
        ((criteo_row() + criteo_row(label=2)).encode(), ":2: label"),
    ],
    ids=["missing", "empty", "binary", "41 fields", "label 2"],
)
def test_a_bad_file_is_an_error_that_names_it(tmp_path, content, message):
    path = tmp_path / "train.txt"
    if content is not None:
        path.write_bytes(content)
    config = bundled_configs.config("criteo")
    config.data.path = str(path)
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        experiment.run(experiment.Run(config, tmp_path / "work", say=lambda line: None))


def test_criteo_1_tb_is_split_by_day_files_and_has_no_stand_in(tmp_path):
    config = f"--config={ROOT / 'configs/criteo_terabyte.py'}"
    days = tmp_path / "days"
    days.mkdir()
    for day in range(24):
        text = "".join(criteo_row(label=i % 2) for i in range(10 + day)).encode()
        name, text = (f"day_{day}.gz", gzip.compress(text)) if day % 2 else (f"day_{day}", text)
        (days / name).write_bytes(text)
    arguments = (f"--config.data.path={days}", f"--workdir={tmp_path / 'w'}", "--stage=sample")
    done = cadc(config, *arguments)
    assert done.returncode == 0, done.stderr
    rows = [10 + day for day in range(24)]
    expected = f"{sum(rows[:22])} train, {rows[22]} validation, {rows[23]} test rows"
    assert expected in done.stdout and "SYNTHETIC" not in done.stdout
    assert_one_line(cadc(config, f"--workdir={tmp_path}"), "no such file or folder; set data.path")


def test_compress_train_and_candidates_are_commands(tmp_path):
    raw = tmp_path / "train.txt"
    synthetic.write_criteo(raw, 6000, 0)
    own = (f"--config={CRITEO}", f"--config.data.path={raw}", f"--workdir={tmp_path / 'w'}", *SMALL)
    done = cadc("compress", *own, "--rate=0.2", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "raw log" in done.stdout and "--from=" in done.stdout
    (sha256,) = re.findall(r"SHA-256 (\w{64})", done.stdout)
    done = cadc("candidates", *own, "--rows=3000")
    assert done.returncode == 0, done.stderr
    assert "C7" in done.stdout and "data.user_features" in done.stdout
    raw.unlink()
    done = cadc("train", f"--from={tmp_path / 'out'}", f"--workdir={tmp_path / 'w2'}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "w2" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == [arm for arm in ARMS if arm != "full"]
    assert rows[-1]["rate"] == 0.2
    done = cadc("verify", f"--from={tmp_path / 'out'}", f"--sha256={sha256}")
    assert "whole and undamaged" in done.stdout and sha256 in done.stdout
    done = cadc("verify", f"--from={tmp_path / 'out'}", f"--sha256={'0' * 64}")
    assert_one_line(done, f"its SHA-256 is {sha256}, not 000")


def test_an_error_in_a_stage_ends_in_one_clear_line(tmp_path):
    done = cadc(f"--config={CRITEO}", f"--config.data.path={tmp_path / 'x'}")
    assert_one_line(done, "no such file")


def test_a_file_in_the_place_of_the_work_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = cadc(f"--config={CRITEO}", f"--workdir={tmp_path / 'file'}")
    assert_one_line(done, "a file is where a folder has to be")


def test_a_ranking_run_from_csv_files_with_their_own_split(tmp_path):
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, [40, 60], (900, 2)), axis=0)
    is_test = np.append(pairs[1:, 0] != pairs[:-1, 0], True)
    data = tmp_path / "data"
    data.mkdir()
    with gzip.open(data / "train.csv.gz", "wt") as file:
        file.write("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i in pairs[~is_test]))
    (data / "test.csv").write_text(
        "user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i in pairs[is_test])
    )
    (tmp_path / "config.py").write_text(
        "from cadc_jax.configuration import default_config\n"
        "def get_config():\n"
        "    c = default_config()\n"
        "    c.name, c.models = 'own', ('two_tower', 'dlrm')\n"
        f"    c.data.path, c.data.split = {str(data)!r}, 'given'\n"
        "    c.data.train_file, c.data.test_file = 'train.csv.gz', 'test.csv'\n"
        "    c.data.num_negatives, c.als.factors, c.als.iterations = 20, 16, 2\n"
        "    c.train.negatives, c.train.batch_rows, c.train.max_evaluations = 2, 64, 1\n"
        "    return c\n"
    )
    done = cadc(f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "w/results.json").read_text())["rows"]
    assert len(rows) == 2 + 2 * 4
    names = ("ndcg", "recall", "hit", "map", "hr", "coverage")
    full = {f"{name}@{k}" for name in names for k in (10, 20, 50)} | {"mrr"}
    sampled = {f"{name}@{k}/1+20" for name in ("hr", "ndcg") for k in (10, 20, 50)}
    assert set(rows[-1]["metrics"]) == full | sampled
    assert rows[-1]["test_users"] == {"ranked": 40, "all": 40}
