"""The flags by which `recommend`, `similar` and `export` choose a trained model."""

import functools
import pathlib
from typing import TYPE_CHECKING

from cadc_jax.cli import flags
from cadc_jax.errors import ConfigError

if TYPE_CHECKING:
    from absl.flags import FlagHolder

    from cadc_jax.runtime.storage import AnyPath
    from cadc_jax.serving.trained import Trained

FLAGS = ("from", "config", "workdir", "arm", "model")


def chosen() -> "Trained":
    """The trained model that the flags choose.

    Raises:
      ConfigError: if no flag names a folder.
    """
    config = None if flags.CONFIG.value is None else flags.config()
    folder, workdir = source(), _here(flags.WORKDIR)
    from cadc_jax.serving import trained

    return trained.open_trained(folder, workdir, config, flags.ARM.value, flags.MODEL.value)


def _here(flag: "FlagHolder") -> pathlib.Path | None:
    """The folder that a flag gives, if it is given; one on a URL is copied to the cache."""
    named = flags.place(flag)
    return None if named is None else _copied(named, flag.name)


@functools.cache  # one on a URL is compared with its copy once
def _copied(named: "AnyPath", flag: str) -> pathlib.Path:
    from cadc_jax.runtime import mirror

    return mirror.local_copy(named, flag)


def source() -> pathlib.Path:
    """The work folder or compressed data set that the flags name.

    Raises:
      ConfigError: if no flag names one.
    """
    named = _here(flags.FROM) or _here(flags.WORKDIR)
    if named is not None:
        return named
    if flags.CONFIG.value is None:
        raise ConfigError("this command needs --from=DIR, or --config=... as it ran")
    from cadc_jax.configuration import folder_name

    return pathlib.Path("workdir") / folder_name(flags.config())
