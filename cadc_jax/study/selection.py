"""Rules that choose as many training rows as the uniform rule does, but others.

    per_user            uniform for each user: every user keeps the same share of rows
    popular             rows of popular items are more likely: weight = training rows of the item
    inverse_propensity  rows of rare items are more likely: weight = 1 / training rows of the item
    recent              the latest rows
    hardest             the rows with the highest loss of a proxy trained on all rows; here that is
                        the factorisation (SVP-CF: Sachdeva, Wu and McAuley, arXiv 2201.04768)

Each returns the ids of the kept rows in ascending order. The seed and the arguments determine them.
"""

import numpy as np

from cadc_jax.data import sampling

RULES = ("per_user", "popular", "inverse_propensity", "recent", "hardest")
HIDDEN_USERS = 0.05  # share of the users that a factorisation does not see
_HIDDEN_SEED = 1 << 20  # added to the seed, which alone chooses the rows of the uniform sample


def choose(
    rule: str,
    count: int,
    seed: int,
    user: np.ndarray,
    item: np.ndarray,
    time: np.ndarray | None,
    loss: np.ndarray | None,
) -> np.ndarray:
    """The rows that a rule keeps.

    Args:
      rule: one of RULES.
      count: rows to keep.
      seed: of the rules that draw at random.
      user: [N] int32, user of each training row.
      item: [N] int32, item of each training row.
      time: [N], time of each training row; needed by 'recent'.
      loss: [N], loss of the proxy on each training row; needed by 'hardest'.

    Returns:
      [count] int64, ascending.
    """
    if rule == "per_user":
        return per_user(user, count, seed)
    if rule == "popular":
        return weighted(np.bincount(item)[item], count, seed)
    if rule == "inverse_propensity":
        return weighted(1 / np.bincount(item)[item], count, seed)
    if rule == "recent":
        assert time is not None
        return recent(time, count)
    assert rule == "hardest" and loss is not None
    return hardest(loss, count)


def per_user(user: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The same share of each user's rows, up to one row.

    Users are put in random order, and so are the rows of each. Then every n-th row is kept.

    Args:
      user: [N] int32, user of each row.
      count: rows to keep.
      seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    place_of_user = rng.permutation(user.max() + 1)
    order = np.lexsort((rng.random(len(user)), place_of_user[user]))
    stops = (np.arange(count) + rng.random()) * len(user) / count
    return np.sort(order[stops.astype(np.int64)])


def weighted(weight: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows drawn one after another, without replacement, in proportion to a weight.

    Each row gets an exponential waiting time whose rate is its weight, and the shortest are kept.
    That is the same draw (Efraimidis and Spirakis, 2006).

    Args:
      weight: [N], positive.
      count: rows to keep.
      seed: of all draws.
    """
    waiting = np.random.default_rng(seed).exponential(size=len(weight)) / weight
    return _first(np.argsort(waiting, kind="stable"), count)


def recent(time: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows with the latest [N] time; among equal ones, those later in the log."""
    return _first(np.argsort(time, kind="stable")[::-1], count)


def hardest(loss: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows with the highest [N] loss; among equal ones, those earlier in the log."""
    return _first(np.argsort(-loss, kind="stable"), count)


def hidden_users(num_users: int, seed: int) -> np.ndarray:
    """[U] bool: the users to hide from a factorisation, a share of about HIDDEN_USERS."""
    return sampling.keep(np.arange(num_users), HIDDEN_USERS, _HIDDEN_SEED + seed)


def _first(order: np.ndarray, count: int) -> np.ndarray:
    return np.sort(order[:count])
