"""The command line: help screens, typos, and configurations that cannot be used."""

import os
import subprocess
import sys

import pytest

import cadc_jax
from tests.program import CRITEO, ROOT, assert_one_line, cadc

pytestmark = pytest.mark.slow

COMMANDS = (
    *("run", "init", "compress", "train", "candidates", "plan"),
    *("tune", "study", "unpack", "update", "verify", "recommend", "similar", "export", "info"),
    "doctor",
)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["compress", f"--config={CRITEO}"], "--out=DIR"),
        (["train"], "--from=DIR"),
        (["train", "--from=/nowhere"], "/nowhere: no such folder; make one with 'cadc compress'"),
        (
            ["cook"],
            "commands are run, init, prepare, compress, train, unpack, update, tune, study,",
        ),
        (["recomend"], "'recomend', did you mean 'recommend'?"),
        (["interactions"], "the command 'interactions' is now called 'candidates'"),
        (["run", "--rate=0.1"], "--rate: 'cadc run' has no such option; compress takes it"),
        (
            ["info", "x", "--out=y"],
            "has no such option; init, compress, unpack, study, recommend, export take it",
        ),
        (["train", "--from=/nowhere", "--config.rate=0.5"], "--config=FILE"),
        (
            ["info", "/nowhere", "--process_id=0"],
            "--process_id: 'cadc info' has no such option; run, compress, train, tune take it",
        ),
        (["candidates", f"--config={CRITEO}", "--rows=-3"], "--rows=-3"),
        (["plan", f"--config={CRITEO}", "--devices=0"], "--devices=0"),
        (["verify", "--from=/nowhere"], "/nowhere: no such folder"),
        (["update", "--from=/nowhere"], "this command needs --log=FILE"),
        (["update", "--from=/nowhere", "--log=x"], "this command needs --workdir=DIR"),
        (["update", "--from=/nowhere", "--log=x", "--out=y"], "--out: 'cadc update' has no such"),
        (["train", "more"], "unexpected argument 'more'"),
        (["run", f"--config={CRITEO}", "--workdir=hdfs://b/run"], "hdfs:// is not supported"),
        (["train", "--from=s3:/b/small"], "--from=s3:/b/small: not a URL; write s3://bucket"),
        (["plan", f"--config={CRITEO}", "--workdir=/nowhere"], "give --rows=N, --num_users=N"),
    ],
)
def test_a_command_says_what_it_needs(command, message):
    assert_one_line(cadc(*command), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.rate=0"], "rate=0"),
        (["--config.rate=1.5"], "rate=1.5"),
        (["--config.rate=ten"], "rate"),
        (["--config.ratee=0.1"], "ratee"),
        (["--config.data.pth=x"], "pth"),
        (["--config.devices.model=2"], "devices.model is gone, leave it out"),
        (["--stage=cook"], "cook"),
        (["--wrkdir=x"], "--wrkdir, did you mean '--workdir'?"),
        (["stray"], "stray"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bad_option_ends_in_one_clear_line(tmp_path, arguments, message):
    assert_one_line(cadc(f"--config={CRITEO}", f"--workdir={tmp_path}", *arguments), message)


def test_a_missing_config_ends_in_one_clear_line():
    assert_one_line(cadc("--config=configs/nothing.py"), "nothing.py: no such file")
    near = cadc("--config", "configs/critoe.py")
    assert_one_line(near, "critoe.py: no such file, did you mean 'configs/criteo.py'?")
    assert_one_line(cadc("--config=configs"), "configs")
    assert_one_line(cadc(), "--config=")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "SyntaxError: invalid syntax (own.py, line 1)"),
        ("\nimport no_such_module", "No module named 'no_such_module'"),
        ("rate = 0.1", "no attribute 'get_config'"),
        ("def get_config():\n    return {'rate': 0.1}", "default_config()"),
    ],
    ids=["syntax", "import", "no function", "a dict"],
)
def test_a_config_that_cannot_be_used_ends_in_one_clear_line(tmp_path, content, message):
    (tmp_path / "own.py").write_text(content)
    assert_one_line(cadc(f"--config={tmp_path / 'own.py'}"), message)


def test_the_configs_of_the_package_are_found_from_anywhere(tmp_path):
    for option in (["--config=configs/epinions.py"], ["--config", "configs/epinions.py"]):
        found = cadc(*option, cwd=tmp_path)
        assert "/nowhere/epinions" in found.stderr  # read, and its data looked for
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/epinions.py").write_text("get_config = None")
    assert "/nowhere" not in cadc("--config=configs/epinions.py", cwd=tmp_path).stderr


def test_help_explains_the_stages_and_the_flags():
    text = cadc("--help").stdout
    for word in ("prepare, factorize, sample, train", "--workdir", "--stage", "--config"):
        assert word in text


def test_the_version_is_that_of_the_package():
    assert cadc("--version").stdout == f"cadc_jax {cadc_jax.__version__}\n"


@pytest.mark.parametrize("words", [("--help",), ("recommend", "--help")])
def test_help_may_be_read_in_part(words):
    """As 'cadc --help | head -1' does."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cadc_jax.main", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_lists_every_command_in_a_line():
    done = cadc("--help")
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_help_of_a_command_has_an_example_and_its_own_flags_alone():
    text = cadc("recommend", "--help").stdout
    assert text.startswith("cadc recommend: ")
    assert "\n    cadc recommend --config=" in text
    assert "--users" in text and "--workdir" in text
    assert "--rate" not in text and "--format" not in text
    assert all(len(line) <= 100 for line in text.splitlines())
