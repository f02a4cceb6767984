"""Small raw tables for the tests of this folder, how to prepare them, and a measure of memory."""

import dataclasses
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from cadc_jax.data import prepare, raw
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.raw import RawTable, ReadReport
from cadc_jax.data.table import open_table

CLICK = PrepareConfig(
    "click", "order", 0.2, 0.2, user_features=("who",), item_features=("what",), log_dense=True
)
RANKING = PrepareConfig("ranking", "leave_one_out", num_negatives=3)
GIVEN = dataclasses.replace(RANKING, split="given")


def clicks(rows=20, **columns):
    """Random clicks, with the given columns in place of the random ones."""
    rng = np.random.default_rng(0)
    table = RawTable(
        ReadReport(rows),
        label=rng.integers(0, 2, rows).astype(np.float32),
        dense={"count": np.r_[-3, np.nan, rng.integers(0, 9, rows - 2)].astype(np.float32)},
        categorical={
            "who": rng.integers(0, 3, rows),
            "what": rng.integers(0, 4, rows),
            "other": rng.integers(0, 5, rows),
        },
    )
    return dataclasses.replace(table, **columns)


def interactions(**columns):
    """In order of time: users 10 and 20 with items 1..5, 30 with 6..9 and 1..5, 40 with 21..25."""
    user = np.repeat([10, 20, 30, 40], [5, 5, 9, 5])
    item = np.r_[1:6, 1:6, 6:10, 1:6, 21:26]
    table = RawTable(ReadReport(len(user)), user=user, item=item, timestamp=np.arange(len(user)))
    return dataclasses.replace(table, **columns)


def rows_of(table):
    """The rows of a small table as the single chunk of a source."""
    (task,) = raw.of_table(table).parts[0]()
    return task.decode().rows


def prepared(path, table, config):
    """The prepared table of a raw table, opened, and the facts about it."""
    facts = prepare.write_table(path, raw.of_table(table), config)
    return open_table(path), facts


def peak_growth(imports, code):
    """By how many MB the memory of a process grows at its peak while it runs code.

    Args:
      imports: statements that run before.
      code: statements to measure.
    """
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("this system does not tell the peak of a process")
    program = """
import re
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
{imports}
before = peak()
{code}
print(peak() - before)
"""
    program = program.format(imports=textwrap.dedent(imports), code=textwrap.dedent(code))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return float(done.stdout.split()[-1])
