"""TensorFlow leaves accelerators alone, and is not in the way if it has started before."""

import pytest
import tensorflow as tf

from cadc_jax.runtime.host_tensorflow import leave_accelerators


def test_no_accelerator_is_visible_to_tensorflow(monkeypatch):
    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *call: calls.append(call))
    leave_accelerators()
    assert calls == [([], "GPU")]


@pytest.mark.parametrize("times", [1, 2])
def test_it_may_be_called_after_an_operation(times):
    tf.constant(1) + 1
    for _ in range(times):
        leave_accelerators()


def test_devices_that_are_in_use_stay(monkeypatch):
    def refuse(*call):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    leave_accelerators()
