"""Compares the arms from a compressed data set alone.

It trains with the configuration that the data set was made with, but for what the flags change, or
with another one (--config) that has the same data and factorisation.

Examples:

    cadc train --from=/data/small
    cadc train --from=/data/small --arms=sample,cadc_frozen --models=two_tower --seed=1
"""

from typing import TYPE_CHECKING

from absl import flags

from cadc_jax.cli.flags import (
    ARMS,
    CONFIG,
    FROM,
    MODELS,
    PROCESSES,
    VERIFY,
    config,
    needed_here,
    run_of,
)
from cadc_jax.errors import ConfigError
from cadc_jax.run.arms import TRAINED

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_TAKING_SAMPLE = [arm.name for arm in TRAINED.values() if arm.takes_sample]
_SEED = flags.DEFINE_integer("seed", None, "Seed of the training; the sample keeps its own.")
for _name in (
    "from",
    "config",
    "workdir",
    "scratch",
    "verify",
    "compilation_cache",
    "arms",
    "models",
    *PROCESSES,
):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    folder = needed_here(FROM)
    from cadc_jax import experiment
    from cadc_jax.run import compressed

    given = compressed.open_compressed(folder, VERIFY.value)
    settings = given.config if CONFIG.value is None else config()
    experiment.train_from(run_of(_changed(settings)), given)


def _changed(settings: "ConfigDict") -> "ConfigDict":
    """The configuration with what the flags say.

    Raises:
      ConfigError: if it is not valid then, or an arm needs rows that a compressed data set has not.
    """
    settings = settings.copy_and_resolve_references()
    for name in ARMS.value or ():
        if name in TRAINED and name not in _TAKING_SAMPLE:
            raise ConfigError(
                f"--arms={name}: trains on all rows, which a compressed data set has not; it has "
                f"those of {', '.join(_TAKING_SAMPLE)}"
            )
    given = {"arms": ARMS.value, "models": MODELS.value, "seed": _SEED.value}
    for name, value in given.items():
        if value is not None:
            settings[name] = tuple(value) if isinstance(value, list) else value
    from cadc_jax.configuration import validate

    validate(settings)
    return settings
