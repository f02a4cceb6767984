import json
import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cadc_jax import configuration, report

ROWS = [
    {
        "arm": "mf_alone",
        "model": None,
        "rate": 1.0,
        "rows_used": 1000,
        "rows_read": 1000,
        "pairs_read": 900,
        "bytes": {"sample": 4000, "content": 96000},
        "metrics": {"auc": 0.7},
        "validation": {"logloss": 0.52},
        "seconds": {"prepare": 1.0, "factorize": 2.0, "total": 3.0},
        "compile_seconds": 0.5,
        "evaluation_seconds": 0.0,
    },
    {
        "arm": "cadc_frozen",
        "model": "dlrm",
        "rate": 0.1,
        "rows_used": 100,
        "rows_read": 100,
        "pairs_read": 99,
        "bytes": {"sample": 400, "factors": 1200000, "content": 96000},
        "metrics": {"auc": 0.72, "logloss": 0.5},
        "validation": {"logloss": 0.51, "auc": 0.73},
        "seconds": {"prepare": 1.0, "factorize": 2.0, "train": 4.0, "total": 7.0},
        "compile_seconds": 1.5,
        "evaluation_seconds": 0.4,
    },
    {
        "arm": "full",
        "model": "dlrm",
        "rate": 1.0,
        "rows_used": 1000,
        "rows_read": 1000,
        "pairs_read": 900,
        "bytes": {"sample": 4000, "content": 96000},
        "metrics": {"auc": 0.71, "logloss": 0.6},
        "validation": {"logloss": 0.61},
        "seconds": {"prepare": 1.0, "train": 9.0, "total": 10.0},
        "compile_seconds": 0.0,
        "evaluation_seconds": 0.9,
    },
]
CONFIG = {"name": "x", "rate": 0.1, "seed": 0}


def of_rows(train):
    """The fact `rows` of a prepared table."""
    return {"train": train, "validation": 10, "test": 10, "fold_in": 0}


def test_the_table_has_a_line_an_arm_and_stars_the_best():
    header, mf, cadc, full = report.table(ROWS)
    assert header == [
        *("arm", "model", "rows read", "pairs read", "MB", "validation logloss", "auc", "logloss"),
        *("prepare s", "factorize s", "train s", "total s", "compiling s", "evaluating s"),
    ]
    assert [cell.strip() for cell in mf] == [
        *(
            "MF alone",
            "-",
            "1,000",
            "900",
            "0.10",
            "0.5200",
            "0.7000",
            "-",
            "1.0",
            "2.0",
            "-",
            "3.0",
            "0.5",
            "0.0",
        ),
    ]
    # A low log loss is good.
    assert [cell.strip() for cell in cadc[5:8]] == ["0.5100*", "0.7200*", "0.5000*"]
    assert [cell.strip() for cell in full[5:8]] == ["0.6100", "0.7100", "0.6000"]


def with_metrics(*metrics):
    return [row | {"metrics": m} for row, m in zip(ROWS, metrics, strict=True)]


def test_the_calibration_nearest_one_is_best():
    rows = with_metrics({"calibration": 0.5}, {"calibration": 1.1}, {"calibration": 0.95})
    cells = [line[6].strip() for line in report.table(rows)]
    assert cells == ["calibration", "0.5000", "1.1000", "0.9500*"]
    assert any(line.startswith("calibration: mean") for line in report.explain(rows))
    assert not any("calibration" in line for line in report.explain(ROWS))


def test_a_value_that_is_no_number_is_never_best():
    rows = with_metrics({"auc": math.nan}, {"auc": 0.4}, {"auc": 0.3})
    assert [line[6].strip() for line in report.table(rows)] == ["auc", "nan", "0.4000*", "0.3000"]


def test_the_error_of_a_streamed_auc_is_a_note_and_no_column():
    metrics = [{"auc": 0.7, "auc_error": error} for error in (1.2e-5, 1.34e-5, 1.1e-5)]
    rows = with_metrics(*metrics)
    assert "auc_error" not in report.table(rows)[0]
    assert any("at most 1.3e-05" in line for line in report.explain(rows))
    assert not any("histogram" in line for line in report.explain(ROWS))


def texts_of(figure):
    """The places of all texts of a figure that are seen."""
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    texts = [*axes.texts, *axes.get_yticklabels(), *figure.texts, axes.xaxis.label]
    return {text.get_text(): text.get_window_extent() for text in texts if text.get_text()}


def test_no_text_of_the_picture_covers_another_or_leaves_it():
    rows = [ROWS[0], *(ROWS[2] | {"model": name} for name in configuration.MODELS), *ROWS[1:]]
    rows += [row | {"arm": "cadc_trainable"} for row in rows[1:]]
    figure = report.draw(rows, "a_name_of_some_length, seed 1234, rate 0.01: 4,000,000,000 rows")
    places = list(texts_of(figure).values())
    for k, one in enumerate(places):
        assert figure.bbox.x0 <= one.x0 < one.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= one.y0 < one.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for other in places[k + 1 :])


