"""What the machine can do to a run: no room, no permission, data that changes under way."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from cadc_jax.data import prepare
from cadc_jax.data.readers import criteo, synthetic
from cadc_jax.errors import DataError
from cadc_jax.runtime import artifacts
from cadc_jax.runtime.materialize import materialize
from tests.program import CRITEO, ROOT, assert_one_line, cadc

pytestmark = pytest.mark.slow

CONFIG = prepare.PrepareConfig(
    "click", "order", 0.1, 0.1, user_features=("C7",), item_features=("C11",)
)


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "train.txt"
    synthetic.write_criteo(path, 20_000, 0)
    return path


def test_a_full_disk_ends_in_one_clear_line_and_keeps_what_is_finished(raw, small_disk):
    finished = materialize(small_disk, "before", {}, lambda folder: {})
    arguments = (f"--config={CRITEO}", f"--config.data.path={raw}", f"--workdir={small_disk}")
    done = cadc(*arguments, "--stage=prepare")
    assert_one_line(done, "No space left on device; free some room")
    assert str(small_disk) in done.stderr
    assert artifacts.open_artifact(finished.path, verify=True).facts == {}
    assert list((small_disk / "prepare").iterdir()) == []  # nothing half-written is left


def test_a_stage_runs_again_when_there_is_room(raw, small_disk, tmp_path):
    with pytest.raises(OSError, match="No space left"):
        materialize(small_disk, "prepare", {}, lambda folder: write(folder, raw))
    (small_disk / "prepare").rmdir()
    small_disk.joinpath("prepare").symlink_to(tmp_path / "room")
    (tmp_path / "room").mkdir()
    made = materialize(small_disk, "prepare", {}, lambda folder: write(folder, raw))
    assert made.facts["reader"]["rows"] == 20_000


def write(folder, raw):
    return prepare.write_table(folder, criteo.open_logs([raw]), CONFIG)


@pytest.fixture
def no_rights(tmp_path):
    """As long as the test runs, this process may do no more than any user."""
    if os.geteuid():
        yield
        return
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def locked(raw, tmp_path):
    """The raw file, and a folder to write in, that nobody may touch."""
    raw.chmod(0)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    return raw


def test_a_file_without_permission_is_named(locked, no_rights):
    with pytest.raises(DataError, match=f"{locked}: cannot be read .*Permission denied"):
        criteo.read_logs([locked])


def test_a_work_folder_without_permission_is_named(tmp_path, locked, no_rights):
    with pytest.raises(PermissionError, match=str(tmp_path / "locked")):
        materialize(tmp_path / "locked", "prepare", {}, lambda folder: {})


@pytest.mark.parametrize("change", ["longer", "touched", "gone"])
def test_a_file_that_changes_while_it_is_read_is_named(raw, tmp_path, monkeypatch, change):
    decode = criteo._chunk

    def decode_and_change(*arguments):
        if change == "gone":
            raw.unlink(missing_ok=True)
        elif change == "touched":
            os.utime(raw)
        else:
            with open(raw, "a") as file:
                file.write("x")
        return decode(*arguments)

    monkeypatch.setattr(criteo, "_chunk", decode_and_change)
    with pytest.raises(DataError, match=f"{raw}: the file changed while it was read"):
        write(tmp_path / "out", raw)


def test_a_damaged_stage_stops_the_next_run_and_is_named(raw, tmp_path):
    arguments = (f"--config={CRITEO}", f"--config.data.path={raw}", f"--workdir={tmp_path / 'w'}")
    assert cadc(*arguments, "--stage=prepare").returncode == 0
    (prepared,) = (tmp_path / "w" / "prepare").iterdir()
    file = prepared / "train" / "categorical.npy"
    content = bytearray(file.read_bytes())
    content[100_000] ^= 4
    file.write_bytes(content)
    assert_one_line(cadc(*arguments, "--stage=prepare"), f"{file}: the file is damaged")
    assert cadc(*arguments, "--stage=prepare", "--noverify").returncode == 0
    assert_one_line(cadc("verify", f"--from={prepared}"), f"{file}: the file is damaged")


def guarded(statement):
    program = (
        "import os\n"
        "import jax.numpy as jnp, numpy as np\n"
        "from cadc_jax.cli import exits\nfrom cadc_jax.runtime import interrupts\n"
        f"def fail(): {statement}\n"
        "exits.guarded(fail, interrupts.Stop())\n"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def fail_with(code):
    return guarded(f"raise OSError({code}, os.strerror({code}), '/some/where')")


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_faults_that_a_user_can_mend_are_one_line(code):
    assert_one_line(fail_with(code), f"/some/where: {os.strerror(code)}; ")


@pytest.mark.parametrize("array", ["np.ones(1 << 45)", "jnp.ones(1 << 45).block_until_ready()"])
def test_too_little_memory_is_one_line_that_says_what_to_make_smaller(array):
    assert_one_line(guarded(array), "out of memory: ")


def test_any_other_fault_is_a_bug_whose_traceback_is_kept_in_a_file():
    done = fail_with(errno.EIO)
    assert_one_line(done, "this is a bug: OSError: [Errno 5]")
    file = pathlib.Path(done.stderr.split()[-1])
    assert "Traceback" in file.read_text()
    file.unlink()
