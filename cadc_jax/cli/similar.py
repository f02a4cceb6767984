"""Finds the items that are most similar to an item.

Similar items have vectors in nearly the same direction: the cosine of their factors is compared.

Example:

    cadc similar --from=workdir/movielens_1m --item=260 --k=5
"""

from absl import flags

from cadc_jax.cli.flags import K
from cadc_jax.cli.trained import FLAGS, chosen, source
from cadc_jax.errors import ConfigError
from cadc_jax.runtime.text import printable

_ITEM = flags.DEFINE_string("item", None, "A raw item id, as in the log.")
for _name in (*FLAGS, "k"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    if not _ITEM.value:
        raise ConfigError("this command needs --item=ID")
    from cadc_jax.serving import raw_ids  # without JAX: an unknown id is an error at once

    raw_ids.check_known(source(), "item", _ITEM.value)
    trained = chosen()
    from cadc_jax.serving import recommend

    print(printable(recommend.show_similar(trained, _ITEM.value, K.value)))
