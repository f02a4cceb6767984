"""The configuration of each cell of a study."""

import dataclasses
import pickle

import pytest

from cadc_jax.study import settings
from cadc_jax.study.cells import Cell
from tests.study.conftest import study_of

UNIFORM = Cell("epinions", "cadc_frozen", "two_tower", "uniform", 0.25)


@pytest.mark.parametrize(
    ("cell", "rows"),
    [
        (UNIFORM, "unsampled"),
        (dataclasses.replace(UNIFORM, selection="hardest"), "unsampled"),
        (dataclasses.replace(UNIFORM, selection="fold_in"), "all"),
        (dataclasses.replace(UNIFORM, rate=1.0), "all"),
        (Cell("epinions", "mf_alone"), "all"),
    ],
)
def test_factors_leave_the_sample_out_only_if_there_is_one(tmp_path, cell, rows):
    study = study_of(tmp_path, "epinions")
    study.configs["epinions"].factor_rows = "unsampled"
    assert study.config(cell).factor_rows == rows


def test_the_configuration_has_the_model_the_rate_and_the_values_of_the_cell(tmp_path):
    variants = {"sgd.epochs=7": {"sgd.epochs": 7}}
    cell = Cell("criteo", "sample", "two_tower", "uniform", 0.05, variant="sgd.epochs=7")
    for quick in (False, True):  # what is swept counts more than what makes a study quick
        config = study_of(tmp_path, "criteo", variants=variants, quick=quick).config(cell)
        assert (config.models, config.rate, config.sgd.epochs) == (("two_tower",), 0.05, 7)
        assert (config.data.synthetic_rows == 200_000) != quick


def test_a_result_counts_while_settings_and_raw_files_are_the_same(tmp_path):
    full, quick = study_of(tmp_path, "epinions"), study_of(tmp_path, "epinions", quick=True)
    other = study_of(tmp_path, "epinions", raw={"epinions": ["another file"]})
    found = {study.settings(UNIFORM) for study in (full, quick, other)}
    assert len(found) == 3
    assert full.settings(UNIFORM) == full.settings(dataclasses.replace(UNIFORM, seed=1))
    assert full.settings(UNIFORM) != full.settings(dataclasses.replace(UNIFORM, rate=0.5))


def test_a_study_is_the_same_in_a_worker(tmp_path):
    study = study_of(tmp_path, "criteo", "epinions")
    assert pickle.loads(pickle.dumps(study)).settings(UNIFORM) == study.settings(UNIFORM)


def test_rows_are_made_up_where_there_is_no_criteo_log(tmp_path, monkeypatch):
    monkeypatch.setenv("CADC_DATA_DIR", str(tmp_path))
    criteo, epinions = (study_of(tmp_path, name).configs[name] for name in ("criteo", "epinions"))
    assert settings.makes_up_rows(criteo) and not settings.makes_up_rows(epinions)
    (tmp_path / criteo.data.folder).mkdir(parents=True)
    assert not settings.makes_up_rows(criteo)
