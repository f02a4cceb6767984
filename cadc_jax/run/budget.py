"""Chooses the rank of the factors, their bits and the rate for a compressed data set of some bytes.

Factors outweigh rows on most logs, and a lower rank loses more than coarser entries or fewer rows.
So each rank gets the most bits, and then the highest rate, that fit; the factorisation that ranks
the validation split best is taken. The budget is for what training reads: kept rows, factors and
content. Mask and held-out rows do not depend on the choice, and come on top.
"""

import dataclasses
import itertools
import pathlib
import re
import tempfile
from collections.abc import Callable

from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.data.table import Table, open_table
from cadc_jax.errors import ConfigError
from cadc_jax.evaluation import scorers
from cadc_jax.run import compressed, stages, validation
from cadc_jax.run.context import Inputs, Run
from cadc_jax.run.factor_files import factor_tables
from cadc_jax.runtime.artifacts import Artifact, size_of

_BITS = (8, 6)  # tried in this order
_RANKS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)  # of the configured one
_RATES = (1.0, 0.5, 0.2, 0.1)  # of the configured one
_SECOND_SET = 0.75  # bytes of refreshed factors, as a share of the unsampled ones
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A configuration that fits a budget.

    Attributes:
      config: with its rate, its bits and the rank of its factorisation.
      inputs: its artefacts.
      size: bytes of rows, factors and content.
      quality: of its factors on the validation split, higher is better.
    """

    config: ConfigDict
    inputs: Inputs
    size: int
    quality: float

    def __str__(self) -> str:
        config = self.config
        return (
            f"rank {configuration.rank(config)}, {config.factor_bits} bits, rate "
            f"{config.rate:g}: {self.size / 1e6:,.3f} MB, factors validate at {self.quality:.4f}"
        )


def parse_bytes(text: str) -> int:
    """Bytes of '20MB', '1.5 GB' or '3000000'; a kB is 1,000 bytes.

    Raises:
      ConfigError: if it is anything else, or nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?[bB])?\s*", text)
    unit = "" if found is None or not found[2] else found[2].lower().removeprefix("b")
    size = 0 if found is None else int(float(found[1]) * _UNITS[unit])
    if not size:
        raise ConfigError(f"--bytes={text}: must be a size such as 20MB")
    return size


def choose(run: Run, budget: int, prepared: Artifact) -> Choice:
    """The best configuration whose rows, factors and content fit a budget.

    Args:
      run: its configured rank and rate are the largest ones that are tried.
      budget: bytes.
      prepared: the prepared table.

    Raises:
      ConfigError: if nothing fits.
    """
    config, table = run.config, open_table(prepared.path)
    fixed = _packed_size(lambda out: compressed.pack_content(prepared.path, out))
    quality = _quality_of(run, table)
    rows, best = _rows_bytes(prepared, stages.sample_stage(run, prepared)), None

    def estimate(rank: float, bits: int, rate: float) -> int:
        ids = table.schema.num_users + table.schema.num_items
        sets = 1 + _SECOND_SET * (config.factor_rows == "unsampled")
        return int(fixed + ids * (_rank(config, rank) * bits / 8 + 4) * sets + rows * rate)

    for rank in _RANKS:
        pairs = itertools.product(_BITS, _RATES)
        fitting = (pair for pair in pairs if estimate(rank, *pair) <= budget)
        if (pair := next(fitting, None)) is None:
            continue
        candidate = _changed(config, rank, *pair)
        inputs = compressed.make_inputs(dataclasses.replace(run, config=candidate), prepared)
        size = fixed + _rows_bytes(prepared, inputs.sample) + _factor_bytes(inputs.factors)
        choice = Choice(candidate, inputs, size, quality(inputs.factors))
        run.say(f"[ compress] {choice}" + (": too large" if size > budget else ""))
        if size <= budget and (best is None or choice.quality > best.quality):
            best = choice
    if best is None:
        least = estimate(_RANKS[-1], _BITS[-1], _RATES[-1])
        raise ConfigError(
            f"--bytes: nothing fits {budget:,} bytes: content and vocabularies take {fixed:,}, and "
            f"about {least:,} are needed in all; give more bytes"
        )
    run.say(f"[ compress] chosen: {best}")
    return best


def _rank(config: ConfigDict, share: float) -> int:
    return configuration.rank(_changed(config, share, config.factor_bits, 1.0))


def _changed(config: ConfigDict, rank: float, bits: int, rate: float) -> ConfigDict:
    """The configuration with these shares of its rank and rate, and these bits."""
    config = config.copy_and_resolve_references()
    for method in configuration.methods(config):
        config[method].factors = max(1, round(config[method].factors * rank))
    config.factor_bits, config.rate = bits, config.rate * rate
    return config


def _quality_of(run: Run, table: Table) -> Callable[[Artifact], float]:
    """Of factors, in the metric that the configuration validates by."""
    quality = validation.of_table(run, table).quality

    def of_factors(factors: Artifact) -> float:
        return quality(scorers.factors(*factor_tables(factors.path), calibrated=False))

    return of_factors


def _packed_size(pack: Callable[[pathlib.Path], None]) -> int:
    with tempfile.TemporaryDirectory() as name:
        pack(pathlib.Path(name))
        return size_of(pathlib.Path(name))


def _rows_bytes(prepared: Artifact, sample: Artifact) -> int:
    return _packed_size(lambda out: compressed.pack_rows(prepared.path, sample.path, out))


def _factor_bytes(factors: Artifact) -> int:
    return _packed_size(lambda out: compressed.pack_factors(factors, out))
