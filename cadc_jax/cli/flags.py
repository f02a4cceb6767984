"""Flags that several commands take, and what they mean together.

A command declares the ones it takes as its key flags, with absl's `declare_key_flag`. Its help
screen shows these, and the program refuses the others.
"""

import pathlib
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from cadc_jax.errors import ConfigError
from cadc_jax.runtime import storage
from cadc_jax.runtime.interrupts import Stop
from cadc_jax.runtime.storage import AnyPath, Remote

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from cadc_jax.run.context import Run

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of the configuration, for example configs/criteo.py.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for artefacts and the report, or its URL, such as gs://bucket/run; default: "
    "workdir/<name of the config>.",
)
SCRATCH = flags.DEFINE_string(
    "scratch",
    None,
    "Local folder of a --workdir on a URL, from which finished stages are copied there; default: "
    "in $CADC_CACHE_DIR, or ~/.cache.",
)
VERIFY = flags.DEFINE_bool(
    "verify",
    True,
    "Compare the checksums of finished stages before they are used again (reads them whole).",
)
FROM = flags.DEFINE_string(
    "from",
    None,
    "A folder that 'cadc compress' made, or its URL. 'verify' takes any artefact, 'recommend' and "
    "'export' also a work folder, and 'update' a work folder alone.",
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "The folder to make, or its URL; with 'recommend' the Parquet file; with 'study' its folder, "
    "by default workdir/study/<name of the config>; with 'init' the configuration, by default "
    "configs/<name of the log>.py.",
)
ROWS = flags.DEFINE_integer(
    "rows",
    None,
    "Number of training rows: to look at (candidates), or that there are (plan).",
    lower_bound=1,
)
K = flags.DEFINE_integer("k", 10, "Items to find.")
ARM = flags.DEFINE_string(
    "arm",
    None,
    "Arm, such as cadc_frozen; mf_alone (the factors) or popularity. By default the arm with the "
    "best validation result.",
)
MODEL = flags.DEFINE_string(
    "model",
    None,
    "Network: dlrm, dcn or two_tower. By default the one with the best validation result.",
)
ARMS = flags.DEFINE_list(
    "arms",
    None,
    "Arms to train, such as cadc_frozen ('train' takes arms on a sample only); default: those of "
    "the configuration.",
)
MODELS = flags.DEFINE_list(
    "models",
    None,
    "Networks to train: dlrm, dcn, two_tower. By default those configured.",
)
TRIALS = flags.DEFINE_integer(
    "trials",
    None,
    "Settings that the validation split chooses among: of each factorisation (tune; default: 48), "
    "or of each arm and rival (study; by default networks and factors have the configured ones).",
    lower_bound=2,
)
CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder for compiled programs, which later runs find again, or 'off'; default: in ~/.cache.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes of the cluster that JAX finds itself in."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; the port must be free there."
)
COORDINATOR_BIND = flags.DEFINE_string(
    "coordinator_bind",
    None,
    "HOST:PORT on which process 0 listens; default: the coordinator's port on all interfaces.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", 300, "How long to wait for the other processes to join."
)
PROCESSES = (
    "distributed",
    "coordinator",
    "coordinator_bind",
    "num_processes",
    "process_id",
    "join_seconds",
)

STOP = Stop()


def several_processes() -> bool:
    """Whether any flag says that this is one process of several."""
    given = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    return DISTRIBUTED.value or any(value is not None for value in given)


def config() -> "ConfigDict":
    """The configuration of the command line.

    Raises:
      ConfigError: if there is none, or its file cannot be read.
    """
    if CONFIG.value is None:
        raise ConfigError("no configuration: give one, such as --config=configs/criteo.py")
    try:
        CONFIG.value.name  # noqa: B018  config_flags reads the file at the first use
    except OSError as error:
        raise ConfigError(f"--config: {str(error).split('failure to load: ')[-1]}") from None
    except AttributeError:
        raise ConfigError(
            "--config: get_config() of the file must return a configuration that starts from "
            "cadc_jax.configuration.default_config()"
        ) from None
    return CONFIG.value


def run_of(config: "ConfigDict") -> "Run":
    """The run of a configuration in the work folder of the command line."""
    from cadc_jax import sharding  # JAX takes seconds to import; --help and a typo do without
    from cadc_jax.configuration import folder_name
    from cadc_jax.run.context import Run
    from cadc_jax.runtime import compilation

    if CACHE.value != "off":
        compilation.use_cache(cache_folder() or compilation.default_folder())
    workdir = place(WORKDIR) or pathlib.Path("workdir") / folder_name(config)
    remote = None
    if isinstance(workdir, Remote):
        remote, workdir = workdir, scratch_of(workdir)
    elif SCRATCH.value:
        raise ConfigError("--scratch: goes with a --workdir that is a URL")
    cores = not several_processes() and sharding.split_cores()
    return Run(config, workdir, verify=VERIFY.value, stop=STOP, cores=cores, remote=remote)


def scratch_of(workdir: Remote) -> pathlib.Path:
    """The local folder in which work on a remote work folder is done."""
    if not SCRATCH.value:
        return storage.scratch_folder(workdir)
    return storage.local_path(SCRATCH.value, "--scratch")


def cache_folder() -> pathlib.Path | None:
    """The folder of compiled programs that a flag gives, if it is given.

    Raises:
      ConfigError: if it is a URL.
    """
    if not CACHE.value:
        return None
    why = "JAX itself keeps programs on a URL: JAX_COMPILATION_CACHE_DIR=gs://..."
    return storage.local_path(CACHE.value, "--compilation_cache", why)


def place(flag: flags.FlagHolder) -> AnyPath | None:
    """The path or URL that a flag gives, if it is given.

    Raises:
      ConfigError: if it is a URL that cannot be used.
    """
    return storage.path_of(flag.value, f"--{flag.name}") if flag.value else None


def needed(flag: flags.FlagHolder, kind: str = "DIR") -> AnyPath:
    """The path or URL that a flag gives, which the command cannot do without.

    Raises:
      ConfigError: if it is not given, or is a URL that cannot be used.
    """
    found = place(flag)
    if found is None:
        raise ConfigError(f"this command needs --{flag.name}={kind}")
    return found


def needed_here(flag: flags.FlagHolder) -> pathlib.Path:
    """The folder that a flag gives; one on a URL is copied to the cache.

    Raises:
      ConfigError: if it is not given, or is a URL that cannot be used.
      StorageError: if the store cannot be read.
    """
    from cadc_jax.runtime import mirror

    return mirror.local_copy(needed(flag), flag.name)
