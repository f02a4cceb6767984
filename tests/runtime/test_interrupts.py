"""A request to end is taken at once, or by the work itself where it can save first."""

import os
import signal

import pytest

from cadc_jax.runtime.interrupts import Stop, Stopped


@pytest.fixture
def stop():
    """Listening to this process' signals, as long as the test runs."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    stop = Stop()
    stop.install()
    yield stop
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_that_cannot_save_ends_at_once(stop, number):
    assert not stop()
    with pytest.raises(Stopped):
        os.kill(os.getpid(), number)
    assert stop() and stop.signal == number


def test_work_that_can_save_is_asked_and_not_broken_off(stop, capfd):
    with pytest.raises(Stopped, match="the checkpoint"), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        raise Stopped("the checkpoint")
    assert "SIGTERM: saving after this step" in capfd.readouterr().err


def test_work_that_gets_done_meanwhile_ends_the_run_afterwards(stop):
    done = []
    with pytest.raises(Stopped), stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("all of it")
    assert done


def test_a_second_signal_breaks_off_at_once(stop):
    with pytest.raises(Stopped), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")


def test_an_error_of_the_work_is_not_hidden(stop):
    with pytest.raises(ValueError, match="its own"), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("its own")


def test_without_handlers_nothing_is_ever_asked():
    stop = Stop()
    with stop.deferred():
        assert not stop()
