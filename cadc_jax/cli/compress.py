"""Writes the compressed data set, everything that training needs, to a folder.

Example:

    cadc compress --config=configs/criteo.py --rate=0.1 --out=/data/small

With --bytes it chooses the rank of the factors, their bits and the rate, by the validation split:

    cadc compress --config=configs/criteo.py --bytes=20MB --out=/data/small
"""

from absl import flags

from cadc_jax.cli.flags import OUT, PROCESSES, config, needed, run_of

_RATE = flags.DEFINE_float("rate", None, "Share of the training rows to keep; config.rate.")
_BYTES = flags.DEFINE_string(
    "bytes",
    None,
    "Largest size of what training reads (kept rows, factors, content), such as 20MB. The "
    "configured rank and rate are the largest ones tried. Mask and held-out rows come on top.",
)
for _name in ("config", "workdir", "scratch", "verify", "out", "compilation_cache", *PROCESSES):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    settings = config()
    if _RATE.value is not None:
        settings.rate = _RATE.value
    from cadc_jax import experiment
    from cadc_jax.run.budget import parse_bytes

    budget = None if _BYTES.value is None else parse_bytes(_BYTES.value)
    experiment.compress(run_of(settings), needed(OUT), budget)
