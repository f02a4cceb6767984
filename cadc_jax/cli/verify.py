"""Checks an artefact, a compressed data set for example: all checksums and all values.

With --sha256 it also compares the SHA-256 of its manifest with one that came another way, from the
person who made it. Only that tells whether someone else changed the folder.

Examples:

    cadc verify --from=/data/small
    cadc verify --from=/data/small --sha256=5d41402abc4b2a76b9719d911017c592...
"""

from absl import flags

from cadc_jax.cli.flags import FROM, needed_here
from cadc_jax.errors import ArtifactError

_SHA256 = flags.DEFINE_string(
    "sha256", None, "SHA-256 of the manifest that the folder has to have, as 'compress' printed it."
)
for _name in ("from", "sha256"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    folder = needed_here(FROM)
    from cadc_jax.serving import folder_info

    found = folder_info.check_artifact(folder)
    if _SHA256.value is not None and _SHA256.value.strip().lower() != found:
        raise ArtifactError(
            f"{folder}: its SHA-256 is {found}, not {_SHA256.value}: it is not the folder that "
            "this number belongs to; get it again from who made it"
        )
    print(f"{folder}: whole and undamaged\nSHA-256 {found}")
