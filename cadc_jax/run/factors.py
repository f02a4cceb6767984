"""The stage `factorize`, and the tables that other stages take from its artefact.

Factors come from all training rows. With `factor_rows='unsampled'` there are two sets. A frozen arm
trains on the factors of the rows that the sample does not keep. It predicts with the factors of all
rows, which continue from the first set and stay in its basis.

With a split by users, held-out users have no training rows. Their vectors are computed from their
fold-in rows once the items are fitted, and change nothing else.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data import pipeline
from cadc_jax.data.columns import ColumnKind, check_columns
from cadc_jax.data.raw import FOLD_IN, PARTS
from cadc_jax.data.table import Table, open_table, read_columns, write_columns
from cadc_jax.errors import ArtifactError
from cadc_jax.factorization import als, sgd
from cadc_jax.factorization.factors import Factors, dot_tables, principal_axes
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.factorization.quantization import dequantize, quantize
from cadc_jax.run.context import Run, als_mesh, make_long_stage
from cadc_jax.runtime import distributed, manifest
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.manifest import ADVICE
from cadc_jax.runtime.progress import Progress
from cadc_jax.training.assemble import Pair

UNSAMPLED = "unsampled"  # name of the stage, and of its folder inside that of the factors
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
    job = _Job(run, prepared, configuration.factorization_config(run.config))
    settings = {
        "prepared": prepared.fingerprint,
        "method": run.config.factorization,
        "config": dataclasses.asdict(job.config),
        "seed": run.config.seed,
        "bits": run.config.factor_bits,
    }
    together = run.config.factorization == "als"  # SGD is the first process's work alone
    if run.config.factor_rows == "all":

        def write(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
            factors, losses = _factorize(job, slice(None), saved)
            write_factors(folder, principal_axes(factors), run.config.factor_bits)
            return {"losses": losses.tolist()}

        return make_long_stage(run, "factorize", settings, write, together=together)

    settings |= {"unsampled_at": run.config.rate if sample is None else sample.fingerprint}

    def write_unsampled(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        factors, losses = _factorize(job, _unsampled_rows(job, sample), saved)
        write_factors(folder, principal_axes(factors), run.config.factor_bits)
        return {"losses": losses.tolist()}

    first = make_long_stage(run, UNSAMPLED, settings, write_unsampled, together=together)
    settings |= {"refresh": REFRESH_PASSES}

    def refresh(folder: pathlib.Path, saved: Checkpoints | None) -> Mapping[str, Any]:
        start = open_factors(first.path)
        passes = dataclasses.replace(job, config=job.config.refreshing(REFRESH_PASSES))
        factors, losses = _factorize(passes, slice(None), saved, start)
        write_factors(folder, factors, run.config.factor_bits)
        if distributed.is_first():
            no_manifest = shutil.ignore_patterns(manifest.NAME)
            shutil.copytree(first.path, folder / UNSAMPLED, ignore=no_manifest)
        return {"losses": losses.tolist(), "seconds_before": first.seconds}

    return make_long_stage(run, "factorize", settings, refresh, together=together)


def open_factors(folder: pathlib.Path, values: bool = False) -> Factors:
    """Opens the factors that this stage wrote into a folder, as float32.

    Args:
      folder: the folder.
      values: whether to check that all numbers are finite, as for a folder from elsewhere.

    Raises:
      ArtifactError: if the folder holds anything but factors, whose shapes belong together.
    """
    columns = dict(read_columns(folder))
    biased = bool(columns.keys() & {"user_bias", "item_bias", "global_bias"})
    rank = columns["item"].shape[-1] if "item" in columns and columns["item"].ndim else None
    found = {}
    for side in ("user", "item"):
        dtype = columns[side].dtype if side in columns else np.dtype(np.int8)
        kinds = side_kinds(side, dtype, rank, biased)
        own = {name: columns.pop(name) for name in kinds if name in columns}
        check_columns(folder, own, kinds, values=values)
        found[side] = dequantize(own[side], own.get(f"{side}_scale"))
        if values and not np.isfinite(found[side]).all():
            raise ArtifactError(f"{folder / side}.npy: a factor is not a finite number; {ADVICE}")
        if biased:
            found[f"{side}_bias"] = own[f"{side}_bias"]
    if biased and "global_bias" in columns:
        found["global_bias"] = columns.pop("global_bias")
        shared = {"global_bias": found["global_bias"][None]}
        check_columns(folder, shared, {"global_bias": ColumnKind(np.float32)}, values=values)
    elif biased:
        raise ArtifactError(f"{folder}: no column 'global_bias'; {ADVICE}")
    check_columns(folder, columns, {})
    return Factors(**found)


def side_kinds(side: str, dtype: np.dtype, rank: int | None, biased: bool) -> dict[str, ColumnKind]:
    """The columns of one side's factors.

    Args:
      side: 'user' or 'item'.
      dtype: int8, float16 or float32.
      rank: D; None for any.
      biased: whether there are biases.
    """
    allowed = dtype if dtype in (np.int8, np.float16) else np.float32
    kinds = {side: ColumnKind(allowed, (rank,), -127, 127)}
    if allowed == np.int8:
        kinds[f"{side}_scale"] = ColumnKind(np.float32)
    if biased:
        kinds[f"{side}_bias"] = ColumnKind(np.float32)
    return kinds


def factor_tables(folder: pathlib.Path) -> Pair:
    """User and item tables, on the host, whose dot product is the factorisation's score."""
    user, item = dot_tables(open_factors(folder))
    return np.asarray(user), np.asarray(item)


