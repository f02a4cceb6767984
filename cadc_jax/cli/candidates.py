"""Shows which columns of a click log may stand for users and items.

Example:

    cadc candidates --config=configs/criteo.py --rows=100000
"""

from absl import flags

from cadc_jax.cli.flags import ROWS, config, run_of

DEFAULT_ROWS = 200_000  # training rows to look at

for _name in ("config", "workdir", "scratch", "verify", "rows"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    settings = config()
    from cadc_jax import experiment

    experiment.candidates(run_of(settings), ROWS.value or DEFAULT_ROWS)
