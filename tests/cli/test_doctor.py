"""The checks of a machine: each says ok, or what to fix."""

import pytest

from cadc_jax.cli import doctor
from tests.program import cadc


@pytest.fixture
def said(monkeypatch):
    """Leaves the trial run out, which the program's own test makes."""
    monkeypatch.setattr(doctor, "_trial", lambda: iter(["not run"]))
    return []


def test_a_machine_in_order_is_well(said, tmp_path, monkeypatch):
    monkeypatch.setenv("CADC_DATA_DIR", str(tmp_path))
    (tmp_path / "ml-100k").mkdir()
    assert doctor.examine(tmp_path / "work" / "deep", said.append), said
    assert all(line.startswith("ok") for line in said[:-2])
    assert [line.split()[1] for line in said[:5]] == [
        *("python", "packages", "imports", "devices", "memory"),
    ]
    assert any("ml-100k" in line for line in said)
    assert said[-1] == "all is well"
    assert not list((tmp_path).glob("work*"))  # looking leaves nothing behind


def test_what_is_amiss_is_named_with_what_to_do_and_the_rest_goes_on(said, tmp_path, monkeypatch):
    monkeypatch.setenv("CADC_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setattr(doctor, "_LEAST_MEMORY", 1e18)
    assert not doctor.examine(tmp_path, said.append)
    failed = [line for line in said if line.startswith("FAIL")]
    assert len(failed) == 2
    assert "a run needs at least" in failed[0]
    assert "no such folder; set it to the folder of raw data sets" in failed[1]
    assert said[-1] == "to fix: memory, data"
    assert any(line.startswith("ok    trial run") for line in said)


def test_packages_are_held_against_what_the_setup_asks_for(monkeypatch):
    import email.message

    needs = email.message.Message()
    for text in ("numpy>=99", "no-such-package>=1", "pytest>=99; extra == 'test'", "jax>=0.6"):
        needs["Requires-Dist"] = text
    monkeypatch.setattr(doctor, "_metadata", lambda: needs)
    with pytest.raises(doctor.DoctorError) as error:
        list(doctor._packages())
    text = str(error.value)
    assert "needs >=99" in text and "no-such-package is missing" in text
    assert "pytest" not in text and "jax" not in text


def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Exception, match="choose another --workdir"):
        list(doctor._disk(file))


def test_a_library_that_fails_to_import_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_IMPORTED", ("json", "no_such_library"))
    with pytest.raises(doctor.DoctorError, match="cannot import no_such_library.*install it again"):
        list(doctor._imports())


def test_the_doctor_makes_a_trial_run(tmp_path):
    done = cadc("doctor", f"--workdir={tmp_path}", data_dir="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "600 synthetic rows through all stages" in done.stdout
    assert done.stdout.endswith("all is well\n")
    assert not list(tmp_path.iterdir())
