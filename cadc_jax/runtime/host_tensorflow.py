"""TensorFlow on the host alone: it reads and makes data, and computes nothing on accelerators."""

import contextlib


def leave_accelerators() -> None:
    """Keeps TensorFlow from taking the memory of GPUs, which JAX needs; imports it.

    To be called before TensorFlow's first operation. Afterwards it changes nothing.
    """
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # its devices are in use already
        tf.config.set_visible_devices([], "GPU")
