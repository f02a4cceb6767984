"""Writes the compressed data set, everything that training needs, to a folder.

Example:

    cadc compress --config=configs/criteo.py --rate=0.1 --out=/data/small
"""

from absl import flags

from cadc_jax.cli.flags import OUT, PROCESSES, config, needed, run_of

_RATE = flags.DEFINE_float("rate", None, "Share of the training rows to keep; config.rate.")
for _name in ("config", "workdir", "verify", "out", *PROCESSES):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    settings = config()
    if _RATE.value is not None:
        settings.rate = _RATE.value
    from cadc_jax import experiment

    experiment.compress(run_of(settings), needed(OUT))
