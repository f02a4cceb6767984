"""The flags by which `recommend`, `similar` and `export` choose a trained model."""

import pathlib
from typing import TYPE_CHECKING

from cadc_jax.cli import flags
from cadc_jax.errors import ConfigError

if TYPE_CHECKING:
    from cadc_jax.serving.trained import Trained

FLAGS = ("from", "config", "workdir", "arm", "model")


def chosen() -> "Trained":
    """The trained model that the flags choose.

    Raises:
      ConfigError: if no flag names a folder.
    """
    config = None if flags.CONFIG.value is None else flags.config()
    folder, workdir = source(), flags.path(flags.WORKDIR)
    from cadc_jax.serving import trained

    return trained.open_trained(folder, workdir, config, flags.ARM.value, flags.MODEL.value)


def source() -> pathlib.Path:
    """The work folder or compressed data set that the flags name.

    Raises:
      ConfigError: if no flag names one.
    """
    named = flags.path(flags.FROM) or flags.path(flags.WORKDIR)
    if named is not None:
        return named
    if flags.CONFIG.value is None:
        raise ConfigError("this command needs --from=DIR, or --config=... as it ran")
    from cadc_jax.configuration import folder_name

    return pathlib.Path("workdir") / folder_name(flags.config())
