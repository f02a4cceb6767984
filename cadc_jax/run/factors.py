"""The stage `factorize`.

Factors come from all training rows. With `factor_rows='unsampled'` there are two sets. A frozen arm
trains on the factors of the rows that the sample does not keep. It predicts with the factors of all
rows, which continue from the first set and stay in its basis. `plain_factors` are those of all rows
without such a history: what the arms are compared with.

`update_factors` continues from the factors of a run that had fewer rows. What it leaves has the
settings of an ordinary artefact and a few more, by which `factorize_stage` finds it.

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

from cadc_jax import configuration
from cadc_jax.data import pipeline, sampling
from cadc_jax.data.raw import SPLITS, TRAIN
from cadc_jax.data.table import open_table, read_columns
from cadc_jax.evaluation import resident, scorers
from cadc_jax.factorization import als, autoencoder, blend, sgd, sgd_step
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.factors import Factors, balanced_axes, grown, principal_axes
from cadc_jax.run import tune
from cadc_jax.run.context import Run, als_mesh, make_long_stage, make_stage, training_mesh
from cadc_jax.run.factor_files import UNSAMPLED, open_factors, write_factors
from cadc_jax.run.fitted_rows import (
    Choice,
    ids_of,
    matrix_of,
    positives,
    training_rows,
    values_of,
    with_held_out_users,
)
from cadc_jax.run.lineage import UPDATED, find_updated
from cadc_jax.runtime import distributed, manifest
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.progress import Progress

BLEND_USERS = 5000  # drawn users by whose validation items weights are chosen
REFRESH_PASSES = 5  # over all rows, which turn factors of the unsampled rows into factors of all
PLAIN = "plain"  # folder of `plain_factors` beside factors of the unsampled rows
EXTENT = "extent"  # a fact: `Extent` of the rows, by which ALS folds in new users
UPDATE_PASSES = 5  # of ALS and SGD, by which factors follow new rows
UPDATE_SOLVES = 2  # of the autoencoder's items: for the encoder as it was, and once it is improved


def factorize_stage(run: Run, prepared: Artifact, sample: Artifact | None = None) -> Artifact:
    """User and item factors of all training rows.

    With `factor_rows='unsampled'` the factors of the unsampled rows are a stage of their own, and
    are copied into the artefact's folder UNSAMPLED. Settings that are 'auto' are searched first; a
    run that also needs them elsewhere passes what `tune.resolved` returns.

    Args:
      run: what the stages share.
      prepared: the prepared table.
      sample: rows kept by another rule than the one of `sample_stage`.
    """
    run, names = tune.resolved(run, prepared), configuration.methods(run.config)
    if len(names) == 1:
        return _one(run, prepared, sample)
    parts = [_one(_with_method(run, name), prepared, sample) for name in names]
    return _blended(run, prepared, parts)


def plain_factors(run: Run, prepared: Artifact) -> Artifact:
    """Factors of all training rows by themselves, whatever `factor_rows` says.

    Where that is 'unsampled' they are stages of their own, in the folder PLAIN of the work folder,
    where no other command takes them for the factors of the run.

    Args:
      run: what the stages share.
      prepared: the prepared table, with its training rows.
    """
    if run.config.factor_rows == "all":
        return factorize_stage(run, prepared)
    config = run.config.copy_and_resolve_references()
    config.factor_rows = "all"
    plain = dataclasses.replace(run, config=config, workdir=run.workdir / PLAIN)
    return factorize_stage(plain, prepared)


@dataclasses.dataclass(frozen=True)
class Before:
    """The factors of an earlier run.

    Attributes:
      whole: what its `factorize_stage` returned.
      parts: its factorisations, if these are several side by side.
    """

    whole: Artifact
    parts: Sequence[Artifact] = ()


def update_factors(run: Run, prepared: Artifact, before: Before) -> Artifact:
    """Factors of a table that has gained rows, users and items since `before`.

    They start from the earlier ones and stay in their basis, so a network that was trained on these
    can take them. Factorisations side by side keep their weights.
    """
    if not before.parts:
        return _one(run, prepared, None, before.whole)
    named = zip(configuration.methods(run.config), before.parts, strict=True)
    parts = [_one(_with_method(run, name), prepared, None, part) for name, part in named]
    return _blended(run, prepared, parts, before.whole)


def _with_method(run: Run, name: str) -> Run:
    """The run with one of its factorisations alone, which is rounded once it is joined."""
    config = run.config.copy_and_resolve_references()
    config.factorization, config.factor_bits = name, 32
    return dataclasses.replace(run, config=config)


def _blended(
    run: Run, prepared: Artifact, parts: Sequence[Artifact], before: Artifact | None = None
) -> Artifact:
    """Factorisations side by side; the validation split chooses their weights, or `before` has."""
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
    if before is not None:
        settings |= {"weights": before.settings["weights"], UPDATED: before.fingerprint}
    elif (found := find_updated(run, "factorize", settings)) is not None:
        return found

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        validation = resident.validation(open_table(prepared.path), options, training_mesh(run))

        def quality(factors: Factors) -> float:
            return validation(scorers.factors(factors.user, factors.item, calibrated=False))

        whole = [open_factors(part.path) for part in parts]
        weights = before.facts["weights"] if before else blend.choose_weights(whole, quality)
        scales = [blend.scale_of(*pair) for pair in zip(whole, weights, strict=True)]
        write_factors(folder, blend.join(whole, scales), run.config.factor_bits)
        if run.config.factor_rows == "unsampled":  # in the basis and scale of the others
            first = [open_factors(part.path / UNSAMPLED) for part in parts]
            write_factors(folder / UNSAMPLED, blend.join(first, scales), run.config.factor_bits)
        seconds = sum(part.seconds for part in parts)
        return {
            "losses": [],
            "weights": list(weights),
            "scales": [dataclasses.astuple(scale) for scale in scales],
            EXTENT: parts[0].facts.get(EXTENT),  # of the same rows as the others
            "seconds_before": seconds,
        }

    made = make_stage(run, "factorize", settings, write, "side by side", together=True)
    shown = zip(configuration.methods(run.config), made.facts["weights"], strict=True)
    run.say("         weights " + ", ".join(f"{name} {weight:g}" for name, weight in shown))
    return made


def _one(
    run: Run, prepared: Artifact, sample: Artifact | None, before: Artifact | None = None
) -> Artifact:
    """A single factorisation, which starts from that of an earlier run if there is one."""
    config = configuration.factorization_config(run.config, run.config.factorization)
    job = _Job(run, prepared, config)
    settings = {
        "prepared": prepared.fingerprint,
        **configuration.factorization_settings(run.config),
        "seed": run.config.seed,
        "bits": run.config.factor_bits,
    }
    of_all = run.config.factor_rows == "all"
    if not of_all:
        settings |= {"unsampled_at": run.config.rate if sample is None else sample.fingerprint}
    last = {} if of_all else {"refresh": REFRESH_PASSES}
    if before is not None:
        settings |= {UPDATED: before.fingerprint, "passes": [UPDATE_PASSES, UPDATE_SOLVES]}
    elif (found := find_updated(run, "factorize", settings | last)) is not None:
        return found

    def write(folder: pathlib.Path, saved: Checkpoints) -> Mapping[str, Any]:
        rows = None if of_all else _unsampled(job, sample)
        if before is None:
            factors, losses, extent = _factorize(job, rows, saved)
            factors = _turned(factors)
        else:
            start = _start_from(job, before.path if of_all else before.path / UNSAMPLED)
            factors, losses, extent = _factorize(_following(job), rows, saved, start)
        write_factors(folder, factors, run.config.factor_bits)
        return {"losses": losses.tolist(), EXTENT: extent}

    stage = "factorize" if of_all else UNSAMPLED
    first = make_long_stage(run, stage, settings, write)
    if of_all:
        return first
    settings |= last

    def refresh(folder: pathlib.Path, saved: Checkpoints) -> Mapping[str, Any]:
        start = open_factors(first.path)
        passes = dataclasses.replace(job, config=job.config.refreshing(REFRESH_PASSES))
        factors, losses, extent = _factorize(passes, None, saved, start)
        if start.encoder is not None:  # a compressed data set has no more than this either
            factors = dataclasses.replace(factors, user=_with_kept_rows(job, sample, start))
        write_factors(folder, factors, run.config.factor_bits)
        if distributed.is_first():
            no_manifest = shutil.ignore_patterns(manifest.NAME)
            shutil.copytree(first.path, folder / UNSAMPLED, ignore=no_manifest)
        return {"losses": losses.tolist(), EXTENT: extent, "seconds_before": first.seconds}

    return make_long_stage(run, "factorize", settings, refresh)


@dataclasses.dataclass(frozen=True)
class _Job:
    run: Run
    prepared: Artifact
    config: ALSConfig | AutoencoderConfig | sgd.SGDConfig

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.run.config.seed)


def _following(job: _Job) -> _Job:
    """The job with the passes in which factors follow new rows."""
    if isinstance(job.config, AutoencoderConfig):
        config: Any = dataclasses.replace(job.config, passes=UPDATE_SOLVES)
    else:
        config = job.config.refreshing(UPDATE_PASSES)
    return dataclasses.replace(job, config=config)


def _start_from(job: _Job, folder: pathlib.Path) -> Factors:
    """The factors in a folder, with vectors of new users and items to start from.

    ALS and the autoencoder start these at 0, from where their conjugate gradients find them. SGD
    starts them as it starts all: two vectors of 0 would have no gradient.
    """
    schema, scale = open_table(job.prepared.path).schema, 0.0
    if isinstance(job.config, sgd.SGDConfig):
        scale = sgd_step.START_SCALE
    return grown(open_factors(folder), schema.num_users, schema.num_items, job.key, scale)


def _kept_rows(job: _Job, sample: Artifact | None) -> np.ndarray:
    """Ids of the training rows that are kept."""
    if sample is not None:
        return read_columns(sample.path)["row"]
    rows = open_table(job.prepared.path).splits["train"]["user"]
    return pipeline.sampled_ids(len(rows), job.run.config.rate, job.run.config.seed)


def _unsampled(job: _Job, sample: Artifact | None) -> Choice:
    """Which training rows are not kept."""
    if sample is None:
        rate, seed = job.run.config.rate, job.run.config.seed
        return lambda start, stop: ~sampling.keep(np.arange(start, stop), rate, seed)
    kept = read_columns(sample.path)["row"]  # in ascending order

    def left(start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(kept, (start, stop))
        left = np.ones(stop - start, bool)
        left[kept[first:last] - start] = False
        return left

    return left


def _with_kept_rows(job: _Job, sample: Artifact | None, unsampled: Factors) -> np.ndarray:
    """User factors of all rows, of an autoencoder of the unsampled ones."""
    places, table = _kept_rows(job, sample), open_table(job.prepared.path)
    kept = training_rows(table, places)
    user, item = positives(kept.user, kept.item, kept.label)
    values = values_of(table, SPLITS[TRAIN], job.config, _value_scale(job), places)
    return autoencoder.add_rows(unsampled, user, item, values)


def _factorize(
    job: _Job,
    rows: Choice | None,
    saved: Checkpoints,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray, list[int] | None]:
    """Factorises some of the training rows; see `als.fit`, `autoencoder.fit` and `sgd.fit`.

    Returns:
      factors, losses, and the numbers of the interactions' `Extent` (None of SGD).
    """
    config, table = job.config, open_table(job.prepared.path)
    total = {"als": "iterations", "autoencoder": "passes", "sgd": "epochs"}
    progress = Progress("factorize", getattr(config, total[job.run.config.factorization]), "passes")

    def show(done: int, loss: float, seconds: float) -> None:
        del seconds
        progress.update(done, f"loss {loss:.6g}")

    try:
        if isinstance(config, sgd.SGDConfig):
            chosen = training_rows(table, ids_of(table, rows))
            mesh = training_mesh(job.run)
            options: dict[str, Any] = {"progress": show, "saved": saved, "init": init}
            return *sgd.fit(chosen, config, job.key, mesh=mesh, **options), None
        matrix = matrix_of(table, config, _value_scale(job), rows)
        mesh = als_mesh(job.run, max(matrix.num_users, matrix.num_items), config.factors)
        options = {"mesh": mesh, "progress": show, "saved": saved, "init": init}
        if isinstance(config, AutoencoderConfig):
            found, losses = autoencoder.fit(matrix, config, job.key, **options)
        else:
            found, losses = als.fit(matrix, config, job.key, **options)
        extent = matrix.extent
        found = with_held_out_users(table, config, _value_scale(job), found, extent, mesh)
        return found, losses, list(dataclasses.astuple(extent))
    finally:
        progress.close()


def _turned(factors: Factors) -> Factors:
    """The factors in the basis in which they are stored and trained on."""
    turned = principal_axes(factors)
    return turned if turned.encoder is None else balanced_axes(turned)


def _value_scale(job: _Job) -> str:
    return job.run.config.data.value_scale
