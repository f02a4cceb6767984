"""One run at a time holds a folder in a store; a dead one is no obstacle."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.runtime import lease


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 0.5)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.05)


def put(folder, **fields):
    (folder / lease.NAME).write_bytes(json.dumps(fields).encode())


def test_a_folder_is_held_and_left(memory_store):
    with lease.held(memory_store):
        assert json.loads((memory_store / lease.NAME).read_bytes())["process"] == os.getpid()
    assert not (memory_store / lease.NAME).exists()


def test_a_run_that_lives_elsewhere_is_not_disturbed(memory_store):
    stop = threading.Event()

    def live():
        count = 0
        while not stop.wait(0.05):
            count += 1
            put(memory_store, run="other", host="elsewhere", process=7, count=count)

    put(memory_store, run="other", host="elsewhere", process=7, count=0)
    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(ConfigError, match=r"another run is using it \(process 7 on elsewhere"):
            with lease.held(memory_store):
                pass
    finally:
        stop.set()
        other.join()
    assert (memory_store / lease.NAME).exists()


def test_a_run_that_died_elsewhere_is_followed(memory_store):
    put(memory_store, run="other", host="elsewhere", process=7, count=3)
    with lease.held(memory_store):
        pass


def test_a_run_that_died_here_is_followed_at_once(memory_store, monkeypatch):
    monkeypatch.setattr(lease, "DEAD_SECONDS", 3600.0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    put(memory_store, run="other", host=socket.gethostname(), process=gone.pid, count=3)
    with lease.held(memory_store):
        pass


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"host": 3}'])
def test_an_object_that_says_nothing_is_no_obstacle(memory_store, text):
    (memory_store / lease.NAME).write_bytes(text)
    with lease.held(memory_store):
        pass


def test_a_run_that_is_pushed_out_says_so_and_leaves_the_other_one_alone(memory_store, capfd):
    with lease.held(memory_store):
        put(memory_store, run="other", host="elsewhere", process=7, count=0)
        threading.Event().wait(0.3)
    assert "ANOTHER RUN HAS TAKEN memory://" in capfd.readouterr().err
    assert (memory_store / lease.NAME).exists()
