"""A study from start to end, with cells that are computed at once."""

import csv
import json

import pytest

from cadc_jax import configuration
from cadc_jax.errors import CadcError, ConfigError, DataError
from cadc_jax.run import bundled_configs
from cadc_jax.study import command, results
from cadc_jax.study.command import Options
from tests.small_runs import ranking_config

FEW = Options(rates=[0.5], arms=["cadc_frozen"], models=[], seeds=1, rivals=["mf_alone", "ease"])


def named(*names):
    return {name: bundled_configs.config(name) for name in names}


def run_here(study, phases, jobs, run):
    """Stands in for the workers: every cell is skipped."""
    del jobs, run
    return [
        results.failure(cell, study.settings(cell), "not here", "skipped")
        for phase in phases
        for cell in phase
    ]


@pytest.fixture
def without_work(monkeypatch):
    monkeypatch.setattr(command.workers, "run_cells", run_here)


def test_a_configuration_without_its_data_is_left_out_of_several(
    tmp_path, monkeypatch, capsys, without_work
):
    monkeypatch.setenv("CADC_DATA_DIR", str(tmp_path))
    command.run(named("movielens_1m", "criteo"), FEW, tmp_path / "out")
    shown = capsys.readouterr().out
    assert f"SKIPPED movielens_1m: {tmp_path / 'ml-1m'}: no such file" in shown
    assert "criteo: NO CRITEO DATA GIVEN: 200,000 SYNTHETIC rows" in shown
    assert "criteo: left out ease: they rank items, and these are clicks" in shown
    cells = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    assert {cell["data"] for cell in cells} == {"criteo"}


def test_what_needs_rows_of_the_test_users_is_left_out_where_they_have_none(
    tmp_path, capsys, without_work
):
    config = ranking_config(tmp_path / "raw")
    config.data.split = "users"
    options = Options([0.5], ["full", "sample", "cadc_frozen"], ["two_tower"], 1)
    command.run({"shop": config}, options, tmp_path / "out")
    shown = capsys.readouterr().out
    of_users = "ease, item_knn, slim, rp3beta, mf_ease, fold_in, full, sample: they learn"
    assert f"shop: left out {of_users}" in shown
    assert "shop: left out logistic, fm, lightgbm: they predict clicks, and these are" in shown
    cells = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    assert [cell["arm"] for cell in cells] == ["popularity", "mf_alone", "cadc_frozen"]


def test_data_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CADC_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="no such file or folder; set data.path"):
        command.run(named("movielens_1m"), FEW, tmp_path / "out")
    with pytest.raises(ConfigError, match="no configuration has its data"):
        command.run(named("movielens_1m", "movielens_100k"), FEW, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_variant_that_is_not_valid_is_an_error_before_any_work(tmp_path, capsys):
    swept = Options([0.5], ["full"], [], 1, sweeps=["config.sgd.factors=8,-3"])
    with pytest.raises(ConfigError, match="sgd.factors=-3"):
        command.run(named("criteo"), swept, tmp_path / "out")
    assert not (tmp_path / "out").exists() and capsys.readouterr().out == ""


def test_cells_that_failed_end_the_study_with_a_line(tmp_path, monkeypatch):
    def fail(study, phases, jobs, run):
        return [row | {"status": "failed"} for row in run_here(study, phases, jobs, run)]

    monkeypatch.setenv("CADC_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(command.workers, "run_cells", fail)
    with pytest.raises(CadcError, match="2 of 2 cells failed; .*results.csv says why"):
        command.run(named("criteo"), FEW, tmp_path / "out")
    assert "Cells without a result" in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow
def test_a_sweep_of_an_own_log_has_its_choice_in_all_reports(tmp_path, capsys):
    config = ranking_config(tmp_path / "raw")
    configuration.validate(config)
    options = Options(
        rates=[0.5],
        arms=["cadc_frozen"],
        models=["two_tower"],
        seeds=1,
        rivals=["popularity", "mf_alone", "ease"],
        sweeps=["config.als.regularization=0.01,100"],
        jobs=1,
    )
    for _ in range(2):
        command.run({"shop": config}, options, tmp_path / "out", "cadc study")
    first, second = capsys.readouterr().out.split("8 cells, 8 of them done before")
    assert "8 cells, 0 of them done before" in first and "[1/8" not in second
    assert "best of all" in second
    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert len(rows) == 8 and all(row["status"] == "ok" for row in rows)
    assert {row["variant"] for row in rows} == {
        "als.regularization=0.01",
        "als.regularization=100",
    }
    assert all(row["validation_metric"] == "ndcg@10" and row["validation"] for row in rows)
    made = json.loads((tmp_path / "out/results.json").read_text())
    best = max(made["choices"], key=lambda choice: choice["validation"])
    assert best["best_of_all"]
    page = (tmp_path / "out/report.html").read_text()
    assert "shop: which values validate best" in page and "best of all" in page
