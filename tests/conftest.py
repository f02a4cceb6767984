"""Quiet libraries, and eight devices on the CPU, for all tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)

# A first call compiles, so that no deadline fits; fixed examples make a failure repeatable.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("default")
