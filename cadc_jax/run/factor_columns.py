"""The files of a factorisation.

user.npy [U, D], item.npy [I, D]       int8 with `user_scale.npy` [U] and `item_scale.npy` [I]
                                       float32, or float16, or float32; see `quantization`
user_bias.npy [U], item_bias.npy [I], global_bias.npy []     float32, if there are biases
encoder.npy [I, D]                     of the autoencoder, stored as the two above
unsampled/                             the same of the rows that the sample does not keep, with
                                       `factor_rows='unsampled'`
"""

import pathlib

import numpy as np

from cadc_jax.data.columns import ColumnKind, check_columns
from cadc_jax.data.table import read_columns
from cadc_jax.errors import ArtifactError
from cadc_jax.factorization.quantization import dequantize, quantize
from cadc_jax.runtime.manifest import ADVICE

UNSAMPLED = "unsampled"  # name of a stage, and of its folder inside that of the factors


def read_factors(folder: pathlib.Path, values: bool = False) -> dict[str, np.ndarray]:
    """Reads the factors in a folder as float32: the arrays of `Factors`, by name.

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
    return found


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


def quantized(side: str, table: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """The columns of one side's factors, or of an encoder, in `bits` bits an entry."""
    levels, scale = quantize(table, bits)
    return {side: levels} if scale is None else {side: levels, f"{side}_scale": scale}
