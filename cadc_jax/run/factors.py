"""The stage `factorize`.

Factors come from all training rows. With `factor_rows='unsampled'` there are two sets. A frozen arm
trains on the factors of the rows that the sample does not keep. It predicts with the factors of all
rows, which continue from the first set and stay in its basis.

With a split by users, held-out users have no training rows. Their vectors are computed from their
fold-in rows once the items are fitted, and change nothing else.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cadc_jax import configuration
from cadc_jax.data import pipeline
from cadc_jax.data.raw import FOLD_IN, PARTS
from cadc_jax.data.table import Table, open_table, read_columns
from cadc_jax.evaluation import evaluate, scorers
from cadc_jax.factorization import als, autoencoder, blend, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.factors import Factors, balanced_axes, principal_axes
from cadc_jax.factorization.interactions import Extent, Interactions
from cadc_jax.run.context import Run, als_mesh, make_long_stage, make_stage
from cadc_jax.run.factor_files import UNSAMPLED, open_factors, write_factors
from cadc_jax.runtime import distributed, manifest
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.progress import Progress

BLEND_USERS = 5000  # drawn users by whose validation items weights are chosen
REFRESH_PASSES = 5  # over all rows, which turn factors of the unsampled rows into factors of all


def factorize_stage(run: Run, prepared: Artifact, sample: Artifact | None = None) -> Artifact:
    """User and item factors of all training rows.

    With `factor_rows='unsampled'` the factors of the unsampled rows are a stage of their own, and
    are copied into the artefact's folder UNSAMPLED.

    Args:
      run: what the stages share.
      prepared: the prepared table.
      sample: rows kept by another rule than the one of `sample_stage`.
    """
    names = configuration.methods(run.config)
    if len(names) == 1:
        return _one(run, prepared, sample)
    parts = []
    for name in names:
        config = run.config.copy_and_resolve_references()
        config.factorization = name
        parts.append(_one(dataclasses.replace(run, config=config), prepared, sample))
    return _blended(run, prepared, parts)


def _blended(run: Run, prepared: Artifact, parts: Sequence[Artifact]) -> Artifact:
    """Factorisations side by side; the validation split chooses their weights."""
    options = dataclasses.replace(
        configuration.evaluation_config(run.config), ranking="full", max_users=BLEND_USERS
    )
    settings = {
        "prepared": prepared.fingerprint,
        **configuration.factorization_settings(run.config),
        "parts": [part.fingerprint for part in parts],
        "bits": run.config.factor_bits,
        "weights": [*blend.WEIGHTS, options.k[0], options.max_users],
    }

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        table = open_table(prepared.path)

        def quality(factors: Factors) -> float:
            scorer = scorers.factors(factors.user, factors.item, calibrated=False)
            return evaluate.validation_quality(scorer, table, options)

        whole = [open_factors(part.path) for part in parts]
        weights = blend.choose_weights(whole, quality)
        scales = [blend.scale_of(*pair) for pair in zip(whole, weights, strict=True)]
        write_factors(folder, blend.join(whole, scales), run.config.factor_bits)
        if run.config.factor_rows == "unsampled":  # in the basis and scale of the others
            first = [open_factors(part.path / UNSAMPLED) for part in parts]
            write_factors(folder / UNSAMPLED, blend.join(first, scales), run.config.factor_bits)
        seconds = sum(part.seconds for part in parts)
        return {"losses": [], "weights": list(weights), "seconds_before": seconds}

    made = make_stage(run, "factorize", settings, write, "side by side", together=True)
    shown = zip(configuration.methods(run.config), made.facts["weights"], strict=True)
    run.say("         weights " + ", ".join(f"{name} {weight:g}" for name, weight in shown))
    return made


def _one(run: Run, prepared: Artifact, sample: Artifact | None) -> Artifact:
    """A single factorisation."""
    config = configuration.factorization_config(run.config, run.config.factorization)
    job = _Job(run, prepared, config)
    settings = {
        "prepared": prepared.fingerprint,
        **configuration.factorization_settings(run.config),
        "seed": run.config.seed,
        "bits": run.config.factor_bits,
    }
    together = run.config.factorization != "sgd"  # that is the first process's work alone
    of_all = run.config.factor_rows == "all"
    if not of_all:
        settings |= {"unsampled_at": run.config.rate if sample is None else sample.fingerprint}

    def write(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        rows = slice(None) if of_all else _unsampled_rows(job, sample)
        factors, losses = _factorize(job, rows, saved)
        write_factors(folder, _turned(factors), run.config.factor_bits)
        return {"losses": losses.tolist()}

    stage = "factorize" if of_all else UNSAMPLED
    first = make_long_stage(run, stage, settings, write, together=together)
    if of_all:
        return first
    settings |= {"refresh": REFRESH_PASSES}

    def refresh(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        start = open_factors(first.path)
        passes = dataclasses.replace(job, config=job.config.refreshing(REFRESH_PASSES))
        factors, losses = _factorize(passes, slice(None), saved, start)
        if start.encoder is not None:  # a compressed data set has no more than this either
            factors = dataclasses.replace(factors, user=_with_kept_rows(job, sample, start))
        write_factors(folder, factors, run.config.factor_bits)
        if distributed.is_first():
            no_manifest = shutil.ignore_patterns(manifest.NAME)
            shutil.copytree(first.path, folder / UNSAMPLED, ignore=no_manifest)
        return {"losses": losses.tolist(), "seconds_before": first.seconds}

    return make_long_stage(run, "factorize", settings, refresh, together=together)


@dataclasses.dataclass(frozen=True)
class _Job:
    run: Run
    prepared: Artifact
    config: ALSConfig | AutoencoderConfig | sgd.SGDConfig

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.run.config.seed)


def _kept_rows(job: _Job, sample: Artifact | None) -> np.ndarray:
    """Ids of the training rows that are kept."""
    if sample is not None:
        return read_columns(sample.path)["row"]
    rows = open_table(job.prepared.path).splits["train"]["user"]
    return pipeline.sampled_ids(len(rows), job.run.config.rate, job.run.config.seed)


def _unsampled_rows(job: _Job, sample: Artifact | None) -> np.ndarray:
    """Ids of the training rows that are not kept."""
    left = np.ones(len(open_table(job.prepared.path).splits["train"]["user"]), bool)
    left[_kept_rows(job, sample)] = False
    return np.flatnonzero(left)


def _with_kept_rows(job: _Job, sample: Artifact | None, unsampled: Factors) -> np.ndarray:
    """User factors of all rows, of an autoencoder of the unsampled ones."""
    kept = _training_rows(open_table(job.prepared.path), _kept_rows(job, sample))
    return autoencoder.add_rows(unsampled, *positives(kept.user, kept.item, kept.label))


def _factorize(
    job: _Job,
    rows: slice | np.ndarray,
    saved: Checkpoints | None,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factorises some of the training rows; see `als.fit`, `autoencoder.fit` and `sgd.fit`."""
    config, chosen = job.config, _training_rows(open_table(job.prepared.path), rows)
    total = {"als": "iterations", "autoencoder": "passes", "sgd": "epochs"}
    progress = Progress("factorize", getattr(config, total[job.run.config.factorization]), "passes")

    def show(done: int, loss: float, seconds: float) -> None:
        del seconds
        progress.update(done, f"loss {loss:.6g}")

    try:
        if isinstance(config, sgd.SGDConfig):
            return sgd.fit(chosen, config, job.key, progress=show, saved=saved, init=init)
        value = None  # of implicit feedback it counts that it happened, not how it was rated
        if _is_explicit(config) and chosen.label is None:
            value = open_table(job.prepared.path).splits["train"]["value"][rows]
        matrix = _interactions(chosen, value)
        mesh = als_mesh(job.run, max(chosen.num_users, chosen.num_items), config.factors)
        options: dict[str, Any] = {"mesh": mesh, "progress": show, "saved": saved, "init": init}
        if isinstance(config, AutoencoderConfig):
            found, losses = autoencoder.fit(matrix, config, job.key, **options)
        else:
            found, losses = als.fit(matrix, config, job.key, **options)
        return _with_held_out_users(job, found, matrix.extent, mesh), losses
    finally:
        progress.close()


