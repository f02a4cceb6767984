"""Compress the training data of a recommender, and compare what is trained on it.

    cadc --config=configs/criteo.py                          (or: python -m cadc_jax.main ...)

Runs the stages prepare, factorize, sample, train, evaluate and report; each leaves an artefact in
the work folder and is not repeated by a second run. Any field of the configuration can be changed:

    --config.data.path=/data/train.txt --config.rate=0.01 --config.seed=1

Without a command it is 'cadc run'. SIGTERM and Ctrl-C save what is under way; the same command goes
on from there, as after a crash.

On several hosts, or in several processes, start the same command everywhere, with a --workdir
that all of them share and with --distributed (on Cloud TPU, GKE, Slurm or Open MPI) or

    --coordinator=HOST:PORT --num_processes=N --process_id=K     (K from 0; process 0 is on HOST)
"""

import os
import pathlib
import sys

# TensorFlow only reads data here; these silence what it logs when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, flags, logging
from ml_collections import config_flags

from cadc_jax.cli import exits, parse
from cadc_jax.errors import CadcError, ConfigError
from cadc_jax.runtime.interrupts import Stop

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
    "run: Last stage to run; the ones before it are run unless they are finished.",
)
_VERIFY = flags.DEFINE_bool(
    "verify",
    True,
    "Compare the checksums of finished stages before they are used again (reads them whole).",
)
_RATE = flags.DEFINE_float("rate", None, "compress: share of the training rows; config.rate.")
_OUT = flags.DEFINE_string(
    "out", None, "compress, export, recommend: the folder (recommend: the Parquet file) to make."
)
_FROM = flags.DEFINE_string(
    "from",
    None,
    "train, verify, recommend, export: a folder that 'cadc compress' made; to verify, "
    "any artefact; to recommend and export, also a work folder.",
)
_ROWS = flags.DEFINE_integer(
    "rows",
    None,
    "interactions, plan: training rows to look at (200,000 by default); to plan, those there are.",
    lower_bound=1,
)
_ARM = flags.DEFINE_string(
    "arm",
    None,
    "recommend, export: arm, such as cadc_frozen, or mf_alone (the factors); to recommend "
    "also popularity. By default the one that validated best.",
)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "recommend, export: network, dlrm, dcn or two_tower; by default the one that validated best.",
)
_USER = flags.DEFINE_string("user", None, "recommend: a raw user id, as in the log.")
_USERS = flags.DEFINE_string(
    "users", None, "recommend: 'all', or a file of raw user ids, one a line; needs --out."
)
_K = flags.DEFINE_integer("k", 10, "recommend: items a user.")
_FORMAT = flags.DEFINE_string("format", "npz", "export: one of npz, safetensors, savedmodel.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "run, compress, train: join the processes of the cluster that JAX finds itself in.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "run, compress, train: HOST:PORT of process 0, free to listen on."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "run, compress, train: number of processes of the run."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "run, compress, train: which of them this one is, from 0."
)
_JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", 300, "run, compress, train: how long to wait for the others to join."
)
_DEVICES = flags.DEFINE_integer(
    "devices",
    1,
    "plan: number of devices; config.devices.model of them share a split table.",
    lower_bound=1,
)
_HARDWARE = flags.DEFINE_string("hardware", "v5e", "plan: v5e, v5p, v6e, h100 or cpu.")
_NUM_USERS = flags.DEFINE_integer(
    "num_users", None, "plan: users, where no table is prepared.", lower_bound=1
)
_NUM_ITEMS = flags.DEFINE_integer("num_items", None, "plan: items, likewise.", lower_bound=1)
_FEATURE_ROWS = flags.DEFINE_integer(
    "feature_rows",
    None,
    "plan: values of all other categorical features together, likewise.",
    lower_bound=0,
)

_STOP = Stop()


def main(argv: list[str]) -> None:
    """Runs the command, which is the first argument; without one, the configured experiment."""
    command, *rest = argv[1:] or ["run"]
    if command not in COMMANDS:
        hint = parse.nearest(command, COMMANDS)
        raise CadcError(
            f"unexpected argument '{command}'{hint}: commands are {', '.join(COMMANDS)}; options "
            "are written --name=value"
        )
    if rest and (command not in _WITH_FOLDER or len(rest) > 1):
        raise CadcError(f"unexpected argument '{rest[-1]}': options are written --name=value")
    if not _several():
        COMMANDS[command](*rest)
        return
    if command not in _BY_SEVERAL:
        raise CadcError(f"only {', '.join(_BY_SEVERAL)} take several processes; not {command}")
    from cadc_jax.runtime import distributed  # imports JAX

    distributed.initialize(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        _DISTRIBUTED.value,
        _JOIN_SECONDS.value,
    )
    COMMANDS[command]()
    distributed.finish()


def _several() -> bool:
    """Whether any flag says that this is one process of several."""
    given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    return _DISTRIBUTED.value or any(value is not None for value in given)


def _run() -> None:
    """Runs the experiment: prepare, factorize, sample, train, evaluate, report.

    cadc run --config=configs/criteo.py --config.rate=0.01
    """
    from cadc_jax import experiment  # seconds of imports, which --help and a typo need not wait for

    experiment.run(_experiment(_config()), _STAGE.value)


def _compress() -> None:
    """Writes the compressed data set, all that training needs, to a folder.

    cadc compress --config=configs/criteo.py --rate=0.1 --out=/data/small
    """
    config = _config()
    if _RATE.value is not None:
        config.rate = _RATE.value
    from cadc_jax import experiment

    experiment.compress(_experiment(config), pathlib.Path(_needed(_OUT)))


