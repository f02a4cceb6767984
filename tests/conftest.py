"""Quiet libraries, eight devices on the CPU, and finished runs, for all tests."""

import os
import pathlib
import shutil
import subprocess
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Programs that are started compile the same things again: this saves about half of their time. Each
# worker has a cache of its own, as JAX does not write the files of a cache atomically.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cadc-jax-cache-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
MOST_MAPS = 25_000

# A first call compiles: no deadline fits. Fixed examples make a failure repeatable.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("default")


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops compiled programs between files once there are many. Each takes several of the 65,530
    memory maps that Linux gives a process; without one left, the compiler crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def ragged_on_cpus(monkeypatch):
    """Ragged exchanges work on the CPU; whether there are any is for the test to say."""
    from tests.ragged import ragged_all_to_all

    monkeypatch.setattr("jax.lax.ragged_all_to_all", ragged_all_to_all)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="session")
def ranking_run(tmp_path_factory):
    """A finished small run of the ranking task, of customers and products with titles and tags."""
    from tests.small_runs import finished, ranking_config  # imports JAX, which is set up above

    path = tmp_path_factory.mktemp("ranking")
    return finished(ranking_config(path / "raw"), path / "work")


@pytest.fixture(scope="session")
def click_run(tmp_path_factory):
    """A finished small run on synthetic clicks in Criteo's format, and its compressed data set."""
    from cadc_jax import experiment
    from tests.small_runs import click_config, finished, quiet

    path = tmp_path_factory.mktemp("click")
    workdir = finished(click_config(), path / "work")
    run = experiment.Run(click_config(), workdir, say=quiet)
    experiment.compress(run, path / "compressed")
    return workdir


@pytest.fixture
def memory_store(monkeypatch, tmp_path):
    """A folder of its own in an object store in memory."""
    from cadc_jax.runtime import storage

    monkeypatch.setitem(storage.SCHEMES, "memory", ("fsspec", "memory"))
    return storage.Remote("memory", f"bucket{tmp_path}")
