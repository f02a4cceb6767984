"""Writes a compressed data set as plain .npy files, for other programs.

Example:

    cadc unpack --from=/data/small --out=/data/plain
"""

from absl import flags

from cadc_jax.cli.flags import FROM, OUT, VERIFY, needed, needed_here

for _name in ("from", "out", "verify"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    folder, out = needed_here(FROM), needed(OUT)
    from cadc_jax.run import compressed
    from cadc_jax.runtime import mirror

    given = compressed.open_compressed(folder, VERIFY.value)
    with mirror.destination(out) as path:
        made = compressed.write_plain(given, path)
    print(f"{out}: {made.facts['rows']:,} kept rows, factors and held-out rows")
