"""What people are told about a search."""

from collections.abc import Mapping, Sequence
from typing import Any

from cadc_jax.run.arms import POPULARITY
from cadc_jax.runtime.text import aligned
from cadc_jax.tuning.trials import Log, Result

SHOWN = 10  # trials in the table
RESOURCES = {"als": "iterations", "autoencoder": "passes", "sgd": "epochs"}


def describe(method: str, facts: Mapping[str, Any]) -> str:
    """A line that says what was searched and what won."""
    chosen = ", ".join(f"{method}.{name} = {x:g}" for name, x in facts["chosen"].items())
    return (
        f"{chosen}: the best of {facts['trials']} settings by validation, {facts['metric']} "
        f"{facts['validation']:.4f} (popularity {facts[POPULARITY.name]:.4f})"
    )


def loud(method: str, facts: Mapping[str, Any]) -> str:
    """A loud line if the winner is not better than popularity; otherwise nothing."""
    if facts["validation"] > facts[POPULARITY.name]:
        return ""
    return (
        f"*** {method}: none of {facts['trials']} settings validates better than popularity "
        f"({facts['metric']} {facts['validation']:.4f}, popularity {facts[POPULARITY.name]:.4f}): "
        "the factorisation does not fit this log; try a larger search (cadc tune --config=...) or "
        "another --config.factorization ***"
    )


def table(method: str, facts: Mapping[str, Any], log: Log) -> str:
    """The best trials beside popularity and the configured one, and the winner as lines to paste.

    Args:
      method: the factorisation.
      facts: of the stage `tune`, with whole=True in its plan.
      log: its trials.
    """
    header = [*log.names, RESOURCES[method], facts["metric"], "over popularity"]
    lines = [header, *(_line(x, facts) for x in _best(log.results)[:SHOWN])]
    lines += [_baseline("as configured", header, facts["configured"], facts)]
    lines += [_baseline(POPULARITY.name, header, facts[POPULARITY.name], facts)]
    names, *others = aligned(lines, right=range(1, len(header)))
    chosen = [f"config.{method}.{name} = {value!r}" for name, value in facts["chosen"].items()]
    better = facts["validation"] > facts["configured"]
    verdict = "The best one" if better else "Nothing is better than what is configured"
    verdict += ", as lines of a configuration:"
    return "\n".join(
        [f"{method}: {facts['trials']} settings, by validation", ""]
        + [
            names,
            "-" * len(names),
            *others,
            "",
            verdict,
            "",
            *chosen,
        ]
    )


def _best(results: Sequence[Result]) -> list[Result]:
    """The last result of each trial: those with the most of the resource first, by score."""
    last = {x.trial: x for x in sorted(results, key=lambda x: x.resource)}
    return sorted(last.values(), key=lambda x: (-x.resource, -x.score))


def _line(result: Result, facts: Mapping[str, Any]) -> list[str]:
    settings = [f"{value:g}" for value in result.trial]
    return [*settings, str(result.resource), *_score(result.score, facts)]


def _baseline(
    name: str, header: Sequence[str], score: float, facts: Mapping[str, Any]
) -> list[str]:
    return [name, *["" for _ in header[1:-2]], *_score(score, facts)]


def _score(score: float, facts: Mapping[str, Any]) -> list[str]:
    return [f"{score:.4f}", f"{score - facts[POPULARITY.name]:+.4f}"]
