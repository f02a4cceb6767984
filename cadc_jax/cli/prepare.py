"""Prepares the table alone, the first stage of a run; with --runner by Apache Beam.

Examples:

    cadc prepare --config=configs/criteo.py
    cadc prepare --config=configs/criteo.py --runner=DirectRunner --beam=direct_num_workers=1

The table is the same in each case, and 'cadc run' with the same --workdir starts from it. All
workers need this package and have to reach the raw files and --beam_scratch under the same names.
"""

import functools

from absl import flags

from cadc_jax.cli.flags import config, run_of
from cadc_jax.errors import ConfigError

_RUNNER = flags.DEFINE_enum(
    "runner",
    None,
    ["DirectRunner", "DataflowRunner", "FlinkRunner"],
    "Runner of Apache Beam. By default this process prepares the table, without Beam.",
)
_BEAM = flags.DEFINE_multi_string(
    "beam", [], "An option of Beam, NAME=VALUE, such as project=NAME; may be given several times."
)
_SCRATCH = flags.DEFINE_string(
    "beam_scratch",
    None,
    "Folder or URL that all of Beam's workers reach; it holds the rows while they are prepared. "
    "Default: in the work folder.",
)
for _name in ("config", "workdir", "scratch", "verify", "compilation_cache"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    if _RUNNER.value is None:
        for flag in (_BEAM, _SCRATCH):
            if flag.value:
                raise ConfigError(f"--{flag.name} belongs to Beam: give --runner as well")
    run = run_of(config())
    from cadc_jax import experiment

    if _RUNNER.value is None:
        experiment.run(run, "prepare")
        return
    try:
        from cadc_jax.beam import table
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise ConfigError(
            "--runner needs Apache Beam: pip install 'cadc-jax[beam]', in an environment of its own"
        ) from None
    how = table.BeamConfig(
        _RUNNER.value, run.config.data.source, _SCRATCH.value, tuple(_BEAM.value)
    )
    experiment.prepare(run, functools.partial(table.write_table, how=how))
