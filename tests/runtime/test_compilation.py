"""The cache of compiled programs, and the seconds that compiling takes."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from cadc_jax.runtime import compilation
from tests.program import CRITEO, ROOT, cadc

PROGRAM = """
import os, sys, pathlib
import jax, jax.numpy as jnp
from cadc_jax.runtime import compilation
compilation.LEAST_SECONDS = 0
compilation.use_cache(pathlib.Path(sys.argv[1]))
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(sum("cache_hits" in x for x in found), sum("cache_misses" in x for x in found))
if len(sys.argv) > 2:
    os._exit(9)
"""


@pytest.fixture
def environment():
    """That of a user who has told JAX of no cache."""
    return {name: x for name, x in os.environ.items() if not name.startswith("JAX_")}


def compile_in(folder, environment, *killed):
    """(hits, misses) of a process that compiles a few programs."""
    command = [sys.executable, "-c", PROGRAM, str(folder), *killed]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (9 if killed else 0), done.stderr
    return tuple(map(int, done.stdout.split()))


def test_a_second_process_finds_what_the_first_one_compiled(tmp_path, environment):
    hits, misses = compile_in(tmp_path, environment)
    assert hits == 0 < misses
    assert compile_in(tmp_path, environment) == (misses, 0)
    assert all(path.is_file() for path in tmp_path.iterdir())  # no folder of a process is left


def test_a_killed_process_leaves_nothing_to_find(tmp_path, environment):
    compile_in(tmp_path, environment, "killed")
    (own,) = tmp_path.iterdir()
    assert own.is_dir() and list(own.iterdir())
    hits, _ = compile_in(tmp_path, environment)
    assert hits == 0
    assert not own.exists()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, environment):
    (tmp_path / "file").touch()
    assert compile_in(tmp_path / "file", environment) == (0, 0)


def test_the_cache_that_jax_was_told_of_stays(tmp_path, environment):
    told = environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "told")}
    compile_in(tmp_path / "ours", told)
    assert not (tmp_path / "ours").exists()
    compile_in(tmp_path / "ours", environment | {"JAX_ENABLE_COMPILATION_CACHE": "false"})
    assert not (tmp_path / "ours").exists()


def test_the_oldest_programs_go_when_the_cache_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "CACHE_BYTES", 25)
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    compilation._shrink(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_the_default_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation.default_folder().parent == tmp_path / "cadc_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compilation.default_folder().parent == tmp_path / ".cache" / "cadc_jax"


def test_seconds_grow_by_compiling_alone():
    before = compilation.seconds()
    program = jax.jit(lambda x: jnp.cos(x) * 3)
    program(jnp.ones(5))
    compiled = compilation.seconds()
    assert compiled > before
    program(jnp.ones(5))
    assert compilation.seconds() == compiled


@pytest.mark.slow
def test_the_program_keeps_its_programs_unless_it_is_told_not_to(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("JAX_")]:
        monkeypatch.delenv(name)
    small = ["--config.data.synthetic_rows=3000", "--config.arms=()", "--stage=factorize"]
    for cache, workdir in ((tmp_path / "programs", "a"), ("off", "b")):
        arguments = [f"--config={CRITEO}", *small, f"--workdir={tmp_path / workdir}"]
        done = cadc(*arguments, f"--compilation_cache={cache}")
        assert done.returncode == 0, done.stderr
    assert list((tmp_path / "programs").iterdir())
