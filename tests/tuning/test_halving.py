import pytest

from cadc_jax.tuning.halving import Rung, rungs, search
from cadc_jax.tuning.trials import Log


class Hill:
    """Trials of one number, best at 5, whose order is clear from the start; counts its work."""

    def __init__(self, top=5.0):
        self.top, self.calls = top, []

    def __call__(self, trial, resource, state):
        self.calls.append((trial[0], resource, state))
        return resource - abs(trial[0] - self.top), ("state of", trial[0], resource)


TRIALS = [(float(x),) for x in (0, 2, 4, 8, 16)]
LEVELS = [Rung(2, 3), Rung(4, 2), Rung(8, 1)]


def test_each_rung_gives_the_best_trials_more():
    hill, log = Hill(), Log(["x"])
    best = search(TRIALS, LEVELS, hill, log)
    assert (best.trial, best.resource, best.score) == ((4.0,), 8, 7.0)
    assert [(x, resource) for x, resource, _ in hill.calls] == [
        *((x, 2) for (x,) in TRIALS),
        *((4.0, 4), (2.0, 4), (8.0, 4)),
        *((4.0, 8), (2.0, 8)),
    ]
    assert [result.trial[0] for result in log.results] == [x for x, _, _ in hill.calls]


def test_a_trial_goes_on_from_its_own_state():
    hill = Hill()
    search(TRIALS, LEVELS, hill, Log(["x"]))
    states = {(x, resource): state for x, resource, state in hill.calls}
    assert states[4.0, 2] is None
    assert states[4.0, 4] == ("state of", 4.0, 2)
    assert states[4.0, 8] == ("state of", 4.0, 4)


def test_of_equals_the_earlier_is_better():
    best = search(TRIALS, LEVELS, lambda trial, resource, state: (0.0, None), Log(["x"]))
    assert best.trial == TRIALS[0]


def test_the_search_goes_on_beyond_the_best_trial_and_stays_within_its_number():
    def extend(trial, known):
        return [near for near in ((trial[0] - 1,), (trial[0] + 1,)) if near not in known]

    hill = Hill(top=20.0)
    best = search(TRIALS, LEVELS, hill, Log(["x"]), extend=extend, most=50)
    assert best.trial == (20.0,)
    tried = {x for x, _, _ in hill.calls}
    assert tried == {0, 2, 4, 8, *range(15, 22)}


def test_each_rung_has_its_share_of_the_trials_beyond_the_first():
    def extend(trial, known):
        return [near for near in ((trial[0] + 1,),) if near not in known]

    hill = Hill(top=100.0)
    best = search(TRIALS, LEVELS, hill, Log(["x"]), extend=extend, most=11)
    new = [resource for x, resource, state in hill.calls if x > 16 and state is None]
    assert new == [2, 2, 4, 4, 8, 8]
    assert best.trial == (22.0,)


def test_a_search_that_was_ended_resumes_after_its_last_result(tmp_path):
    whole, file = Hill(), tmp_path / "trials.csv"
    expected = search(TRIALS, LEVELS, whole, Log(["x"]))

    class Ends(Hill):
        def __call__(self, trial, resource, state):
            if len(self.calls) == 6:
                raise KeyboardInterrupt
            return super().__call__(trial, resource, state)

    with pytest.raises(KeyboardInterrupt):
        search(TRIALS, LEVELS, Ends(), Log(["x"], file))
    rest = Hill()
    found = search(TRIALS, LEVELS, rest, Log(["x"], file))
    assert found[:3] == expected[:3]
    assert [call[:2] for call in rest.calls] == [call[:2] for call in whole.calls[6:]]
    assert rest.calls[0][2] is None  # states are not kept: such a trial starts from the beginning


@pytest.mark.parametrize(
    ("most", "trials", "expected"),
    [
        (15, 12, [Rung(4, 4), Rung(8, 2), Rung(15, 1)]),
        (16, 48, [Rung(4, 16), Rung(8, 6), Rung(16, 1)]),
        (15, 3, [Rung(4, 1), Rung(8, 1), Rung(15, 1)]),
        (15, 1, [Rung(15, 1)]),
        (2, 12, [Rung(1, 2), Rung(2, 1)]),
        (1, 12, [Rung(1, 1)]),
    ],
)
def test_resources_double_up_to_the_most(most, trials, expected):
    assert rungs(most, trials) == expected
