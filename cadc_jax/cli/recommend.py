"""Finds the best items that a user, or every user, has not had.

A user who is not in the data is given by items: --items=ID,ID.

Examples:

    cadc recommend --config=configs/movielens_1m.py --user=42 --k=5
    cadc recommend --from=/data/small --items=260,1196 --arm=mf_alone
    cadc recommend --from=/data/small --users=all --out=recs.parquet
"""

from absl import flags

from cadc_jax.cli.flags import ARM, OUT, K, needed
from cadc_jax.cli.trained import FLAGS, chosen, source
from cadc_jax.errors import ConfigError
from cadc_jax.run.arms import POPULARITY
from cadc_jax.runtime.text import printable

_USER = flags.DEFINE_string("user", None, "A raw user id, as in the log.")
_ITEMS = flags.DEFINE_string(
    "items",
    None,
    "Raw ids, joined by commas, of the items of a user who is not in the data. Takes the factors "
    "alone, or a model with frozen ones.",
)
_USERS = flags.DEFINE_string(
    "users", None, "'all', or a file of raw user ids, one a line; needs --out."
)
for _name in (*FLAGS, "out", "k"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    user, items, users = _USER.value, _ITEMS.value, _USERS.value
    if sum(map(bool, (user, items, users))) != 1:
        raise ConfigError(
            "this command needs --user=ID, --items=ID,ID, or --users=all|FILE with --out=FILE"
        )
    out = needed(OUT, "FILE") if users else None
    from cadc_jax.serving import raw_ids  # without JAX: an unknown id is an error at once

    if ARM.value != POPULARITY.name and user:
        raw_ids.check_known(source(), "user", user)
    if items:
        raw_ids.check_known(source(), "item", items)
    trained = chosen()
    from cadc_jax.runtime import mirror
    from cadc_jax.serving import recommend

    if user:
        print(printable(recommend.show(trained, user, K.value)))
    elif items:
        print(printable(recommend.show_new(trained, items, K.value)))
    elif users and out:
        with mirror.destination(out, "file") as path:
            text = recommend.write_recommendations(trained, users, K.value, path)
        print(text.replace(str(path), str(out)))
