"""The order of stages, and what each arm's row accounts for."""

import json

import numpy as np
import pytest

from cadc_jax import experiment
from cadc_jax.run import compressed
from cadc_jax.runtime import artifacts, durable
from tests.small_runs import click_config, quiet


@pytest.mark.parametrize(
    ("last", "stages"),
    [
        ("prepare", {"synthetic", "prepare"}),
        ("factorize", {"synthetic", "prepare", "factorize"}),
        ("sample", {"synthetic", "prepare", "factorize", "sample"}),
    ],
)
def test_a_run_ends_after_the_last_stage_that_was_asked_for(tmp_path, last, stages):
    config = click_config()
    config.data.synthetic_rows = 1000
    experiment.run(experiment.Run(config, tmp_path, quiet), last)
    made = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert made - {"checkpoints"} == stages


def test_an_arm_pays_for_the_stages_that_it_needs(ranking_run):
    rows = json.loads((ranking_run / "results.json").read_text())["rows"]
    stages = {row["arm"]: set(row["seconds"]) - {"total"} for row in rows}
    assert stages == {
        "popularity": {"prepare", "evaluate"},
        "mf_alone": {"prepare", "factorize", "evaluate"},
        "sample": {"prepare", "sample", "train", "evaluate"},
        "cadc_frozen": {"prepare", "factorize", "sample", "train", "evaluate"},
    }
    for row in rows:
        parts = sum(value for name, value in row["seconds"].items() if name != "total")
        assert row["seconds"]["total"] == pytest.approx(parts, abs=0.01)


@pytest.mark.parametrize(
    ("finished", "metric", "sign"),
    [("ranking_run", "ndcg@10", 1), ("click_run", "logloss", -1)],
)
def test_a_row_has_the_validation_that_chose_the_best_step_beside_its_test(
    finished, metric, sign, request
):
    workdir = request.getfixturevalue(finished)
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    made = [artifacts.open_artifact(path).facts for path in (workdir / "train").iterdir()]
    best = {x["arm"]: max(entry["validation"] for entry in x["history"]) for x in made}
    for row in rows:
        assert row["test"] == row["metrics"]
        assert next(iter(row["validation"])) == metric
        if row["arm"] in best:
            assert sign * row["validation"][metric] == pytest.approx(best[row["arm"]], rel=1e-4)


def test_a_row_says_its_rate_and_the_rows_it_used(ranking_run):
    rows = json.loads((ranking_run / "results.json").read_text())["rows"]
    by_arm = {row["arm"]: row for row in rows}
    assert by_arm["cadc_frozen"]["rate"] == 0.25 and by_arm["mf_alone"]["rate"] == 1.0
    assert by_arm["sample"]["rows_used"] < 0.4 * by_arm["popularity"]["rows_used"]
    assert by_arm["mf_alone"]["model"] is None and "best_step" not in by_arm["mf_alone"]


def test_a_work_folder_in_use_is_refused(click_run):
    run = experiment.Run(click_config(), click_run, quiet)
    given = compressed.open_compressed(click_run.parent / "compressed")
    with durable.lock(click_run):
        for start in (
            lambda: experiment.run(run),
            lambda: experiment.train_from(run, given),
            lambda: experiment.compress(run, click_run.parent / "other"),
        ):
            with pytest.raises(experiment.ConfigError, match="another run is using it"):
                start()


def test_only_click_logs_have_candidates_for_users_and_items(ranking_run):
    config = click_config()
    config.data.task = "ranking"
    with pytest.raises(experiment.ConfigError, match="name their users and items"):
        experiment.candidates(experiment.Run(config, ranking_run, quiet), 100)


def test_what_candidates_advise_can_be_pasted(tmp_path):
    rng = np.random.default_rng(0)
    user, item, place = rng.integers(0, [8, 6, 3], (6000, 3)).T
    label = rng.random(6000) < np.where((user + item) % 2, 0.8, 0.2)
    rows = zip(user, item, place, label.astype(int), strict=True)
    log = "".join(f"{u},{i},{p},{y}\n" for u, i, p, y in rows)
    (tmp_path / "log.csv").write_text("device_ip,ad,place,click\n" + log)
    config = click_config()
    config.data.update(source="tabular", path=str(tmp_path), train_file="log.csv", split="order")
    config.data.update(user_features=(), item_features=("place",), log_dense=False)
    config.data.columns.update(user="device_ip", item="", label="click")
    config.data.columns.categorical = ("ad", "place")
    said = []
    experiment.candidates(experiment.Run(config, tmp_path / "work", said.append), 6000)
    advice = said[-1].partition("set in the configuration file:\n")[2].splitlines()[:3]
    exec("\n".join(line.strip() for line in advice), {"config": config})
    assert (config.data.columns.user, config.data.user_features) == ("device_ip", ())
    assert config.data.item_features == ("ad",)
