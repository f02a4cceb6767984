"""Compares all checksums of an artefact.

Example:

    cadc verify --from=/data/small
"""

from absl import flags

from cadc_jax.cli.flags import FROM, needed

flags.declare_key_flag("from")


def main() -> None:
    """Runs the command."""
    folder = needed(FROM)
    from cadc_jax.runtime import artifacts

    artifacts.open_artifact(folder, verify=True)
    print(f"{folder}: whole and undamaged")