def _train() -> None:
    """Compares the arms from a compressed data set alone.

    cadc train --from=/data/small
    """
    folder = pathlib.Path(_needed(_FROM))
    from cadc_jax import experiment
    from cadc_jax.run import compressed

    config, inputs = compressed.open_inputs(folder, _VERIFY.value)
    if _CONFIG.value is not None:
        config = _config()
    experiment.train_from(_experiment(config), inputs)


def _verify() -> None:
    """Compares all checksums of an artefact.

    cadc verify --from=/data/small
    """
    folder = pathlib.Path(_needed(_FROM))
    from cadc_jax.runtime import artifacts

    artifacts.open_artifact(folder, verify=True)
    print(f"{folder}: whole and undamaged")


def _interactions() -> None:
    """Shows which columns of a click log may stand for users and items.

    cadc interactions --config=configs/criteo.py --rows=100000
    """
    config = _config()
    from cadc_jax import experiment

    experiment.interactions(_experiment(config), _ROWS.value or 200_000)


def _plan() -> None:
    """Says what a run would need, on paper: memory, traffic between devices, and time.

    cadc plan --config=configs/criteo_terabyte.py --rows=4195197692 --devices=8 --hardware=v5p
    """
    config = _config()
    from cadc_jax.run import planning

    sizes = {
        "rows": _ROWS.value,
        "num_users": _NUM_USERS.value,
        "num_items": _NUM_ITEMS.value,
        "feature_rows": _FEATURE_ROWS.value,
    }
    given = {name: size for name, size in sizes.items() if size is not None}
    planning.plan(_experiment(config), _DEVICES.value, _HARDWARE.value, given)


def _recommend() -> None:
    """Finds the best items that a user, or every user, has not had.

    cadc recommend --config=configs/movielens_1m.py --user=42 --k=5
    cadc recommend --from=/data/small --users=all --out=recs.parquet
    """
    user, users = _USER.value, _USERS.value
    if bool(user) == bool(users):
        raise ConfigError("this command needs --user=ID, or --users=all|FILE with --out=FILE")
    out = pathlib.Path(_needed(_OUT, "FILE")) if users else None
    trained = _trained()
    from cadc_jax.serving import recommend

    if user:
        print(recommend.show(trained, user, _K.value))
    elif users and out:
        print(recommend.write_recommendations(trained, users, _K.value, out))


def _export() -> None:
    """Writes a trained model for other programs: embeddings, raw ids, parameters.

    cadc export --from=workdir/criteo --format=savedmodel --out=/models/ads
    """
    out = pathlib.Path(_needed(_OUT))
    trained = _trained()
    from cadc_jax.serving import export

    made = export.write_export(trained, out, _FORMAT.value)
    print(f"{made.path}: {trained}\nas {_FORMAT.value}; what is in it: cadc info {made.path}")


def _trained():
    """What --from, --config, --arm and --model choose."""
    config = None if _CONFIG.value is None else _config()
    workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
    if _FROM.value:
        source = pathlib.Path(_FROM.value)
    elif workdir:
        source = workdir
    elif config is not None:
        source = pathlib.Path("workdir") / config.name
    else:
        raise ConfigError("this command needs --from=DIR, or --config=... as it ran")
    from cadc_jax.serving import trained

    return trained.open_trained(source, workdir, config, _ARM.value, _MODEL.value)


def _info(folder: str | None = None) -> None:
    """Explains a folder: what it is, how it was made, its size, and whether it is whole.

    cadc info workdir/criteo
    """
    if folder is None:
        raise ConfigError("this command needs a folder: cadc info DIR")
    from cadc_jax.run import folder_info

    print(folder_info.explain(pathlib.Path(folder), _VERIFY.value))


def _doctor() -> None:
    """Checks this machine, and runs all stages on a few rows; says what to mend.

    cadc doctor
    """
    from cadc_jax.cli import doctor

    if not doctor.examine(pathlib.Path(_WORKDIR.value or "workdir")):
        sys.exit(1)


COMMANDS = {
    "run": _run,
    "compress": _compress,
    "train": _train,
    "interactions": _interactions,
    "plan": _plan,
    "verify": _verify,
    "recommend": _recommend,
    "export": _export,
    "info": _info,
    "doctor": _doctor,
}
_WITH_FOLDER = ("info",)
_BY_SEVERAL = ("run", "compress", "train")


def _config():
    """The configuration of the command line.

    Raises:
      ConfigError: if there is none, or its file cannot be read.
    """
    if _CONFIG.value is None:
        raise ConfigError("no configuration: give one, such as --config=configs/criteo.py")
    try:
        _CONFIG.value.name  # noqa: B018  config_flags puts off the failure to the first use
    except OSError as error:
        raise ConfigError(f"--config: {str(error).split('failure to load: ')[-1]}") from None
    except AttributeError:
        raise ConfigError(
            "--config: get_config() of the file must return a configuration that starts from "
            "cadc_jax.configuration.default_config()"
        ) from None
    return _CONFIG.value


def _experiment(config):
    from cadc_jax import experiment, sharding

    workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("workdir") / config.name)
    cores = not _several() and sharding.split_cores()
    return experiment.Run(config, workdir, verify=_VERIFY.value, stop=_STOP, cores=cores)


def _needed(flag: flags.FlagHolder, kind: str = "DIR") -> str:
    if not flag.value:
        raise ConfigError(f"this command needs --{flag.name}={kind}")
    return flag.value


def run() -> None:
    """Entry point: errors of the user's end in one line and exit code 1."""
    logging.set_verbosity(logging.WARNING)
    app.run(
        lambda argv: exits.guarded(lambda: main(argv), _STOP),
        flags_parser=lambda argv: parse.parse(argv, __doc__, COMMANDS),
    )


if __name__ == "__main__":
    run()
