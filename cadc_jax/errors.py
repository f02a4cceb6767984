"""Errors that a user can cause and fix, and the checks of settings that raise them.

`main` prints their text as one line, without a traceback.
"""

from collections.abc import Collection, Mapping, Sequence


class CadcError(Exception):
    """Base of all errors whose text tells the user what is wrong and what to do about it."""


class ConfigError(CadcError):
    """A configuration value is missing, unknown or outside its range."""


class DataError(CadcError):
    """A data file is missing, unreadable or malformed; the text names file, line and field."""


class ArtifactError(CadcError):
    """A finished stage on disk is damaged, or belongs to another format version."""


class StorageError(CadcError):
    """An object store cannot be read or written; the text names the URL and what to do."""


class TrainingError(CadcError):
    """Training cannot continue, for example because the loss is not a number."""


def check_choice(
    field: str, value: object, allowed: Collection[str], renamed: Mapping[str, str] | None = None
) -> None:
    """Raises ConfigError unless `value` is one of `allowed`.

    Args:
      field: name of the setting, such as 'als.solver'.
      value: its value.
      allowed: the values it may have.
      renamed: old values -> what they are called now.
    """
    if value in allowed:
        return
    if renamed and value in renamed:
        raise ConfigError(f"{field}={value!r}: is now called {renamed[str(value)]!r}")
    raise ConfigError(f"{field}={value!r}: must be one of {', '.join(allowed)}")


def check_at_least(field: str, value: float | Sequence[float], least: float) -> None:
    """Raises ConfigError unless the value, or each of several values, is at least `least`."""
    values = value if isinstance(value, Sequence) else [value]
    if not all(x >= least for x in values):  # NaN is not, either
        raise ConfigError(f"{field}={value}: must be at least {least}")


def check_above(field: str, value: float, bound: float) -> None:
    """Raises ConfigError unless the value is above `bound`."""
    if not value > bound:
        raise ConfigError(f"{field}={value}: must be above {bound}")


def check_below_one(field: str, value: float) -> None:
    """Raises ConfigError unless the value is in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{field}={value}: must be in [0, 1)")
