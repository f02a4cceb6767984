"""The evidence for CADC in one command: data sets x rates x arms x models x seeds, with a report.

    pip install -e '.[bench]'
    CADC_DATA_DIR=/raw/data python benchmarks/study.py [--quick] [--json FILE]
        [--data ml-100k,ml-1m,epinions,synthetic] [--rates 1,0.1,0.01] [--seeds 5] [--out DIR]
        [--arms random,trainable,frozen] [--models two_tower,dlrm] [--jobs 2]
        [--baselines popularity,mf_alone,ease,item_knn,full,fold_in]
        [--selections per_user,popularity,inverse_propensity,recent,hardest]
        [--selection-rates 0.1]

A cell of the study is one model, trained and tested. Cells run in worker processes. Each result is
added to DIR/results.csv as soon as it is there, so a study that was stopped resumes where it was,
and a larger one (more seeds, more rates) reuses its results. A failed cell is noted, the others
continue, and the next start tries it again. DIR/report.html shows the results, with rivals and
intervals, and needs no other file.

  arms        All train on the rows that are kept. random: embeddings from a random start.
              trainable, frozen: embeddings from the factors of all rows.
  baselines   popularity. mf_alone: the factorisation without a network. ease, item_knn: EASE and
              item neighbours, for rankings. full: all rows from a random start; these cells take
              longest. fold_in: as mf_alone and frozen, but 5 % of the users are hidden from the
              factorisation and from training, and get their factors from one least-squares step.
  seeds       of the sample, of training and of the factorisation. Data and splits stay the same.
              Training ends when validation does not improve any more, and the best step is tested.
  selections  other rules that choose as many rows, with factors and without.

The parts of the program are in `study_lib/`.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers share an accelerator

import jax

from benchmarks.study_lib import grid, selection, workers
from benchmarks.study_lib.cells import ARMS, BASELINES, DATA
from benchmarks.study_lib.compute import Study, run_cell
from cadc_jax import configuration

DEFAULTS: dict[str, Any] = {
    "data": list(DATA),
    "rates": [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005],
    "arms": list(ARMS),
    "models": ["two_tower", "dlrm"],
    "seeds": 5,
    "baselines": list(BASELINES),
    "selections": list(selection.RULES),
    "selection_rates": [0.1],
    "out": pathlib.Path("workdir/study"),
}
QUICK: dict[str, Any] = {
    "data": ["ml-100k", "synthetic"],
    "rates": [0.1],
    "arms": ["frozen"],
    "models": ["two_tower"],
    "seeds": 1,
    "selections": [],
    "selection_rates": [],
    "out": pathlib.Path("workdir/study-quick"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study."""
    options = parse(arguments)
    if importlib.util.find_spec("jinja2") is None:
        sys.exit("study: the report needs Jinja2: pip install -e '.[bench]'")
    from benchmarks.study_lib import report

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // options.jobs)))
    study = Study(options.out.resolve(), options.quick)
    study.out.mkdir(parents=True, exist_ok=True)
    data = available(options.data)
    if not data:
        sys.exit("study: there is no data; set CADC_DATA_DIR to the folder of raw data sets")
    fields = ("rates", "arms", "models", "seeds", "selections", "selection_rates", "baselines")
    chosen = grid.Grid(data, **{name: getattr(options, name) for name in fields})
    start = time.perf_counter()
    rows = workers.run_cells(study, grid.phases(chosen), options.jobs, run_cell)
    machine = _machine(options.jobs)
    command = "python benchmarks/study.py " + " ".join(arguments or sys.argv[1:])
    reports = report.write(study.out, rows, machine, command)
    print("\n" + report.summary(reports))
    print(f"\n{study.out / 'report.html'}, results.csv; {time.perf_counter() - start:.0f} s")
    if options.json:
        result = {"machine": machine, "rows": report.json_rows(reports)}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with their defaults and checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = _list_of(str)
    parser.add_argument("--data", type=names, help=f"of {', '.join(DATA)}; default: all")
    parser.add_argument("--rates", type=_list_of(float), help="rates of the uniform samples")
    parser.add_argument("--arms", type=names, help=f"of {', '.join(ARMS)}; default: all")
    parser.add_argument("--models", type=names, help="default: two_tower,dlrm")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--baselines", type=names, help=f"of {', '.join(BASELINES)}; default: all")
    parser.add_argument("--selections", type=names, help="other rules to choose rows, or 'none'")
    parser.add_argument("--selection-rates", type=_list_of(float), help="rates of these rules")
    parser.add_argument("--out", type=pathlib.Path, help="folder; default: workdir/study")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--quick", action="store_true", help="a small study, in about a minute")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the comparisons to")
    options = parser.parse_args(arguments)
    for name, value in (DEFAULTS | QUICK if options.quick else DEFAULTS).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.selections == ["none"]:
        options.selections = []
    allowed = {"data": DATA, "arms": ARMS, "models": configuration.MODELS}
    for name, known in (allowed | {"baselines": BASELINES, "selections": selection.RULES}).items():
        for value in getattr(options, name):
            if value not in known:
                parser.error(f"--{name}: {value!r} is not one of {', '.join(known)}")
    for rate in (*options.rates, *options.selection_rates):
        if not 0 < rate <= 1:
            parser.error(f"a rate of {rate:g} is not above 0 and at most 1")
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    return options


def available(names: Sequence[str]) -> list[str]:
    """The data sets that are there; says which are not."""
    raw = configuration.data_folder().resolve()
    os.environ["CADC_DATA_DIR"] = str(raw)  # for workers
    found = []
    for name in names:
        if DATA[name].needs and not (raw / DATA[name].needs).exists():
            print(f"*** SKIPPED {name}: there is no {raw / DATA[name].needs} ***")
        else:
            found.append(name)
    return found


def _machine(jobs: int) -> str:
    """The machine in words, for the report."""
    text = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
    text += f"{jax.default_backend()}, {jobs} workers at a time"
    if hasattr(os, "getloadavg"):  # a load above the number of workers: seconds are too long
        text += f", load {os.getloadavg()[2]:.1f} over the last 15 minutes"
    return text


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list]:
    def parse_list(text: str) -> list:
        return [kind(part) for part in text.split(",") if part]

    return parse_list


if __name__ == "__main__":
    main()
