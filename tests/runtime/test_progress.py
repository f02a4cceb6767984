"""Progress of long work, on a terminal and in a pipe, with a clock that the tests set."""

import io
import types

import pytest

from cadc_jax.runtime import progress


class Stream(io.StringIO):
    """A stream that can pretend to be a terminal."""

    terminal = False

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """A list whose only number is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def stderr(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def terminal(stderr):
    stderr.terminal = True
    return stderr


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


def test_a_terminal_shows_one_line_that_is_redrawn_and_cleared(clock, terminal):
    shown = progress.Progress("read", 10, "files")
    for done in range(1, 9):
        clock[0] += 0.25
        shown.update(done)
    text = terminal.getvalue()
    assert "\n" not in text
    assert text.split("\r\033[K")[1:] == [
        f"read: {done}/10 files, 4.0/s, at most {left} s left"
        for done, left in ((2, 2), (4, 2), (6, 1), (8, 0))
    ]
    shown.close()
    assert terminal.getvalue() == text + "\r\033[K"


def test_before_the_first_result_no_remaining_time_is_shown(clock, stderr):
    shown = progress.Progress("train", 10, "steps")
    clock[0] += 60
    shown.update(0)
    assert stderr.getvalue() == "train: 0/10 steps, 0.0/s\n"
