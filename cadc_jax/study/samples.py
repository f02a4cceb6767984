"""Samples by other rules than the uniform one, and factors that leave users out, as artefacts."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data.encoding import read_vocabulary
from cadc_jax.data.readers import movielens
from cadc_jax.data.table import Columns, Table, open_table, write_columns, write_rows
from cadc_jax.factorization import als
from cadc_jax.factorization.factors import scores
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.run.context import Run
from cadc_jax.run.factor_files import open_factors
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.materialize import materialize
from cadc_jax.study import adapter, selection
from cadc_jax.study.cells import FOLD_IN, Cell, SkipCell

_PAIR_BLOCK = 1 << 18  # (user, item) pairs scored at a time


def chosen_sample(run: Run, cell: Cell, prepared: Artifact) -> Artifact:
    """The rows that the selection of the cell keeps.

    A rule of `selection.RULES` keeps as many rows as the uniform rule. FOLD_IN keeps the rows of
    the uniform sample whose users are not hidden.

    Raises:
      SkipCell: if the rule needs a time that the data does not have.
    """
    uniform = adapter.uniform_sample(run, prepared)
    if cell.selection == "uniform":
        return uniform
    settings = {
        "prepared": prepared.fingerprint,
        "rate": cell.rate,
        "seed": cell.seed,
        "rule": cell.selection,
    }
    proxy = None
    if cell.selection == "hardest":
        proxy = adapter.factorize(adapter.with_changes(run, factor_rows="all"), prepared)
        settings |= {"proxy": proxy.fingerprint}
    table = open_table(prepared.path)
    train = table.splits["train"]
    time = times(run.config, prepared.path, table) if cell.selection == "recent" else None

    def write(folder: pathlib.Path) -> dict[str, int]:
        user, item = np.asarray(train["user"]), np.asarray(train["item"])
        if cell.selection == FOLD_IN:
            kept = np.load(uniform.path / "row.npy")
            ids = kept[~selection.hidden_users(table.schema.num_users, cell.seed)[user[kept]]]
        else:
            loss = None if proxy is None else proxy_loss(run.config, proxy, train)
            count = uniform.facts["rows"]
            ids = selection.choose(cell.selection, count, cell.seed, user, item, time, loss)
        write_columns(folder, {"row": ids.astype(np.int64)})
        write_rows(folder, train, ids)
        return {"rows": len(ids)}

    return materialize(run.workdir, "sample", settings, write)


def times(config: ConfigDict, prepared: pathlib.Path, table: Table) -> np.ndarray:
    """The time of each training row, [N], in any unit.

    Raises:
      SkipCell: if the data does not have it.
    """
    train = table.splits["train"]
    if config.data.split == "order":
        return np.arange(len(train["user"]))
    if config.data.source != "movielens":
        raise SkipCell(f"{config.name} has no timestamps of its training rows")
    raw = movielens.read_movielens(configuration.raw_path(config), config.data.variant)
    if raw.timestamp is None:
        raise SkipCell(f"{config.name} has no timestamps")
    assert raw.user is not None and raw.item is not None  # MovieLens names both
    names = [read_vocabulary(prepared, kind).values for kind in ("user", "item")]
    span = int(raw.item.max()) + 1
    keys = raw.user * span + raw.item
    order = np.argsort(keys, kind="stable")
    user, item = (names[i][train[kind] - 1] for i, kind in enumerate(("user", "item")))
    return raw.timestamp[order[np.searchsorted(keys[order], user * span + item)]]


def proxy_loss(config: ConfigDict, factors: Artifact, train: Columns) -> np.ndarray:
    """Loss of a factorisation on each training row, [N]: squared for ALS, logistic for SGD."""
    found = jax.tree.map(jnp.asarray, open_factors(factors.path))
    count = len(train["user"])
    score = np.concatenate(
        [
            np.asarray(scores(found, train["user"][part], train["item"][part]))
            for part in (slice(i, i + _PAIR_BLOCK) for i in range(0, count, _PAIR_BLOCK))
        ]
    )
    label = np.asarray(train["label"]) if "label" in train else np.ones(count)
    if config.factorization != "sgd":
        return (label - score) ** 2
    return np.logaddexp(0, np.where(label > 0, -score, score))


def folded_factors(run: Run, prepared: Artifact) -> Artifact:
    """ALS factors without the rows of the hidden users, who are then folded in.

    The factors of a hidden user come from one half-step on the user's own rows.

    Raises:
      SkipCell: if the factorisation is not ALS.
    """
    config = configuration.factorization_config(run.config, run.config.factorization)
    if not isinstance(config, als.ALSConfig):
        raise SkipCell("folding in needs the factorisation 'als'")
    settings = {
        "prepared": prepared.fingerprint,
        "config": dataclasses.asdict(config),
        "seed": run.config.seed,
        "hidden": selection.HIDDEN_USERS,
    }

    def write(folder: pathlib.Path) -> dict[str, int]:
        table = open_table(prepared.path)
        schema, train = table.schema, table.splits["train"]
        user, item = np.asarray(train["user"]), np.asarray(train["item"])
        hidden = selection.hidden_users(schema.num_users, run.config.seed)

        def matrix(rows: np.ndarray) -> Interactions:
            sizes = schema.num_users, schema.num_items
            return Interactions.from_rows(user[rows], item[rows], *sizes)

        is_hidden = hidden[user]
        seen = matrix(~is_hidden)
        found, _ = als.fit(seen, config, jax.random.key(run.config.seed))
        folded, _ = als.fold_in(found, matrix(is_hidden), config, extent=seen.extent)
        tables = {"user": jnp.where(hidden[:, None], folded, found.user), "item": found.item}
        write_columns(folder, {name: np.asarray(x, np.float32) for name, x in tables.items()})
        return {"hidden": int(hidden.sum())}

    return materialize(run.workdir, "factorize", settings, write)
