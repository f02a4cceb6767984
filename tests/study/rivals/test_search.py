"""How the settings of a rival are chosen."""

import dataclasses

import numpy as np
import pytest

from cadc_jax.data.table import Lazy
from cadc_jax.errors import TrainingError
from cadc_jax.evaluation import evaluate, resident
from cadc_jax.evaluation.evaluate import EvaluationConfig
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.sharding import make_mesh
from cadc_jax.study import cells
from cadc_jax.study.rivals import registry, search
from cadc_jax.study.rivals.given import Given, without_test
from cadc_jax.study.rivals.registry import Rival
from cadc_jax.study.rivals.search import TrialLog
from cadc_jax.tuning.space import Axis, choice
from tests.study.rivals import small

AXES = (Axis("x", (1.0,), 2.0, 2**-6, 2**6, (0.1, 10.0)), choice("kind", (0, 1)))
RIVAL = Rival(AXES, open=lambda given: None, words={"kind": ("a", "b")})


def quiet(line):
    del line


def far_from_3(settings):
    """Best at x = 3 with kind b."""
    return -abs(np.log(settings["x"] / 3)) - (settings["kind"] == "a")


def searched(log, trials=12, fit=lambda settings: settings, rival=RIVAL, say=quiet):
    return search.best(rival, fit, far_from_3, log, trials, say)


def test_every_rival_of_the_cells_is_in_the_registry():
    assert list(registry.RIVALS) == list(cells.SEARCHED)
    assert set(cells.SEARCHED) == {*cells.OF_RANKINGS, *cells.OF_CLICKS} - {cells.FOLD_IN}


def test_the_first_value_of_every_axis_is_drawable_and_within_its_bounds():
    for rival in registry.RIVALS.values():
        for axis in rival.axes:
            assert axis.low <= min(axis.draws) <= axis.grid[0] <= max(axis.draws) <= axis.high
        assert rival.whole | set(rival.words) <= {axis.name for axis in rival.axes}


def test_a_search_nears_the_best_setting_within_its_budget():
    found = searched(TrialLog(["x", "kind"]))
    assert found.settings["kind"] == "b" and 2 < found.settings["x"] < 4.5
    assert found.trials == 12


def test_the_middle_is_tried_first_and_a_larger_search_reuses_a_smaller_one(tmp_path):
    file = tmp_path / "trials" / "shop-rival.csv"
    searched(TrialLog(["x", "kind"], file), 8)
    lines = file.read_text().splitlines()
    assert lines[0] == "x,kind,resource,score,seconds" and lines[1].startswith("1.0,0")
    fitted = []
    found = searched(TrialLog(["x", "kind"], file), 12, fit=lambda s: fitted.append(s) or s)
    assert found == searched(TrialLog(["x", "kind"]), 12)._replace(seconds=found.seconds)
    assert 0 < len(fitted) < 12


def test_a_search_that_was_stopped_fits_nothing_twice(tmp_path):
    file, fitted = tmp_path / "log.csv", []

    def stops(settings):
        if len(fitted) == 4:
            raise KeyboardInterrupt
        fitted.append(settings)
        return settings

    with pytest.raises(KeyboardInterrupt):
        searched(TrialLog(["x", "kind"], file), fit=stops)
    found = searched(TrialLog(["x", "kind"], file), fit=lambda s: fitted.append(s) or s)
    assert found.trials == len(fitted) == 12


def test_settings_that_give_no_finite_scores_are_not_chosen():
    def quality(settings):
        if settings["x"] < 5:
            raise TrainingError("not finite")
        return 1.0

    log = TrialLog(["x", "kind"])
    found = search.best(RIVAL, lambda s: s, quality, log, 15, quiet)
    assert found.settings["x"] >= 5
    assert -np.inf in {result.score for result in log.results}

    def fails(settings):
        raise TrainingError("not finite")

    with pytest.raises(TrainingError, match="no setting gives finite scores"):
        search.best(RIVAL, fails, quality, TrialLog(["x", "kind"]), 4, quiet)


def favours(item):
    """A scorer that ranks an item first."""

    def score(batch):
        found = (np.asarray(batch["item"]) == item).astype(np.float32)
        return np.broadcast_to(found, (len(batch["user"]), found.shape[1]))

    return Scorer(score)


def test_the_setting_with_the_best_validation_is_chosen_whatever_the_test_would_say():
    """Item 3 validates and item 4 tests: the scorer that favours item 4 must not be chosen."""
    table = small.rankings()
    rival = Rival((choice("item", (4, 1, 3)),), open=lambda given: None)
    options = EvaluationConfig(k=(1,), ranking="full")
    quality = resident.validation(without_test(table), options, make_mesh())
    log = TrialLog(["item"])
    found = search.best(rival, lambda s: favours(s["item"]), quality, log, 12, quiet)
    assert found.settings == {"item": 3}
    assert {result.trial[0]: result.score for result in log.results} == {4: 0, 1: 0, 3: 1}


def poisoned(table):
    """The table, whose test split cannot be opened."""

    def open_split(name):
        assert name != "test", "the test split was read"
        return table.splits[name]

    return dataclasses.replace(table, splits=Lazy(["train", "validation", "test"], open_split))


@pytest.mark.parametrize("name", cells.SEARCHED)
def test_no_search_reads_the_test_split(name):
    rival = registry.RIVALS[name]
    if rival.library:
        pytest.importorskip(rival.library)
    whole = small.clicks() if name in cells.OF_CLICKS else small.rankings()
    sizes = whole.schema.num_users, whole.schema.num_items
    factors = tuple(np.ones((size, 2), np.float32) for size in sizes)
    table = without_test(poisoned(whole))
    assert "test" not in table.splits
    fit = rival.open(Given(table, factors))
    options = EvaluationConfig(k=(1,), ranking="full")
    quality = resident.validation(table, options, make_mesh())
    log = TrialLog([axis.name for axis in rival.axes])
    found = search.best(rival, fit, quality, log, 2, quiet)
    assert set(found.settings) == {axis.name for axis in rival.axes}


def test_clicks_are_chosen_by_their_log_loss():
    table = without_test(small.clicks())
    quality = resident.validation(table, EvaluationConfig(), make_mesh())
    scorer = registry.RIVALS["fm"].open(Given(table))({"factors": 4, "penalty": 1.0})
    rows = table.splits["validation"]
    assert quality(scorer) == pytest.approx(-evaluate.evaluate_clicks(scorer, rows)["logloss"])


def test_a_rival_says_why_it_cannot_be_fitted(monkeypatch):
    table = small.rankings()
    ease = dataclasses.replace(registry.RIVALS["ease"], most_items=4)
    assert ease.why_not(table) == "5 items are more than 4, the most that it is fitted to"
    assert registry.RIVALS["ease"].why_not(table) == ""
    few = dataclasses.replace(RIVAL, most_rows=2)
    assert few.why_not(table).startswith("3 training rows are more than 2")
    missing = dataclasses.replace(RIVAL, library="no_such_library")
    assert missing.why_not(table) == (
        "the library no_such_library is not installed: pip install -e '.[bench]'"
    )
