"""`cadc tune` as a user runs it."""

import pytest

from tests.program import CRITEO, ROOT, assert_one_line, cadc

pytestmark = pytest.mark.slow


def test_the_help_says_what_is_searched_and_how():
    done = cadc("tune", "--help")
    for words in ("by the validation split", "never looks at the test split", "--trials", "48"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no configuration: give one, such as --config="),
        ([f"--config={CRITEO}", "--trials=1"], "flag --trials=1: "),
        ([f"--config={CRITEO}", "--factors=8,x"], "--factors=8,x: must be numbers such as 64,128"),
        ([f"--config={CRITEO}", "--rate=0.1"], "--rate: 'cadc tune' has no such option"),
        (["--config=/nowhere.py"], "/nowhere.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line(arguments, message):
    assert_one_line(cadc("tune", *arguments), message)


def test_it_prints_a_table_and_lines_to_paste_and_goes_on_where_it_was(tmp_path):
    command = ("tune", f"--config={CRITEO}", "--trials=3", f"--workdir={tmp_path}")
    command += ("--config.data.synthetic_rows=4000", "--config.sgd.epochs=2")
    command += ("--config.sgd.factors=4", "--config.data.min_count=1")
    done = cadc(*command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "as configured" in done.stdout and "popularity" in done.stdout
    assert "config.sgd.regularization = " in done.stdout
    assert (tmp_path / "trials-sgd.csv").read_text().count("\n") > 3
    assert "tune (sgd): reused" in cadc(*command, cwd=ROOT).stdout
