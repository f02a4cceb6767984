"""results.csv: written a row at a time, and read back after an interruption."""

import dataclasses

import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.study import results
from cadc_jax.study.cells import Cell

CELLS = [Cell("synthetic", "full", "dlrm", seed=seed) for seed in range(3)]


def failed(cell):
    return results.failure(cell, "s1", "why")


def ok(cell, **values):
    return results.failure(cell, "s1", "", "ok") | values


def test_a_row_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "results.csv"
    cell = Cell("ml-1m", "cadc_frozen", "two_tower", "uniform", 0.05, 2)
    results.append_result(path, ok(cell, ndcg=0.25, rows_used=7, train_s=1.5, chosen='{"K": 1}'))
    (row,) = results.read_results(path)
    assert results.cell_of(row) == cell
    assert (row["ndcg"], row["rows_used"], row["train_s"], row["auc"]) == (0.25, 7, 1.5, "")
    assert row["chosen"] == '{"K": 1}' and row["settings"] == "s1"


def test_the_lines_of_an_error_are_joined(tmp_path):
    path = tmp_path / "results.csv"
    results.append_result(path, results.failure(CELLS[0], "s1", "it\n  broke, 'so'"))
    (row,) = results.read_results(path)
    assert row["error"] == "it broke, 'so'" and row["status"] == "failed"


def test_an_incomplete_line_is_cut_off_the_file(tmp_path):
    path = tmp_path / "results.csv"
    for cell in CELLS[:2]:
        results.append_result(path, ok(cell))
    whole = path.read_bytes()
    path.write_bytes(whole + b"synthetic,full,dl")
    assert [results.cell_of(row) for row in results.read_results(path)] == CELLS[:2]
    assert path.read_bytes() == whole
    results.append_result(path, ok(CELLS[2]))
    assert [results.cell_of(row) for row in results.read_results(path)] == CELLS


def test_the_last_row_of_a_cell_counts(tmp_path):
    path = tmp_path / "results.csv"
    results.append_result(path, results.failure(CELLS[0], "s1", "broken"))
    results.append_result(path, ok(CELLS[0], auc=0.5))
    (row,) = results.read_results(path)
    assert row["status"] == "ok" and row["auc"] == 0.5


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("data,arm\nml-1m,ease\n")
    with pytest.raises(ConfigError, match="not those of this version; name another folder"):
        results.read_results(path)


def test_rows_of_other_settings_are_kept_apart(tmp_path):
    path = tmp_path / "results.csv"
    for settings in ("s1", "s2"):
        results.append_result(path, ok(CELLS[0]) | {"settings": settings})
    assert [row["settings"] for row in results.read_results(path)] == ["s1", "s2"]


def test_a_study_without_results_has_no_rows(tmp_path):
    assert results.read_results(tmp_path / "results.csv") == []


@pytest.mark.parametrize(
    ("row", "metric"), [({"auc": 0.5}, "auc"), ({"auc": ""}, "ndcg"), ({"ndcg": 0.1}, "ndcg")]
)
def test_clicks_are_judged_by_auc_and_rankings_by_ndcg(row, metric):
    assert results.primary(row) == metric


def test_a_row_is_described_by_its_result_or_its_error():
    cell = Cell("ml-1m", "cadc_frozen", "two_tower", "uniform", 0.05, 2)
    name = "ml-1m, cadc_frozen, two_tower, uniform 0.05, seed 2: "
    assert results.describe(
        ok(cell, ndcg=0.25, cell_s=61.2, validation=0.3, validation_metric="ndcg@10")
    ) == (name + "validation ndcg@10 0.3000, test ndcg 0.2500, 61 s")
    swept = dataclasses.replace(cell, variant="als.factors=64")
    assert "ml-1m, als.factors=64, cadc_frozen" in results.describe(failed(swept))
    assert results.describe(failed(cell)) == name + "FAILED: why"
    baseline = results.failure(Cell("ml-1m", "ease"), "s1", "why", "skipped")
    assert results.describe(baseline) == "ml-1m, ease, seed 0: SKIPPED: why"
