"""Which rows train, validate and test."""

import dataclasses

import numpy as np

from cadc_jax.data import sampling
from cadc_jax.data.raw import TEST, TRAIN, VALIDATION, RawTable
from cadc_jax.errors import ConfigError

RULES = ("leave_one_out", "order", "time", "random", "given")
BY_PLACE = ("order", "random")  # a row's split is a function of its place among all rows


def assign(raw: RawTable, rule: str, validation: float, test: float, seed: int) -> np.ndarray:
    """The split of each row.

    Rules:
      leave_one_out: each user's last interaction tests, the one before validates (ties by row
        order); without timestamps a seeded order stands in for time. Users with fewer than three
        interactions only train.
      order, time: the last `test` share of all rows tests, the `validation` share before it
        validates, in the order of the source or of the timestamp.
      random: each row tests or validates with these probabilities, by a seeded hash of its place.
      given: the data's own; without its own validation rows, one seeded training row of each test
        user validates (if another one is left to train).

    Returns:
      [N] int8 of TRAIN, VALIDATION, TEST.

    Raises:
      ConfigError: if the rule is unknown or needs what the data lacks.
    """
    if rule == "leave_one_out":
        return _leave_one_out(raw, seed)
    if rule == "given":
        return _given(raw, seed)
    if rule not in RULES:
        raise ConfigError(f"data.split must be one of {', '.join(RULES)}; not '{rule}'")
    rows = raw.report.rows
    if rule in BY_PLACE:
        return by_place(np.arange(rows), rows, rule, validation, test, seed)
    _check_shares(validation, test)
    if raw.timestamp is None:
        raise ConfigError("data.split='time' needs timestamps, which this data does not have")
    fold = np.empty(rows, np.int8)
    order = np.argsort(raw.timestamp, kind="stable")
    fold[order] = by_place(np.arange(rows), rows, "order", validation, test, seed)
    return fold


def by_place(
    places: np.ndarray, rows: int, rule: str, validation: float, test: float, seed: int
) -> np.ndarray:
    """The split of the rows at `places` [n] of `rows` in all, by a rule of BY_PLACE: [n] int8.

    Raises:
      ConfigError: if the shares leave no rows to train.
    """
    _check_shares(validation, test)
    if rule == "order":
        from_last = rows - 1 - places
        tests = from_last < round(rows * test)
        held_out = from_last < round(rows * test) + round(rows * validation)
    else:
        tests = sampling.keep(places, test, seed)
        held_out = sampling.keep(places, test + validation, seed)  # the rates nest
    return np.where(tests, TEST, np.where(held_out, VALIDATION, TRAIN)).astype(np.int8)


def merge_repeats(raw: RawTable) -> RawTable:
    """One row a (user, item) pair: the latest of the repeats, with the sum of their values.

    Without this a held-out item could also be among the user's training items.
    """
    user = np.unique(_needed(raw, "user"), return_inverse=True)[1]
    item = np.unique(_needed(raw, "item"), return_inverse=True)[1]
    rows = len(user)
    pair = np.unique(user * (int(item.max()) + 1) + item, return_inverse=True)[1]
    if pair.max() + 1 == rows:
        return raw
    age = (
        np.arange(rows)
        if raw.timestamp is None
        else np.argsort(np.argsort(raw.timestamp, kind="stable"))
    )
    order = np.lexsort((age, pair))
    last = order[np.append(pair[order][1:] != pair[order][:-1], True)]
    kept = np.sort(last)
    value = np.bincount(pair, weights=raw.value).astype(np.float32)[pair[kept]]
    columns = {
        name: getattr(raw, name)[kept]
        for name in ("user", "item", "label", "timestamp", "fold")
        if getattr(raw, name) is not None
    }
    for name in ("dense", "categorical"):
        columns[name] = {key: values[kept] for key, values in getattr(raw, name).items()}
    if raw.negatives is not None:
        columns["negatives"] = raw.negatives[np.isin(np.flatnonzero(raw.fold == TEST), kept)]
    return dataclasses.replace(raw, value=value, **columns)


def _check_shares(validation: float, test: float) -> None:
    if validation <= 0 or test <= 0 or validation + test >= 1:
        raise ConfigError(
            "data.validation and data.test must be positive shares that leave rows to train; "
            f"not {validation} and {test}"
        )


def _leave_one_out(raw: RawTable, seed: int) -> np.ndarray:
    user, when = _needed(raw, "user"), raw.timestamp
    if when is None:
        when = sampling.mix64(np.arange(len(user)), seed)
    from_last = _places_from_last(user, when)
    _, inverse, count = np.unique(user, return_inverse=True, return_counts=True)
    fold = np.full(len(user), TRAIN, np.int8)
    enough = count[inverse] >= 3
    fold[enough & (from_last == 0)] = TEST
    fold[enough & (from_last == 1)] = VALIDATION
    return fold


def _given(raw: RawTable, seed: int) -> np.ndarray:
    if raw.fold is None:
        raise ConfigError("data.split='given' needs data with a split of its own (a test file)")
    if np.any(raw.fold == VALIDATION):
        return raw.fold
    fold = raw.fold.copy()
    train = np.flatnonzero(fold == TRAIN)
    users = _needed(raw, "user")
    user = users[train]
    _, inverse, count = np.unique(user, return_inverse=True, return_counts=True)
    chosen = _places_from_last(user, sampling.mix64(train, seed)) == 0
    chosen &= (count[inverse] >= 2) & np.isin(user, users[fold == TEST])
    fold[train[chosen]] = VALIDATION
    return fold


def _needed(raw: RawTable, name: str) -> np.ndarray:
    """A column that a rule cannot do without; raises ConfigError if the data lacks it."""
    column = getattr(raw, name)
    if column is None:
        raise ConfigError(f"the data names no {name}, which this split needs: name its column")
    return column


def _places_from_last(user: np.ndarray, when: np.ndarray) -> np.ndarray:
    """For each row, how many rows of its user come after it (ties by row order)."""
    if not len(user):
        return np.zeros(0, np.int64)
    order = np.lexsort((np.arange(len(user)), when, user))
    is_last = np.append(user[order][1:] != user[order][:-1], True)
    place = np.arange(len(user))
    end = place[is_last][np.searchsorted(place[is_last], place)]
    from_last = np.empty(len(user), np.int64)
    from_last[order] = end - place
    return from_last
