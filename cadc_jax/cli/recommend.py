"""Finds the best items that a user, or every user, has not had.

Examples:

    cadc recommend --config=configs/movielens_1m.py --user=42 --k=5
    cadc recommend --from=/data/small --users=all --out=recs.parquet
"""

from absl import flags

from cadc_jax.cli.flags import OUT, needed
from cadc_jax.cli.trained import FLAGS, chosen
from cadc_jax.errors import ConfigError
from cadc_jax.runtime.text import printable

_USER = flags.DEFINE_string("user", None, "A raw user id, as in the log.")
_USERS = flags.DEFINE_string(
    "users", None, "'all', or a file of raw user ids, one a line; needs --out."
)
_K = flags.DEFINE_integer("k", 10, "Items a user.")
for _name in (*FLAGS, "out"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    user, users = _USER.value, _USERS.value
    if bool(user) == bool(users):
        raise ConfigError("this command needs --user=ID, or --users=all|FILE with --out=FILE")
    out = needed(OUT, "FILE") if users else None
    trained = chosen()
    from cadc_jax.serving import recommend

    if user:
        print(printable(recommend.show(trained, user, _K.value)))
    elif users and out:
        print(recommend.write_recommendations(trained, users, _K.value, out))