def tables_to_train_on(factors: Artifact) -> Pair:
    """The tables that a frozen arm trains on."""
    return factor_tables(factors.path / UNSAMPLED if is_crossed(factors) else factors.path)


def tables_to_predict_with(factors: Artifact) -> Pair | None:
    """The tables that a frozen arm predicts with; None if it trains on the same ones."""
    return factor_tables(factors.path) if is_crossed(factors) else None


def width_of(factors: Artifact) -> int:
    """Width of `factor_tables`."""
    columns = read_columns(factors.path)
    return columns["item"].shape[1] + (2 if "item_bias" in columns else 0)


def has_biases(config: ConfigDict) -> bool:
    """Whether the factorisation of a configuration makes biases."""
    return config.factorization == "sgd" or config.als.feedback == "explicit"


def is_crossed(factors: Artifact) -> bool:
    """Whether there are factors of the unsampled rows too."""
    return (factors.path / UNSAMPLED).exists()


@dataclasses.dataclass(frozen=True)
class _Job:
    run: Run
    prepared: Artifact
    config: als.ALSConfig | sgd.SGDConfig

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.run.config.seed)


def _unsampled_rows(job: _Job, sample: Artifact | None) -> np.ndarray:
    """Ids of the training rows that are not kept."""
    table, config = open_table(job.prepared.path), job.run.config
    left = np.ones(len(table.splits["train"]["user"]), bool)
    if sample is None:
        left[pipeline.sampled_ids(len(left), config.rate, config.seed)] = False
    else:
        left[read_columns(sample.path)["row"]] = False
    return np.flatnonzero(left)


def _factorize(
    job: _Job,
    rows: slice | np.ndarray,
    saved: Checkpoints | None,
    init: Factors | None = None,
) -> tuple[Factors, np.ndarray]:
    """Factorises some of the training rows; see `als.fit` and `sgd.fit`."""
    config, chosen = job.config, _training_rows(open_table(job.prepared.path), rows)
    total = config.iterations if isinstance(config, als.ALSConfig) else config.epochs
    progress = Progress("factorize", total, "passes")

    def show(done: int, loss: float, seconds: float) -> None:
        del seconds
        progress.update(done, f"loss {loss:.6g}")

    try:
        if isinstance(config, sgd.SGDConfig):
            return sgd.fit(chosen, config, job.key, progress=show, saved=saved, init=init)
        value = None  # of implicit feedback it counts that it happened, not how it was rated
        if config.feedback == "explicit" and chosen.label is None:
            value = open_table(job.prepared.path).splits["train"]["value"][rows]
        matrix = _interactions(chosen, value)
        mesh = als_mesh(job.run, max(chosen.num_users, chosen.num_items), config.factors)
        found, losses = als.fit(
            matrix, config, job.key, mesh=mesh, progress=show, saved=saved, init=init
        )
        return _with_held_out_users(job, config, found, mesh), losses
    finally:
        progress.close()


def _with_held_out_users(job: _Job, config: als.ALSConfig, factors: Factors, mesh: Mesh) -> Factors:
    """The factors with vectors of the held-out users, if there are any, in place of zeros.

    Fold-in rows of items that no training row has say nothing and are left out; users without
    others stay 0.
    """
    table = open_table(job.prepared.path)
    rows = table.splits.get(PARTS[FOLD_IN])
    if rows is None:
        return factors
    there = np.flatnonzero(table.items["count"][rows["item"]])
    if not len(there):
        return factors
    users, user = np.unique(rows["user"][there], return_inverse=True)
    value = rows["value"][there] if config.feedback == "explicit" else None
    sizes = len(users), table.schema.num_items
    matrix = Interactions.from_rows(user, rows["item"][there], *sizes, value)
    folded_in = als.fold_in(factors, matrix, config, mesh=mesh)
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
    users, items = rows.user, rows.item
    if rows.label is not None:
        clicked = np.flatnonzero(rows.label)
        users, items = users[clicked], items[clicked]
    return Interactions.from_rows(users, items, rows.num_users, rows.num_items, value)


def write_factors(folder: pathlib.Path, factors: Factors, bits: int) -> None:
    """Writes factors in `bits` bits an entry; biases in float32.

    `user.npy` [U, D] and `item.npy` [I, D] are int8 with `user_scale.npy` [U] and `item_scale.npy`
    [I] float32, or float16, or float32; see `quantization.quantize`.
    """
    if not distributed.is_first():
        return
    found = {field.name: getattr(factors, field.name) for field in dataclasses.fields(factors)}
    arrays = {name: np.asarray(x, np.float32) for name, x in found.items() if x is not None}
    for side in ("user", "item"):
        arrays[side], scale = quantize(arrays[side], bits)
        if scale is not None:
            arrays[f"{side}_scale"] = scale
    write_columns(folder, arrays)
