"""Compress the training data of a recommender, and compare what is trained on it.

    cadc --config=configs/criteo.py                          (or: python -m cadc_jax.main ...)

Runs the stages prepare, factorize, sample, train, evaluate and report. Each leaves an artefact in
the work folder, which a second run finds and reuses. Any field of the configuration can be changed:

    --config.data.path=/data/train.txt --config.rate=0.01 --config.seed=1

Without a command it is 'cadc run'. SIGTERM and Ctrl-C save the work that is under way. The same
command then resumes it, as it does after a crash.

On several hosts, or in several processes, start the same command everywhere, with a --workdir
on a URL (gs://bucket/run) or in a folder that all of them share, and with --distributed (on Cloud
TPU, GKE, Slurm or Open MPI) or

    --coordinator=HOST:PORT --num_processes=N --process_id=K     (K from 0; process 0 is on HOST)
"""

import os

# TensorFlow only reads data here; these silence what it logs when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, logging

from cadc_jax.cli import (
    candidates,
    compress,
    doctor,
    exits,
    export,
    flags,
    info,
    init,
    parse,
    plan,
    prepare,
    recommend,
    run,
    similar,
    study,
    train,
    tune,
    unpack,
    update,
    verify,
)
from cadc_jax.errors import CadcError
from cadc_jax.runtime.text import nearest

COMMANDS = {
    "run": run,
    "init": init,
    "prepare": prepare,
    "compress": compress,
    "train": train,
    "unpack": unpack,
    "update": update,
    "tune": tune,
    "study": study,
    "candidates": candidates,
    "plan": plan,
    "verify": verify,
    "recommend": recommend,
    "similar": similar,
    "export": export,
    "info": info,
    "doctor": doctor,
}
RENAMED = {"interactions": "candidates"}
_WITH_PATH = ("info", "init")


def main(argv: list[str]) -> None:
    """Runs the command, which is the first argument; without one, the configured experiment."""
    command, *rest = argv[1:] or ["run"]
    if command in RENAMED:
        raise CadcError(f"the command '{command}' is now called '{RENAMED[command]}'")
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS)
        raise CadcError(
            f"unexpected argument '{command}'{hint}: commands are {', '.join(COMMANDS)}; options "
            "are written --name=value"
        )
    if rest and (command not in _WITH_PATH or len(rest) > 1):
        raise CadcError(f"unexpected argument '{rest[-1]}': options are written --name=value")
    parse.check_flags(command, COMMANDS)
    if not flags.several_processes():
        COMMANDS[command].main(*rest)
        return
    from cadc_jax.runtime import distributed  # imports JAX

    distributed.initialize(
        flags.COORDINATOR.value,
        flags.NUM_PROCESSES.value,
        flags.PROCESS_ID.value,
        flags.DISTRIBUTED.value,
        flags.JOIN_SECONDS.value,
        flags.COORDINATOR_BIND.value,
    )
    COMMANDS[command].main()
    distributed.finish()


def run_program() -> None:
    """Entry point: a user's error is one line and exit code 1."""
    logging.set_verbosity(logging.WARNING)
    app.run(
        lambda argv: exits.guarded(lambda: main(argv), flags.STOP),
        flags_parser=lambda argv: parse.parse(argv, __doc__, COMMANDS),
    )


if __name__ == "__main__":
    run_program()
