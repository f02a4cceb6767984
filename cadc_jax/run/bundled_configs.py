"""The configurations that come with the package."""

import pathlib
import runpy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_PACKAGE = pathlib.Path(__file__).parents[1]


def configs() -> dict[str, pathlib.Path]:
    """Their files by name ('criteo', 'movielens_1m', ...)."""
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):  # installed, or a checkout
        if found := {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}:
            return found
    return {}


def config(name: str) -> "ConfigDict":
    """A new copy of one of them.

    Raises:
      KeyError: if there is none of that name.
    """
    return runpy.run_path(str(configs()[name]))["get_config"]()
