"""Estimates what a run would need: memory, traffic between devices, and time.

Example:

    cadc plan --config=configs/criteo_terabyte.py --rows=4195197692 --devices=8 --hardware=v5p
"""

from absl import flags

from cadc_jax.cli.flags import ROWS, config, run_of

_DEVICES = flags.DEFINE_integer(
    "devices",
    1,
    "Number of devices; they share batches, and tables that are split.",
    lower_bound=1,
)
_HOSTS = flags.DEFINE_integer(
    "hosts", 1, "Number of hosts, each with as many of the devices.", lower_bound=1
)
_HARDWARE = flags.DEFINE_string("hardware", "v5e", "v5e, v5p, v6e, h100, h200 or cpu.")
_NUM_USERS = flags.DEFINE_integer(
    "num_users", None, "Number of users, if no table is prepared.", lower_bound=1
)
_NUM_ITEMS = flags.DEFINE_integer(
    "num_items", None, "Number of items, if no table is prepared.", lower_bound=1
)
_FEATURE_ROWS = flags.DEFINE_integer(
    "feature_rows",
    None,
    "Number of values of all other categorical features, if no table is prepared.",
    lower_bound=0,
)
for _name in ("config", "workdir", "scratch", "rows"):
    flags.declare_key_flag(_name)


def main() -> None:
    """Runs the command."""
    settings = config()
    from cadc_jax.run import planning

    sizes = {
        "rows": ROWS.value,
        "num_users": _NUM_USERS.value,
        "num_items": _NUM_ITEMS.value,
        "feature_rows": _FEATURE_ROWS.value,
    }
    given = {name: size for name, size in sizes.items() if size is not None}
    planning.plan(run_of(settings), _DEVICES.value, _HARDWARE.value, given, _HOSTS.value)
