"""Finished stages on disk are found again, and are never half written or mixed up."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from cadc_jax.errors import ArtifactError
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.materialize import materialize


def write_text(folder):
    (folder / "data").write_text("x")
    return {"rows": 3}


def must_not_run(folder):
    raise AssertionError("ran twice")


def test_a_finished_stage_is_found_again_and_not_repeated(tmp_path):
    made = materialize(tmp_path, "prepare", {"a": 1}, write_text)
    assert (made.path / "data").read_text() == "x" and not made.reused
    assert made.path == tmp_path / "prepare" / made.fingerprint

    again = materialize(tmp_path, "prepare", {"a": 1}, must_not_run)
    assert again.reused
    assert (again.path, again.facts, again.seconds) == (made.path, {"rows": 3}, made.seconds)


def test_seconds_include_those_of_earlier_runs(tmp_path):
    made = materialize(tmp_path, "x", {}, lambda folder: {"seconds_before": 1000.0})
    assert 1000 <= made.seconds < 1100


def test_the_fingerprint_is_known_before_the_stage_runs(tmp_path):
    made = materialize(tmp_path, "prepare", {"a": 1}, write_text)
    assert artifacts.fingerprint("prepare", {"a": 1}) == made.fingerprint


def test_a_stage_writes_into_an_empty_folder_that_is_not_yet_the_artefact(tmp_path):
    given = []

    def write(folder):
        given.append((folder, list(folder.iterdir())))
        return {}

    made = materialize(tmp_path, "prepare", {}, write)
    ((folder, content),) = given
    assert content == [] and folder != made.path and folder.parent == made.path.parent
    assert sorted(path.name for path in made.path.parent.iterdir()) == [made.fingerprint]


def test_the_manifest_holds_settings_facts_files_and_versions(tmp_path):
    made = materialize(tmp_path, "prepare", {"a": 1}, write_text)
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["settings"] == {"stage": "prepare", "format": artifacts.FORMAT, "a": 1}
    assert manifest["facts"] == {"rows": 3}
    sha256 = hashlib.sha256(b"x").hexdigest()
    assert manifest["files"] == {"data": {"bytes": 1, "sha256": sha256}}
    assert set(manifest["versions"]) == {"cadc_jax", "jax", "numpy", "python"}
    assert manifest["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("stage", "settings"),
    [("prepare", {"a": 2}), ("prepare", {"a": 1, "b": None}), ("x", {"a": 1})],
)
def test_other_settings_or_stages_make_another_artefact(tmp_path, stage, settings):
    first = materialize(tmp_path, "prepare", {"a": 1}, write_text)
    second = materialize(tmp_path, stage, settings, write_text)
    assert first.fingerprint != second.fingerprint and not second.reused
    assert first.path.exists() and second.path.exists()


def test_the_order_of_settings_does_not_matter(tmp_path):
    first = materialize(tmp_path, "prepare", {"a": 1, "b": [2]}, write_text)
    second = materialize(tmp_path, "prepare", {"b": (2,), "a": 1}, must_not_run)
    assert second.path == first.path


def test_fingerprints_never_change():
    assert artifacts.hash_of({"b": [1, 2.5, None], "a": "x"}) == "b649bb117135"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_stage_that_fails_leaves_nothing_behind(tmp_path, error):
    def fail(folder):
        (folder / "data").write_text("half")
        raise error

    with pytest.raises(type(error)):
        materialize(tmp_path, "prepare", {}, fail)
    assert list((tmp_path / "prepare").iterdir()) == []
    assert not materialize(tmp_path, "prepare", {}, write_text).reused


def test_facts_that_are_not_jsonable_leave_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        materialize(tmp_path, "prepare", {}, lambda folder: {"rows": object()})
    assert list((tmp_path / "prepare").iterdir()) == []


def test_a_folder_of_a_killed_run_is_deleted_and_never_used(tmp_path):
    made = materialize(tmp_path / "a", "prepare", {}, write_text)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = tmp_path / "b" / "prepare"
    own = f".{made.fingerprint}.{socket.gethostname()}"
    for name in (f"{own}.{ended.pid}.tmp", f"{own}.{os.getppid()}.tmp"):
        (folder / name).mkdir(parents=True)
        (folder / name / "data").write_text("half")
    again = materialize(tmp_path / "b", "prepare", {}, write_text)
    assert not again.reused and (again.path / "data").read_text() == "x"
    # The folder of the running process stays, that of the ended one does not.
    found = {path.name for path in folder.iterdir()}
    assert found == {made.fingerprint, f"{own}.{os.getppid()}.tmp"}


def test_when_two_runs_make_the_same_artefact_the_first_one_is_kept(tmp_path):
    def write_while_another_finishes(folder):
        materialize(tmp_path / "other", "prepare", {}, write_text)
        (tmp_path / "other" / "prepare").rename(tmp_path / "moved")
        (made,) = (tmp_path / "moved").iterdir()
        made.rename(tmp_path / "prepare" / made.name)
        (folder / "data").write_text("second")
        return {}

    made = materialize(tmp_path, "prepare", {}, write_while_another_finishes)
    assert (made.path / "data").read_text() == "x" and made.facts == {"rows": 3}
    assert len(list((tmp_path / "prepare").iterdir())) == 1


@pytest.mark.parametrize(
    "content", [None, "", "{", "{}", "[]", "null", '{"settings": {}, "facts": {}, "seconds": 1}']
)
def test_the_error_for_a_damaged_manifest_says_what_to_do(tmp_path, content):
    made = materialize(tmp_path, "prepare", {}, write_text)
    if content is None:
        (made.path / "manifest.json").unlink()
    else:
        (made.path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=f"{made.path}.*delete the folder") as caught:
        materialize(tmp_path, "prepare", {}, must_not_run)
    assert "\n" not in str(caught.value)


def test_the_settings_of_an_artefact_are_in_its_manifest(tmp_path):
    made = materialize(tmp_path, "prepare", {"a": (1,)}, write_text)
    settings = {"stage": "prepare", "format": artifacts.FORMAT, "a": [1]}
    assert artifacts.open_artifact(made.path).settings == settings


def test_an_artefact_with_the_settings_of_another_one_is_refused(tmp_path):
    made = materialize(tmp_path, "prepare", {"a": 1}, write_text)
    other = materialize(tmp_path, "prepare", {"a": 2}, write_text)
    shutil.rmtree(made.path)
    other.path.rename(made.path)
    with pytest.raises(ArtifactError, match="settings that do not belong to this name"):
        materialize(tmp_path, "prepare", {"a": 1}, must_not_run)


def test_an_error_of_the_disk_names_the_artefact_if_it_names_no_file(tmp_path):
    def fail(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError) as caught:
        artifacts.write_artifact(tmp_path / "x", {}, fail)
    assert caught.value.filename == str(tmp_path / "x")


def test_a_folder_that_is_no_artefact_is_not_called_damaged(tmp_path):
    with pytest.raises(ArtifactError, match="has no manifest.json; name another folder"):
        artifacts.open_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="no such folder"):
        artifacts.open_artifact(tmp_path / "x")


def test_a_forbidden_manifest_is_not_called_damaged(tmp_path):
    made = materialize(tmp_path, "prepare", {}, write_text)
    (made.path / "manifest.json").chmod(0)
    user = os.geteuid()
    for folder in (tmp_path, *tmp_path.parents):  # pytest opens its folders to one user only
        if folder.stat().st_uid == user and not folder.stat().st_mode & 0o005:
            folder.chmod(0o755)
    try:
        if not user:
            os.seteuid(65534)
        with pytest.raises(PermissionError, match="manifest.json"):
            artifacts.open_artifact(made.path)
    finally:
        os.seteuid(user)


def test_another_format_version_is_refused(tmp_path):
    made = materialize(tmp_path, "prepare", {}, write_text)
    manifest = json.loads((made.path / "manifest.json").read_text())
    manifest["settings"]["format"] = 99
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=f"format 99, this version reads {artifacts.FORMAT}"):
        materialize(tmp_path, "prepare", {}, must_not_run)


def write_folders(folder):
    (folder / "a").mkdir()
    np.save(folder / "a" / "user.npy", np.arange(100_000))
    np.save(folder / "item.npy", np.arange(10))
    return {}


def test_a_flipped_bit_is_found_and_its_file_named(tmp_path):
    made = materialize(tmp_path, "prepare", {}, write_folders)
    file = made.path / "a" / "user.npy"
    content = bytearray(file.read_bytes())
    for place in (0, 5000, len(content) - 1):
        damaged = content.copy()
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=f"{file}: the file is damaged .*delete the folder"):
            materialize(tmp_path, "prepare", {}, must_not_run, verify=True)
        artifacts.open_artifact(made.path)  # compares sizes only
    file.write_bytes(content)
    assert materialize(tmp_path, "prepare", {}, must_not_run, verify=True).reused


def test_a_missing_or_shortened_file_is_found_at_once(tmp_path):
    made = materialize(tmp_path, "prepare", {}, write_folders)
    file = made.path / "item.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=f"{file}: the file has 207 bytes instead of 208"):
        materialize(tmp_path, "prepare", {}, must_not_run)
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{file}: the file is missing"):
        materialize(tmp_path, "prepare", {}, must_not_run)


def test_the_size_of_a_folder_is_that_of_all_its_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"0123456789")
    (tmp_path / "a").write_bytes(b"")
    assert artifacts.size_of(tmp_path) == 10


def test_a_changed_raw_file_has_a_new_identity(tmp_path):
    path = tmp_path / "raw"
    path.write_text("a")
    first = artifacts.file_identity([path])
    assert artifacts.file_identity([path]) == first
    path.write_text("ab")
    assert artifacts.file_identity([path]) != first


def test_a_plain_value_is_a_copy_as_json_gives_it_back():
    value = {"a": (1, 2.5), 3: [None, "x"], "b": {"c": ()}}
    plain = artifacts.plain(value)
    assert plain == {"a": [1, 2.5], "3": [None, "x"], "b": {"c": []}}
    value[3].append("later")
    assert plain["3"] == [None, "x"]


def test_other_content_of_the_same_size_and_time_is_another_identity(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(bytes(300_000))
    before, time = artifacts.file_identity([file]), file.stat().st_mtime_ns
    for place in (0, 150_000, 299_999):
        content = bytearray(300_000)
        content[place] = 1
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
        assert artifacts.file_identity([file]) != before
    file.write_bytes(bytes(300_000))
    os.utime(file, ns=(time, time))
    assert artifacts.file_identity([file]) == before
