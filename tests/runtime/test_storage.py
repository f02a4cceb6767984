"""Local paths and URLs; objects in a store are read as files are, and its faults are one line."""

import pathlib

import pytest

from cadc_jax.errors import ConfigError, StorageError
from cadc_jax.runtime import artifacts, storage
from cadc_jax.runtime.storage import Remote


@pytest.fixture
def bucket(memory_store):
    place = memory_store / "log"
    (place / "day_1.txt").write_bytes(b"one")
    (place / "day_2.txt").write_bytes(b"two!")
    (place / "more" / "day_3.txt").write_bytes(b"3")
    return place


@pytest.mark.parametrize(
    "text, place",
    [
        ("data/log.csv", pathlib.Path("data/log.csv")),
        ("file:///data/log.csv", pathlib.Path("/data/log.csv")),
        ("gs://bucket/run/", Remote("gs", "bucket/run")),
        ("gcs://bucket/run", Remote("gs", "bucket/run")),
        ("s3://bucket/a//b", Remote("s3", "bucket/a/b")),
        ("a:b/c", pathlib.Path("a:b/c")),
        ("C:/x", pathlib.Path("C:/x")),
    ],
)
def test_a_text_is_a_local_path_or_a_url(text, place):
    assert storage.path_of(text) == place


@pytest.mark.parametrize("text", ["gs:/bucket/run", "gs://", "gs:///", "gs://bucket/../x"])
def test_a_url_typed_wrong_is_never_a_local_folder(text):
    with pytest.raises(ConfigError, match=r"--workdir=.*: not a URL; write gs://bucket/folder"):
        storage.path_of(text, "--workdir")


@pytest.mark.parametrize("text", ["hdfs://host/x", "http://host/x", "gss://bucket/run", "abfs:/x"])
def test_an_unknown_scheme_names_the_known_ones(text):
    with pytest.raises(ConfigError, match="is not supported; give a local path .* of gs://, s3://"):
        storage.path_of(text)


def test_a_scheme_without_its_package_says_what_to_install(monkeypatch):
    import fsspec

    def missing(*arguments, **options):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ConfigError, match=r"gs:// needs .* gcsfs: pip install 'cadc-jax\[gcs\]'"):
        Remote("gs", "bucket/run").exists()


def test_an_object_is_a_file_and_what_lies_above_it_a_folder(bucket):
    file = bucket / "day_1.txt"
    assert file.exists() and file.is_file() and not file.is_dir()
    assert bucket.exists() and bucket.is_dir() and not bucket.is_file()
    assert not (bucket / "none").exists()
    assert (file.name, file.suffix, str(file)) == ("day_1.txt", ".txt", f"{bucket}/day_1.txt")


def test_folders_are_listed_and_searched(bucket):
    assert [x.name for x in bucket.iterdir()] == ["day_1.txt", "day_2.txt", "more"]
    assert [storage.relative(x, bucket) for x in bucket.glob("day_*")] == ["day_1.txt", "day_2.txt"]
    assert [x.name for x in bucket.glob("more/*.txt")] == ["day_3.txt"]
    assert bucket.files() == {"day_1.txt": 3, "day_2.txt": 4, "more/day_3.txt": 1}


def test_an_object_is_read_at_any_place(bucket):
    with (bucket / "day_2.txt").open() as file:
        assert file.read(2) == b"tw"
        file.seek(1)
        assert file.tell() == 1 and file.read() == b"wo!"
    assert (bucket / "none").read_bytes() is None


def test_the_identity_of_an_object_changes_with_it(bucket):
    file = bucket / "day_1.txt"
    (before,) = artifacts.file_identity([str(file)])
    assert before[:2] == [str(file), 3]
    assert artifacts.file_identity([file]) == [before]
    file.write_bytes(b"six")
    assert artifacts.file_identity([file]) != [before]


def test_a_new_object_replaces_none(bucket):
    with pytest.raises(FileExistsError):
        (bucket / "day_1.txt").write_bytes(b"x", new=True)
    (bucket / "day_1.txt").delete()
    (bucket / "day_1.txt").delete()
    (bucket / "day_1.txt").write_bytes(b"x", new=True)


class _HttpError(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


@pytest.mark.parametrize(
    "error, message",
    [
        (FileNotFoundError("b/none/o"), "no such bucket or object; check the URL"),
        (OSError("Forbidden: b/x\nno storage.objects.create"), "no permission .*; sign in"),
        (_HttpError(401, "Anonymous caller"), "no permission"),
        (_HttpError(429, "x"), "the store has no room or takes no more requests"),
        (OSError("Forbidden: x\nThe quota is exceeded"), "the store has no room"),
        (_HttpError(507, "full"), "the store has no room"),
        (ValueError("odd\nlines"), r"does not answer as it should \(ValueError: odd lines\)"),
    ],
)
def test_a_fault_of_a_store_is_one_line_that_names_the_url(bucket, monkeypatch, error, message):
    class Broken:
        def put_file(self, *arguments):
            raise error

    monkeypatch.setattr(storage, "_system", lambda scheme: Broken())
    with pytest.raises(StorageError, match=message) as told:
        (bucket / "x").upload(pathlib.Path("x"))
    assert str(told.value).startswith(f"{bucket}/x: ") and "\n" not in str(told.value)


def test_the_cache_lies_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("CADC_CACHE_DIR", str(tmp_path))
    assert storage.scratch_folder(Remote("gs", "bucket/run")) == tmp_path / "gs/bucket/run"
    monkeypatch.delenv("CADC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_folder() == tmp_path / "cadc_jax" / "objects"
