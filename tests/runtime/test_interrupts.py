"""A signal ends work at once, or work that can save its state ends by itself."""

import gc
import os
import signal
import sys
import time

import pytest

from cadc_jax.runtime.interrupts import Stop, Stopped


@pytest.fixture
def stop():
    """A `Stop` that handles the signals of this process during the test."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)
    before, hook = [(number, signal.getsignal(number)) for number in numbers], sys.unraisablehook
    stop = Stop()
    stop.install()
    yield stop
    sys.unraisablehook = hook
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_that_cannot_save_ends_at_once(stop, number):
    assert not stop()
    with pytest.raises(Stopped):
        os.kill(os.getpid(), number)
    assert stop() and stop.signal == number


def test_a_signal_that_is_handled_in_a_callback_of_the_collector_is_not_lost(stop):
    def ask(phase, _):
        if phase == "start" and not stop():
            os.kill(os.getpid(), signal.SIGTERM)

    gc.callbacks.append(ask)
    try:
        gc.collect()  # Python ignores what its callback raises
        with pytest.raises(Stopped):
            time.sleep(5)
    finally:
        gc.callbacks.remove(ask)


def test_other_errors_that_python_ignores_are_reported(stop, capsys):
    class Broken:
        def __del__(self):
            raise ValueError("its own")

    sys.unraisablehook = sys.__unraisablehook__  # pytest has one of its own
    stop.install()
    Broken()
    assert "ValueError: its own" in capsys.readouterr().err


def test_work_that_can_save_is_asked_and_not_interrupted(stop, capfd):
    with pytest.raises(Stopped, match="the checkpoint"), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        raise Stopped("the checkpoint")
    assert "SIGTERM: saving after this step" in capfd.readouterr().err


def test_work_that_finishes_after_a_signal_ends_the_run(stop):
    done = []
    with pytest.raises(Stopped), stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("all of it")
    assert done


def test_a_second_signal_ends_at_once(stop):
    with pytest.raises(Stopped), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("was not interrupted")


def test_an_error_of_the_work_is_not_hidden(stop):
    with pytest.raises(ValueError, match="its own"), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("its own")


def test_without_a_signal_nothing_is_asked():
    stop = Stop()
    with stop.deferred():
        assert not stop()
