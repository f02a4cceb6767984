"""How factors validate: in the metric that a run's choices are made by."""

import dataclasses
from typing import NamedTuple

import numpy as np

from cadc_jax import configuration
from cadc_jax.data.raw import SPLITS, VALIDATION
from cadc_jax.data.table import Table
from cadc_jax.evaluation import evaluate, resident
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.run.context import Run, training_mesh


class Validation(NamedTuple):
    """A metric on the validation split.

    Attributes:
      metric: its name, such as 'ndcg@10', 'ndcg@10/1+99' or 'auc'.
      quality: its value for a scorer; higher is better.
    """

    metric: str
    quality: resident.Quality


def tells(table: Table) -> bool:
    """Whether models can differ on the validation split: of clicks, if it has both labels."""
    if table.schema.task != "click":
        return True
    label = np.asarray(table.splits[SPLITS[VALIDATION]]["label"])
    return bool(label.min() < label.max())


def of_table(run: Run, table: Table, max_users: int = 0) -> Validation:
    """The AUC of clicks, or the NDCG of rankings at the first cut-off.

    Networks are chosen by the log loss of clicks. Of factors it says little: a network scales them.

    Args:
      run: what the stages share.
      table: the prepared table, whose validation split is put on the devices.
      max_users: users of the full ranking at most, drawn at random; 0 for as many as configured.
        Clicks have to have both labels; see `tells`.
    """
    options = configuration.evaluation_config(run.config)
    if table.schema.task == "click":
        rows = evaluate.thinned(table.splits[SPLITS[VALIDATION]], options.max_rows)

        def auc(scorer: Scorer) -> float:
            return evaluate.evaluate_clicks(scorer, rows)["auc"]

        return Validation("auc", auc)
    most = min(filter(None, (max_users, options.max_users)), default=0)
    options = dataclasses.replace(options, max_users=most)
    negatives = table.splits[SPLITS[VALIDATION]]["negatives"].shape[1]
    protocol = "" if options.ranking == "full" else f"/1+{negatives}"
    quality = resident.validation(table, options, training_mesh(run))
    return Validation(f"ndcg@{options.k[0]}{protocol}", quality)
