"""Cells of the study: each is a model or a baseline, trained and tested on one data set."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of the study.

    The sizes are approximate. They give the first estimate of the time.

    Attributes:
      config: name of its bundled configuration.
      needs: a file inside the folder of raw data; '' if the rows are synthetic.
      rows: training rows.
      pairs: pairs of a test user and an item in the full ranking; 0 for clicks.
    """

    config: str
    needs: str
    rows: int
    pairs: int


DATA = {
    "ml-100k": DataSet("movielens_100k", "ml-100k/u.data", 98_000, 1_600_000),
    "ml-1m": DataSet("movielens_1m_ncf", "ml-1m-implicit/train.csv.gz", 988_000, 22_000_000),
    "epinions": DataSet("epinions", "epinions/interactions.csv.gz", 600_000, 280_000_000),
    "synthetic": DataSet("criteo", "", 157_000, 0),
}
ARMS = ("random", "trainable", "frozen")
RIVALS = ("ease", "item_knn")
BASELINES = ("popularity", "mf_alone", *RIVALS, "full", "fold_in")


@dataclasses.dataclass(frozen=True)
class Cell:
    """Names one result of the study.

    Attributes:
      data: a key of DATA.
      arm: one of ARMS, or of BASELINES without 'fold_in', which is a selection.
      model: a key of `configuration.MODELS`; '' for arms without a network.
      selection: 'uniform', one of `selection.RULES`, or 'fold_in'; '' for arms on all rows.
      rate: share of the training rows that are kept; 1 for arms on all rows.
      seed: of everything random, except the data and its splits.
    """

    data: str
    arm: str
    model: str = ""
    selection: str = ""
    rate: float = 1.0
    seed: int = 0


class SkipCell(Exception):
    """A cell cannot be computed from this data or on this machine. The message says why."""
