"""Runs the experiment: prepare, factorize, sample, train, evaluate, report.

Example:

    cadc run --config=configs/criteo.py --config.rate=0.01
"""

from absl import flags

from cadc_jax.cli.flags import PROCESSES, config, run_of

STAGES = ("prepare", "factorize", "sample", "train", "evaluate", "report")

_STAGE = flags.DEFINE_enum(
    "stage",
    "report",
    STAGES,
    "Last stage to run; the ones before it run too, unless they are finished.",
)
for _name in ("config", "workdir", "scratch", "verify", "compilation_cache", *PROCESSES):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    from cadc_jax import experiment

    experiment.run(run_of(config()), _STAGE.value)
