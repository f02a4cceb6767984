"""Searches the settings of the factorisation, by the validation split.

Regularisation and confidence decide more than anything else how good the factors are. The search
prints its best trials beside popularity and beside the configuration as it is, and the winner as
lines to paste into it. It never looks at the test split. After a kill the same command
resumes it; with more trials it starts over.

Example:

    cadc tune --config=configs/epinions.py --trials=48 --factors=64,128
"""

from absl import flags

from cadc_jax.cli.flags import PROCESSES, TRIALS, config, run_of

DEFAULT_TRIALS = 48  # most are drawn at random, and only the best get all iterations
_FACTORS = flags.DEFINE_list(
    "factors", [], "Numbers of factors to try, such as 64,128; default: the configured one."
)
for _name in ("config", "workdir", "scratch", "trials", "verify", "compilation_cache", *PROCESSES):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    settings = config()
    from cadc_jax import experiment
    from cadc_jax.run.tune import parse_ranks

    ranks = parse_ranks(_FACTORS.value)
    experiment.tune_factorization(run_of(settings), TRIALS.value or DEFAULT_TRIALS, ranks)
