import math

import pytest

from cadc_jax.tuning.trials import Log, Result

NAMES = ("regularization", "alpha")
RESULTS = [
    Result((0.1, 3.0), 4, 0.12345678901234567, 1.5),
    Result((1.0, 1 / 3), 4, -math.inf, 0.25),
    Result((0.1, 3.0), 8, 0.2, 3.0),
]


def written(file):
    log = Log(NAMES, file)
    for result in RESULTS:
        log.add(result)
    return log


def test_results_are_read_back_bit_for_bit(tmp_path):
    log = written(tmp_path / "made" / "trials.csv")
    assert log.results == RESULTS
    assert Log(NAMES, tmp_path / "made" / "trials.csv").results == RESULTS
    assert Log(NAMES).results == []


def test_a_trial_is_found_with_the_resource_it_had(tmp_path):
    log = written(tmp_path / "trials.csv")
    assert log.find((0.1, 3.0), 8) == RESULTS[2]
    assert log.find((0.1, 3.0), 16) is None
    assert log.find((0.1, 3.1), 8) is None


def test_the_file_has_a_line_a_result_under_the_names(tmp_path):
    written(tmp_path / "trials.csv")
    header, *lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert header == "regularization,alpha,resource,score,seconds"
    assert lines[0] == "0.1,3.0,4,0.12345678901234566,1.5"
    assert len(lines) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alpha,resource,score,seconds\n1,2,3,4\n",
        "regularization,alpha,resource,score,seconds\n1.0,2.0,4,0.1\n",
        "regularization,alpha,resource,score,seconds\n1.0,2.0,4,nan,0.1\n",
        "regularization,alpha,resource,score,seconds\n1.0,2.0,four,0.1,0.1\n",
    ],
    ids=["empty", "other names", "cut off", "no number", "no resource"],
)
def test_a_log_that_cannot_be_used_is_started_over(tmp_path, text):
    (tmp_path / "trials.csv").write_text(text)
    assert Log(NAMES, tmp_path / "trials.csv").results == []
