"""Adds new rows to a finished run, in a new work folder; nothing is started over.

The rows have the format of the run's data. They all become training rows. With several runs in the
folder, --config chooses one.

Example:

    cadc update --from=workdir/criteo --log=/data/day_7 --workdir=workdir/criteo_7
    cadc run --config=configs/criteo.py --workdir=workdir/criteo_7   # trains and compares
"""

from absl import flags

from cadc_jax.cli.flags import CONFIG, FROM, VERIFY, WORKDIR, config, needed, needed_here, run_of

_LOG = flags.DEFINE_string("log", None, "The new rows: a file, or a folder as data.path names one.")
for _name in ("from", "log", "config", "workdir", "scratch", "verify", "compilation_cache"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    folder, log = needed_here(FROM), needed(_LOG, "FILE")
    needed(WORKDIR)
    from cadc_jax import experiment
    from cadc_jax.run import updates

    chosen = None if CONFIG.value is None else config()
    before = updates.open_before(folder, chosen, VERIFY.value)
    experiment.update(run_of(before.config), before, log)
