"""Metrics of whole lists against plain Python and, where it is installed, against ranx.

Both are given the list of each user, sorted by NumPy; the package ranks a block of users at a time
and never makes whole lists.
"""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data.table import Features, Schema, Table
from cadc_jax.evaluation import evaluate
from cadc_jax.evaluation.scorers import Scorer

CUT_OFFS = (1, 3, 10)


def make_log(seed, users=30, items=40):
    """A table of the ranking task with 1 to 12 test items a user, and scores without ties."""
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(items, dtype=np.float32), (users, 1)), axis=1)
    parts = {"train": [], "validation": [], "test": []}
    for user in range(users):
        own = rng.permutation(np.arange(1, items))
        sizes = np.cumsum([rng.integers(1, 10), rng.integers(0, 3), rng.integers(1, 12)])
        for name, found in zip(parts, np.split(own, sizes)[:3], strict=True):
            parts[name] += [(user, item) for item in np.sort(found)]
    splits = {
        name: dict(zip(("user", "item"), np.array(pairs, np.int32).T, strict=True))
        for name, pairs in parts.items()
    }
    train = splits["train"]
    ends = np.cumsum(np.bincount(train["user"], minlength=users))
    known = {"offsets": np.append(0, ends), "items": train["item"]}
    schema = Schema("ranking", users, items, Features(), Features(), Features())
    return Table(schema, splits, {}, {}, known), scores


def lists_of(table, scores):
    """For each test user its list, best item first, and the set of its test items."""
    pairs = {
        name: list(zip(rows["user"].tolist(), rows["item"].tolist(), strict=True))
        for name, rows in table.splits.items()
    }
    found = {}
    for user in sorted({user for user, _ in pairs["test"]}):
        seen = {item for u, item in pairs["train"] + pairs["validation"] if u == user} | {0}
        listed = [int(i) for i in np.argsort(-scores[user]) if int(i) not in seen]
        found[user] = listed, {item for u, item in pairs["test"] if u == user}
    return found


def plain_metrics(lists, num_items):
    """Every metric by its definition, one user and one place at a time."""
    total = {"mrr": 0.0}
    for listed, held_out in lists.values():
        places = [place for place, item in enumerate(listed, 1) if item in held_out]
        total["mrr"] += 1 / places[0] if places else 0
        for k in CUT_OFFS:
            hits = [place for place in places if place <= k]
            best = min(k, len(held_out))
            ideal = sum(1 / np.log2(place + 1) for place in range(1, best + 1))
            precision = [sum(other <= place for other in hits) / place for place in hits]
            values = {
                "recall": len(hits) / len(held_out),
                "hit": float(bool(hits)),
                "ndcg": sum(1 / np.log2(place + 1) for place in hits) / ideal,
                "map": sum(precision) / best,
            }
            for name, value in values.items():
                total[f"{name}@{k}"] = total.get(f"{name}@{k}", 0) + value
    result = {name: value / len(lists) for name, value in total.items()}
    rows = sum(len(held_out) for _, held_out in lists.values())
    for k in CUT_OFFS:
        hits = sum(len(held_out & set(listed[:k])) for listed, held_out in lists.values())
        result[f"hr@{k}"] = hits / rows
        covered = {item for listed, _ in lists.values() for item in listed[:k]}
        result[f"coverage@{k}"] = len(covered) / (num_items - 1)
    return result


def quality_of(table, scores):
    grid = jnp.asarray(scores)
    scorer = Scorer(lambda batch: grid[batch["user"]], pairs=7 * table.schema.num_items)
    ranking = evaluate.rank_users(scorer, table, "test", length=max(CUT_OFFS))
    return ranking.quality(CUT_OFFS, coverage=True)


@given(st.integers(0, 2**31))
def test_metrics_are_those_of_their_definitions(seed):
    table, scores = make_log(seed)
    expected = plain_metrics(lists_of(table, scores), table.schema.num_items)
    assert quality_of(table, scores) == pytest.approx(expected, abs=1e-12)


# In a process of its own: Numba, which ranx compiles with, warns of much.
WITH_RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
lists, cut_offs = json.load(sys.stdin)
qrels = Qrels({user: {str(i): 1 for i in held_out} for user, (_, held_out) in lists.items()})
run = Run({
    user: {str(item): float(-place) for place, item in enumerate(listed)}
    for user, (listed, _) in lists.items()
})
names = ["recall", "ndcg", "hit_rate", "map"]
found = evaluate(qrels, run, [f"{name}@{k}" for name in names for k in cut_offs] + ["mrr"])
print(json.dumps({name.replace("hit_rate", "hit"): float(x) for name, x in found.items()}))
"""


def test_metrics_are_those_of_ranx():
    """Its MAP@k divides by all n relevant items; ours by min(k, n), the most that can be found."""
    pytest.importorskip("ranx")
    import json

    table, scores = make_log(0)
    lists = lists_of(table, scores)
    given = json.dumps([{u: (listed, list(own)) for u, (listed, own) in lists.items()}, CUT_OFFS])
    done = subprocess.run(
        [sys.executable, "-c", WITH_RANX], input=given, capture_output=True, text=True, check=True
    )
    theirs, ours = json.loads(done.stdout), quality_of(table, scores)
    shared = {name: value for name, value in theirs.items() if not name.startswith("map@")}
    assert {name: ours[name] for name in shared} == pytest.approx(shared, abs=1e-9)
