"""How commands end: exit codes and one line on stderr."""

import errno
import pathlib
import re
import signal

import pytest

from cadc_jax.cli import exits
from cadc_jax.errors import DataError
from cadc_jax.runtime.interrupts import Stop, Stopped


@pytest.fixture
def ends(capsys, monkeypatch):
    """Runs a command that raises; returns its exit code and what it printed on stderr."""
    monkeypatch.setattr(Stop, "install", lambda self: None)

    def run(error, stop=None):
        def command():
            raise error

        with pytest.raises(SystemExit) as caught:
            exits.guarded(command, stop or Stop())
        return caught.value.code, capsys.readouterr().err

    return run


def test_an_error_of_the_user_is_one_line(ends):
    assert ends(DataError("log.csv:3: no\nnumber")) == (1, "cadc: error: log.csv:3: no number\n")


def test_a_very_long_error_is_cut(ends):
    code, text = ends(DataError("x" * 789_003))
    assert code == 1 and len(text) < 2_100 and text.endswith(" ...\n")


def test_control_characters_of_an_error_do_not_reach_the_terminal(ends):
    _, text = ends(DataError("title \x1b[31m"))
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "full", "/w/x"), "/w/x: No space left on device; free some room"),
        (OSError(errno.EROFS, "no", "/w"), "choose a --workdir that can be written"),
        (ValueError("RESOURCE_EXHAUSTED: write: No space left on device"), "no space left"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 TB"), "out of memory: RESOURCE_EXHAUSTED: 9 TB"),
        (MemoryError("9 TB"), "out of memory: 9 TB"),
    ],
)
def test_what_the_machine_lacks_comes_with_advice(ends, error, advice):
    code, text = ends(error)
    assert code == 1 and advice in text and text.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_code_and_says_what_is_kept(ends, number, code):
    stop = Stop()
    stop.signal = number
    found, text = ends(Stopped("step 5 is saved"), stop)
    assert found == code
    assert text.startswith(f"cadc: stopped by {number.name}: step 5 is saved; ")


def test_a_bug_is_one_line_and_a_file_with_the_traceback(ends):
    code, text = ends(ZeroDivisionError("oops"))
    assert code == 1 and text.count("\n") == 1
    assert "this is a bug: ZeroDivisionError: oops" in text
    file = pathlib.Path(re.search(r"\S+cadc-traceback-\S+\.txt", text)[0])
    assert "Traceback" in file.read_text() and "raise error" in file.read_text()
    file.unlink()
