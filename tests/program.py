"""The program in a process of its own, as a user runs it."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
CRITEO = ROOT / "configs/criteo.py"


def cadc(*arguments, data_dir="/nowhere", cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "cadc_jax.main", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "CADC_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def assert_one_line(done, message):
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
