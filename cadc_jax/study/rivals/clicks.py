"""Rivals that predict clicks from ids, content and context."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.data import sampling
from cadc_jax.data.table import Columns, Features, Table
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.study.rivals import fm
from cadc_jax.study.rivals.fm import FMConfig
from cadc_jax.study.rivals.given import Fit, Given, Settings
from cadc_jax.study.rivals.one_hot import Encoded, OneHot

FOLDS = 5  # the click rate of an id, for a training row, is of the other folds
PRIOR_ROWS = 10  # of the mean click rate that smooth an id's
TREES = 2000  # at most
PATIENCE = 50  # trees without a better validation
_ITERATIONS = 100  # of L-BFGS, at most
_LONGEST_BAG = 256  # values of a set that become columns of their own
_FOLD_SEED = 2


def scorer_of_rows(logits: Callable[[Columns], np.ndarray | jax.Array]) -> Scorer:
    """The scorer of a function from rows, one item each, to logits [N]."""

    def score(batch):
        item = np.asarray(batch["item"])
        shape = len(batch["user"]), item.shape[1]
        rows = {
            name: np.repeat(np.asarray(column), shape[1], axis=0)
            for name, column in batch.items()
            if name != "item"
        }
        rows["item"] = np.broadcast_to(item, shape).ravel()
        return jnp.asarray(logits(rows), jnp.float32).reshape(shape)

    return Scorer(score)


def logistic(given: Given) -> Fit:
    """Logistic regression on all features, one-hot.

    Minimises the sum of the rows' log losses, plus halves of `id_penalty` times the squared weights
    of user and item ids and of `penalty` times all others but the intercept.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    encode, train = OneHot(given.table), given.table.splits["train"]
    matrix, labels = encode(train).matrix(encode.size), np.asarray(train["label"])

    def fit(settings: Settings) -> Scorer:
        penalties = np.full(encode.size, settings["penalty"])
        penalties[: encode.ids] = settings["id_penalty"]
        scale = penalties**-0.5  # one penalty for all weights, in these units
        model = LogisticRegression(C=1.0, max_iter=_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(matrix.multiply(scale).tocsr(), labels)
        weights, intercept = scale * model.coef_[0], model.intercept_[0]
        return scorer_of_rows(lambda rows: encode(rows).matrix(encode.size) @ weights + intercept)

    return fit


def factorization_machine(given: Given) -> Fit:
    """A factorisation machine on the same vectors; see `fm`."""
    encode, splits = OneHot(given.table), given.table.splits

    def labelled(name: str) -> tuple[Encoded, np.ndarray]:
        return encode(splits[name]), np.asarray(splits[name]["label"])

    train, validation = labelled("train"), labelled("validation")

    def fit(settings: Settings) -> Scorer:
        config, key = FMConfig(**settings), jax.random.key(0)
        params = fm.fit(encode.size, train, validation, config, key)
        return scorer_of_rows(lambda rows: fm.logits(params, *encode(rows)))

    return fit


def boosted_trees(given: Given) -> Fit:
    """Gradient-boosted trees of the library LightGBM, as many as validate best.

    Their columns are ids, content, context, and the click rates and counts of user and item.
    """
    import lightgbm

    columns, splits = TreeColumns(given.table), given.table.splits
    fixed: dict[str, Any] = {"verbosity": -1, "feature_pre_filter": False}
    fixed["num_threads"] = 1  # several wait for each other, where others use the cores
    train = lightgbm.Dataset(
        columns(splits["train"], of_training=True),
        np.asarray(splits["train"]["label"]),
        categorical_feature=columns.categorical,
        params=fixed,
        free_raw_data=False,
    )
    validation = train.create_valid(
        columns(splits["validation"]), np.asarray(splits["validation"]["label"])
    )
    fixed |= {"objective": "binary", "deterministic": True, "force_row_wise": True, "seed": 0}

    def fit(settings: Settings) -> Scorer:
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        model = lightgbm.train(
            fixed | dict(settings), train, TREES, valid_sets=[validation], callbacks=[stop]
        )
        return scorer_of_rows(
            lambda rows: model.predict(
                columns(rows), raw_score=True, num_iteration=model.best_iteration
            )
        )

    return fit


class TreeColumns:
    """Rows as a matrix for trees.

    Attributes:
      categorical: columns that hold ids.
    """

    def __init__(self, table: Table):
        """Counts the clicks of users and items in the training rows.

        Args:
          table: a prepared table of clicks.
        """
        schema, train = table.schema, table.splits["train"]
        self._context = schema.context
        self._user = _wide(table.users, schema.user_content)
        self._item = _wide(table.items, schema.item_content)
        labels = np.asarray(train["label"])
        self._of_user = ClickRates(np.asarray(train["user"]), labels, schema.num_users)
        self._of_item = ClickRates(np.asarray(train["item"]), labels, schema.num_items)
        is_id = [True, True, *[False] * 4]  # ids, then rates and counts
        for features, content in (
            (schema.user_content, self._user),
            (schema.item_content, self._item),
            (schema.context, _wide(train, schema.context)),
        ):
            ids = len(features.vocabulary_sizes)
            is_id += [True] * ids + [False] * (content.shape[1] - ids)
        self.categorical = np.flatnonzero(is_id).tolist()

    def __call__(self, rows: Columns, of_training: bool = False) -> np.ndarray:
        """The rows [N, columns] float32.

        Args:
          rows: of any split.
          of_training: whether they are all the training rows, in order: the click rates of a row
            then come from other folds, as the row's own label would be known by them.
        """
        user, item = (np.asarray(rows[name]) for name in ("user", "item"))
        if of_training:
            rates = [*self._of_user.of_other_folds(), *self._of_item.of_other_folds()]
        else:
            rates = [*self._of_user.of_all(user), *self._of_item.of_all(item)]
        content = (self._user[user], self._item[item], _wide(rows, self._context))
        return np.column_stack([user, item, *rates, *content]).astype(np.float32)


class ClickRates:
    """Smoothed click rates and counts of ids in the training rows."""

    def __init__(self, ids: np.ndarray, labels: np.ndarray, size: int):
        """Counts rows and clicks by fold.

        Args:
          ids: [N] of the training rows.
          labels: [N].
          size: how many ids there are.
        """
        self._ids = ids
        self._fold = (sampling.mix64(np.arange(len(ids)), _FOLD_SEED) % FOLDS).astype(np.int64)
        place = self._fold * size + ids
        self._rows, self._clicks = (
            np.bincount(place, weights, FOLDS * size).reshape(FOLDS, size)
            for weights in (np.ones(len(ids)), labels)
        )
        self._mean = float(labels.mean())

    def of_other_folds(self) -> tuple[np.ndarray, np.ndarray]:
        """Rate and count of each training row's id in the folds without the row, [N] each.

        The count is scaled up, as these folds have a part of the rows.
        """
        rows, clicks = (x.sum(0) - x for x in (self._rows, self._clicks))
        own = self._fold, self._ids
        rates, counts = self._smoothed(rows[own], clicks[own])
        return rates, counts * FOLDS / (FOLDS - 1)

    def of_all(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rate and count of ids [N] in all training rows, [N] each."""
        return self._smoothed(self._rows.sum(0)[ids], self._clicks.sum(0)[ids])

    def _smoothed(self, rows: np.ndarray, clicks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (clicks + PRIOR_ROWS * self._mean) / (rows + PRIOR_ROWS), rows


def _wide(columns: Columns, features: Features) -> np.ndarray:
    """Features as columns: ids first, then dense ones, then 0 or 1 for each value of a set.

    Sets of which there are more than _LONGEST_BAG values are left out.
    """
    parts = [np.asarray(columns["categorical"]), np.asarray(columns["dense"])]
    for nth, size in enumerate(features.bag_sizes):
        if size <= _LONGEST_BAG:
            bag = np.asarray(columns["bags"])[:, nth]  # [I, L]
            parts.append((bag[:, :, None] == np.arange(size)).any(1))
    return np.concatenate(parts, axis=1, dtype=np.float32)