def test_the_picture_says_what_each_bar_is():
    figure = report.draw(ROWS, "shop, seed 0, rate 0.1")
    texts = " ".join(texts_of(figure))
    for words in ("CADC, frozen\ndlrm, 10 % of the rows", "MF alone", "0.7200", "shop, seed 0"):
        assert words in texts
    (line,) = figure.axes[0].lines
    assert set(line.get_xdata()) == {0.7}  # the factors' own figure


def test_a_row_without_a_figure_has_no_bar(tmp_path):
    rows = [*ROWS, ROWS[0] | {"metrics": {"auc": math.nan}}]
    assert len(report.draw(rows).axes[0].patches) == 3
    report.plot(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_an_arm_that_training_did_not_better_is_named():
    rows = [*ROWS[:1], ROWS[1] | {"best_step": 0}, ROWS[2] | {"best_step": 50}]
    lines = report.explain(rows)
    assert any(line.startswith("CADC, frozen (dlrm): the network added") for line in lines)
    assert not any(line.startswith("full data") for line in lines)


def test_a_row_whose_start_is_best_says_so_in_the_table():
    rows = [*ROWS[:1], ROWS[1] | {"best_step": 0}, ROWS[2] | {"best_step": 50}]
    notes = [line[-1] for line in report.table(rows)]
    assert notes == ["note", "", "the network added nothing", ""]


# Rankings.


def ranked(arm, ndcg, users=(40, 40), **more):
    """A row of the ranking task with two cut-offs."""
    names = ("ndcg", "recall", "hit", "map", "hr", "coverage")
    found = {f"{name}@{k}": ndcg + k / 1000 for k in (20, 10) for name in names}
    found |= {"mrr": 0.1, "hr@20/1+99": 0.7, "ndcg@20/1+99": 0.5, "hr@10/1+99": 0.6}
    model = None if arm in ("popularity", "mf_alone") else "two_tower"
    row = {"arm": arm, "model": model, "rows_read": 9, "pairs_read": 9, "bytes": {"factors": 8}}
    row |= {"metrics": found, "seconds": {"total": 1.0}, "compile_seconds": 0.0}
    row |= {"rate": 0.1, "evaluation_seconds": 0.0, "validation": {"ndcg@20/1+99": ndcg}}
    return row | {"test_users": dict(zip(("ranked", "all"), users, strict=True))} | more


def test_rankings_have_ndcg_and_recall_of_users_first_and_the_rest_in_a_second_table():
    rows = [ranked("popularity", 0.2), ranked("mf_alone", 0.3)]
    header, _, mf = report.table(rows)
    assert header[5:] == [
        "validation ndcg@20 sampled 1+99",
        "ndcg@20 per user",
        "recall@20 per user",
        "total s",
        "compiling s",
        "evaluating s",
    ]
    assert mf[5:] == ["0.3000*", "0.3200*", "0.3200*", "1.0", "0.0", "0.0"]
    header, popularity, _ = report.further_table(rows)
    assert header == [
        *("arm", "model", "hit@20 per user", "map@20 per user", "hr@20 per row", "coverage@20"),
        *("mrr per user", "hr@20 sampled 1+99", "ndcg@20 sampled 1+99"),
    ]
    assert popularity[-2:] == ["0.7000*", "0.5000*"]
    assert report.further_table(ROWS) == []  # clicks


def test_the_number_of_ranked_users_is_said():
    (line,) = (x for x in report.explain([ranked("mf_alone", 0.3)]) if x.startswith("per user"))
    assert "all 40 test users" in line
    drawn = report.explain([ranked("mf_alone", 0.3, users=(2000, 40163))])
    (line,) = (x for x in drawn if x.startswith("per user"))
    assert "2,000 of 40,163 test users, drawn at random" in line


def test_an_arm_that_is_worse_than_popularity_is_named_loudly(tmp_path):
    rows = [ranked("popularity", 0.2), ranked("mf_alone", 0.2), ranked("cadc_frozen", 0.19)]
    (line,) = report.warnings(rows)
    assert line.startswith(
        "*** CADC, frozen, two_tower: ndcg@20 per user 0.2100 is worse than popularity's 0.2200: "
    )
    facts = {"rows": of_rows(9), "num_users": 3, "num_items": 4}
    text = report.write_report(tmp_path, {"config": CONFIG, "seed": 0, "rows": rows}, facts)
    assert line in text and line in (tmp_path / "report.md").read_text()
    assert "hr@20 sampled 1+99" in text


def test_a_factorisation_that_is_worse_than_popularity_gets_advice():
    rows = [ranked("popularity", 0.2), ranked("mf_alone", 0.1), ranked("cadc_frozen", 0.3)]
    (line,) = report.warnings(rows)
    assert line.startswith("*** MF alone: ndcg@20 per user 0.1200 is worse than popularity's")
    assert "cadc tune --config=..." in line


def test_validation_decides_where_there_are_figures_of_it():
    def row(arm, test, validation):
        return ranked(arm, test, validation={"ndcg@20": validation, "recall@20": 0.5})

    rows = [row("popularity", 0.2, 0.3), row("mf_alone", 0.1, 0.4), row("cadc_frozen", 0.4, 0.1)]
    (line,) = report.warnings(rows)
    assert "CADC, frozen, two_tower: ndcg@20 per user 0.1000 on validation is worse" in line
    assert len(report.warnings([*rows[:2], ranked("cadc_frozen", 0.1)])) == 1  # by the test split


def test_a_network_that_never_betters_its_start_is_named_loudly():
    rows = [ranked("popularity", 0.2), ranked("cadc_frozen", 0.3, best_step=0)]
    (line,) = report.warnings(rows)
    assert line.startswith("*** CADC, frozen, two_tower: no step validates better than the start")
    assert report.warnings([rows[0], ranked("cadc_frozen", 0.3, best_step=5)]) == []


def test_what_a_search_chose_is_said(tmp_path):
    tuned = {"metric": "ndcg@20", "validation": 0.3, "popularity": 0.2, "trials": 12}
    results = {"config": CONFIG, "seed": 0, "rows": ROWS}
    results |= {"tuned": {"als": tuned | {"chosen": {"regularization": 0.5, "alpha": 4.0}}}}
    facts = {"rows": of_rows(1000), "num_users": 3, "num_items": 4}
    text = report.write_report(tmp_path, results, facts)
    line = (
        "als.regularization = 0.5, als.alpha = 4: the best of 12 settings by validation, ndcg@20 "
        "0.3000 (popularity 0.2000)"
    )
    assert line in text and line in (tmp_path / "report.md").read_text()


def test_a_score_that_is_no_number_is_worse_than_popularity():
    rows = [ranked("popularity", 0.2), ranked("mf_alone", math.nan)]
    assert len(report.warnings(rows)) == 1
    assert report.warnings(rows[1:]) == []  # without popularity there is nothing to compare


def test_an_arm_without_the_figure_that_choices_are_made_by_has_none_in_its_column():
    rows = [ROWS[0], ROWS[1] | {"validation": {"auc": 0.6}}, ROWS[2]]
    assert [line[5].strip() for line in report.table(rows)[1:]] == ["0.5200*", "-", "0.6100"]


def test_runs_with_other_settings_keep_their_own_reports(tmp_path):
    facts = {"rows": of_rows(1000), "num_users": 3, "num_items": 4}
    texts = {}

    def write(rate):
        config = CONFIG | {"rate": rate, "seed": 7}
        results = {"config": config, "seed": 7, "rows": ROWS}
        texts[rate] = report.write_report(tmp_path, results, facts)
        return json.loads((tmp_path / "results.json").read_text())["config"]["rate"]

    assert [write(0.1), write(0.02), write(0.02)] == [0.1, 0.02, 0.02]  # the newest, at its place
    folders = sorted((tmp_path / "reports").iterdir())
    assert [folder.name[:-13] for folder in folders] == ["rate-0.02-seed-7", "rate-0.1-seed-7"]
    for folder, rate in zip(folders, (0.02, 0.1), strict=True):
        assert json.loads((folder / "results.json").read_text())["config"]["rate"] == rate
        assert f"rate {rate:g}" in (folder / "report.md").read_text()
        assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
        assert texts[rate].splitlines()[-1] == f"This run's own copies stay in {folder}."


def test_bars_have_their_intervals_and_the_axis_says_so():
    rows = [{**row, "standard_errors": {"auc": 0.01}} for row in ROWS]
    axes = report.draw(rows).axes[0]
    segments = [lines.get_segments() for lines in axes.collections]
    widths = [float(np.ptp(line[:, 0])) for lines in segments for line in lines]
    np.testing.assert_allclose(widths, 2 * 1.96 * 0.01)
    assert "95 %" in axes.get_xlabel()
    assert "95 %" not in report.draw(ROWS).axes[0].get_xlabel()


def test_everything_is_written_and_the_text_holds_the_table(tmp_path):
    facts = {"rows": of_rows(1000), "num_users": 3, "num_items": 4}
    text = report.write_report(tmp_path, {"config": CONFIG, "seed": 0, "rows": ROWS}, facts)
    assert "CADC, frozen" in text
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == ROWS
    assert (
        "| CADC, frozen | dlrm | 100 | 99 | 1.30 | 0.5100* | 0.7200* | 0.5000* |"
        in (tmp_path / "report.md").read_text()
    )
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
