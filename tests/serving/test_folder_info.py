"""What `cadc info` says of folders."""

import re
import shutil

import pytest

from cadc_jax.errors import ArtifactError
from cadc_jax.serving import export, folder_info, trained


def test_a_work_folder_is_listed_in_the_order_of_a_run(ranking_run):
    text = folder_info.explain(ranking_run)
    assert "a work folder, 9 artefacts" in text
    stages = [line.split()[0] for line in text.splitlines()[3:12]]
    order = ["prepare", "factorize", "sample", "train", "train", *["evaluate"] * 4]
    assert stages == order
    assert re.search(r"train .* two_tower, cadc_frozen .* whole", text)
    assert re.search(r"sample .* rate 0.25 .* whole", text)
    assert "report.md" in text


@pytest.mark.parametrize("stage", ["prepare", "factorize", "sample", "train", "evaluate"])
def test_every_artefact_is_explained(ranking_run, stage):
    text = folder_info.explain(next((ranking_run / stage).iterdir()))
    assert "state     whole" in text
    assert re.search(r"made in   [\d.]+ s, by cadc_jax \S+, jax", text)
    assert "settings\n" in text and "facts\n" in text


def test_a_model_says_its_arm_and_when_it_was_best(ranking_run):
    text = folder_info.explain(trained.open_trained(ranking_run, arm="sample").path)
    assert "model     two_tower, sample" in text
    assert re.search(r"best      validation 0\.\d+ at step \d", text)
    assert "train.learning_rate = 0.001" in text.replace("  ", "")


def test_a_compressed_data_set_has_its_sizes_and_its_configuration(click_run):
    text = folder_info.explain(click_run.parent / "compressed")
    assert "a compressed data set" in text and "raw log" in text
    assert "config.rate = 0.25" in text


def test_an_export_is_explained(ranking_run, tmp_path):
    model = trained.open_trained(ranking_run, arm="mf_alone")
    text = folder_info.explain(export.write_export(model, tmp_path / "out", "npz").path)
    assert "a trained model for other programs" in text and "form = npz" in text


def test_damage_is_found_and_named(ranking_run, tmp_path):
    shutil.copytree(ranking_run, tmp_path / "work")
    (file,) = (tmp_path / "work/factorize").glob("*/user.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (tmp_path / "work/train/.abc.host.1.tmp").mkdir()
    text = folder_info.explain(tmp_path / "work")
    assert "DAMAGED: user.npy: the file is damaged" in text
    assert ".abc.host.1.tmp: unfinished" in text
    assert "DAMAGED" not in folder_info.explain(tmp_path / "work", verify=False)
    file.unlink()
    assert "DAMAGED: user.npy: the file is missing" in folder_info.explain(
        file.parent, verify=False
    )


def test_other_folders_are_an_error(ranking_run, tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        folder_info.explain(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="neither a work folder nor an artefact"):
        folder_info.explain(tmp_path)
    inner = next((ranking_run / "prepare").glob("*/train"))
    with pytest.raises(ArtifactError, match=f"it lies within {inner.parent.resolve()}"):
        folder_info.explain(inner)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="manifest.json: settings is missing"):
        folder_info.explain(tmp_path)
