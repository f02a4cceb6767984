"""Programs for TPUs that need not exist: nothing of this folder runs without libtpu."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def compiled():
    """(program, chip, chips, width) -> figures of the program, as `programs.main` prints them.

    Each program is compiled in a process of its own: a fault of the TPU compiler ends the process,
    and only one process at a time can load the compiler unless it is told otherwise.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[aot]' -c constraints.txt")

    def figures(*words):
        settings = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
        command = [sys.executable, "-m", "tests.tpu.programs", *map(str, words)]
        environment = os.environ | settings | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return figures
