"""Writes a compressed data set as plain .npy files, for other programs.

Example:

    cadc unpack --from=/data/small --out=/data/plain
"""

from absl import flags

from cadc_jax.cli.flags import FROM, OUT, VERIFY, needed

for _name in ("from", "out", "verify"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    folder, out = needed(FROM), needed(OUT)
    from cadc_jax.run import compressed

    made = compressed.write_plain(compressed.open_compressed(folder, VERIFY.value), out)
    print(f"{made.path}: {made.facts['rows']:,} kept rows, factors and held-out rows")
