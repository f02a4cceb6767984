import json
import math

from cadc_jax import configuration, report

ROWS = [
    {
        "arm": "mf_alone",
        "model": None,
        "rate": 1.0,
        "rows_used": 1000,
        "metrics": {"auc": 0.7},
        "seconds": {"prepare": 1.0, "factorize": 2.0, "total": 3.0},
    },
    {
        "arm": "cadc_frozen",
        "model": "dlrm",
        "rate": 0.1,
        "rows_used": 100,
        "metrics": {"auc": 0.72, "logloss": 0.5},
        "seconds": {"prepare": 1.0, "factorize": 2.0, "train": 4.0, "total": 7.0},
    },
    {
        "arm": "full",
        "model": "dlrm",
        "rate": 1.0,
        "rows_used": 1000,
        "metrics": {"auc": 0.71, "logloss": 0.6},
        "seconds": {"prepare": 1.0, "train": 9.0, "total": 10.0},
    },
]
CONFIG = {"name": "x", "rate": 0.1, "evaluation": {"max_users": 0}}


def test_the_table_has_a_line_an_arm_and_stars_the_best():
    header, mf, cadc, full = report.table(ROWS)
    assert header == [
        *("arm", "model", "rows used", "auc", "logloss"),
        *("prepare s", "factorize s", "train s", "total s"),
    ]
    assert [cell.strip() for cell in mf] == [
        *("MF alone", "-", "1,000", "0.7000", "-", "1.0", "2.0", "-", "3.0"),
    ]
    assert [cell.strip() for cell in cadc[3:5]] == ["0.7200*", "0.5000*"]  # a low log loss is good
    assert [cell.strip() for cell in full[3:5]] == ["0.7100", "0.6000"]


def with_metrics(*metrics):
    return [row | {"metrics": m} for row, m in zip(ROWS, metrics, strict=True)]


def test_the_calibration_nearest_one_is_best():
    rows = with_metrics({"calibration": 0.5}, {"calibration": 1.1}, {"calibration": 0.95})
    cells = [line[3].strip() for line in report.table(rows)]
    assert cells == ["calibration", "0.5000", "1.1000", "0.9500*"]
    assert any(line.startswith("calibration: mean") for line in report.explain(rows, CONFIG))
    assert not any("calibration" in line for line in report.explain(ROWS, CONFIG))


def test_a_value_that_is_no_number_is_never_best():
    rows = with_metrics({"auc": math.nan}, {"auc": 0.4}, {"auc": 0.3})
    assert [line[3].strip() for line in report.table(rows)] == ["auc", "nan", "0.4000*", "0.3000"]


def test_the_error_of_a_streamed_auc_is_a_note_and_no_column():
    metrics = [{"auc": 0.7, "auc_error": error} for error in (1.2e-5, 1.34e-5, 1.1e-5)]
    rows = with_metrics(*metrics)
    assert "auc_error" not in report.table(rows)[0]
    assert any("at most 1.3e-05" in line for line in report.explain(rows, CONFIG))
    assert not any("histogram" in line for line in report.explain(ROWS, CONFIG))


def test_every_model_has_a_marker_in_the_plot(tmp_path):
    rows = [ROWS[0], *(ROWS[2] | {"model": name} for name in configuration.MODELS)]
    report.plot(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_an_arm_that_training_did_not_better_is_named():
    rows = [*ROWS[:1], ROWS[1] | {"best_step": 0}, ROWS[2] | {"best_step": 50}]
    lines = report.explain(rows, CONFIG)
    assert any(line.startswith("CADC, frozen (dlrm): no training step") for line in lines)
    assert not any(line.startswith("full data") for line in lines)


def test_everything_is_written_and_the_text_holds_the_table(tmp_path):
    facts = {"rows": {"train": 1000, "validation": 10, "test": 10}, "num_users": 3, "num_items": 4}
    text = report.write_report(tmp_path, {"config": CONFIG, "seed": 0, "rows": ROWS}, facts)
    assert "CADC, frozen" in text
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == ROWS
    assert (
        "| CADC, frozen | dlrm | 100 | 0.7200* | 0.5000* |" in (tmp_path / "report.md").read_text()
    )
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
