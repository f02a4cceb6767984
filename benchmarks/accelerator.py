"""Everything that this package is timed with on one GPU or TPU, in one command.

    python benchmarks/accelerator.py [--minutes 5] [--only NAMES] [--json FILE] [--quick]

It needs neither TensorFlow nor ml_collections, and forbids both. Sections, in this order:

    limits     bandwidth of the memory and of gathers, rates of matrix products
    dlrm       steps of a DLRM at the shape of Criteo Kaggle, trained and frozen tables
    als-1m     an iteration of ALS on 1 million entries, by either solver
    sgd        epochs of logistic SGD
    equality   whether 20 training steps, and ALS, give the same bits twice
    als-20m    an iteration of ALS on 20 million entries (138,000 x 27,000)
    job        the stages of the main job as functions of the library
    torch      the steps of 'dlrm' in turns with PyTorch, if it has the same device

Every time is taken after two runs that do not count. `ours` is the median, `least` the fastest. The
peer of a time is its limit: the larger of the bytes of gathered rows over the gather's bandwidth
and the FLOPs of matrix products over their rate, both measured in the same run. On a known device
the peer is also what `cadc plan` predicts. After --minutes, what is left is 'not measured': a
program that is being compiled is waited for. --quick has sizes that a CPU can do in seconds, and
leaves out 'als-20m' and compiled networks of PyTorch.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

FORBIDDEN = ("tensorflow", "ml_collections")
SECTIONS = ("limits", "dlrm", "als-1m", "sgd", "equality", "als-20m", "job", "torch")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all sections and prints a line for each figure."""
    options = _parse(arguments)
    with forbidden(FORBIDDEN):
        found = measure(options)
    assert "tensorflow" not in sys.modules
    for what in ("not_measured", "failed"):
        for name, reason in found[what].items():
            print(f"{what.upper()}: {name}: {reason}", flush=True)
    if found["failed"]:
        sys.exit(f"accelerator: {len(found['failed'])} cases failed")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--minutes", type=float, default=5.0, help="time for everything")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, joined by commas")
    parser.add_argument("--json", type=pathlib.Path, help="file that the rows are written to")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    for name in options.only:
        if name not in SECTIONS:
            parser.error(f"--only={name}: sections are {', '.join(SECTIONS)}")
    return options


@contextlib.contextmanager
def forbidden(names: Sequence[str]) -> Iterator[None]:
    """Modules that cannot be imported meanwhile, as if they were not installed."""
    for name in names:
        assert name not in sys.modules, f"{name} is imported already"
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in names:
            assert sys.modules.pop(name) is None, f"{name} was imported"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows, and why others are missing; the file has them after each case."""
    from benchmarks.accelerator_lib.timing import OutOfTime, Skipped

    found: dict[str, Any] = {"machine": _machine(), "rows": [], "not_measured": {}, "failed": {}}
    end = time.monotonic() + 60 * options.minutes
    for name, run in _units(options):
        try:
            with _alarm_at(end, OutOfTime):
                for row in run():
                    found["rows"].append(row)
                    _show(row)
        except (OutOfTime, Skipped) as reason:
            found["not_measured"][name] = str(reason)
        except Exception as error:  # a case that does not fit must not cost the others
            text = (str(error).splitlines() or [""])[0]
            found["failed"][name] = f"{type(error).__name__}: {text[:200]}"
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


@contextlib.contextmanager
def _alarm_at(end: float, error: type[BaseException]) -> Iterator[None]:
    """Raises `error` inside the block at a time of `time.monotonic`; at once if it is over."""

    def stop(*_: Any) -> None:
        raise error("out of time")

    if (left := end - time.monotonic()) <= 0:
        stop()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _units(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The cases of all sections that were asked for."""
    from benchmarks.accelerator_lib import factorizations, job, limits, training

    quick, known = options.quick, limits.Limits(options.quick)
    small = factorizations.TINY if quick else factorizations.SMALL
    large = () if quick else (factorizations.LARGE,)
    sections = {
        "limits": iter([("limits", lambda: limits.rows(known))]),
        "dlrm": training.step_units(quick, known),
        "als-1m": factorizations.als_units(small, quick, known),
        "sgd": factorizations.sgd_units(quick, known),
        "equality": training.equality_units(quick),
        "als-20m": (unit for log in large for unit in factorizations.als_units(log, quick, known)),
        "job": job.units(quick),
        "torch": training.torch_units(quick),
    }
    return itertools.chain.from_iterable(
        sections[name] for name in SECTIONS if name in options.only
    )


def _show(row: dict) -> None:
    peer = "" if row["peer"] is None else f"{row['peer']:10.4g}  {row['ratio']:6.3f}"
    line = f"{row['case']:90} {row['metric']:30} {row['ours']:10.4g}  {row['peer_name']:26} {peer}"
    print(line.rstrip(), flush=True)


def _machine() -> str:
    import jax

    device = jax.devices()[0]
    host = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return f"{device.device_kind} ({device.platform}), jax {jax.__version__}; {host}"


if __name__ == "__main__":
    main()
