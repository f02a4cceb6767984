"""Commands that only read a little import no more than they need: that is what makes them quick."""

import subprocess
import sys

import pytest

from tests.program import ROOT

pytestmark = pytest.mark.slow

HEAVY = ("jax", "flax", "optax", "orbax", "scipy", "tensorflow", "matplotlib")
CODE = f"""
import sys
from cadc_jax import main
try:
    main.run_program()
except SystemExit:
    pass
print("IMPORTED", *(name for name in {HEAVY} if name in sys.modules))
"""


def imported(*arguments):
    """What a command prints, and which of HEAVY it imports."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    text, _, names = done.stdout.rpartition("IMPORTED")
    return text + done.stderr, names.split()


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        (["--version"], "cadc_jax"),
        (["--help"], "Commands ('cadc COMMAND --help' says more)"),
        (["recommend", "--help"], "cadc recommend: "),
        (["recomend"], "did you mean 'recommend'?"),
        (["info", "/nowhere"], "/nowhere: no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_typos_need_none_of_it(arguments, shows):
    text, names = imported(*arguments)
    assert shows in text and not names


def test_a_work_folder_and_its_artefacts_are_explained_without_any(ranking_run):
    text, names = imported("info", ranking_run)
    assert "a work folder" in text and "DAMAGED" not in text and not names
    for stage in ("prepare", "factorize", "sample", "train", "evaluate"):
        text, names = imported("info", next((ranking_run / stage).iterdir()))
        assert "state     whole" in text and not names


def test_a_compressed_data_set_is_too_if_its_values_are_not_checked(click_run):
    text, names = imported("info", click_run.parent / "compressed", "--noverify")
    assert "a compressed data set" in text and not names


@pytest.mark.parametrize("command", [("recommend", "--user=bob"), ("recommend", "--items=x,y")])
def test_an_unknown_id_is_an_error_before_anything_is_loaded(ranking_run, command):
    text, names = imported(*command, f"--from={ranking_run}")
    assert "not among the" in text and not names
