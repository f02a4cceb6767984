"""Assigns rows to training, validation and test, and merges repeated interactions before that."""

import dataclasses
from typing import Any

import numpy as np

from cadc_jax.data import sampling, vocabulary
from cadc_jax.data.raw import FOLD_IN, TEST, TRAIN, VALIDATION, RawTable, as_values, take
from cadc_jax.errors import ConfigError

RULES = ("leave_one_out", "last_share", "order", "time", "random", "users", "given")
BY_SHARE = ("last_share", "order", "time", "random", "users")  # use the shares
BY_PLACE = ("order", "random")  # a row's split is a function of its place among all rows
FOLD_IN_SHARE = 0.8  # of the rows of a held-out user, as in Liang et al. 2018


def assign(
    raw: RawTable, rule: str, validation: float, test: float, seed: int, least: int = 1
) -> np.ndarray:
    """The split of each row.

    Args:
      raw: N rows.
      rule: one of RULES:
        leave_one_out: each user's last interaction tests and the one before it validates (ties by
          row order). Without timestamps a seeded order replaces time. Users with fewer than three
          interactions only train.
        last_share: the last `test` share of each user's rows tests and the `validation` share
          before it validates, both rounded; the first row always trains. Time as above.
        order, time: the last `test` share of all rows tests and the `validation` share before it
          validates, in the order of the source or of the timestamps.
        random: each row tests or validates with these probabilities, by a seeded hash of its place.
        users: users are held out whole ('strong generalisation', Liang et al. 2018, arXiv
          1802.05814): a `test` share of them tests and a `validation` share validates, drawn by the
          seed. A fifth of the rows of such a user, at least one, is held out. The others are
          FOLD_IN, from which the user's vector is computed. Users whose FOLD_IN rows would be
          fewer than `least` only train. No draw depends on the order of rows.
        given: the split of the data. If it has no validation rows, one seeded training row of each
          test user validates, provided that the user keeps another one to train on.
      validation: share of validation rows (users: of users) in (0, 1), for the rules of BY_SHARE.
      test: share of test rows (users: of users) in (0, 1), for the rules of BY_SHARE.
      seed: seed of the random choices.
      least: FOLD_IN rows that a held-out user needs, at least 1.

    Returns:
      [N] int8 of TRAIN, VALIDATION, TEST and, by users, FOLD_IN.

    Raises:
      ConfigError: if the data lacks what the rule needs.
      ValueError: if the rule is unknown.
    """
    if rule == "leave_one_out":
        return _leave_one_out(raw, seed)
    if rule == "last_share":
        return _last_share(raw, validation, test, seed)
    if rule == "users":
        return _by_users(raw, validation, test, seed, least)
    if rule == "given":
        return _given(raw, seed)
    places = np.arange(raw.report.rows)
    if rule == "time":
        if raw.timestamp is None:
            raise ConfigError("data.split='time' needs timestamps, which this data does not have")
        places[np.argsort(raw.timestamp, kind="stable")] = np.arange(len(places))
        rule = "order"  # of these places
    return by_place(places, len(places), rule, validation, test, seed)


def by_place(
    places: np.ndarray, rows: int, rule: str, validation: float, test: float, seed: int
) -> np.ndarray:
    """The split of some rows, from their places alone.

    Args:
      places: [n] places among all rows, from 0.
      rows: number of all rows.
      rule: one of BY_PLACE.
      validation: share of validation rows.
      test: share of test rows.
      seed: seed of the rule 'random'.

    Returns:
      [n] int8 of TRAIN, VALIDATION, TEST.

    Raises:
      ValueError: if the rule is another one.
    """
    if rule == "order":
        from_last = rows - 1 - places
        tests = from_last < round(rows * test)
        held_out = from_last < round(rows * test) + round(rows * validation)
    elif rule == "random":
        tests = sampling.keep(places, test, seed)
        held_out = sampling.keep(places, test + validation, seed)  # includes `tests`: rates nest
    else:
        raise ValueError(f"{rule!r} is not a rule of {', '.join(BY_PLACE)}")
    return np.where(tests, TEST, np.where(held_out, VALIDATION, TRAIN)).astype(np.int8)


