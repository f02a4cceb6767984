"""Cells of a study: each is a model or a rival, trained and tested on one data set."""

import dataclasses

from cadc_jax.run.arms import ARMS as ALL_ARMS
from cadc_jax.run.arms import BASELINES, POPULARITY, TRAINED

EASE, ITEM_KNN, SLIM, RP3BETA, MF_EASE = "ease", "item_knn", "slim", "rp3beta", "mf_ease"
LOGISTIC, FM, LIGHTGBM = "logistic", "fm", "lightgbm"
FOLD_IN = "fold_in"
OF_CLICKS = (LOGISTIC, FM, LIGHTGBM)
OF_RANKINGS = (EASE, ITEM_KNN, SLIM, RP3BETA, MF_EASE, FOLD_IN)
RIVALS = (*BASELINES, *OF_RANKINGS, *OF_CLICKS)
ARMS = tuple(TRAINED)
# Arms whose result depends on the seed.
SEEDED = frozenset(ALL_ARMS) - {POPULARITY.name}
OF_SAMPLES = tuple(name for name, arm in TRAINED.items() if arm.takes_sample)
SEARCHED = {  # rivals whose settings are searched, and their names for people
    EASE: "EASE",
    ITEM_KNN: "item neighbours",
    SLIM: "SLIM",
    RP3BETA: "RP3beta",
    MF_EASE: "MF + EASE",
    LOGISTIC: "logistic regression",
    FM: "factorisation machine",
    LIGHTGBM: "LightGBM",
}
LABELS = {
    **{name: arm.label for name, arm in BASELINES.items()},
    **SEARCHED,
    **{name: arm.label for name, arm in TRAINED.items()},
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Names one result of a study.

    Attributes:
      data: name of the configuration.
      arm: one of ARMS, or of RIVALS without FOLD_IN, which is a selection.
      model: a key of `configuration.MODELS`; '' for arms without a network.
      selection: 'uniform', one of `selection.RULES`, or FOLD_IN; '' for arms on all rows.
      rate: share of the training rows that are kept; 1 for arms on all rows.
      seed: of everything random, except the data and its splits.
      variant: name of the values that a sweep sets; '' without a sweep.
    """

    data: str
    arm: str
    model: str = ""
    selection: str = ""
    rate: float = 1.0
    seed: int = 0
    variant: str = ""


class SkipCell(Exception):
    """A cell cannot be computed from this data or on this machine. The message says why."""
