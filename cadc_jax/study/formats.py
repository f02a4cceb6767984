"""Figures of the tables as text."""

import math

from cadc_jax.study import paired
from cadc_jax.study.bootstrap import Interval
from cadc_jax.study.data_report import Group

Table = list[list[str]]  # lines; the first one is the header


class Marked(str):
    """Text in the colour of a verdict: 'better', 'worse' or none, ''."""

    verdict: str = ""


def marked(text: str, verdict: str) -> Marked:
    """Text in the colour of a verdict."""
    made = Marked(text)
    made.verdict = verdict
    return made


def spread(group: Group, name: str) -> str:
    """Mean and standard deviation over seeds."""
    values = group.column(name)
    if not len(values):
        return "-"
    mean, sd = paired.mean_and_sd(values)
    return f"{mean:.4f}" + ("" if math.isnan(sd) else f" ± {sd:.4f}")


def interval(difference: Interval | None, low_is_good: bool = False) -> str:
    """A difference with its interval; '-' if there is none, as of the AUC of equal labels."""
    if difference is None or math.isnan(difference.mean):
        return "-"
    mean, low, high = (round(x, 4) + 0.0 for x in difference[:3])  # no -0.0000
    verdict = "" if difference.verdict == "=" else difference.verdict
    if low_is_good and verdict:
        verdict = "worse" if verdict == "better" else "better"
    return marked(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]", verdict)