def _turned(factors: Factors) -> Factors:
    """The factors in the basis in which they are stored and trained on."""
    turned = principal_axes(factors)
    return turned if turned.encoder is None else balanced_axes(turned)


def _is_explicit(config: ALSConfig | AutoencoderConfig | sgd.SGDConfig) -> bool:
    return isinstance(config, ALSConfig) and config.feedback == "explicit"


def _with_held_out_users(job: _Job, factors: Factors, extent: Extent, mesh: Mesh) -> Factors:
    """The factors with vectors of the held-out users, if there are any, in place of zeros.

    The factors were fitted to interactions of this extent.
    Fold-in rows of items that no training row has say nothing and are left out; users without
    others stay 0.
    """
    config, table = job.config, open_table(job.prepared.path)
    rows = table.splits.get(PARTS[FOLD_IN])
    if rows is None:
        return factors
    there = np.flatnonzero(table.items["count"][rows["item"]])
    if not len(there):
        return factors
    users, user = np.unique(rows["user"][there], return_inverse=True)
    value = rows["value"][there] if _is_explicit(config) else None
    sizes = len(users), table.schema.num_items
    matrix = Interactions.from_rows(user, rows["item"][there], *sizes, value)
    if isinstance(config, ALSConfig):
        folded_in = als.fold_in(factors, matrix, config, extent=extent, mesh=mesh)
    else:
        folded_in = autoencoder.fold_in(factors, matrix, mesh=mesh), None
    found = {}
    for name, rows_of_users in zip(("user", "user_bias"), folded_in, strict=True):
        if rows_of_users is not None:
            found[name] = np.array(getattr(factors, name))
            found[name][users] = rows_of_users
    return dataclasses.replace(factors, **found)


def _training_rows(table: Table, rows: slice | np.ndarray) -> sgd.TrainingRows:
    schema, train = table.schema, table.splits["train"]
    return sgd.TrainingRows(
        np.asarray(train["user"])[rows],
        np.asarray(train["item"])[rows],
        schema.num_users,
        schema.num_items,
        train["label"][rows] if schema.task == "click" else None,
    )


def _interactions(rows: sgd.TrainingRows, value: np.ndarray | None) -> Interactions:
    """The matrix of the rows; of clicks, an impression without a click is no preference."""
    users, items = positives(rows.user, rows.item, rows.label)
    return Interactions.from_rows(users, items, rows.num_users, rows.num_items, value)


def positives(
    user: np.ndarray, item: np.ndarray, label: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of the rows that express a preference: of clicks, those with label 1."""
    if label is None:
        return user, item
    clicked = np.flatnonzero(label)
    return user[clicked], item[clicked]
