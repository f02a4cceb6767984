"""A study of rankings and one of clicks whose test results are written by hand."""

import dataclasses

import numpy as np
import pytest

from cadc_jax.data.table import Features, Schema, write_columns, write_schema
from cadc_jax.run import bundled_configs
from cadc_jax.runtime.materialize import materialize
from cadc_jax.study import results
from cadc_jax.study.cells import Cell
from cadc_jax.study.settings import Study


def no_features(columns, rows):
    """Columns with the two that hold no features."""
    shape = (rows, 0)
    return {**columns, "dense": np.zeros(shape, np.float32), "categorical": np.zeros(shape, "i4")}


def study_of(out, *names, kind=Study, **more):
    """A study of configurations of the package."""
    return kind(out, {name: bundled_configs.config(name) for name in names}, **more)


class HandMade:
    """A study with one data set, in whose folder results are put.

    Attributes:
      out: folder of the study.
      name: of the configuration.
      chosen_by: the metric of the validation split.
      rows: of results.csv.
    """

    def __init__(self, out, name, schema, splits, items):
        self.out, self.name, self.work, self.rows = out, name, out / "work" / name, []
        self.chosen_by = "ndcg@10" if schema.task == "ranking" else "logloss"

        def write(folder):
            write_schema(folder, schema)
            for split, columns in splits.items():
                write_columns(folder / split, no_features(columns, len(columns["user"])))
                if schema.task == "ranking":
                    write_columns(folder / split, {"value": np.ones_like(columns["user"], "f4")})
                    if split != "train":
                        negatives = np.zeros((len(columns["user"]), 0), np.int32)
                        write_columns(folder / split, {"negatives": negatives})
            write_columns(folder / "users", no_features({}, schema.num_users))
            write_columns(folder / "items", no_features(items, schema.num_items))
            if schema.task == "ranking":
                ends = np.cumsum(np.bincount(splits["train"]["user"], minlength=schema.num_users))
                known = {"offsets": np.append(0, ends), "items": splits["train"]["item"]}
                write_columns(folder / "known", known)
            return {"rows": {split: len(x["user"]) for split, x in splits.items()}}

        self.prepared = materialize(self.work, "prepare", {}, write)

    def add(self, cell, columns, scorer="", **values):
        """Adds a result: `columns` of the test by a scorer, and `values` of its row."""

        def write(folder):
            write_columns(folder, columns)
            return {}

        settings = dataclasses.asdict(cell) | {"scorer": scorer}
        made = materialize(self.work, "evaluate", settings, write)
        row = results.failure(cell, "s1", "", "ok")
        row |= {"prepared": self.prepared.fingerprint, "evaluation": made.fingerprint}
        row |= {"cut_off": 10, "validation_metric": self.chosen_by, "validation": 0.5}
        self.rows.append(row | {"rows_used": 10, "evaluate_s": 1.0} | values)

    def add_stage(self, stage, seconds, settings, **facts):
        """Adds an artefact without files; returns its fingerprint."""

        def write(folder):
            del folder
            return {"seconds_before": seconds, **facts}

        return materialize(self.work, stage, settings, write).fingerprint

    def add_ranks(self, cell, full, sampled=None, **values):
        """Adds a result of a ranking by the ranks of the test rows; by default all 0 among few."""
        full = np.asarray(full)
        sampled = np.zeros_like(full) if sampled is None else np.asarray(sampled)
        ranked = full[full >= 0]
        ndcg = np.where(ranked < 10, 1 / np.log2(ranked + 2), 0).mean()
        columns = {"ranks_full": full, "ranks_sampled": sampled}
        self.add(cell, columns, ndcg=float(ndcg), hr=float((ranked < 10).mean()), **values)


@pytest.fixture
def rankings(tmp_path):
    """Users 1 to 4 with 1, 2, 3 and 4 training rows; the third is not ranked."""
    user = np.repeat([1, 2, 3, 4], [1, 2, 3, 4]).astype(np.int32)
    item = np.array([1, 1, 2, 1, 2, 3, 1, 2, 3, 4], np.int32)
    one_each = {"user": np.arange(1, 5, dtype=np.int32), "item": np.array([5, 1, 2, 3], np.int32)}
    splits = {"train": {"user": user, "item": item}, "validation": one_each, "test": one_each}
    schema = Schema("ranking", 5, 30, Features(), Features(), Features())
    return HandMade(tmp_path, "ml-100k", schema, splits, {"count": np.bincount(item, minlength=30)})


@pytest.fixture
def clicks(tmp_path):
    """Four test rows whose labels are 0, 1, 0, 1, and the probabilities they were drawn from."""
    rows = {"user": np.ones(4, np.int32), "item": np.ones(4, np.int32)}
    splits = {
        name: rows | {"label": np.array([0, 1, 0, 1], np.float32)} for name in ("train", "test")
    }
    splits["validation"] = splits["train"]
    schema = Schema("click", 2, 2, Features(), Features(), Features())
    made = HandMade(
        tmp_path,
        "synthetic",
        schema,
        splits,
        {"count": np.array([0, 4]), "clicks": np.array([0, 2])},
    )
    truth = np.concatenate([np.full(8, 0.5), [0.1, 0.9, 0.4, 0.3]])
    for name, values in (("other", np.zeros(5)), ("own", truth)):
        folder = made.work / "synthetic" / name
        folder.mkdir(parents=True)
        np.save(folder / "truth.npy", values)
    return made


@pytest.fixture
def compared(rankings):
    """The rankings study with popularity, MF alone, all rows, and CADC with two seeds."""
    frozen = Cell("ml-100k", "cadc_frozen", "two_tower", "uniform", 0.1)
    rankings.add_ranks(Cell("ml-100k", "popularity"), [6, 6, -1, 6], [9, 9, 9, 9])
    rankings.add_ranks(Cell("ml-100k", "mf_alone"), [2, 0, -1, 0], [0, 0, 0, 20], factorize_s=6.0)
    costs = {"train_s": 5.0, "converged": 1, "best_step": 8, "train_bytes": 4e6}
    rankings.add_ranks(Cell("ml-100k", "full", "two_tower"), [20, 20, -1, 0], **costs)
    costs |= {"train_s": 2.0, "factorize_s": 6.0, "sample_s": 0.5, "sample_bytes": 4e5}
    costs |= {"factors_bytes": 1e6, "state_bytes": 2e6}
    second = dataclasses.replace(frozen, seed=1)
    rankings.add_ranks(second, [0, 0, -1, 20], [0, 0, 0, 0], **costs | {"best_step": 0})
    rankings.add_ranks(frozen, [0, 0, -1, 0], [0, 0, 0, 0], **costs | {"converged": 0})
    return rankings
