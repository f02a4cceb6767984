"""Other ways to choose training rows than the uniform rule, at the same number of rows.

  per_user            uniform inside each user: everybody keeps the same share
  popularity          rows of popular items are likelier: weight = training rows of the item
  inverse_propensity  rows of rare items are likelier: weight = 1 / training rows of the item
  recent              the latest rows
  hardest             the rows of highest loss of a proxy that was trained on all rows, here the
                      matrix factorisation (SVP-CF: Sachdeva, Wu and McAuley, arXiv 2201.04768)

All return the ids of the kept rows, ascending; a seed and the arguments determine them.
"""

import numpy as np

from cadc_jax.data import sampling

HIDDEN_USERS = 0.05
_HIDDEN_SEED = 1 << 20  # added to the seed, since the sample's rows are judged by that

RULES = ("per_user", "popularity", "inverse_propensity", "recent", "hardest")


def per_user(user: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` rows, each user's share of their own rows being the same up to one row.

    Users in random order, each with their rows in random order, are gone through at an even stride.

    Args:
      user: [N] user of each row.
      count: rows to keep.
      seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    place_of_user = rng.permutation(user.max() + 1)
    order = np.lexsort((rng.random(len(user)), place_of_user[user]))
    stops = (np.arange(count) + rng.random()) * len(user) / count
    return np.sort(order[stops.astype(np.int64)])


def weighted(weight: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` rows drawn one after another without replacement, by [N] positive weights.

    Of exponential waiting times at these rates the shortest are kept, which is the same draw
    (Efraimidis and Spirakis, 2006).
    """
    waiting = np.random.default_rng(seed).exponential(size=len(weight)) / weight
    return _first(np.argsort(waiting, kind="stable"), count)


def recent(time: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows of latest [N] time; of equal ones those later in the log."""
    return _first(np.argsort(time, kind="stable")[::-1], count)


def hardest(loss: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows of highest [N] loss; of equal ones those earlier in the log."""
    return _first(np.argsort(-loss, kind="stable"), count)


def choose(
    rule: str,
    count: int,
    seed: int,
    user: np.ndarray,
    item: np.ndarray,
    time: np.ndarray | None,
    loss: np.ndarray | None,
) -> np.ndarray:
    """The rows that a rule of RULES keeps.

    Args:
      rule: its name.
      count: rows to keep.
      seed: of the rules that draw.
      user: [N] int32 of the training rows.
      item: [N] int32.
      time: [N], needed by 'recent'.
      loss: [N] of the proxy, needed by 'hardest'.
    """
    rows_of_item = np.bincount(item)[item]
    if rule == "per_user":
        return per_user(user, count, seed)
    if rule == "popularity":
        return weighted(rows_of_item, count, seed)
    if rule == "inverse_propensity":
        return weighted(1 / rows_of_item, count, seed)
    return recent(time, count) if rule == "recent" else hardest(loss, count)


def hidden_users(num_users: int, seed: int) -> np.ndarray:
    """[U] bool: users to hide from a factorisation, about the share HIDDEN_USERS."""
    return sampling.keep(np.arange(num_users), HIDDEN_USERS, _HIDDEN_SEED + seed)


def _first(order: np.ndarray, count: int) -> np.ndarray:
    return np.sort(order[:count])
