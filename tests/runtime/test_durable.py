"""Writes that are whole or not there, and the lock of a work folder."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.runtime import durable


@pytest.fixture
def calls(monkeypatch):
    """The order of what reaches the disk: ('sync', name) and ('rename', name)."""
    seen = []
    names = {}
    really_open, really_sync = os.open, os.fsync

    def opened(path, *arguments, **settings):
        number = really_open(path, *arguments, **settings)
        names[number] = os.path.basename(os.fspath(path))
        return number

    def sync(number):
        seen.append(("sync", names[number]))
        really_sync(number)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", sync)
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def moved(source, target, real=real):
            seen.append(("rename", os.path.basename(os.fspath(target))))
            return real(source, target)

        monkeypatch.setattr(os, name, moved)
    return seen


def test_a_file_is_flushed_before_its_name_and_its_folder_after(tmp_path, calls):
    durable.write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
    kinds = [(kind, name.startswith(".a.txt.")) for kind, name in calls]
    assert kinds == [("sync", True), ("rename", False), ("sync", False)]
    assert calls[1:] == [("rename", "a.txt"), ("sync", tmp_path.name)]


def test_a_folder_is_flushed_with_all_its_files_before_it_gets_its_name(tmp_path, calls):
    (tmp_path / "new/deep").mkdir(parents=True)
    (tmp_path / "new/a").write_text("a")
    (tmp_path / "new/deep/b").write_text("b")
    calls.clear()
    durable.publish(tmp_path / "new", tmp_path / "final")
    renamed = calls.index(("rename", "final"))
    assert {name for _, name in calls[:renamed]} == {"a", "b", "deep", "new"}
    assert calls[renamed + 1 :] == [("sync", tmp_path.name)]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), durable.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere")
    durable.write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / "a.txt").is_symlink()


def test_names_of_temporary_files_cannot_be_guessed(tmp_path):
    with durable.replacing(tmp_path / "a") as first, durable.replacing(tmp_path / "a") as second:
        assert first != second


def test_written_files_have_the_usual_permissions(tmp_path):
    durable.write_text(tmp_path / "a", "text")
    (tmp_path / "b").write_text("text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


HOLDER = """
import pathlib, sys
from cadc_jax.runtime import durable
with durable.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_work_folder_is_held_by_one_run_until_its_process_ends(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "w")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another run is using it"):
            with durable.lock(tmp_path / "w"):
                pass
        holder.kill()
        holder.wait()
        with durable.lock(tmp_path / "w"):
            pass


def test_who_waits_for_a_file_holds_it_after_the_one_before(tmp_path):
    order, started = [], threading.Event()

    def second():
        started.set()
        with durable.wait_for(tmp_path / "x"):
            order.append("second")

    with durable.wait_for(tmp_path / "x"):
        other = threading.Thread(target=second)
        other.start()
        started.wait()
        time.sleep(0.05)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_the_lock_makes_the_folder_that_is_not_there(tmp_path):
    with durable.lock(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    path = tmp_path / "x.json"
    durable.write_json(path, {"a": (1, 2)})
    with pytest.raises(TypeError):
        durable.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert list(tmp_path.iterdir()) == [path]