def merge_repeats(raw: RawTable) -> RawTable:
    """Keeps one row for each (user, item) pair: its latest one, with the sum of all its values.

    Otherwise a held-out item could also be among the user's training items.

    Raises:
      ConfigError: if the rows name no user or no item.
    """
    kept, pair = _latest_of_pairs(raw)
    if len(kept) == len(pair):
        return raw
    value = np.bincount(pair, weights=raw.value).astype(np.float32)[pair[kept]]
    columns: dict[str, Any] = {
        name: take(getattr(raw, name), kept)
        for name in ("user", "item", "label", "timestamp", "fold")
        if getattr(raw, name) is not None
    }
    for name in ("dense", "categorical"):
        columns[name] = {key: take(values, kept) for key, values in getattr(raw, name).items()}
    if raw.negatives is not None:
        places = raw.negatives.places[np.isin(np.flatnonzero(raw.fold == TEST), kept)]
        columns["negatives"] = dataclasses.replace(raw.negatives, places=places)
    report = dataclasses.replace(raw.report, rows=len(kept))
    return dataclasses.replace(raw, report=report, value=value, **columns)


def _latest_of_pairs(raw: RawTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows [P] that are the latest of their (user, item) pair, and the pair of each row [N]."""
    user = np.unique(_needed(raw, "user"), return_inverse=True)[1]
    item = np.unique(_needed(raw, "item"), return_inverse=True)[1]
    pair = np.unique(user * (int(item.max()) + 1) + item, return_inverse=True)[1]
    age = np.arange(len(pair))
    if raw.timestamp is not None:
        age = np.argsort(np.argsort(raw.timestamp, kind="stable"))
    order = np.lexsort((age, pair))
    is_latest = np.append(pair[order][1:] != pair[order][:-1], True)
    return np.sort(order[is_latest]), pair


def _leave_one_out(raw: RawTable, seed: int) -> np.ndarray:
    from_last, count = _places_in_time(raw, seed)
    fold = np.full(len(count), TRAIN, np.int8)
    fold[(count >= 3) & (from_last == 0)] = TEST
    fold[(count >= 3) & (from_last == 1)] = VALIDATION
    return fold


def _last_share(raw: RawTable, validation: float, test: float, seed: int) -> np.ndarray:
    from_last, count = _places_in_time(raw, seed)
    tests = np.floor(count * test + 0.5)
    held_out = np.minimum(tests + np.floor(count * validation + 0.5), count - 1)
    fold = np.where(from_last < held_out, VALIDATION, TRAIN).astype(np.int8)
    fold[from_last < np.minimum(tests, held_out)] = TEST
    return fold


def _places_in_time(raw: RawTable, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row, how many rows of its user come after it, and how many the user has."""
    user, when = _needed(raw, "user"), raw.timestamp
    if when is None:
        when = sampling.mix64(np.arange(len(user)), seed)
    _, inverse, count = np.unique(user, return_inverse=True, return_counts=True)
    return _places_from_last(user, when), count[inverse]


def _by_users(raw: RawTable, validation: float, test: float, seed: int, least: int) -> np.ndarray:
    user, item = _ranks(raw, "user"), _ranks(raw, "item")
    count = np.bincount(user)
    held_out = np.maximum(1, np.floor((1 - FOLD_IN_SHARE) * count + 0.5))
    enough = np.flatnonzero(count - held_out >= max(1, least))
    drawn = enough[np.argsort(sampling.mix64(enough, seed), kind="stable")]
    tests, validates = round(test * len(drawn)), round(validation * len(drawn))
    fold_of_user = np.full(len(count), TRAIN, np.int8)
    fold_of_user[drawn[:tests]] = TEST
    fold_of_user[drawn[tests : tests + validates]] = VALIDATION
    fold = fold_of_user[user]
    # A seeded order of each user's items, which does not depend on the order of rows.
    order = sampling.mix64(user * (item.max(initial=0) + 1) + item, seed + 1)
    fold[(fold != TRAIN) & (_places_from_last(user, order) >= held_out[user])] = FOLD_IN
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
    """A column that a rule needs, as a number for each value; ConfigError if the data lacks it."""
    column = getattr(raw, name)
    if column is None:
        raise ConfigError(f"the data names no {name}, which this split needs: name its column")
    values = as_values(column)
    return (
        values if isinstance(values, np.ndarray) else values.dictionary_encode().indices.to_numpy()
    )


def _ranks(raw: RawTable, name: str) -> np.ndarray:
    """A column that a rule needs, as places among its sorted distinct values: [N] int64."""
    _needed(raw, name)
    values = as_values(getattr(raw, name))
    return vocabulary.of(values).ids(values).astype(np.int64)


def _places_from_last(user: np.ndarray, when: np.ndarray) -> np.ndarray:
    """For each row, how many rows of its user come after it (ties by row order): [N] int64."""
    if not len(user):
        return np.zeros(0, np.int64)
    order = np.lexsort((np.arange(len(user)), when, user))
    is_last = np.append(user[order][1:] != user[order][:-1], True)
    place = np.arange(len(user))
    end = place[is_last][np.searchsorted(place[is_last], place)]
    from_last = np.empty(len(user), np.int64)
    from_last[order] = end - place
    return from_last
