"""Looks at a log, and writes a configuration for it.

Examples:

    cadc init /data/ratings.csv
    cadc init /data/shop --out=configs/shop.py

LOG is a file (CSV, TSV, Parquet, Arrow, lines 'user item item ...') or a folder of the files of one
log. Only their first rows are read. No file is written over.
"""

import pathlib

from absl import flags

from cadc_jax.cli.flags import OUT
from cadc_jax.errors import ConfigError
from cadc_jax.runtime import storage
from cadc_jax.runtime.text import printable

flags.declare_key_flag("out")


def main(log: str | None = None) -> None:
    """Runs the command."""
    if log is None:
        raise ConfigError("this command needs a log: cadc init FILE, or cadc init DIR")
    why = "copy a file of it, and set data.path in the configuration to the URL"
    path = storage.local_path(log, "LOG", why)
    out = storage.local_path(OUT.value, "--out") if OUT.value else None
    from cadc_jax.drafting import draft  # imports JAX

    made = draft.draft(path.expanduser(), out.stem if out else "")
    out = out or pathlib.Path("configs") / f"{made.name}.py"
    draft.write(made, out)
    for line in made.why:
        print(printable(f"    {line}"))
    print(f"wrote {out}: look at it, then\n\n    cadc --config={out}")
