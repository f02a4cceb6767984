"""The command of the study: its options, and which data sets are there."""

import os

import pytest

from benchmarks import study


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--data=ml"], "--data: 'ml' is not one of ml-100k, ml-1m, epinions, synthetic"),
        (["--arms=frosty"], "--arms: 'frosty' is not one of random, trainable, frozen"),
        (["--models=dlrm,none"], "--models: 'none' is not one of"),
        (["--baselines=best"], "--baselines: 'best' is not one of"),
        (["--selections=none,recent"], "--selections: 'none' is not one of"),
        (["--rates=0.5,2"], "a rate of 2 is not above 0 and at most 1"),
        (["--selection-rates=0"], "a rate of 0 is not"),
        (["--seeds=0"], "at least 1"),
        (["--jobs=0"], "at least 1"),
    ],
)
def test_a_wrong_option_is_named(arguments, why, capsys):
    with pytest.raises(SystemExit):
        study.parse(arguments)
    assert why in capsys.readouterr().err


def test_options_have_the_defaults_of_the_full_or_of_the_quick_study():
    full, quick = study.parse([]), study.parse(["--quick"])
    assert {name: getattr(full, name) for name in study.DEFAULTS} == study.DEFAULTS
    expected = study.DEFAULTS | study.QUICK
    assert {name: getattr(quick, name) for name in expected} == expected


def test_options_that_are_given_go_before_the_defaults():
    options = study.parse(["--quick", "--rates=1,0.5", "--selections=none", "--arms=random"])
    assert (options.rates, options.selections, options.arms) == ([1.0, 0.5], [], ["random"])


def test_data_sets_that_are_not_there_are_left_out_and_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k" / "u.data").touch()
    monkeypatch.setenv("CADC_DATA_DIR", os.path.relpath(tmp_path))
    assert study.available(["ml-100k", "epinions", "synthetic"]) == ["ml-100k", "synthetic"]
    missing = tmp_path / "epinions" / "interactions.csv.gz"
    assert f"SKIPPED epinions: there is no {missing}" in capsys.readouterr().out
    assert os.environ["CADC_DATA_DIR"] == str(tmp_path)  # workers may run elsewhere


def test_a_study_without_data_ends_with_advice(tmp_path, monkeypatch):
    monkeypatch.setenv("CADC_DATA_DIR", str(tmp_path))
    pytest.importorskip("jinja2")
    with pytest.raises(SystemExit, match="set CADC_DATA_DIR"):
        study.main(["--data=ml-1m", f"--out={tmp_path / 'out'}"])
