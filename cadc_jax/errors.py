"""Errors a user can cause and mend: `main` prints their text as one line, without a traceback."""


class CadcError(Exception):
    """Base of all errors whose text tells the user what is wrong and what to do about it."""


class ConfigError(CadcError):
    """A configuration value is missing, unknown or outside its range."""


class DataError(CadcError):
    """A data file is missing, unreadable or malformed; the text names file, line and field."""


class ArtifactError(CadcError):
    """A finished stage on disk is damaged, or belongs to another format version."""


class TrainingError(CadcError):
    """Training cannot go on, for example because the loss is not a number."""
