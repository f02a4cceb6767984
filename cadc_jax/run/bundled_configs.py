"""The configurations that come with the package."""

import pathlib
import runpy
from typing import TYPE_CHECKING

from cadc_jax.errors import ConfigError
from cadc_jax.runtime.text import nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_PACKAGE = pathlib.Path(__file__).parents[1]


def configs() -> dict[str, pathlib.Path]:
    """Their files by name ('criteo', 'movielens_1m', ...)."""
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):  # installed, or a checkout
        if found := {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}:
            return found
    return {}


def find(path: str, flag: str) -> pathlib.Path:
    """The file that `path` names: one that is there, or as configs/NAME.py a bundled one.

    Raises:
      ConfigError: if there is none; it begins with `flag`.
    """
    if pathlib.Path(path).exists():
        return pathlib.Path(path)
    found = {f"configs/{file.name}": file for file in configs().values()}
    if path not in found:
        hint = nearest(f"configs/{pathlib.Path(path).stem}.py", found)
        raise ConfigError(
            f"{flag}{path}: no such file{hint}; the package has {', '.join(found) or 'none'}"
        )
    return found[path]


def read(path: str, flag: str) -> "ConfigDict":
    """The configuration in a file, or a bundled one; see `find`.

    Raises:
      ConfigError: if there is none, or it cannot be used.
    """
    file = find(path, flag)
    try:
        return runpy.run_path(str(file))["get_config"]().lock()
    except Exception as error:  # the file is the user's, and may raise anything
        raise ConfigError(
            f"{flag}{path}: cannot be used: {type(error).__name__}: {error}"
        ) from None


def config(name: str) -> "ConfigDict":
    """A new copy of one of them.

    Raises:
      KeyError: if there is none of that name.
    """
    return runpy.run_path(str(configs()[name]))["get_config"]()
