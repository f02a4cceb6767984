"""Writes a trained model for other programs: embeddings, raw ids, parameters.

Example:

    cadc export --from=workdir/criteo --format=savedmodel --out=/models/ads
"""

from absl import flags

from cadc_jax.cli.flags import OUT, needed
from cadc_jax.cli.trained import FLAGS, chosen

_FORMAT = flags.DEFINE_string("format", "npz", "npz, safetensors or savedmodel.")
for _name in (*FLAGS, "out"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    out = needed(OUT)
    trained = chosen()
    from cadc_jax.runtime import mirror
    from cadc_jax.serving import export

    with mirror.destination(out) as path:
        export.write_export(trained, path, _FORMAT.value)
    print(f"{out}: {trained}\nas {_FORMAT.value}; what is in it: cadc info {out}")
