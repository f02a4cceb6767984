"""Progress of long work, on a terminal and in a pipe, with a clock that the tests set."""

import io
import os
import pty
import re
import types

import pytest

from cadc_jax.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    """A list whose only number is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def stderr(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def terminal(monkeypatch):
    """Makes stderr a terminal of 100 columns; returns what was shown on it so far."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    monkeypatch.setenv("COLUMNS", "100")
    with open(master, "rb", buffering=0) as screen, open(slave, "w") as stream:
        monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream))
        yield lambda: (screen.read() or b"").decode()


def test_short_work_in_a_pipe_prints_nothing(clock, stderr):
    shown = progress.Progress("train", 100, "steps")
    for done in range(10):
        clock[0] += 1
        shown.update(done)
    shown.close()
    assert stderr.getvalue() == ""


def test_long_work_in_a_pipe_prints_a_line_every_twenty_seconds(clock, stderr):
    shown = progress.Progress("train", 4000, "steps")
    for second in range(1, 46):
        clock[0] = 1000 + second
        shown.update(40 * second, "best 0.5")
    assert stderr.getvalue().splitlines() == [
        "train: 800/4,000 steps, 40.0/s, at most 80 s left, best 0.5",
        "train: 1,600/4,000 steps, 40.0/s, at most 60 s left, best 0.5",
    ]


def test_a_terminal_shows_a_bar_that_is_redrawn_and_removed(clock, terminal):
    shown = progress.Progress("read", 10, "files")
    for done in range(1, 9):
        clock[0] += 0.25
        shown.update(done, "best 0.5")
    shown.close()
    first, *_, last, nothing = re.split("\r *", terminal())[1:-1]
    assert re.fullmatch(
        r"read:  20%\|█+.? *\| 2/10,  [34]\.\d\d files/s, at most 00:02 left, best 0\.5", first
    )
    assert re.match(r"read:  80%\|█+.? *\| 8/10, ", last) and nothing == ""


def test_large_amounts_on_a_terminal_are_short(clock, terminal):
    shown = progress.Progress("read", 2_500_000, "bytes")
    clock[0] += 10
    shown.update(1_250_000)
    assert "| 1.25M/2.50M, 125k bytes/s, at most 00:10 left" in terminal()


def test_short_work_on_a_terminal_shows_nothing(clock, terminal):
    shown = progress.Progress("read", 10, "files")
    clock[0] += 0.25
    shown.update(9)
    shown.close()
    assert terminal() == ""


def test_before_the_first_result_no_remaining_time_is_shown(clock, stderr):
    shown = progress.Progress("train", 10, "steps")
    clock[0] += 60
    shown.update(0)
    assert stderr.getvalue() == "train: 0/10 steps, 0.0/s\n"
