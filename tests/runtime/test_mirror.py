"""What is finished is copied to a store, its manifest last, and only whole folders come back."""

import pytest

from cadc_jax.errors import ArtifactError, ConfigError, StorageError
from cadc_jax.runtime import artifacts, manifest, materialize, mirror, storage
from cadc_jax.runtime.mirror import Mirror
from cadc_jax.runtime.storage import Remote


def write(folder):
    (folder / "part").mkdir()
    (folder / "part" / "numbers").write_bytes(b"123")
    (folder / "empty").write_bytes(b"")
    return {"rows": 3}


def make(workdir, remote, settings=None, write=write):
    return materialize.materialize(workdir, "stage", settings or {"x": 1}, write, remote=remote)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CADC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_finished_stage_is_found_by_another_machine(memory_store, tmp_path):
    made = make(tmp_path / "a", memory_store)
    found = make(tmp_path / "b", memory_store, write=lambda folder: pytest.fail("made again"))
    assert found.reused and found.sha256 == made.sha256
    assert (found.path / "part" / "numbers").read_bytes() == b"123"


def test_the_local_folder_may_be_a_link(memory_store, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "own")
    made = make(tmp_path / "link", memory_store)
    assert Mirror(tmp_path / "link", memory_store).pull(made.path.resolve())
    assert (memory_store / "stage" / made.fingerprint / manifest.NAME).exists()


def test_the_manifest_comes_last(memory_store, tmp_path, monkeypatch):
    order, upload = [], Remote.upload
    monkeypatch.setattr(Remote, "upload", lambda x, file: (order.append(x.name), upload(x, file)))
    make(tmp_path, memory_store)
    assert sorted(order[:-1]) == ["empty", "numbers"] and order[-1] == manifest.NAME


def test_an_upload_that_was_cut_off_is_not_there_and_made_good_later(
    memory_store, tmp_path, monkeypatch
):
    upload = Remote.upload

    def fails(place, file):
        if place.name == "numbers":
            raise StorageError("full")
        upload(place, file)

    monkeypatch.setattr(Remote, "upload", fails)
    with pytest.raises(StorageError, match="full"):
        make(tmp_path / "a", memory_store)
    assert Mirror(tmp_path, memory_store).names(tmp_path / "stage") == set()
    monkeypatch.setattr(Remote, "upload", upload)
    (memory_store / "stage" / artifacts.fingerprint("stage", {"x": 1}) / "old").write_bytes(b"x")
    assert make(tmp_path / "a", memory_store).reused
    assert make(tmp_path / "b", memory_store).reused


def test_a_damaged_copy_is_refused_and_leaves_nothing(memory_store, tmp_path):
    made = make(tmp_path / "a", memory_store)
    place = memory_store / "stage" / made.fingerprint
    (place / "part" / "numbers").write_bytes(b"124")
    with pytest.raises(ArtifactError, match=f"{place}: part/numbers: the file is damaged"):
        make(tmp_path / "b", memory_store)
    assert not list((tmp_path / "b").rglob("numbers"))


def test_a_manifest_that_is_no_manifest_is_refused(memory_store, tmp_path):
    made = make(tmp_path / "a", memory_store)
    (memory_store / "stage" / made.fingerprint / manifest.NAME).write_bytes(b"{")
    with pytest.raises(ArtifactError, match="not a whole artefact"):
        make(tmp_path / "b", memory_store)


def test_names_that_lead_elsewhere_are_not_copied(memory_store, tmp_path):
    made = make(tmp_path / "a", memory_store)
    place = memory_store / "stage" / made.fingerprint
    (place / ".." / "out").write_bytes(b"x")
    assert make(tmp_path / "b", memory_store).reused
    assert not list(tmp_path.rglob("out"))


def test_without_a_url_nothing_is_copied(tmp_path):
    own = Mirror(tmp_path)
    own.push(tmp_path)
    own.push_files([tmp_path / "x"])
    own.pull_files([tmp_path / "x"])
    own.pull_rest(tmp_path)
    own.put(tmp_path, tmp_path / "y")
    own.remove(tmp_path / "x")
    assert own.names(tmp_path) == set() and not own.pull(tmp_path / "x")
    assert own.shown(tmp_path / "x") == tmp_path / "x"


