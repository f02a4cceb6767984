"""Compares rates, arms, models, seeds, settings and rivals, with intervals.

The cells of the study run in worker processes, and each result is added to results.csv at once. The
same command resumes a study that was stopped, and a larger one (more seeds, more rates) reuses it.
Arms on a sample train on the kept rows; 'cadc run' has the same ones. Rivals:

    popularity, mf_alone   no model, and the factorisation without a network
    ease, item_knn, slim, rp3beta, mf_ease    tuned on the validation split (rankings)
    logistic, fm, lightgbm                    the same for clicks
    fold_in                mf_alone and cadc_frozen, with 5 % of the users hidden from both the
                           factorisation and training, and folded in (rankings, ALS)

Examples:

    cadc study --config=configs/criteo.py --quick
    cadc study --config=own.py --rates=0.1,0.01 --seeds=3 --sweep=config.als.factors=32,64
    cadc study --config=own.py --rates=0.1 --trials=16    # searches the settings of each arm first
    cadc study --config=a.py --with=b.py,c.py      # one report; --config.FIELD=... holds for all
"""

import os
import pathlib
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from cadc_jax.cli.flags import ARMS, CACHE, CONFIG, MODELS, OUT, TRIALS, cache_folder, config, place
from cadc_jax.errors import ConfigError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_WITH = flags.DEFINE_list("with", [], "Files of further configurations, for the same report.")
_RATES = flags.DEFINE_list("rates", None, "Rates of the samples; default: 1,0.1,0.01.")
_SEEDS = flags.DEFINE_integer("seeds", None, "How many seeds; default: 5.", lower_bound=1)
_RIVALS = flags.DEFINE_list("rivals", None, "What to compare with, or 'none'; default: all.")
_SELECTIONS = flags.DEFINE_list(
    "selections",
    [],
    "Other rules that choose as many rows: per_user, popular, inverse_propensity, recent, hardest.",
)
_SELECTION_RATES = flags.DEFINE_list(
    "selection_rates", ["0.1"], "Rates of these rules, and of fold_in."
)
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "config.FIELD=VALUE,VALUE: trains with each value; several sweeps with all combinations.",
)
_JOBS = flags.DEFINE_integer("jobs", 2, "Worker processes.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "A small study with short training, to see the report.")
for _name in ("config", "out", "arms", "models", "trials", "compilation_cache"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers share an accelerator
    first = config()
    configs = {one.name: one for one in (first, *_further())}
    if len(configs) < 1 + len(_WITH.value):
        raise ConfigError("--with: two configurations have the same config.name; give them others")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // _JOBS.value)))
    from cadc_jax import configuration
    from cadc_jax.runtime import compilation
    from cadc_jax.study import cells, command
    from cadc_jax.study.selection import RULES

    quick = command.QUICK if _QUICK.value else {}
    rivals = list(cells.RIVALS) if _RIVALS.value is None else _RIVALS.value
    options = command.Options(
        rates=_rates(_RATES) or quick.get("rates", (1.0, 0.1, 0.01)),
        arms=_known(ARMS, cells.ARMS),
        models=_known(MODELS, configuration.MODELS),
        seeds=_SEEDS.value or quick.get("seeds", 5),
        rivals=[] if rivals == ["none"] else _checked("rivals", rivals, cells.RIVALS),
        selections=_known(_SELECTIONS, RULES),
        selection_rates=_rates(_SELECTION_RATES),
        sweeps=_SWEEP.value,
        jobs=_JOBS.value,
        quick=_QUICK.value,
        trials=TRIALS.value or 0,
    )
    default = pathlib.Path(
        "workdir/study", configuration.folder_name(first) + "-quick" * _QUICK.value
    )
    cache = None if CACHE.value == "off" else cache_folder() or compilation.default_folder()
    typed = "cadc " + " ".join(sys.argv[1:])
    command.run(configs, options, place(OUT) or default, typed, cache)


def _further() -> list["ConfigDict"]:
    """The configurations of --with, with the fields that the command line sets."""
    from cadc_jax.run import bundled_configs

    changed = config_flags.get_override_values(flags.FLAGS[CONFIG.name])
    found = []
    for name in _WITH.value:
        one = bundled_configs.read(name, "--with=")
        one.update_from_flattened_dict(changed)
        found.append(one)
    return found


def _rates(flag: flags.FlagHolder) -> list[float]:
    """The rates of a flag; none if it is not given."""
    rates = []
    for text in flag.value or []:
        try:
            rates.append(float(text))
        except ValueError:
            rates.append(0.0)
        if not 0 < rates[-1] <= 1:
            raise ConfigError(f"--{flag.name}={text}: must be above 0 and at most 1")
    return rates


def _known(flag: flags.FlagHolder, known: Collection[str]) -> list[str]:
    """The values of a flag; see `_checked`."""
    return _checked(flag.name, flag.value or [], known)


def _checked(name: str, values: list[str], known: Collection[str]) -> list[str]:
    """Some values, each of them once; raises ConfigError if one is not among the known ones."""
    for value in values:
        if value not in known:
            raise ConfigError(f"--{name}: {value!r} is not one of {', '.join(known)}")
    return list(dict.fromkeys(values))
