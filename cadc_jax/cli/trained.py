"""The flags by which `recommend` and `export` choose a trained model."""

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
    workdir, source = flags.path(flags.WORKDIR), flags.path(flags.FROM)
    if source is None:
        source = workdir
    if source is None and config is not None:
        from cadc_jax.configuration import folder_name

        source = pathlib.Path("workdir") / folder_name(config)
    if source is None:
        raise ConfigError("this command needs --from=DIR, or --config=... as it ran")
    from cadc_jax.serving import trained

    return trained.open_trained(source, workdir, config, flags.ARM.value, flags.MODEL.value)