def test_a_folder_is_made_in_a_store_once(memory_store, cache):
    place = memory_store / "out"
    with mirror.destination(place) as folder:
        folder.mkdir()
        write(folder)
    assert place.files() == {"empty": 0, "part/numbers": 3}
    with pytest.raises(ConfigError, match=f"--out={place}: the folder exists"):
        with mirror.destination(place):
            pass
    assert not list(cache.iterdir())


def test_an_error_makes_nothing_in_a_store(memory_store, cache):
    with pytest.raises(ValueError, match="broken"):
        with mirror.destination(memory_store / "out") as folder:
            folder.mkdir()
            write(folder)
            raise ValueError("broken")
    assert not (memory_store / "out").exists()


def test_a_work_folder_is_copied_without_what_only_its_runs_need(memory_store, tmp_path, cache):
    made = make(tmp_path / "a", memory_store)
    for name in ("checkpoints/train/f/1/state/d", "logs/x", ".lock.json", "report.md"):
        (memory_store / name).write_bytes(b"x")
    here = mirror.local_copy(memory_store)
    assert here == storage.scratch_folder(memory_store)
    found = {x.relative_to(here).as_posix() for x in here.rglob("*") if x.is_file()}
    own = {"part/numbers", "empty", manifest.NAME}
    assert found == {"report.md", *(f"stage/{made.fingerprint}/{name}" for name in own)}


def test_a_folder_that_is_made_again_is_copied_again(memory_store, tmp_path, cache):
    place = memory_store / "data"
    for rows in (1, 2):
        folder = tmp_path / str(rows)
        settings = {"stage": "s", "format": manifest.FORMAT}
        artifacts.write_artifact(folder, settings, lambda folder, rows=rows: {"rows": rows})
        mirror.upload(folder, place)
        assert artifacts.open_artifact(mirror.local_copy(place)).facts["rows"] == rows


def test_a_url_without_objects_is_an_error(memory_store):
    with pytest.raises(ConfigError, match="--from=memory://.*/none: no such folder"):
        mirror.local_copy(memory_store / "none")


def test_files_in_parts_come_back_whole(memory_store, tmp_path):
    made = make(tmp_path / "a", None)
    place = memory_store / "stage" / made.fingerprint
    for name, data in (("numbers.part0", b"1"), ("numbers.part1", b"23"), ("numbers.part", b"x")):
        (place / "part" / name).write_bytes(data)
    (place / "staging").write_bytes(b"x")
    Mirror(tmp_path / "a", memory_store).push(made.path, rest=True)
    assert set(place.files()) == {
        "empty",
        manifest.NAME,
        "part/numbers.part0",
        "part/numbers.part1",
    }
    found = make(tmp_path / "b", memory_store, write=lambda folder: pytest.fail("made again"))
    assert (found.path / "part" / "numbers").read_bytes() == b"123"


def test_a_folder_can_be_replaced_by_the_one_in_the_store(memory_store, tmp_path):
    first, second = (make(tmp_path / name, None) for name in "ab")
    (second.path / manifest.NAME).write_text((first.path / manifest.NAME).read_text() + "\n")
    Mirror(tmp_path / "a", memory_store).push(first.path)
    own = Mirror(tmp_path / "b", memory_store)
    assert own.pull(second.path) and own.pull(second.path, same=True)
    assert (second.path / manifest.NAME).read_bytes() == (first.path / manifest.NAME).read_bytes()


def test_files_of_a_temporary_folder_go_to_where_the_finished_one_will_be(memory_store, tmp_path):
    temporary = artifacts.temporary_folder(tmp_path / "a" / "stage" / "0123")
    temporary.mkdir(parents=True)
    (temporary / "x").write_bytes(b"1")
    Mirror(tmp_path / "a", memory_store).push_files([temporary / "x"])
    assert list((memory_store / "stage" / "0123").files()) == ["x"]
    (tmp_path / "b").mkdir()
    Mirror(tmp_path / "b", memory_store).pull_rest(tmp_path / "b" / "stage" / "0123")
    assert (tmp_path / "b" / "stage" / "0123" / "x").read_bytes() == b"1"
