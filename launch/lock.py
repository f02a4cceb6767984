#!/usr/bin/env python3
"""Writes launch/locks/: every package of an installation, with the SHA-256 of its file.

    pip install uv packaging && python launch/lock.py          (from the root of a checkout)

The versions are those of constraints.txt, and the newest of what that does not name. A lock is for
Python 3.11 on Linux and x86_64, which Dockerfile and tpu_vm.sh use.
"""

import pathlib
import subprocess
import tomllib

from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = pathlib.Path(__file__).parents[1]
VERSION, GLIBC = (3, 11), 31  # libtpu needs glibc 2.31
PLATFORM = f"x86_64-manylinux_2_{GLIBC}"
# 'build' comes first: with it, and without isolation, nothing is built by what was fetched
# unchecked. uv brings Python 3.11 to machines that have an older one.
LOCKS = {
    "build": "setuptools>=77",
    "cpu": "-e .[cpu,gcs]",
    "cuda13": "-e .[cuda13,gcs]",
    "tpu": "-e .[tpu,gcs]",
    "uv": "uv",
}
_MANYLINUX = [f"manylinux_2_{k}_x86_64" for k in range(GLIBC, 4, -1)]
_MANYLINUX += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
TAGS = {
    *cpython_tags(VERSION, platforms=_MANYLINUX),
    *compatible_tags(VERSION, "cp311", _MANYLINUX),
}


def resolved(requirements: str) -> list[dict]:
    """The packages that uv chooses for the lines of a requirements file."""
    command = ["uv", "pip", "compile", "--quiet", "--format=pylock.toml", "-c", "constraints.txt"]
    command += ["--python-version=3.11", f"--python-platform={PLATFORM}", "-"]
    done = subprocess.run(
        command, cwd=ROOT, check=True, input=requirements, stdout=subprocess.PIPE, text=True
    )
    return tomllib.loads(done.stdout)["packages"]


def line(package: dict) -> str:
    """One line of a lock; the source archive counts only if no wheel fits."""
    wheels = [
        wheel
        for wheel in package.get("wheels", ())
        if parse_wheel_filename(wheel["url"].rpartition("/")[2])[3] & TAGS
    ]
    hashes = {file["hashes"]["sha256"] for file in wheels or [package["sdist"]]}
    words = [f"{package['name']}=={package['version']}"]
    return " ".join(words + [f"--hash=sha256:{digest}" for digest in sorted(hashes)]) + "\n"


if __name__ == "__main__":
    for name, requirements in LOCKS.items():
        text = "# Made by launch/lock.py.\n"
        text += "".join(line(package) for package in resolved(requirements) if "version" in package)
        (ROOT / "launch" / "locks" / f"{name}.txt").write_text(text)
