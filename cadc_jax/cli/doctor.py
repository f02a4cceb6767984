"""Checks this machine, and runs all stages on a few rows; says what to fix.

Example:

    cadc doctor
"""

import contextlib
import importlib
import importlib.metadata
import io
import logging
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

from cadc_jax.cli.flags import WORKDIR
from cadc_jax.errors import CadcError
from cadc_jax.runtime import storage

_LEAST_MEMORY = 2e9  # bytes; the smallest configurations need about one
_LEAST_DISK = 1e9
_PACKAGE = "cadc-jax"
_IMPORTED = ("jax", "flax.linen", "optax", "orbax.checkpoint", "tensorflow", "pyarrow.csv")
_ROWS = 600  # of the trial run
Check = Callable[[], Iterable[str]]

flags.declare_key_flag("workdir")


def main() -> None:
    """Runs the command."""
    if not examine(storage.local_path(WORKDIR.value or "workdir", "--workdir")):
        sys.exit(1)


def examine(workdir: pathlib.Path, say: Callable[[str], None] = print) -> bool:
    """Runs all checks, one after the other, and shows the result of each.

    Args:
      workdir: where a run would write.
      say: shows the user a line.

    Returns:
      Whether all checks passed.
    """
    checks: dict[str, Check] = {
        "python": _python,
        "packages": _packages,
        "imports": _imports,
        "devices": _devices,
        "memory": _memory,
        "disk": lambda: _disk(workdir),
        "data": _data,
        "trial run": _trial,
    }
    failed = []
    for name, check in checks.items():
        try:
            for line in check():
                say(f"ok    {name:<10} {line}")
        except Exception as error:  # any failure is a result of the check
            text = (
                str(error) if isinstance(error, DoctorError) else f"{type(error).__name__}: {error}"
            )
            say(f"FAIL  {name:<10} {' '.join(text.split())}")
            failed.append(name)
    say("")
    say(f"to fix: {', '.join(failed)}" if failed else "all is well")
    return not failed


class DoctorError(CadcError):
    """A check failed; the text says what to do."""


def _python() -> Iterable[str]:
    wanted = _metadata().get("Requires-Python") or ">=3.11"
    least = tuple(int(x) for x in re.findall(r"\d+", wanted)[:2])
    here = platform.python_version()
    if tuple(int(x) for x in here.split(".")[:2]) < least:
        raise DoctorError(f"{here}, needs {wanted}: make a virtual environment of a newer Python")
    yield here


def _packages() -> Iterable[str]:
    """The versions that are installed against those that setup.py asks for."""
    from packaging.requirements import Requirement

    found, wrong = [], []
    for text in _metadata().get_all("Requires-Dist") or ():
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        found.append(f"{need.name} {version}")
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version}, needs {need.specifier}")
    if wrong:
        raise DoctorError("; ".join(wrong) + ": pip install -e . -c constraints.txt")
    yield ", ".join(found)


def _imports() -> Iterable[str]:
    for name in _IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken library fails in its own ways
            text = f"cannot import {name} ({type(error).__name__}: {error})"
            raise DoctorError(f"{text}: install it again, in a fresh virtual environment") from None
    yield ", ".join(_IMPORTED)


def _devices() -> Iterable[str]:
    import jax

    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    yield f"{len(devices)} {devices[0].platform} ({', '.join(kinds)}), {os.cpu_count()} CPU cores"


def _memory() -> Iterable[str]:
    from cadc_jax import sharding  # imports JAX

    size = sharding.host_memory()
    if size < _LEAST_MEMORY:
        raise DoctorError(f"{size / 1e9:.1f} GB: a run needs at least {_LEAST_MEMORY / 1e9:.0f} GB")
    yield f"{size / 1e9:.1f} GB"


def _disk(workdir: pathlib.Path) -> Iterable[str]:
    there = next(path for path in (workdir.resolve(), *workdir.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DoctorError(f"{there}: {error.strerror}; choose another --workdir") from None
    free = shutil.disk_usage(there).free
    if free < _LEAST_DISK:
        raise DoctorError(f"{there}: {free / 1e9:.1f} GB free; free some room, or choose --workdir")
    yield f"{workdir}: {free / 1e9:.1f} GB free, writable"


def _data() -> Iterable[str]:
    """Lists the raw data sets in $CADC_DATA_DIR; there need not be any."""
    from cadc_jax import configuration

    given = os.environ.get("CADC_DATA_DIR")
    if given and not pathlib.Path(given).is_dir():
        raise DoctorError(
            f"CADC_DATA_DIR={given}: no such folder; set it to the folder of raw data sets"
        )
    folder = configuration.data_folder()
    found = sorted(path.name for path in folder.glob("[!.]*")) if folder.is_dir() else []
    if found:
        yield f"{folder}: {', '.join(found)}"
    else:
        yield f"none in {folder} (CADC_DATA_DIR); configs/criteo.py runs on synthetic rows"


def _trial() -> Iterable[str]:
    """All stages on a few hundred synthetic rows, and a recommendation by what they trained."""
    from cadc_jax import configuration, experiment
    from cadc_jax.serving import raw_ids, recommend, trained

    config = configuration.default_config()
    config.name, config.models, config.arms = "doctor", ("dlrm",), ("cadc_frozen",)
    config.rate, config.factorization = 0.5, "sgd"
    config.data.update(source="criteo", folder="none", task="click", split="order")
    config.data.update(synthetic_rows=_ROWS, user_features=("C7",), item_features=("C11",))
    config.sgd.update(factors=4, negatives=1, epochs=1)
    config.dlrm.update(embedding_dim=6, bottom=(4,), top=(4,))
    config.train.update(batch_rows=_batch_rows(), max_evaluations=1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        logging.disable(logging.WARNING)
        try:
            workdir = pathlib.Path(folder)
            experiment.run(experiment.Run(config, workdir, say=lambda line: None))
            model = trained.open_trained(workdir)
            raw = raw_ids.of_table(model.prepared, model.source, "user").examples().split(", ")[0]
            recommend.show(model, raw, 3)
        finally:
            logging.disable(logging.NOTSET)
    seconds = time.perf_counter() - start
    yield f"{_ROWS} synthetic rows through all stages in {seconds:.1f} s"


def _batch_rows() -> int:
    import jax

    return 8 * len(jax.devices())


def _metadata() -> Any:
    try:
        return importlib.metadata.metadata(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise DoctorError(
            f"{_PACKAGE} is not installed: pip install -e . -c constraints.txt"
        ) from None
