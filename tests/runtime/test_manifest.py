"""A manifest is only data: bounded, strict, and exactly about the files that are there."""

import hashlib
import json
import os
import threading

import pytest

from cadc_jax.errors import ArtifactError
from cadc_jax.runtime import manifest

SETTINGS = {"stage": "made", "format": manifest.FORMAT}
HEAD = b'{"settings": {"stage": "x", "format": %d}' % manifest.FORMAT


@pytest.fixture
def folder(tmp_path):
    """A folder with two files and their manifest."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b" / "x").write_bytes(b"0123456789")
    manifest.write(tmp_path, SETTINGS, {"rows": 3}, 1.25)
    return tmp_path


def change(folder, **fields):
    """Writes other fields into a manifest, with the SHA-256 that belongs to them."""
    file = folder / manifest.NAME
    changed = json.loads(file.read_text()) | fields
    del changed["sha256"]
    text = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    file.write_text(json.dumps(changed | {"sha256": hashlib.sha256(text.encode()).hexdigest()}))


def test_what_was_written_is_read(folder):
    found = manifest.read(folder)
    assert (found.settings, found.facts, found.seconds) == (SETTINGS, {"rows": 3}, 1.25)
    assert found.stage == "made"
    manifest.check_files(folder, found.files, contents=True)


def test_its_sha256_is_that_of_its_canonical_json(folder):
    before = manifest.read(folder).sha256
    change(folder)
    assert manifest.read(folder).sha256 == before
    change(folder, seconds=2)
    assert manifest.read(folder).sha256 != before


def test_checksums_cover_whole_files(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "_READ_BYTES", 7)
    (tmp_path / "x").write_bytes(b"0123456789")
    sha256 = hashlib.sha256(b"0123456789").hexdigest()
    assert manifest.checksums(tmp_path) == {"x": {"bytes": 10, "sha256": sha256}}


@pytest.mark.parametrize("place", [10, 60, 200, -10])
def test_a_changed_manifest_is_noticed(folder, place):
    file = folder / manifest.NAME
    text = bytearray(file.read_bytes())
    text[place] ^= 1
    file.write_bytes(text)
    with pytest.raises(ArtifactError, match="manifest.json"):
        manifest.read(folder)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "Expecting value"),
        (b"[]", "the manifest is no JSON object"),
        (b"{}", "settings is missing"),
        (b'{"settings": {"stage": "x"}}', "settings.format is missing"),
        (HEAD.replace(b'"x"', b"1") + b"}", "settings.stage is no text"),
        (b'{"settings": {"stage": "x", "format": true}}', "settings.format is no count"),
        (HEAD + b', "a": NaN}', "nan is no finite number"),
        (HEAD + b', "a": 1e999}', "inf is no finite number"),
        (b'{"a": 1, "a": 2}', "a name occurs twice"),
        (
            HEAD + b', "a": ' + b"[" * 60 + b"]" * 60 + b"}",
            "nested too deeply",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"\xff', "codec can't decode"),
    ],
)
def test_anything_but_strict_json_of_the_right_kinds_is_refused(folder, content, fault):
    (folder / manifest.NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match=fault) as caught:
        manifest.read(folder)
    assert "\n" not in str(caught.value) and "delete the folder" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"facts": []}, "facts is no JSON object"),
        ({"seconds": "1"}, "seconds is no number"),
        ({"versions": {"jax": 1}}, "versions.jax is no text"),
        ({"files": {"a": [0, ""]}}, "files.a is no JSON object"),
        ({"files": {"a": {"bytes": -1, "sha256": ""}}}, "files.a.bytes is no count"),
    ],
)
def test_a_field_of_another_kind_is_named(folder, fields, fault):
    change(folder, **fields)
    with pytest.raises(ArtifactError, match=fault):
        manifest.read(folder)


@pytest.mark.parametrize(
    ("stage", "version", "advice"),
    [
        ("train", manifest.FORMAT - 1, "delete the folder and run again with this version"),
        ("compressed", 1, "delete the folder and compress again with this version"),
        ("train", manifest.FORMAT + 1, "update cadc_jax"),
    ],
)
def test_another_format_is_refused_with_what_to_do(folder, stage, version, advice):
    change(folder, settings={"stage": stage, "format": version})
    with pytest.raises(ArtifactError, match=f"artefact format {version}.*{advice}"):
        manifest.read(folder)


def test_a_fifo_does_not_keep_it_waiting(folder):
    (folder / manifest.NAME).unlink()
    os.mkfifo(folder / manifest.NAME)
    caught = []

    def read():
        try:
            manifest.read(folder)
        except ArtifactError as error:
            caught.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert len(caught) == 1 and "no plain file" in caught[0]


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd"])
def test_a_link_is_not_followed(folder, target):
    (folder / manifest.NAME).unlink()
    (folder / manifest.NAME).symlink_to(target)
    with pytest.raises(ArtifactError, match="not a whole artefact"):
        manifest.read(folder)


def test_a_manifest_of_unreasonable_size_is_not_read(folder):
    os.truncate(folder / manifest.NAME, 1 << 40)  # takes no room on the disk
    with pytest.raises(ArtifactError, match="more than the"):
        manifest.read(folder)


def test_a_file_that_is_not_listed_is_refused(folder):
    files = manifest.read(folder).files
    (folder / "b" / "y").write_text("surplus")
    with pytest.raises(ArtifactError, match="b/y: manifest.json does not list this file"):
        manifest.check_files(folder, files, contents=False)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "b/../a", "b", "", "\0", "manifest.json"])
def test_a_listed_name_is_never_a_path(folder, name):
    change(folder, files={**manifest.read(folder).files, name: {"bytes": 0, "sha256": ""}})
    with pytest.raises(ArtifactError, match="is missing|bytes instead of"):
        manifest.check_files(folder, manifest.read(folder).files, contents=True)


def test_links_and_fifos_in_a_folder_are_refused(folder):
    files = manifest.read(folder).files
    (folder / "a").unlink()
    (folder / "a").symlink_to(folder / "b" / "x")
    with pytest.raises(ArtifactError, match="a: no plain file"):
        manifest.check_files(folder, files, contents=True)
    (folder / "a").unlink()
    os.mkfifo(folder / "a")
    with pytest.raises(ArtifactError, match="a: no plain file"):
        manifest.check_files(folder, files, contents=True)


def test_numbers_that_json_does_not_have_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest.write(tmp_path, SETTINGS, {"loss": float("nan")}, 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "kind", "fault"),
    [
        (1, int, None),
        (-1, int, "x is no count"),
        (True, int, "x is no count"),
        (1 << 63, int, "x is no count"),
        (1, float, None),
        ("a", (str, int), None),
        (1.5, (str, int), "x is no text"),
        (None, (str, type(None)), None),
        ([1, "a"], [int], "x.1 is no count"),
        ([], [int], None),
        ({"a": 1, "b": 2}, {"a": int}, None),
        ({"b": 2}, {"a": int}, "x.a is missing"),
        ({"b": "2"}, {str: int}, "x.b is no count"),
        ({"a": {"b": [1.0]}}, {"a": {"b": [int]}}, "x.a.b.0 is no count"),
    ],
)
def test_kinds_of_values(value, kind, fault):
    if fault is None:
        manifest.check(value, kind, "x")
    else:
        with pytest.raises(ValueError, match=f"^{fault}$"):
            manifest.check(value, kind, "x")
