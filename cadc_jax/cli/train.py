"""Compares the arms from a compressed data set alone.

Example:

    cadc train --from=/data/small
"""

from absl import flags

from cadc_jax.cli.flags import CONFIG, FROM, PROCESSES, VERIFY, config, needed, run_of

for _name in ("from", "config", "workdir", "verify", "compilation_cache", *PROCESSES):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    folder = needed(FROM)
    from cadc_jax import experiment
    from cadc_jax.run import compressed

    given = compressed.open_compressed(folder, VERIFY.value)
    settings = given.config if CONFIG.value is None else config()
    experiment.train_from(run_of(settings), given)
