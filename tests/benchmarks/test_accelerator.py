"""The benchmark of one accelerator, at sizes for a CPU."""

import json
import subprocess
import sys

import pytest

from benchmarks import accelerator
from benchmarks.accelerator_lib import limits, timing
from benchmarks.accelerator_lib.limits import Limits
from cadc_jax import cost
from tests.program import ROOT

SCRIPT = ROOT / "benchmarks" / "accelerator.py"


def run(path, *options):
    """The process and what it wrote."""
    command = [sys.executable, SCRIPT, "--quick", "--json", path, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.slow
def test_every_section_is_measured_beside_its_limit_and_the_plan(tmp_path):
    done, found = run(tmp_path / "rows.json", "--minutes", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["failed"] == {}
    rows = {(row["case"], row["metric"], row["peer_name"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])  # a figure has one name
    for row in rows.values():
        assert row["ours"] > 0 and row["metric"] and row["case"]
        if row["peer"] is not None:
            assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    for words, peers in (
        ("copy", "peak"),
        ("ALS, 20,000 entries", "limit plan later"),
        ("logistic SGD", "limit plan"),
        ("DLRM", "limit plan"),
        ("20 steps of a DLRM twice, adagrad", "equal"),
        ("main job on 5,000 synthetic rows: factorize", "none"),
    ):
        named = {peer for case, _, peer in rows if words in case}
        for peer in peers.split():
            assert any(peer in name for name in named), (words, peer)
    reasons = set(found["not_measured"].values())
    assert reasons <= {"batches need TensorFlow", "torch is not installed"}
    assert "cpu" in found["machine"]


@pytest.mark.slow
def test_what_there_is_no_time_for_is_not_measured(tmp_path):
    done, found = run(tmp_path / "rows.json", "--minutes", "0", "--only", "limits,als-1m")
    assert done.returncode == 0 and found["rows"] == []
    assert set(found["not_measured"].values()) == {"out of time"}
    assert len(found["not_measured"]) == 3  # limits, and two solvers
    assert "NOT_MEASURED: limits: out of time" in done.stdout


def test_an_unknown_section_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        accelerator.main(["--only=gpu"])
    assert "--only=gpu: sections are limits, dlrm, als-1m" in capsys.readouterr().err


def test_an_alarm_ends_a_case_but_not_the_next_one(monkeypatch, tmp_path):
    def endless():
        yield timing.row("endless", "seconds", 1.0)
        while True:
            pass

    def fails():
        raise ValueError("too large\nfor this device")
        yield

    units = [("fails", fails), ("endless", endless), ("later", endless)]
    monkeypatch.setattr(accelerator, "_units", lambda options: iter(units))
    options = accelerator._parse(["--minutes=0.005", f"--json={tmp_path / 'rows.json'}"])
    found = accelerator.measure(options)
    assert [row["case"] for row in found["rows"]] == ["endless"]
    assert found["not_measured"] == {"endless": "out of time", "later": "out of time"}
    assert found["failed"] == {"fails": "ValueError: too large"}
    assert json.loads((tmp_path / "rows.json").read_text()) == found


def test_forbidden_modules_cannot_be_imported_and_leave_no_trace():
    with accelerator.forbidden(["no_such_module"]):
        with pytest.raises(ModuleNotFoundError) as error:
            import no_such_module  # type: ignore[import-not-found]  # noqa: F401
        assert error.value.name == "no_such_module"
    assert "no_such_module" not in sys.modules
    with pytest.raises(AssertionError, match="json is imported already"):
        with accelerator.forbidden(["json"]):
            pass


def test_a_timed_run_must_not_compile():
    import jax
    import jax.numpy as jnp

    sizes = iter(range(1, 100))

    def grows():
        return jax.jit(lambda x: x + 1)(jnp.zeros(next(sizes)))

    with pytest.raises(RuntimeError, match="a timed run compiled a program"):
        timing.timed(grows, 2)
    again = jnp.zeros(3)
    times = timing.timed(lambda: again + 1, 3)
    assert 0 < times.least <= times.median


def test_the_limit_of_work_is_its_slower_part():
    class Known(Limits):
        gather = 10.0

        def products(self, precision):
            return {"float32": 100.0}[precision]

    known = Known(quick=True)
    assert limits.of_work(known, 5.0, 10.0, "float32") == (1.0, "limit: gathered rows")
    assert limits.of_work(known, 5.0, 300.0, "float32") == (3.0, "limit: matrix products")


def test_every_known_kind_of_device_has_a_plan():
    assert set(limits.KINDS.values()) == set(cost.HARDWARE)
