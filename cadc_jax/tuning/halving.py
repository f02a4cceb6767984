"""Successive halving over a list of trials (Jamieson and Talwalkar 2016, arXiv 1502.07943).

All trials get a little of a resource, such as iterations or epochs. The best of them get more, the
best of these more again. Which settings a trial stands for, and what it costs, is the caller's
matter: any search with the same trials and rungs has the same budget.

The best trial of a rung may ask for others beside it (`extend`), so that a grid whose edge is best
grows, and the distance between its points can shrink.
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from cadc_jax.tuning.trials import Log, Result, Trial


class Rung(NamedTuple):
    """A level of the search.

    Attributes:
      resource: what each of its trials has been given in all; larger than in the rung before.
      keep: number of trials that reach the next rung.
    """

    resource: int
    keep: int


# (trial, resource, state of the same trial with a lower resource, or None) -> score, state
Evaluate = Callable[[Trial, int, Any], tuple[float, Any]]
# (best trial of the rung, all trials so far) -> trials that might be better
Extend = Callable[[Trial, Collection[Trial]], Sequence[Trial]]


def rungs(most: int, trials: int) -> list[Rung]:
    """Three rungs, whose resource doubles up to `most`; fewer if it cannot be halved as often.

    The first one hands on a third of the trials, the second one an eighth. Each keeps more than a
    geometric series would, as little of the resource says little about trials that are close.
    """
    found = [Rung(most, 1)]
    for share in (8, 3):
        if found[0].resource > 1 and (keep := -(-trials // share)) < trials:
            found.insert(0, Rung(-(-found[0].resource // 2), keep))
    return found


def search(
    trials: Sequence[Trial],
    levels: Sequence[Rung],
    evaluate: Evaluate,
    log: Log,
    *,
    extend: Extend | None = None,
    most: int = 0,
) -> Result:
    """The best trial, by successive halving; the same arguments give the same trials.

    Args:
      trials: the first rung's, without repeats; of equals the earlier one is better.
      levels: the rungs, lowest resource first.
      evaluate: scores a trial. It may continue from the state that it returned for a lower
        resource; the result must be the same as without.
      log: takes the results. Those it holds already are not evaluated again.
      extend: proposes new trials, given the best one of a rung and all that were tried. They join
        that rung, and then it is asked again, until it proposes none.
      most: number of trials, at which `extend` is not asked any more. Each rung may add an equal
        part of what is left after the first trials.

    Returns:
      The best result of the last rung.
    """
    known = dict.fromkeys(trials)  # in order, trial -> nothing
    alive, states = list(known), dict[Trial, Any]()
    ranked: list[Result] = []
    for number, level in enumerate(levels, 1):
        room = len(trials) + max(0, most - len(trials)) * number // len(levels)
        ranked = [_result(x, level.resource, evaluate, log, states) for x in alive]
        while extend is not None and len(known) < room:
            best = _best_first(ranked)[0].trial
            new = list(extend(best, known))[: room - len(known)]
            if not new:
                break
            known |= dict.fromkeys(new)
            ranked += [_result(x, level.resource, evaluate, log, states) for x in new]
        ranked = _best_first(ranked)
        alive = [x.trial for x in ranked[: level.keep]]
        states = {trial: states[trial] for trial in alive if trial in states}
    return ranked[0]


def _best_first(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda x: -x.score)  # stable


def _result(
    trial: Trial, resource: int, evaluate: Evaluate, log: Log, states: dict[Trial, Any]
) -> Result:
    """The result of a trial, found in the log or evaluated; `states` gets what it ended in."""
    found = log.find(trial, resource)
    if found is None:
        start = time.perf_counter()
        score, states[trial] = evaluate(trial, resource, states.get(trial))
        found = Result(trial, resource, score, time.perf_counter() - start)
        log.add(found)
    return found
