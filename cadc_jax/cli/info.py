"""Explains a folder: what it is, how it was made, its size, and whether it is whole.

Example:

    cadc info workdir/criteo
"""

from absl import flags

from cadc_jax.cli.flags import VERIFY
from cadc_jax.errors import ConfigError
from cadc_jax.runtime import storage
from cadc_jax.runtime.text import printable

flags.declare_key_flag("verify")


def main(folder: str | None = None) -> None:
    """Runs the command."""
    if folder is None:
        raise ConfigError("this command needs a folder: cadc info DIR")
    from cadc_jax.runtime import mirror
    from cadc_jax.serving import folder_info

    place = mirror.local_copy(storage.path_of(folder, "DIR"), "DIR")
    print(printable(folder_info.explain(place, VERIFY.value)))
