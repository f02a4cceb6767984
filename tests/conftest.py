"""Quiet libraries, and eight devices on the CPU, for all tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax

jax.config.update("jax_num_cpu_devices", 8)
