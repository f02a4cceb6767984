"""Compress the training data of a recommender, and compare what is trained on it.

    python -m cadc_jax.main --config=configs/criteo.py

Runs the stages prepare, factorize, sample, train, evaluate and report; each leaves an artefact in
the work folder and is not repeated by a second run. Any field of the configuration can be changed:

    --config.data.path=/data/train.txt --config.rate=0.01 --config.seed=1
"""

import os
import pathlib
import sys

# TensorFlow only reads data here; these silence what it logs when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, flags, logging
from ml_collections import config_flags

from cadc_jax.errors import CadcError, ConfigError

STAGES = ("prepare", "factorize", "sample", "train", "evaluate", "report")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of the configuration, for example configs/criteo.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for artefacts and the report; default: workdir/<name of the config>."
)
_STAGE = flags.DEFINE_enum(
    "stage",
    "report",
    STAGES,
    "Last stage to run; the ones before it are run unless they are finished.",
)


def main(argv: list[str]) -> None:
    """Runs the configured experiment."""
    if len(argv) > 1:
        raise CadcError(f"unexpected argument '{argv[1]}': options are written --name=value")
    if _CONFIG.value is None:
        raise CadcError("no configuration: give one, such as --config=configs/criteo.py")
    config = _CONFIG.value
    try:
        name = config.name
    except OSError as error:  # config_flags puts off the failure to the first use
        raise ConfigError(str(error)) from None
    workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("workdir") / name)
    from cadc_jax import experiment  # seconds of imports, which --help and a typo need not wait for

    experiment.run(config, workdir, _STAGE.value)


def run() -> None:
    """Entry point: errors of the user's end in one line and exit code 1."""
    logging.set_verbosity(logging.WARNING)
    app.run(_main_without_traceback, flags_parser=_parse_flags)


def _main_without_traceback(argv: list[str]) -> None:
    try:
        main(argv)
    except CadcError as error:
        _fail(error)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; config_flags raises plain errors for a bad file, field or value."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        _fail(error)


def _fail(error: Exception) -> None:
    text = str(error)
    if isinstance(error, AttributeError | KeyError):  # ConfigDict quotes its text, once or twice
        text = "no such field: " + text.replace("\\n", ". ").replace("\\", "").replace("'", "")
    text = " ".join(text.split())
    print(f"cadc: error: {text}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    run()
