"""Factors on disk as `Factors`, and the tables that other stages take from them."""

import dataclasses
import pathlib

import numpy as np
from ml_collections import ConfigDict

from cadc_jax.data.table import read_columns, write_columns
from cadc_jax.factorization.factors import Factors, dot_tables
from cadc_jax.run.factor_columns import UNSAMPLED, quantized, read_factors
from cadc_jax.runtime import distributed
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.training.assemble import Pair


def open_factors(folder: pathlib.Path, values: bool = False) -> Factors:
    """Opens the factors that this stage wrote into a folder, as float32; see `read_factors`."""
    return Factors(**read_factors(folder, values))


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
    explicit = config.factorization == "als" and config.als.feedback == "explicit"
    return config.factorization == "sgd" or explicit


def are_logits(config: ConfigDict) -> bool:
    """Whether the scores of the factorisation of a configuration are logits."""
    return config.factorization == "sgd"


def is_crossed(factors: Artifact) -> bool:
    """Whether there are factors of the unsampled rows too."""
    return (factors.path / UNSAMPLED).exists()


def write_factors(folder: pathlib.Path, factors: Factors, bits: int) -> None:
    """Writes factors and an encoder in `bits` bits an entry, and biases in float32."""
    if not distributed.is_first():
        return
    found = {field.name: getattr(factors, field.name) for field in dataclasses.fields(factors)}
    arrays = {name: np.asarray(x, np.float32) for name, x in found.items() if x is not None}
    for side in [name for name in ("user", "item", "encoder") if name in arrays]:
        arrays |= quantized(side, arrays[side], bits)
    write_columns(folder, arrays)
