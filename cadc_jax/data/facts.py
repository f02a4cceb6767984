"""What `prepare.write_table` reports of a table."""

from collections.abc import Mapping

from cadc_jax.data.raw import PARTS
from cadc_jax.runtime import manifest

REPORT: manifest.Kind = {"rows": int, "padded": int, "malformed": int, "examples": [str]}
FACTS: manifest.Kind = {
    "rows": {name: int for name in PARTS},
    "num_users": int,
    "num_items": int,
    "hashed": [str],
    "merged_repeats": int,
    "reader": REPORT,
}


def describe_rows(rows: Mapping[str, int]) -> str:
    """The fact `rows` for people; rows to fold in are named if there are any."""
    return ", ".join(f"{count:,} {part}" for part, count in rows.items() if count)
