"""The files of a factorisation, and the tables that other stages take from them.

user.npy [U, D], item.npy [I, D]       int8 with `user_scale.npy` [U] and `item_scale.npy` [I]
                                       float32, or float16, or float32; see `quantization`
user_bias.npy [U], item_bias.npy [I], global_bias.npy []     float32, if there are biases
encoder.npy [I, D]                     of the autoencoder, stored as the two above
unsampled/                             the same of the rows that the sample does not keep, with
                                       `factor_rows='unsampled'`
"""

import dataclasses
import pathlib

import numpy as np
from ml_collections import ConfigDict

from cadc_jax.data.columns import ColumnKind, check_columns
from cadc_jax.data.table import read_columns, write_columns
from cadc_jax.errors import ArtifactError
from cadc_jax.factorization.factors import Factors, dot_tables
from cadc_jax.factorization.quantization import dequantize, quantize
from cadc_jax.runtime import distributed
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.manifest import ADVICE
from cadc_jax.training.assemble import Pair

UNSAMPLED = "unsampled"  # name of a stage, and of its folder inside that of the factors


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
    for side in ("user", "item", *({"encoder"} & columns.keys())):
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
    if "encoder" in found and len(found["encoder"]) != len(found["item"]):
        raise ArtifactError(f"{folder}: an encoder and factors of different items; {ADVICE}")
    return Factors(**found)


def side_kinds(side: str, dtype: np.dtype, rank: int | None, biased: bool) -> dict[str, ColumnKind]:
    """The columns of one side's factors, or of an encoder.

    Args:
      side: 'user', 'item' or 'encoder'.
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
    explicit = config.factorization == "als" and config.als.feedback == "explicit"
    return config.factorization == "sgd" or explicit


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


def quantized(side: str, table: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """The columns of one side's factors, or of an encoder, in `bits` bits an entry."""
    levels, scale = quantize(table, bits)
    return {side: levels} if scale is None else {side: levels, f"{side}_scale": scale}
