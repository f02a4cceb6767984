"""Programs for TPUs that need not exist: nothing of this folder runs without libtpu."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

MOST_SECONDS = 300  # a program takes 5 to 60 on two idle cores


@pytest.fixture(scope="session")
def compiled():
    """(program, chip, chips, width, ...) -> figures of the program, as `programs.main` prints them.

    Each program is compiled once, in a process of its own: a fault of the TPU compiler ends the
    process, and only one process at a time can load the compiler unless it is told otherwise.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[aot]' -c constraints.txt")
    found = {}

    def figures(*words):
        if words not in found:
            found[words] = compile_program(words)
        return found[words]

    return figures


def compile_program(words):
    settings = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    command = [sys.executable, "-m", "tests.tpu.programs", *map(str, words)]
    environment = os.environ | settings | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=MOST_SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
