import json

import pytest

from cadc_jax import artifacts
from cadc_jax.errors import ArtifactError


def write_text(folder):
    (folder / "data").write_text("x")
    return {"rows": 3}


def test_a_finished_stage_is_found_again_and_not_repeated(tmp_path):
    made = artifacts.materialize(tmp_path, "prepare", {"a": 1}, write_text)
    assert (made.path / "data").read_text() == "x" and not made.reused

    def fail(folder):
        raise AssertionError("ran twice")

    again = artifacts.materialize(tmp_path, "prepare", {"a": 1}, fail)
    assert again.reused
    assert (again.path, again.facts, again.seconds) == (made.path, {"rows": 3}, made.seconds)


def test_other_settings_make_another_artefact_beside_it(tmp_path):
    first = artifacts.materialize(tmp_path, "prepare", {"a": 1}, write_text)
    second = artifacts.materialize(tmp_path, "prepare", {"a": 2}, write_text)
    assert first.path != second.path and first.path.exists()


def test_a_stage_that_fails_leaves_nothing_behind(tmp_path):
    def fail(folder):
        (folder / "data").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        artifacts.materialize(tmp_path, "prepare", {}, fail)
    assert list((tmp_path / "prepare").iterdir()) == []
    assert not artifacts.materialize(tmp_path, "prepare", {}, write_text).reused


@pytest.mark.parametrize("content", ["", "{", "{}", None])
def test_a_damaged_manifest_says_what_to_do(tmp_path, content):
    made = artifacts.materialize(tmp_path, "prepare", {}, write_text)
    if content is None:
        (made.path / "manifest.json").unlink()
    else:
        (made.path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=f"{made.path}.*delete the folder"):
        artifacts.materialize(tmp_path, "prepare", {}, write_text)


def test_another_format_version_is_refused(tmp_path):
    made = artifacts.materialize(tmp_path, "prepare", {}, write_text)
    manifest = json.loads((made.path / "manifest.json").read_text())
    manifest["settings"]["format"] = 99
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="format 99"):
        artifacts.materialize(tmp_path, "prepare", {}, write_text)


def test_a_changed_raw_file_has_another_identity(tmp_path):
    path = tmp_path / "raw"
    path.write_text("a")
    first = artifacts.file_identity([path])
    path.write_text("ab")
    assert artifacts.file_identity([path]) != first
